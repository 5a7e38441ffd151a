from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
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
from kdresearch.structures import Batch, Outputs
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
    objectives = {"label": Label(), "soft_label": SoftLabel(2.0), "projected": Projected(model.width, 14)}
    return Distiller(
        model,
        classes=CLASSES,
        objectives=objectives,
        weights=weights or {"label": 1.0, "soft_label": 0.5, "projected": 0.1},
        **{"teacher": teacher(data)} | wiring,
    )


def fit(module: Distiller, data: TextDataModule, folder: Path, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, use_distributed_sampler=False,
        **{"max_epochs": 1} | settings,
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


def test_loss_is_the_weighted_sum_of_the_terms(data: TextDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    module = distiller(data, weights={"label": 0.7, "soft_label": 1.3, "projected": 0.25})
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    (batch, *_) = batches(data)
    loss = module.training_step(batch, 0)
    terms = module.terms(batch)
    expected = 0.7 * terms["label"] + 1.3 * terms["soft_label"] + 0.25 * terms["projected"]
    assert torch.allclose(loss, expected)
    assert set(logged) == {"train/label", "train/soft_label", "train/projected", "train/loss"}
    assert torch.equal(logged["train/soft_label"], terms["soft_label"])  # unweighted
    assert not any(value.requires_grad for value in logged.values())


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


def test_too_few_classes_are_refused(data: TextDataModule) -> None:
    made = partial(
        Distiller, student(data), teacher=teacher(data), objectives={"label": Label(), "many": ManyClasses()}
    )
    with pytest.raises(UserError, match=r"many is dead on 2 classes: it needs at least 3"):
        made(classes=CLASSES, weights={"label": 1, "many": 1})
    made(classes=("a", "b", "c"), weights={"label": 1, "many": 1})
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
    assert int(module.val_nll.weight) == 0


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
