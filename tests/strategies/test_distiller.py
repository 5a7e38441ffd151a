from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from kdresearch.artifacts import Store
from kdresearch.data.batches import EpochBatches
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import WordTokenizer
from kdresearch.errors import UserError
from kdresearch.evaluation.metrics import task_metrics
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramLinear
from kdresearch.models.textcnn import TextCNN
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.objectives.objective import Objective
from kdresearch.package import Package
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.schedules import linear
from kdresearch.strategies.soft_label import SoftLabelDistiller
from kdresearch.strategies.weights import WeightSchedule
from kdresearch.structures import Batch, Outputs, Signature
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("negative", "positive")


class Projected(Objective):
    """The student's pooled vector on the teacher's, through a layer of its own."""

    needs = frozenset({"logits", "pooled"})
    teacher_needs = frozenset({"pooled"})

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.projection = nn.Linear(student, teacher)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return (self.projection(student.pooled) - teacher.pooled).square().mean()


class ManyClasses(SoftLabel):
    min_classes = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextDataModule:
    store = Store(tmp_path_factory.mktemp("store"))
    source = Reviews(train=60, test=20, unlabelled=30)
    made = TextDataModule(source, WordTokenizer(min_count=1, max_length=32), store=store, batch_size=16,
                          validation=21, transfer="unlabelled").prepare()  # fmt: skip
    made.teacher_rows = made.student_rows
    return made


def student(data: TextDataModule, seed: int = 1, dropout: float = 0.0) -> BiLSTM:
    torch.manual_seed(seed)
    return BiLSTM(data.tokenizer.size, 2, embedding_dim=6, hidden_dim=5, dropout=dropout)


def teacher(data: TextDataModule, **settings: Any) -> LiveTeacher:
    torch.manual_seed(9)
    model = BiLSTM(data.tokenizer.size, 2, embedding_dim=8, hidden_dim=7, **{"dropout": 0.5} | settings)
    return LiveTeacher(Package(model, data.tokenizer, CLASSES, "", {}))


def distiller(data: TextDataModule, weights: Mapping[str, float] | None = None, **wiring: Any) -> Distiller:
    model = wiring.pop("student", None) or student(data)
    objectives = {"label": Label(), "soft_label": SoftLabel(2.0), "projected": Projected(model.signature.width, 14)}
    return Distiller(
        model,
        classes=CLASSES,
        objectives=objectives,
        weights=weights or {"label": 1.0, "soft_label": 0.5, "projected": 0.1},
        **{"teacher": teacher(data)} | wiring,
    )


def fit(module: Distiller, data: TextDataModule, folder: Path, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=folder, use_distributed_sampler=False,
        **{"max_epochs": 1, "logger": False} | settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer


def batches(data: TextDataModule) -> list[Batch]:
    return list(data.train_dataloader())


def test_the_teacher_is_in_no_part_of_the_module(data: TextDataModule) -> None:
    module = distiller(data)
    frozen = {id(parameter) for parameter in module.teacher.model.parameters()}
    assert not frozen & {id(parameter) for parameter in module.parameters()}
    grouped = [parameter for group in module.parameter_groups() for parameter in group["params"]]
    assert not frozen & {id(parameter) for parameter in grouped}
    assert not any(id(each) == id(module.teacher.model) for each in module.modules())
    assert {name.split(".")[0] for name in module.state_dict()} == {"student", "objectives"}
    assert "objectives.projected.projection.weight" in module.state_dict()
    # every parameter of the module in exactly one group
    assert sorted(map(id, grouped)) == sorted(id(parameter) for parameter in module.parameters())


def test_fitting_changes_student_and_objectives_and_not_the_teacher(data: TextDataModule, tmp_path: Path) -> None:
    module = distiller(data, student=student(data, dropout=0.3))
    (batch, *_) = batches(data)
    needs = frozenset({"logits", "pooled", "hidden"})
    before = module.teacher(batch, needs)
    weights = {name: value.clone() for name, value in module.teacher.model.state_dict().items()}
    own = {name: value.clone() for name, value in module.named_parameters()}

    fit(module, data, tmp_path, max_epochs=2)

    assert not any(each.training for each in module.teacher.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.model.parameters())
    after = module.teacher(batch, needs)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.pooled, after.pooled)
    assert all(torch.equal(*pair) for pair in zip(before.hidden, after.hidden, strict=True))
    assert all(torch.equal(value, weights[name]) for name, value in module.teacher.model.state_dict().items())
    assert {name for name, value in module.named_parameters() if torch.equal(value, own[name])} == set()


def test_the_student_is_trained_in_train_mode(data: TextDataModule) -> None:
    model = student(data, dropout=0.5).eval()  # as pretrained models come
    module = distiller(data, student=model)
    (batch, *_) = batches(data)
    assert model.training
    assert not torch.equal(module(batch), module(batch))


def test_loss_is_the_weighted_sum_of_the_terms(data: TextDataModule) -> None:
    module = distiller(data, weights={"label": 0.7, "soft_label": 1.3, "projected": 0.25})
    (batch, *_) = batches(data)
    loss = module.training_step(batch, 0)
    terms = module.terms(batch)
    expected = 0.7 * terms["label"] + 1.3 * terms["soft_label"] + 0.25 * terms["projected"]
    assert torch.allclose(loss, expected)
    logged = module.since_row.compute()
    assert logged == pytest.approx({name: float(value) for name, value in terms.items()} | {"loss": float(loss)})
    assert not any(sums.requires_grad for sums, _ in module.since_row.sums.values())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"label": 1, "soft_lable": 1, "projected": 1}, r"no objective 'soft_lable' \(did you mean 'soft_label'\?\)"),
        ({"label": 1, "soft_label": 1}, r"Distiller needs a weight for 'projected'"),
        ({"label": 1, "soft_label": -0.5, "projected": 1}, r"weights\.soft_label .* -0\.5"),
        ({"label": 1, "soft_label": float("nan"), "projected": 1}, r"weights\.soft_label .* nan"),
        ({"label": 1, "soft_label": float("inf"), "projected": 1}, r"weights\.soft_label .* inf"),
        ({"label": 0, "soft_label": 0, "projected": 0}, r"all of label, soft_label, projected are 0"),
    ],
)
def test_weights_that_make_no_sense(data: TextDataModule, weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(data, weights=weights)


def test_a_weight_of_zero_leaves_the_term_out_and_then_needs_no_teacher(data: TextDataModule) -> None:
    module = distiller(data, weights={"label": 1, "soft_label": 0, "projected": 0}, teacher=None)
    assert list(module.objectives) == ["label"]
    assert module.teacher is None
    assert not module.learns_from_unlabelled
    assert module.student_needs == {"logits"}
    (batch, *_) = batches(data)
    assert set(module.terms(batch)) == {"label"}
    # a teacher that is given and of no use is not kept
    assert distiller(data, weights={"label": 1, "soft_label": 0, "projected": 0}).teacher is None
    assert distiller(data, weights={"label": 0, "soft_label": 1, "projected": 0}).learns_from_unlabelled


def test_class_weights_reach_the_labels_alone(data: TextDataModule) -> None:
    plain, weighted = distiller(data), distiller(data, class_weights=[1.0, 9.0])
    (batch, *_) = batches(data)
    before, after = plain.terms(batch), weighted.terms(batch)
    labelled = batch.label >= 0
    expected = nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]))(plain(batch)[labelled], batch.label[labelled])
    assert torch.allclose(after["label"], expected) and not torch.allclose(after["label"], before["label"])
    assert torch.equal(after["soft_label"], before["soft_label"])
    assert weighted.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(UserError, match=r"class_weights: none of soft_label is the cross-entropy with gold labels"):
        distiller(data, weights={"label": 0, "soft_label": 1, "projected": 0}, class_weights=[1.0, 9.0])


def test_only_what_is_needed_is_asked_for(data: TextDataModule) -> None:
    module = distiller(data, weights={"label": 1, "soft_label": 1, "projected": 0})
    assert (module.student_needs, module.teacher_needs) == ({"logits"}, {"logits"})
    module = distiller(data, weights={"label": 1, "soft_label": 0, "projected": 1})
    assert (module.student_needs, module.teacher_needs) == ({"logits", "pooled"}, {"pooled"})


def test_a_missing_teacher_is_refused(data: TextDataModule) -> None:
    with pytest.raises(UserError, match=r"soft_label needs a teacher.*teacher=NAME"):
        distiller(data, teacher=None)


def test_needs_that_a_side_lacks_name_objective_side_and_what_there_is(data: TextDataModule) -> None:
    floor = NgramLinear(data.tokenizer.size, 2)
    with pytest.raises(
        UserError, match=r"projected, of NgramLinear with .*: needs pooled of the student, which provides only logits"
    ):
        distiller(data, student=floor)
    poor = LiveTeacher(Package(floor, data.tokenizer, CLASSES, "", {}))
    with pytest.raises(UserError, match=r"projected, of .*: needs pooled of the teacher, which provides only logits"):
        distiller(data, teacher=poor)


class Alone(Label):
    """What learns from no teacher and reads more than class scores."""

    needs = frozenset({"logits", "hidden"})


def test_what_needs_no_teacher_is_refused_by_its_name_too(data: TextDataModule) -> None:
    made = partial(Distiller, classes=CLASSES, objectives={"alone": Alone()}, weights={"alone": 1})
    with pytest.raises(UserError, match=r"objective alone, of NgramLinear: needs hidden of the student"):
        made(NgramLinear(data.tokenizer.size, 2))
    made(student(data))


def test_too_few_classes_are_refused(data: TextDataModule) -> None:
    made = partial(
        Distiller, student(data), teacher=teacher(data), objectives={"label": Label(), "many": ManyClasses()}
    )
    with pytest.raises(UserError, match=r"many is dead on 2 classes: it needs at least 3"):
        made(classes=CLASSES, weights={"label": 1, "many": 1})
    made(classes=CLASSES, weights={"label": 1, "many": 0})  # left out, it is no matter


def test_an_unlabelled_batch_teaches_by_the_teacher_alone(data: TextDataModule) -> None:
    module = distiller(data, weights={"label": 1, "soft_label": 0.5, "projected": 0})
    (batch, *_) = batches(data)
    batch = batch._replace(label=torch.full_like(batch.label, -1))
    terms = module.terms(batch)
    assert float(terms["label"].detach()) == 0.0
    loss = terms["label"] + 0.5 * terms["soft_label"]
    loss.backward()
    gradients = [parameter.grad for parameter in module.student.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    alone = torch.autograd.grad(0.5 * module.terms(batch)["soft_label"], list(module.student.parameters()))
    assert all(torch.allclose(*pair) for pair in zip(gradients, alone, strict=True))


def test_unlabelled_rows_are_fitted(data: TextDataModule, tmp_path: Path) -> None:
    assert len(data.split.transfer)
    seen = torch.cat([batch.label for batch in batches(data)])
    assert (seen == -1).sum() == len(data.split.transfer)
    module = distiller(data)
    fit(module, data, tmp_path)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_parameter_groups(data: TextDataModule) -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3))
        return made[-1]

    module = distiller(data, optimizer=optimizer, head_lr_scale=5.0)
    module.configure_optimizers()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in made[0].param_groups:
        assert "lr_scale" not in group
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            head = name.startswith(("student.classifier.", "objectives."))
            assert group["lr"] == pytest.approx(0.05 if head else 0.01), name
            assert group["weight_decay"] == (0.3 if parameter.dim() > 1 else 0.0), name
    assert not names


def test_the_schedule_scales_every_group_and_ends_with_the_run(data: TextDataModule, tmp_path: Path) -> None:
    rates: list[list[float]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = distiller(data, scheduler=partial(linear, warmup=0), head_lr_scale=4.0)
    trainer = fit(module, data, tmp_path, max_epochs=2, callbacks=[Watch()])
    updates = trainer.global_step
    assert updates == 2 * len(data.train_dataloader()) > 4
    scales = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
    assert set(scales) == {1e-3, 4e-3}
    for step, found in enumerate(rates):
        assert found == pytest.approx([rate * (updates - step) / updates for rate in scales])


def test_a_schedule_without_an_end_is_refused(data: TextDataModule, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_epochs or trainer\.max_steps"):
        fit(distiller(data, scheduler=linear), data, tmp_path, max_epochs=-1)


def test_validation_metrics_are_those_of_all_rows_once(data: TextDataModule) -> None:
    """Two replicas that divide 21 rows in batches of 4: repeats do not count, nor does the size of a batch."""
    index = data.split.validation
    module = distiller(data).eval()
    found: dict[str, float] = {}
    module.log = lambda name, value, **_: found.__setitem__(name, float(value))
    module.log_dict = lambda values, **_: found.update({name: float(value) for name, value in values.items()})
    lengths, repeats = data.student_rows.lengths(index), 0
    logits: dict[int, Tensor] = {}
    with torch.no_grad():
        for rank in (0, 1, 2, 3):
            sampler = EpochBatches(lengths, 4, shuffle=False, mark_repeats=True, replicas=4, rank=rank)
            for number, batch in enumerate(data._loader(index, sampler)):
                repeats += int((batch.label == -1).sum())
                module.validation_step(batch, number)
                answer = module.predict_step(batch, number)
                logits |= dict(zip(answer["index"].tolist(), answer["logits"], strict=True))
        module.on_validation_epoch_end()
    assert repeats > 0
    expected = task_metrics(torch.stack([logits[int(row)] for row in index]), torch.from_numpy(data.labels[index]))
    assert found == pytest.approx({f"val/{name}": expected[name] for name in ("accuracy", "macro_f1", "nll")}, rel=1e-5)
    assert 0 < found["val/accuracy"] < 1
    # and the next epoch starts anew
    assert int(module.scores.nll.weight) == 0


def test_predictions_come_with_their_rows(data: TextDataModule) -> None:
    module = distiller(data).eval()
    with torch.no_grad():
        for number, batch in enumerate(data.evaluation(data.split.test)):
            answer = module.predict_step(batch, number)
            assert torch.equal(answer["index"], batch.index)
            assert torch.equal(answer["logits"], module.student(batch.student).logits)


def test_it_learns_what_its_teacher_says(data: TextDataModule, tmp_path: Path) -> None:
    """A student that fits soft labels alone comes closer to its teacher, with no label at all."""
    answers = teacher(data)
    torch.nn.init.normal_(answers.model.classifier.weight, std=3.0)  # a teacher with opinions
    module = SoftLabelDistiller(
        TextCNN(data.tokenizer.size, 2, embedding_dim=16, channels=16, dropout=0.0), classes=CLASSES, teacher=answers,
        weights={"label": 0.0, "soft_label": 1.0}, optimizer=partial(torch.optim.Adam, lr=5e-3),
    )  # fmt: skip

    def gap() -> float:
        module.eval()
        with torch.no_grad():
            value = np.mean([float(module.terms(batch)["soft_label"]) for batch in batches(data)])
        module.train()
        return float(value)

    before = gap()
    fit(module, data, tmp_path, max_epochs=8)
    assert gap() < 0.5 * before


def rows_of(folder: Path, column: str) -> dict[int, float]:
    """A column of the logged table by its step, where it is given."""
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}


def logged(folder: Path, every: int) -> dict[str, Any]:
    return {"logger": CSVLogger(folder, name="", version="."), "log_every_n_steps": every, "limit_val_batches": 0}


def test_a_scheduled_weight_is_logged_and_what_was_configured_stays(data: TextDataModule, tmp_path: Path) -> None:
    configured = {"label": 1.0, "soft_label": 0.5, "projected": 0.1}
    schedules = {
        "soft_label": {"kind": "linear", "steps": 0.5, "start": 1, "end": 0},
        "projected": WeightSchedule("cosine", 4, 0.0, 2.0),
    }
    module = distiller(data, weights=configured, schedules=schedules)
    fit(module, data, tmp_path, max_steps=8, max_epochs=-1, **logged(tmp_path, 1))
    assert module.weights == configured
    fading = [0.5 * max(0.0, 1 - step / 4) for step in range(8)]
    rising = [0.2 * (1 - math.cos(math.pi * min(step, 4) / 4)) / 2 for step in range(8)]
    for name, expected in {"soft_label": fading, "projected": rising}.items():
        assert rows_of(tmp_path, f"weight/{name}") == pytest.approx(dict(enumerate(expected)), abs=1e-6)
    terms = {name: rows_of(tmp_path, f"train/{name}") for name in configured}
    for step, loss in rows_of(tmp_path, "train/loss").items():
        now = {"label": 1.0, "soft_label": fading[step], "projected": rising[step]}
        assert loss == pytest.approx(sum(now[name] * terms[name][step] for name in now), rel=1e-5)
    assert "weight/label" not in (tmp_path / "metrics.csv").read_text()  # it does not change


def test_an_objective_that_is_switched_on_trains_from_then_on(data: TextDataModule, tmp_path: Path) -> None:
    sgd = partial(torch.optim.SGD, lr=0.1)

    def after(steps: int, **wiring: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = distiller(data, optimizer=sgd, **wiring)
        pl.seed_everything(1, verbose=False)
        fit(module, data, tmp_path, max_steps=steps, max_epochs=-1, limit_val_batches=0)
        return module.state_dict()

    switched = {"schedules": {"projected": {"kind": "switch", "steps": 3}}}
    without, always = {"label": 1, "soft_label": 0.5, "projected": 0}, {"label": 1, "soft_label": 0.5, "projected": 4}
    torch.manual_seed(0)
    start = distiller(data).objectives["projected"].projection.weight
    for steps in (3, 4):
        plain, found = after(steps, weights=without), after(steps, weights=always, **switched)
        apart = {name for name in plain if not torch.equal(plain[name], found[name])}
        assert bool(apart) == (steps == 4)
        assert torch.equal(found["objectives.projected.projection.weight"], start) == (steps == 3)
    assert "student.embedding.weight" in apart


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"soft_lable": {}}, r"strategy.schedules: 'soft_lable' \(did you mean 'soft_label'\?\)"),
        ({"label": {"kind": "square"}}, r"schedule: 'square'; one of: linear, cosine, switch"),
        ({"label": {"step": 3}}, r"strategy.schedules.label: .*unexpected keyword argument 'step'"),
        ({"label": 0.5}, r"strategy.schedules.label: .*mapping"),
    ],
)
def test_schedules_that_make_no_sense(data: TextDataModule, schedules: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(data, schedules=schedules)


def test_a_schedule_of_an_objective_that_is_left_out_is_no_matter(data: TextDataModule, tmp_path: Path) -> None:
    weights = {"label": 1, "soft_label": 1, "projected": 0}
    fit(distiller(data, weights=weights, schedules={"projected": {}}), data, tmp_path, max_steps=1)


def test_a_share_of_updates_without_an_end_is_refused(data: TextDataModule, tmp_path: Path) -> None:
    endless = {"max_epochs": -1, "limit_val_batches": 0}
    with pytest.raises(UserError, match=r"no end: set trainer\.max_epochs or trainer\.max_steps"):
        fit(distiller(data, schedules={"label": {"steps": 0.1}}), data, tmp_path, **endless)


class Sums(nn.Module):
    """A student of two parameters and one that nothing reads, with gradients that can be told by hand."""

    signature, config = Signature(frozenset({"logits"}), name="Sums"), {}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)


def test_telemetry_by_hand() -> None:
    student = Sums()
    names = ("first", "second", "none")
    module = Distiller(
        student, classes=CLASSES, objectives={n: Label() for n in names}, weights=dict.fromkeys(names, 1)
    )
    one, two, frozen = student.first, student.second, student.frozen
    terms = {
        "first": 3 * one[0] + 4 * one[1] * frozen.sum(),  # gradient (3, 4 | -): 5 long
        "second": 6 * one[0] + 2 * two.sum() - 3 * one[1],  # (6, -3 | 2): 7 long; product 18 - 12 = 6
        "none": 0 * two.sum(),
    }
    found = module.telemetry(terms, {"first": 2.0, "second": 5.0, "none": 1.0})
    expected = {
        "grad_norm/first": 5.0, "grad_norm/second": 7.0, "grad_norm/none": 0.0,
        "share/first": 10 / 45, "share/second": 35 / 45, "share/none": 0.0,
        "cosine/first/second": 6 / 35, "cosine/first/none": 0.0, "cosine/second/none": 0.0,
    }  # fmt: skip
    assert found == pytest.approx({f"telemetry/{name}": value for name, value in expected.items()})
    assert all(parameter.grad is None for parameter in student.parameters())
    still = module.telemetry({"none": terms["none"]}, {"none": 1.0})
    assert set(still.values()) == {0.0}  # and no division by it
    disjoint = module.telemetry({"first": one.sum(), "second": two.sum()}, {"first": 0.0, "second": 1.0})
    assert disjoint["telemetry/cosine/first/second"] == 0.0
    assert (disjoint["telemetry/share/first"], disjoint["telemetry/share/second"]) == (0.0, 1.0)


def test_telemetry_is_what_a_backward_pass_gives(data: TextDataModule) -> None:
    weights = {"label": 1.0, "soft_label": 0.5, "projected": 0.1}
    module = distiller(data, weights=weights)
    (batch, *_) = batches(data)
    gradients = {}
    for name in weights:
        module.zero_grad()
        module.terms(batch)[name].backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.student.parameters()]
        gradients[name] = torch.cat([each.flatten() for each in found]).double()
    module.zero_grad()
    measured = module.telemetry(module.terms(batch), weights)
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    whole = sum(weights[name] * norm for name, norm in norms.items())
    for name, norm in norms.items():
        assert measured[f"telemetry/grad_norm/{name}"] == pytest.approx(norm, rel=1e-4)
        assert measured[f"telemetry/share/{name}"] == pytest.approx(weights[name] * norm / whole, rel=1e-4)
    assert sum(value for name, value in measured.items() if "/share/" in name) == pytest.approx(1.0)
    pairs = {name.removeprefix("telemetry/cosine/"): value for name, value in measured.items() if "/cosine/" in name}
    assert set(pairs) == {"label/soft_label", "label/projected", "soft_label/projected"}
    for name, value in pairs.items():
        cosine = torch.cosine_similarity(*(gradients[each] for each in name.split("/")), dim=0)
        assert value == pytest.approx(float(cosine), abs=1e-5)


def test_telemetry_is_logged_when_asked_and_changes_nothing(data: TextDataModule, tmp_path: Path) -> None:
    states = {}
    for every in (None, 3):
        torch.manual_seed(0)
        module = distiller(data, student=student(data, dropout=0.3), telemetry_every=every)
        pl.seed_everything(1, verbose=False)
        folder = tmp_path / str(every)
        fit(module, data, folder, max_steps=8, max_epochs=-1, **logged(folder, 50))
        states[every] = module.state_dict()
    assert all(torch.equal(value, states[3][name]) for name, value in states[None].items())
    assert "telemetry" not in (tmp_path / "None" / "metrics.csv").read_text()
    kinds = ("grad_norm/label", "share/soft_label", "cosine/label/projected")
    columns = [rows_of(tmp_path / "3", f"telemetry/{kind}") for kind in kinds]
    assert [list(column) for column in columns] == [[0, 3, 6]] * 3  # whatever log_every_n_steps says
    shares = [rows_of(tmp_path / "3", f"telemetry/share/{name}") for name in ("label", "soft_label", "projected")]
    assert [sum(share[step] for share in shares) for step in (0, 3, 6)] == pytest.approx([1.0] * 3)


def test_telemetry_weighs_as_the_schedule_does(data: TextDataModule, tmp_path: Path) -> None:
    module = distiller(data, telemetry_every=1, schedules={"label": {"kind": "switch", "steps": 1}})
    fit(module, data, tmp_path, max_steps=2, **logged(tmp_path, 50))
    share = rows_of(tmp_path, "telemetry/share/label")
    assert share[0] == 0.0 < share[1]
    assert rows_of(tmp_path, "telemetry/grad_norm/label")[0] > 0  # which is unweighted


@pytest.mark.parametrize("every", [0, -2])
def test_telemetry_of_no_interval_is_refused(data: TextDataModule, every: int) -> None:
    with pytest.raises(UserError, match=rf"telemetry_every must be a number of updates of at least 1, not {every}"):
        distiller(data, telemetry_every=every)
