"""Annealed distillation: the temperature, the loss and the phase of every update, by hand."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from kdresearch.errors import UserError
from kdresearch.models.ngram import NgramLinear
from kdresearch.package import Package
from kdresearch.strategies.annealed import AnnealedDistiller
from kdresearch.strategies.schedules import linear
from kdresearch.structures import LOGITS, Batch, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")
WEIGHTS = {"label": 0.5, "annealed": 2.0}
TEMPERATURES = [4, 4, 3, 3, 2, 2, 1, 1, 1, 1]  # max_temperature=4, share=0.7, ten updates


def model(seed: int) -> NgramLinear:
    made = NgramLinear(12, 3, weighting="none")
    made.weight.weight.data = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))
    return made


def batch(labels: tuple[int, ...] = (0, 2, -1, 1, -1)) -> Batch:
    ids = torch.randint(1, 12, (5, 6), generator=torch.Generator().manual_seed(1))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(torch.arange(5), torch.tensor(labels), tokens, tokens)


def distiller(**settings: Any) -> AnnealedDistiller:
    teacher = LiveTeacher(Package(model(2), None, CLASSES, "", {}))
    given = {
        "teacher": teacher,
        "weights": WEIGHTS,
        "max_temperature": 4,
        "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1),
    }
    return AnnealedDistiller(model(1), classes=CLASSES, **given | settings)


class Watch(pl.Callback):
    """The student's logits before each update, the loss of it, and the temperature that is logged."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, rows: Batch, number: int) -> None:
        self.logits = module.student(rows.student, LOGITS).logits.detach()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, rows: Batch, number: int) -> None:
        self.seen.append((self.logits, outputs["loss"], module.settings["temperature"]))


def fit(module: AnnealedDistiller, folder: Path, rows: Batch, updates: int = 10, **settings: Any) -> Watch:
    watch = Watch()
    given = {"logger": False, "log_every_n_steps": 1} | settings
    trainer = pl.Trainer(
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, max_epochs=1, callbacks=[watch], **given,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=DataLoader([rows] * updates, batch_size=None))
    return watch


@pytest.mark.parametrize("labels", ["after", "throughout"])
@pytest.mark.parametrize("loss", ["mse", "soft_label"])
def test_every_update_by_hand(loss: str, labels: str, tmp_path: Path) -> None:
    rows, module = batch(), distiller(loss=loss, labels=labels)
    teacher = model(2)(rows.student).logits.detach()
    seen = fit(module, tmp_path, rows).seen
    assert [temperature for *_, temperature in seen] == TEMPERATURES
    labelled = [0, 1, 3]
    for update, (student, value, _) in enumerate(seen):
        t, expected = TEMPERATURES[update], torch.tensor(0.0)
        if update < 7 and loss == "mse":
            expected = 2.0 * (student - {4: 0.25, 3: 0.5, 2: 0.75, 1: 1.0}[t] * teacher).square().mean()
        elif update < 7:
            p, q = (teacher / t).softmax(1), (student / t).softmax(1)
            expected = 2.0 * t**2 * (p * (p / q).log()).sum() / 5
        if update >= 7 or labels == "throughout":
            expected = expected + 0.5 * cross_entropy(student[labelled], rows.label[labelled])
        assert torch.allclose(value, expected, atol=1e-6), update


def test_nothing_configured_is_overwritten(tmp_path: Path) -> None:
    module = distiller()
    fit(module, tmp_path, batch())
    assert module.weights == WEIGHTS
    assert (module.share, module.objectives["annealed"].max_temperature, module.temperature) == (0.7, 4, 1)


def test_rows_without_labels_teach_in_the_first_phase_alone(tmp_path: Path) -> None:
    module = distiller()
    before = module.student.weight.weight.detach().clone()
    watch = fit(module, tmp_path, batch((-1,) * 5))
    losses = [float(value) for _, value, _ in watch.seen]
    assert min(losses[:7]) > 0 and losses[7:] == [0.0, 0.0, 0.0]
    assert not torch.equal(module.student.weight.weight, before)
    assert torch.equal(watch.seen[7][0], watch.seen[9][0])  # the last updates moved nothing
    assert module.learns_from_unlabelled


def test_what_is_over_is_no_longer_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(distiller(), tmp_path, batch(), logger=logger)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["temperature"]) for row in rows] == TEMPERATURES
    assert [bool(row["train/annealed"]) for row in rows] == [True] * 7 + [False] * 3
    assert [bool(row["train/label"]) for row in rows] == [False] * 7 + [True] * 3


def test_accumulated_batches_share_a_temperature(tmp_path: Path) -> None:
    seen = fit(distiller(max_temperature=2, share=0.5), tmp_path, batch(), 8, accumulate_grad_batches=2).seen
    assert [temperature for *_, temperature in seen] == [2, 2, 1, 1, 1, 1, 1, 1]


class Phases(pl.Callback):
    """The student at every epoch's end with its score, and before every update with its rate and its moments."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.epochs: list[tuple[float, Tensor]] = []
        self.updates: list[tuple[Tensor, float, int]] = []

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.epochs.append((float(trainer.callback_metrics[self.monitor]), module.student.weight.weight.clone()))

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        weight = module.student.weight.weight.detach().clone()
        self.updates.append((weight, optimizer.param_groups[0]["lr"], len(optimizer.state)))


def in_epochs(
    module: AnnealedDistiller, folder: Path, monitor: str = "val/nll", resume: Path | None = None, **settings: Any
) -> Phases:
    """Five epochs of four updates, of which ``share=0.7`` gives the first phase four (3.5, rounded)."""
    watch = Phases(monitor)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder, callbacks=[watch, *settings.pop("callbacks", [])],
        **{"max_epochs": 5, "enable_checkpointing": False} | settings,
    )  # fmt: skip
    train, held = (DataLoader([each] * 4, batch_size=None) for each in (batch(), batch((0, 1, 2, 1, 0))))
    trainer.fit(module, train, held, ckpt_path=resume)
    return watch


@pytest.mark.parametrize(("mode", "best"), [("min", min), ("max", max)])
def test_the_labels_go_on_from_the_first_phases_best_epoch(mode: str, best: Any, tmp_path: Path) -> None:
    """As in algorithm 1: not from its last, with other moments and a schedule of their own."""
    module = distiller(
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.1), scheduler=partial(linear, warmup=0),
        monitor="val/nll", mode=mode, label_learning_rate=0.5,
    )  # fmt: skip
    watch = in_epochs(module, tmp_path)
    first = watch.epochs[:4]
    score, kept = best(first, key=lambda each: each[0])
    assert score != first[-1][0] or mode == "max"
    assert torch.equal(watch.updates[16][0], kept)
    parameters = len(list(module.student.parameters()))
    assert [moments for *_, moments in watch.updates] == [0, *[parameters] * 15, 0, *[parameters] * 3]
    rates = [0.1 * left / 16 for left in range(16, 0, -1)] + [0.05 * left / 4 for left in (4, 3, 2, 1)]
    assert [rate for _, rate, _ in watch.updates] == pytest.approx(rates)


@pytest.mark.parametrize("step", [6, 16, 17])
def test_a_run_that_is_continued_knows_the_best_epoch(step: int, tmp_path: Path) -> None:
    make = partial(distiller, optimizer=lambda groups: torch.optim.Adam(groups, lr=0.1), monitor="val/nll", mode="min")
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, other = make(), make()
    in_epochs(whole, tmp_path, callbacks=[keep], enable_checkpointing=True)
    torch.nn.init.normal_(other.student.weight.weight)
    in_epochs(other, tmp_path, resume=tmp_path / f"step={step}.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_an_unknown_metric_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"strategy\.monitor: 'val/acc' \(did you mean 'val/accuracy'\?\)"):
        in_epochs(distiller(monitor="val/acc"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "kl"}, r"loss: 'kl'; one of: mse, soft_label"),
        ({"max_temperature": 0}, r"max_temperature .* not 0"),
        ({"max_temperature": 2.5}, r"max_temperature .* whole number .* not 2\.5"),
        ({"share": 0}, r"share .* not 0"),
        ({"share": 1.5}, r"share .* not 1\.5"),
        ({"mode": "best"}, r"strategy\.mode: 'best'; one of: max, min"),
        ({"label_learning_rate": 0}, r"label_learning_rate must be positive, not 0"),
        (
            {"label_learning_rate": 2, "share": 1, "labels": "throughout"},
            r"share=1 leaves no second phase for strategy\.label_learning_rate",
        ),
        ({"labels": "befor"}, r"labels: 'befor'.*one of: after, throughout"),
        ({"weights": {"label": 1, "annealed": 0}}, r"weights\.annealed is 0.*strategy=supervised"),
        ({"weights": {"label": 0, "annealed": 1}}, r"share=0\.7 leaves the rest to labels"),
        ({"share": 1}, r"share=1 leaves nothing for the labels"),
        ({"teacher": None}, r"annealed needs a teacher"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(**settings)


def test_a_run_without_an_end_has_no_shares(tmp_path: Path) -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=-1)
    with pytest.raises(UserError, match=r"max_epochs or trainer\.max_steps"):
        trainer.fit(distiller(), train_dataloaders=DataLoader([batch()], batch_size=None))
