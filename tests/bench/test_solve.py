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
from kdresearch.cli import main
from kdresearch.data.reviews import Reviews

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
    assert solver["weighting"] in ("nb", "tfidf") and solver["strength"] in (3, 10, 30, 100)
    assert not (tmp_path / "run" / "checkpoints").exists()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        curve = [row for row in csv.DictReader(file) if row["val/accuracy"]]
    assert [float(row["solver/strength"]) for row in curve] == [3, 10, 30, 100] * 2
    assert [row["epoch"] for row in curve] == [str(number) for number in range(8)]
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


@pytest.mark.parametrize("more", [(), ("data.transfer_share=0.6",), ("strategy=logit_mse",)])
def test_rows_without_labels_teach(more: tuple[str, ...], tmp_path: Path) -> None:
    """The kept point is where the strategy's loss on all rows and the penalty balance."""
    facts = train(tmp_path / "run", *TAUGHT, "student.solver.tolerance=1e-5", "student.model.weighting=none", *more)
    solver = facts["solver"]
    assert facts["data"]["counts"]["transfer"] > 50 and solver["gradient"] < 1e-3
    alone = train(tmp_path / "alone", *TAUGHT, "data.transfer=none", "student.model.weighting=none", *more[1:])
    assert facts["student"]["fingerprint"] != alone["student"]["fingerprint"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test/agreement"] > 0.85


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
