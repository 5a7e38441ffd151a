"""Stages: their boundaries, rates and frozen parameters to the bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.objectives.hidden import Feature
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.package import Package
from kdresearch.strategies.schedules import linear
from kdresearch.strategies.staged import Stage, StagedDistiller
from kdresearch.structures import LOGITS, Batch, Outputs, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("negative", "positive")
LAYERS, SCORES = {"feature": 1.0}, {"label": 0.5, "soft_label": 0.5}
TWO = [{"share": 0.3, "weights": LAYERS, "learning_rate": 3.0}, {"share": 0.7, "weights": SCORES}]


def bilstm(seed: int = 1, layers: int = 2, width: int = 5) -> BiLSTM:
    torch.manual_seed(seed)
    return BiLSTM(30, 2, embedding_dim=6, hidden_dim=width, layers=layers, dropout=0.0)


def transformer() -> Transformer:
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
    return Transformer(30, 2, architecture={"model_type": "bert", "max_position_embeddings": 16, **sizes})


class Asked(LiveTeacher):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(Package(bilstm(9, width=7), None, CLASSES, "", {}))
        self.asked: list[frozenset[str]] = []

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        self.asked.append(needs)
        return super().__call__(batch, needs)


def batch() -> Batch:
    ids = torch.randint(1, 30, (4, 7), generator=torch.Generator().manual_seed(0))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(torch.arange(4), torch.tensor([0, 1, 1, -1]), tokens, tokens)


def distiller(stages: list[Any] = TWO, student: Any = None, **settings: Any) -> StagedDistiller:
    objectives = {"label": Label(), "soft_label": SoftLabel(2.0), "feature": Feature()}
    given = {"teacher": Asked(), "classes": CLASSES, "objectives": objectives} | settings
    return StagedDistiller(student or bilstm(), stages=stages, **given)


class Watch(pl.Callback):
    """What every update had: the stage, the rate, the loss, and the parameters after it."""

    def __init__(self) -> None:
        self.stages: list[int] = []
        self.rates: list[float] = []
        self.losses: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.stages.append(module.stage)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if not self.states:
            self._keep(module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"])
        self._keep(module)

    def _keep(self, module: Any) -> None:
        self.states.append({name: value.detach().clone() for name, value in module.named_parameters()})

    def moved(self, first: int, last: int) -> set[str]:
        """Parameters that differ after updates ``first`` to ``last``, counted from 0, from before."""
        before, after = self.states[first], self.states[last + 1]
        return {name for name, value in after.items() if not torch.equal(value, before[name])}


def fit(module: StagedDistiller, folder: Path, updates: int = 10, resume: Path | None = None, **settings: Any) -> Watch:
    watch = Watch()
    callbacks = [watch, *settings.pop("callbacks", [])]
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, max_epochs=1, callbacks=callbacks, log_every_n_steps=1,
        **{"enable_checkpointing": False} | settings,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=DataLoader([batch()] * updates, batch_size=None), ckpt_path=resume)
    return watch


def test_boundaries_and_rates(tmp_path: Path) -> None:
    module = distiller(scheduler=partial(linear, warmup=0), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    watch = fit(module, tmp_path)
    assert watch.stages == [0] * 3 + [1] * 7
    # from the top to nothing in each stage; the first at three times the rate
    assert watch.rates == pytest.approx(
        [0.3 * left / 3 for left in (3, 2, 1)] + [0.1 * left / 7 for left in (7, 6, 5, 4, 3, 2, 1)]
    )


def test_without_a_schedule_a_stage_has_its_factor(tmp_path: Path) -> None:
    watch = fit(distiller(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1)), tmp_path)
    assert watch.rates == pytest.approx([0.3] * 3 + [0.1] * 7)


def test_only_what_a_stage_weighs_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [*({"share": 0.4, "weights": weights} for weights in (LAYERS, SCORES)), Stage(0.2, {"label": 1.0})]
    module, terms, called = distiller(stages), [], []
    compute = module.terms
    monkeypatch.setattr(module, "terms", lambda rows: terms.append(compute(rows)) or terms[-1])
    for name, term in module.objectives.items():
        term.register_forward_hook(lambda *_, name=name: called.append(name))
    watch = fit(module, tmp_path, 5)
    assert [list(each) for each in terms] == [["feature"]] * 2 + [["label", "soft_label"]] * 2 + [["label"]]
    assert called == ["feature"] * 2 + ["label", "soft_label"] * 2 + ["label"]
    assert module.teacher.asked == [{"hidden"}] * 2 + [{"logits"}] * 2  # in the last stage it is not asked at all
    weights = [LAYERS] * 2 + [SCORES] * 2 + [{"label": 1.0}]
    for each, loss, expected in zip(terms, watch.losses, weights, strict=True):
        assert torch.allclose(loss, sum(expected[name] * value for name, value in each.items()))


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_parameters_keep_every_bit_and_thaw(optimizer: str, tmp_path: Path) -> None:
    """In spite of momentum and weight decay from the stage before."""
    made = OPTIMIZERS[optimizer]
    stages = [
        {"share": 0.2, "weights": SCORES},
        {"share": 0.2, "weights": SCORES, "train": "head"},
        {"share": 0.2, "weights": SCORES, "train": {"last_layers": 1}},
        {"share": 0.2, "weights": SCORES, "train": ["embedding.*", "classifier.bias"]},
        {"share": 0.2, "weights": {"feature": 1.0, "label": 1.0}},
    ]
    optimizer = {"optimizer": lambda groups: made([{**group, "weight_decay": 0.5} for group in groups])}
    module = distiller(stages, fresh_optimizer=False, **optimizer)
    watch = fit(module, tmp_path)
    names = {name for name, _ in module.student.named_parameters()}
    head = {"classifier.weight", "classifier.bias"}
    above = {name for name in names if name.startswith(("rightward.1.", "leftward.1.", "scorer."))} | head
    own = [
        {f"student.{name}" for name in part} for part in (names, head, above, {"embedding.weight", "classifier.bias"})
    ]
    for stage, expected in enumerate(own):
        assert watch.moved(2 * stage, 2 * stage + 1) == expected, stage
    assert watch.moved(8, 9) == own[0] | {name for name in watch.states[0] if name.startswith("objectives.feature")}
    assert all(value.requires_grad for value in module.parameters())


@pytest.mark.parametrize("fresh", [True, False])
def test_a_stage_is_a_training_of_its_own(fresh: bool, tmp_path: Path) -> None:
    """Adam's moments of the first stage would move the second: only without them is it what a run of its own does."""
    stages = [{"share": 0.5, "weights": {"soft_label": 1}}, {"share": 0.5, "weights": {"label": 1}}]
    made = {"optimizer": lambda groups: torch.optim.Adam(groups, lr=0.05), "scheduler": partial(linear, warmup=0.5)}
    module = distiller(stages, fresh_optimizer=fresh, **made)
    watch = fit(module, tmp_path, 8)
    alone = distiller([{"share": 1.0, "weights": {"label": 1}}], teacher=None, **made)
    alone.load_state_dict({name: value for name, value in watch.states[4].items() if "objectives" not in name})
    fit(alone, tmp_path, 4)
    equal = [
        torch.allclose(value, alone.student.state_dict()[name]) for name, value in module.student.state_dict().items()
    ]
    assert all(equal) if fresh else not any(equal)


def test_last_layers_of_a_transformer() -> None:
    stages = [{"share": 0.5, "weights": SCORES, "train": {"last_layers": number}} for number in (1, 3)]
    module = distiller(stages, student=transformer())
    names = [name for name, _ in module.student.named_parameters()]
    embeddings = {name for name in names if ".embeddings." in name}
    lower = {name for name in names if ".layer.0." in name or ".layer.1." in name}
    assert embeddings and lower
    assert module.still == [embeddings | lower, embeddings]


def test_a_run_that_is_continued_within_a_stage(tmp_path: Path) -> None:
    stages = [{"share": 0.5, "weights": SCORES}, {"share": 0.5, "weights": SCORES, "train": "head"}]
    make = partial(distiller, stages, scheduler=partial(linear, warmup=0.3))
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = make()
    fit(whole, tmp_path, 8, callbacks=[keep], enable_checkpointing=True)
    for step in (3, 4, 6):
        other = make(student=bilstm(5))
        watch = fit(other, tmp_path, 8, resume=tmp_path / f"step={step}.ckpt")
        assert watch.stages == [0] * (4 - step) + [1] * min(4, 8 - step)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), (step, name)


def test_it_says_whether_it_takes_a_teacher() -> None:
    labels = {"share": 0.5, "weights": {"label": 1.0, "soft_label": 0}}
    objectives = {"label": Label(), "soft_label": SoftLabel()}
    scores = {"share": 0.5, "weights": {"soft_label": 1}}
    assert not StagedDistiller.needs_teacher({"objectives": objectives, "stages": [labels, labels]})
    assert StagedDistiller.needs_teacher({"objectives": objectives, "stages": [labels, scores]})
    assert distiller([labels, labels], teacher=None).teacher is None


def test_needs_of_every_stage_are_checked_at_once() -> None:
    student = TextCNN(30, 2, embedding_dim=6, channels=4)
    objectives = {"label": Label(), "feature": Feature(level="tokens")}
    stages = [{"share": 0.5, "weights": {"label": 1}}, {"share": 0.5, "weights": {"feature": 1}}]
    with pytest.raises(UserError, match=r"feature, of TextCNN .* needs hidden of the student"):
        distiller(stages, student, objectives=objectives)


def stage(**settings: Any) -> list[dict[str, Any]]:
    return [{"share": 1.0, "weights": SCORES} | settings]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], r"shares must sum to 1, not to nothing"),
        ([*stage(share=0.5), *stage(share=0.4)], r"shares must sum to 1, not 0\.5 \+ 0\.4"),
        (stage(share=0), r"stages\.0\.share .* not 0"),
        (stage(weights={"label": 0, "feature": 0}), r"stages\.0\.weights: all are 0"),
        (stage(weights={}), r"stages\.0\.weights: all are 0"),
        (
            stage(weights={"featrue": 1}),
            r"stages\.0\.weights: there is no objective 'featrue' \(did you mean 'feature'",
        ),
        (stage(weights={"label": -1}), r"stages\.0\.weights\.label .* not -1"),
        (stage(learning_rate=0), r"stages\.0\.learning_rate .* positive, not 0"),
        (stage(rate=1), r"stages\.0: .*'rate'"),
        ([{"share": 1.0}], r"stages\.0: .*'weights'"),
        (stage(train="heads"), r"stages\.0\.train: 'heads' \(did you mean 'head'\?\)"),
        (stage(train=["encoder.*"]), r"stages\.0\.train: BiLSTM has no parameter 'encoder\.\*'; .* embedding\.weight"),
        (stage(train=[]), r"stages\.0\.train is empty"),
        (stage(train={"last": 1}), r"stages\.0\.train: 'last'.*one of: last_layers"),
        (stage(train={"last_layers": 3}), r"stages\.0\.train\.last_layers .* 0 and the student's 2 layers, not 3"),
    ],
)
def test_refused(stages: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(stages)


def test_no_layers_to_count() -> None:
    with pytest.raises(UserError, match=r"train: TextCNN has no list of layers"):
        distiller(stage(train={"last_layers": 1}), TextCNN(30, 2, embedding_dim=6, channels=4))


def test_too_few_updates_for_a_stage(tmp_path: Path) -> None:
    stages = [{"share": 0.9, "weights": SCORES}, {"share": 0.1, "weights": SCORES}]
    with pytest.raises(UserError, match=r"stages\.1: of 3 updates none is left"):
        fit(distiller(stages), tmp_path, 3)
