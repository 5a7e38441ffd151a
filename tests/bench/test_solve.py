"""Runs whose student is solved."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kdresearch import package
from kdresearch.bench import run as runs
from kdresearch.cli import main
from kdresearch.data.reviews import Reviews
from kdresearch.structures import UNLABELLED

BASE = (
    "data.rows={train: 240, test: 60, unlabelled: 100}", "data.validation=40", "trainer=cpu", "logger=none",
    "threads=1", "evaluation.efficiency=false", "student=ngram",
)  # fmt: skip
TAUGHT = ("strategy=soft_label", "teacher=ngram", "data.transfer=unlabelled")


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    assert main(["train", *BASE, *overrides, f"hydra.run.dir={folder}"]) == 0
    return json.loads((folder / "run.json").read_text())


def state(folder: Path) -> dict[str, torch.Tensor]:
    return package.load(folder).model.state_dict()  # type: ignore[attr-defined]


@pytest.mark.parametrize("labels", ["polarity", "stars"])
def test_a_record_says_how_it_was_solved(labels: str, tmp_path: Path) -> None:
    facts = train(tmp_path / "run", f"data.labels={labels}")
    solver = facts["solver"]
    assert facts["status"] == "finished" and facts["updates"] == solver["iterations"] > 0
    assert solver["weighting"] in ("nb_tfidf", "tfidf") and solver["strength"] in (3, 10, 30, 100, 300)
    assert not (tmp_path / "run" / "checkpoints").exists()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        curve = [row for row in csv.DictReader(file) if row["val/accuracy"]]
    assert [float(row["solver/strength"]) for row in curve] == [3, 10, 30, 100, 300] * 2
    assert [row["epoch"] for row in curve] == [str(number) for number in range(10)]
    best = min(curve, key=lambda row: float(row["solver/calibrated_nll"]))
    assert curve[facts["best_epoch"] - 1] == best
    # The package answers as the run did.
    table = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pydict()
    texts = {row.id: row.text for row in Reviews(labels=labels, train=240, test=60, unlabelled=100).rows()}
    answers = package.load(tmp_path / "run").probabilities([texts[row] for row in table["id"]])
    expected = torch.tensor(table["student_logits"]).softmax(1)
    torch.testing.assert_close(torch.as_tensor(answers).float(), expected, atol=1e-5, rtol=1e-4)


def test_the_seed_changes_nothing(tmp_path: Path) -> None:
    facts = [train(tmp_path / str(seed), f"seed={seed}") for seed in (1, 2)]
    assert facts[0]["student"]["fingerprint"] == facts[1]["student"]["fingerprint"]


def test_calibration_scales_and_changes_no_answer(tmp_path: Path) -> None:
    raw = train(tmp_path / "raw", "student.solver.calibrate=false")
    facts = train(tmp_path / "fitted")
    temperature = facts["solver"]["temperature"]
    assert raw["solver"]["temperature"] is None and temperature > 0
    before, after = state(tmp_path / "raw"), state(tmp_path / "fitted")
    for name in ("weight.weight", "bias"):
        torch.testing.assert_close(after[name] * temperature, before[name], atol=1e-5, rtol=1e-4)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("raw", "fitted")]
    assert metrics[0]["test/accuracy"] == metrics[1]["test/accuracy"]
    assert metrics[1]["val/nll"] <= metrics[0]["val/nll"] + 1e-6


class Spied:
    """``solve``, and what it solved: the strategy, and the rows of the run's epoch in one batch."""

    def __init__(self) -> None:
        self.solve = runs.solve

    def __call__(self, plan: Any, solver: Any, module: Any, data: Any, *more: Any) -> Any:
        done = self.solve(plan, solver, module, data, *more)
        epoch = data.epoch_rows()
        self.module, self.batch = module, data.rows(epoch).__getitems__(list(range(len(epoch))))
        self.sizes = data.student_rows.lengths(np.unique(epoch))
        return done


@pytest.mark.parametrize(
    ("more", "labelled"),
    [
        ((), 200),
        (("data.transfer_share=0.6",), 67),  # of the 200, beside 100 rows without labels
        (("data.transfer_share=0.15",), 567),  # each two or three times
        (("strategy=logit_mse",), 200),
        (("strategy=generative", "strategy.labelled_share=0.75"), 300),
    ],
)
def test_rows_without_labels_teach(
    more: tuple[str, ...], labelled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept point is where the strategy's loss on one batch, of an epoch's rows, and the penalty balance."""
    monkeypatch.setattr(runs, "solve", spied := Spied())
    plain = ("student.model.weighting=none", "student.solver.calibrate=false", "student.solver.tolerance=1e-5")
    facts = train(tmp_path / "run", *TAUGHT, *plain, *more)["solver"]
    module, batch = spied.module.double(), spied.batch
    known = batch.label != UNLABELLED
    assert (int(known.sum()), int((~known).sum())) == (labelled, 100)
    penalty = spied.sizes.mean() / (facts["strength"] * len(spied.sizes))
    weight, bias = module.student.weight.weight, module.student.bias

    def loss() -> torch.Tensor:
        values = [module.weights[name] * value.double() for name, value in module.terms(batch).items()]
        return torch.stack(values).sum() + penalty / 2 * weight.square().sum()

    def slope() -> float:
        return float(torch.cat([each.ravel() for each in torch.autograd.grad(loss(), [weight, bias])]).norm())

    assert float(loss().detach()) == pytest.approx(facts["loss"], rel=1e-6)
    at_optimum = slope()
    with torch.no_grad():
        weight.zero_()
        bias.zero_()
    assert at_optimum < 1e-4 * slope()


def test_rows_without_labels_bring_the_student_nearer(tmp_path: Path) -> None:
    """A teacher of 600 rows, and a student that sees 60 of them, with and without 600 that have no labels."""
    few = ("data.rows={train: 640, test: 400, unlabelled: 600}", "data.limit=60")
    train(tmp_path / "taught", *few, *TAUGHT, "teacher.data={limit: null}")
    train(tmp_path / "alone", *few)
    tables = [pq.read_table(tmp_path / name / "predictions.parquet").to_pydict() for name in ("taught", "alone")]
    assert tables[0]["id"] == tables[1]["id"]
    test = np.array(tables[0]["split"]) == "test"
    teacher = np.array(tables[0]["teacher_logits"])[test].argmax(1)
    taught, alone = (float((np.array(each["student_logits"])[test].argmax(1) == teacher).mean()) for each in tables)
    assert taught > alone + 0.1


def test_a_strategy_without_a_convex_loss_makes_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = train(tmp_path / "run", "strategy=total_variation", "teacher=ngram", "student.training.epochs=1")
    assert "TotalVariationDistiller has, with these settings, no convex loss" in capsys.readouterr().err
    assert "solver" not in facts and (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert np.isclose(facts["updates"], -(-200 // 64), atol=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.training.epochs=2"], "student.training.epochs=2: this student is solved, and makes no updates"),
        (
            ["selection.patience=1", "optimizer=sgd"],
            "optimizer=sgd, selection.patience=1: .* student.solver.method=none",
        ),
        (
            ["teacher=ngram", "strategy=soft_label", "teacher.epochs=2"],
            "selection.stop_after=2: this student is solved",
        ),
        (
            ["strategy=total_variation", "teacher=ngram", "student.solver.method=lbfgs"],
            "student.solver.method=lbfgs: TotalVariationDistiller has",
        ),
        (["student.solver.method=sgd"], "student.solver.method: 'sgd'"),
    ],
)
def test_what_is_not_read_is_refused(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *BASE, *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)
