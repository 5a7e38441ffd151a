"""Curves are means over the updates that they stand for: each value here is computed again, batch by batch."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from kdresearch.commands import console as say
from kdresearch.models.ngram import NgramLinear
from kdresearch.objectives.generative import PseudoSample
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.package import Package
from kdresearch.strategies.adversarial import AdversarialDistiller
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.means import Means
from kdresearch.strategies.mutual import MutualDistiller
from kdresearch.strategies.staged import StagedDistiller
from kdresearch.structures import Batch, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")
LABELS = [(0, 1, 2, -1), (2, -1), (-1, -1, -1), (1, 0, 2, 2, -1), (0,), (1, -1, -1), (2, 2)]
SIZES = [len(labels) for labels in LABELS]
LABELLED = [sum(label >= 0 for label in labels) for labels in LABELS]


def rows(number: int, labels: tuple[int, ...]) -> Batch:
    ids = torch.randint(1, 12, (len(labels), 6), generator=torch.Generator().manual_seed(number))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(torch.arange(len(labels)), torch.tensor(labels), tokens, tokens)


BATCHES = [rows(number, labels) for number, labels in enumerate(LABELS)]


def linear(seed: int) -> NgramLinear:
    made = NgramLinear(12, 3, weighting="none")
    made.weight.weight.data = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))
    return made


WIRING: dict[str, Any] = {
    "classes": CLASSES,
    "teacher": LiveTeacher(Package(linear(2), None, CLASSES, "", {})),
    "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.5),
}


def distiller() -> Distiller:
    objectives = {"label": Label(), "soft_label": SoftLabel(2.0), "pseudo": PseudoSample()}
    return Distiller(linear(1), objectives=objectives, weights={"label": 1, "soft_label": 0.5, "pseudo": 0.2}, **WIRING)


class Watch(pl.Callback):
    """The value of every term of every batch, as it was trained on."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, number: int) -> None:
        with torch.no_grad():
            terms, weights = module.terms(batch), module.weights_now()
        self.seen.append({name: float(value) for name, value in terms.items()})
        self.seen[-1]["loss"] = sum(weights[name] * float(value) for name, value in terms.items())


def fit(module: Distiller, folder: Path, every: int, epochs: int = 2, **settings: Any) -> tuple[pl.Trainer, Watch]:
    watch = Watch()
    settings = {"callbacks": [watch, *settings.pop("callbacks", ())], "enable_checkpointing": False} | settings
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, log_every_n_steps=every, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, logger=CSVLogger(folder, name="", version="."), **settings,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=DataLoader(BATCHES, batch_size=None), ckpt_path=settings.get("ckpt"))
    return trainer, watch


def column(folder: Path, name: str) -> dict[int, float]:
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def mean(seen: list[dict[str, float]], name: str, first: int, end: int, sizes: list[int]) -> float:
    """Over batches first to end - 1 of a run of several epochs."""
    whole = sizes * 3
    return sum(seen[i][name] * whole[i] for i in range(first, end)) / sum(whole[first:end])


COUNTS = {
    "loss": SIZES,
    "soft_label": SIZES,
    "label": LABELLED,
    "pseudo": [size - labelled for size, labelled in zip(SIZES, LABELLED, strict=True)],
}


@pytest.mark.parametrize(
    ("every", "ends"),
    [(3, (3, 6, 7, 9, 12, 14)), (50, (7, 14)), (1, range(1, 15))],
    ids=["within epochs", "short epochs", "each update"],
)
def test_a_row_is_the_mean_of_the_updates_since_the_last_one(every: int, ends: Any, tmp_path: Path) -> None:
    _, watch = fit(distiller(), tmp_path, every)
    for name, sizes in COUNTS.items():
        expected, first = {}, 0
        for end in ends:
            if sum((sizes * 2)[first:end]):  # of no row that counts there is no mean
                expected[end - 1] = mean(watch.seen, name, first, end, sizes)
            first = end
        assert column(tmp_path, f"train/{name}") == pytest.approx(expected, rel=1e-5), name
    with (tmp_path / "metrics.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [int(end > 7) for end in ends]


def test_the_epoch_line_is_the_mean_of_the_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(say, "say", told.append)
    trainer, watch = fit(distiller(), tmp_path, 3, callbacks=[say.PlainProgress()])
    assert len(told) == 2
    for epoch, line in enumerate(told):
        assert line.startswith(f"epoch {epoch + 1} (")
        found = {name: float(value) for name, value in re.findall(r"train/(\S+) (\d+\.\d+)", line)}
        expected = {name: mean(watch.seen, name, 7 * epoch, 7 * epoch + 7, sizes) for name, sizes in COUNTS.items()}
        assert found == pytest.approx(expected, abs=6e-5)
        last = watch.seen[7 * epoch + 6]["loss"]
        assert abs(found["loss"] - last) > 1e-3  # which it used to be
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(mean(watch.seen, "loss", 7, 14, SIZES))


def test_a_line_within_an_epoch_is_of_this_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(say, "say", told.append)
    _, watch = fit(distiller(), tmp_path, 3, callbacks=[say.PlainProgress(seconds=0)])
    within = [line for line in told if "left" in line]
    assert len(within) == 14
    assert [("train/loss" in line) for line in within[:7]] == [False, False, False, True, True, True, True]
    assert f"train/loss {mean(watch.seen, 'loss', 0, 3, SIZES):.4f}" in within[3]
    assert f"train/loss {mean(watch.seen, 'loss', 0, 6, SIZES):.4f}" in within[6]
    assert "train/loss" not in within[7]  # the last epoch's is over


def test_accumulated_batches_are_one_update(tmp_path: Path) -> None:
    """Seven batches by threes: updates after the 3rd, the 6th and the 7th, which ends the epoch."""
    _, watch = fit(distiller(), tmp_path, 2, accumulate_grad_batches=3)
    ends = {1: (0, 6), 2: (6, 7), 3: (7, 10), 5: (10, 14)}
    expected = {step: mean(watch.seen, "loss", *span, SIZES) for step, span in ends.items()}
    assert column(tmp_path, "train/loss") == pytest.approx(expected, rel=1e-5)


def test_manual_optimization(tmp_path: Path) -> None:
    weights = {"label": 1, "soft_label": 0.5, "adversarial": 0.3}
    module = AdversarialDistiller(linear(1), weights=weights, **WIRING)
    judged: list[tuple[float, float]] = []
    discrimination = module.adversary.discrimination

    def watched() -> Any:
        loss, accuracy = discrimination()
        judged.append((float(loss), float(accuracy)))
        return loss, accuracy

    module.adversary.discrimination = watched  # type: ignore[method-assign]
    _, watch = fit(module, tmp_path, 3)
    ends = (3, 6, 7, 9, 12, 14)
    seen = [each | {"d": loss, "right": right} for each, (loss, right) in zip(watch.seen, judged, strict=True)]
    names = {"loss": "loss", "d": "discriminator", "right": "discriminator_accuracy"}
    for own, logged in names.items():
        expected = {end - 1: mean(seen, own, first, end, SIZES) for first, end in zip((0, *ends), ends, strict=False)}
        assert column(tmp_path, f"train/{logged}") == pytest.approx(expected, rel=1e-4), logged


def test_networks_that_learn_together(tmp_path: Path) -> None:
    peers = [lambda vocabulary, classes: linear(5)]
    wiring = {name: value for name, value in WIRING.items() if name != "teacher"}
    module = MutualDistiller(linear(1), peers=peers, weights={"label": 1, "mutual": 1}, **wiring)
    _, watch = fit(module, tmp_path, 50)
    for name, sizes in {"label": LABELLED, "label/peer1": LABELLED, "mutual": SIZES, "mutual/peer1": SIZES}.items():
        expected = {6: mean(watch.seen, name, 0, 7, sizes), 13: mean(watch.seen, name, 7, 14, sizes)}
        assert column(tmp_path, f"train/{name}") == pytest.approx(expected, rel=1e-5), name


def test_a_stage_ends_a_row(tmp_path: Path) -> None:
    """Of fourteen updates the first five are of another stage: nothing of them is in a row of the labels."""
    stages = [{"share": 5 / 14, "weights": {"soft_label": 1}}, {"share": 9 / 14, "weights": {"label": 1}}]
    module = StagedDistiller(
        linear(1), objectives={"label": Label(), "soft_label": SoftLabel()}, stages=stages, **WIRING
    )
    _, watch = fit(module, tmp_path, 4)
    soft = {end - 1: mean(watch.seen, "soft_label", first, end, SIZES) for first, end in ((0, 4), (4, 5))}
    assert column(tmp_path, "train/soft_label") == pytest.approx(soft, rel=1e-5)
    ends = ((5, 7), (7, 8), (8, 12), (12, 14))
    label = {end - 1: mean(watch.seen, "label", first, end, LABELLED) for first, end in ends}
    assert column(tmp_path, "train/label") == pytest.approx(label, rel=1e-5)


@pytest.mark.parametrize("saved", [5, 6])  # within a row, and at its end
def test_a_run_that_goes_on_within_an_epoch_has_the_means_of_all_of_it(saved: int, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=saved, save_top_k=-1)
    whole = distiller()
    fit(whole, tmp_path / "whole", 3, 1, callbacks=[keep], enable_checkpointing=True)
    rest = distiller()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, log_every_n_steps=3, logger=CSVLogger(tmp_path / "rest", name="", version="."),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    left = DataLoader(BATCHES, batch_size=None)
    left = DataLoader(BATCHES[saved:], batch_size=None)
    trainer.fit(rest, train_dataloaders=left, ckpt_path=tmp_path / f"step={saved}.ckpt")
    expected = {step: value for step, value in column(tmp_path / "whole", "train/loss").items() if step >= saved}
    assert column(tmp_path / "rest", "train/loss") == pytest.approx(expected, rel=1e-6)
    assert rest.epoch_means == pytest.approx(whole.epoch_means)


def test_means_by_hand() -> None:
    one, two = Means(), Means()
    one.add({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, 3)
    one.add({"a": torch.tensor(5.0), "b": torch.tensor(0.0)}, 1)
    one.add({"c": torch.tensor(7.0)}, torch.tensor(0))
    two.add({"a": torch.tensor(4.0)}, torch.tensor(4))
    assert one.compute() == {"a": 2.0, "b": 1.5}
    one.merge(two)
    assert one.compute() == {"a": 3.0, "b": 1.5}
    assert one.compute(lambda sums: 2 * sums) == one.compute()  # two replicas that saw the same
    value = torch.tensor(1.0, requires_grad=True)
    two.add({"d": value * 2}, 1)
    assert not any(total.requires_grad for total, _ in two.sums.values())
