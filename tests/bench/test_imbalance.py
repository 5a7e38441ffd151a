"""What a run says and records of its rows, its class weights and a teacher that is below it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdresearch.bench.context import Context
from kdresearch.bench.run import _compare_teacher
from kdresearch.cli import main

RUN = (
    "data=files", "data.validation=24", "trainer=cpu", "logger=none", "threads=1", "evaluation.efficiency=false",
    "student=ngram_bag", "student.training.epochs=3", "student.training.learning_rate=0.05",
)  # fmt: skip


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


def write(folder: Path) -> tuple[str, str]:
    """Four rows in five are common; 20 of 140 training rows are copies, one of them of another label."""
    random, words = np.random.default_rng(0), {"common": "the a of to in it", "rare": "the a rare odd new it"}
    for part, size in (("train", 120), ("test", 40)):
        rows = []
        for number in range(size):
            label = "rare" if number % 5 == 0 else "common"
            text = " ".join(random.choice(words[label].split(), 6)) + f" n{part}{number}"
            rows.append((text, f"{label} " if number % 20 == 0 else label))
        rows += [(text, label) for text, label in rows[1:20]] + [(rows[1][0], "rare")] if part == "train" else []
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return f"data.train={folder / 'train.csv'}", f"data.test={folder / 'test.csv'}"


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_a_run_tells_and_records_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = "student.training.class_weights=balanced"
    assert main(["train", *RUN, *write(tmp_path), weights, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    facts, told = read(tmp_path / "run"), capsys.readouterr().err
    data = facts["data"]
    assert data["classes"] == ["common", "rare"]
    assert data["labels_normalised"] == {"train": 6, "test": 2}
    assert data["duplicates_dropped"] == {"train_in_test": 0, "within_train": 20}
    assert data["conflicting_labels"] == {"within_train": 1, "within_test": 0, "train_and_test": 0}
    assert data["dropped_share"] == {"train": pytest.approx(20 / 140)}
    assert data["unvalidated_classes"] == data["untrained_classes"] == []
    assert data["majority"]["test"] == {"class": "common", "share": 0.8} and data["imbalanced"] is True
    for line in (
        "labels of 6 train, 2 test rows had white space",
        "WARNING: 14.3% of the train rows were copies",
        "texts of several labels: 1 within_train; in training the first copy is kept (data.conflicts=first)",
        "imbalanced: ",
    ):
        assert line in told
    # 96 rows are trained on, a fifth of them rare
    rare = round(96 * (1 - data["majority"]["train"]["share"]))
    assert facts["class_weights"] == pytest.approx({"common": 96 / (2 * (96 - rare)), "rare": 96 / (2 * rare)})
    assert facts["class_weights"]["rare"] > 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["student.training.class_weights={rar: 2}"], "student.training.class_weights: 'rar' (did you mean 'rare'?)"),
        (["student.training.class_weights={rare: 0}"], "class_weights.rare must be a positive number, not 0"),
        (["student.training.class_weights=even"], "class_weights: balanced, or weights by class, not 'even'"),
        (["selection.monitor=val/nll"], "would keep the worst epoch: val/nll takes selection.mode=min"),
        (["selection.mode=min"], "would keep the worst epoch: val/accuracy takes selection.mode=max"),
        (["data.conflicts=frist"], "data.conflicts: 'frist' (did you mean 'first'?)"),
    ],
)  # fmt: skip
def test_refused(overrides: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *RUN, *write(tmp_path), *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_epoch_of_the_best_macro_f1_is_kept(tmp_path: Path) -> None:
    chosen = ("selection.monitor=val/macro_f1", f"hydra.run.dir={tmp_path / 'run'}")
    assert main(["train", *RUN, *write(tmp_path), *chosen]) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        found = [float(row["val/macro_f1"]) for row in csv.DictReader(file) if row["val/macro_f1"] and row["epoch"]]
    assert len(found) == 3 and read(tmp_path / "run")["best_epoch"] == 1 + int(np.argmax(found))


class Told:
    facts: dict[str, Any]

    def __init__(self) -> None:
        self.facts = {"teacher": {}}


@pytest.mark.parametrize(("teacher", "below"), [(0.70, True), (0.75, False), (0.80, False)])
def test_a_teacher_below_its_student(teacher: float, below: bool, tmp_path: Path) -> None:
    said: list[str] = []
    record: Any = Told()
    metrics = {"teacher/val_accuracy": teacher, "val/accuracy": 0.75, "test/accuracy": 0.1}
    _compare_teacher(record, metrics, "accuracy", Context(say=said.append))
    assert record.facts["teacher"] == {"below_student": below}
    assert [line.startswith("WARNING: the teacher is below its student") for line in said] == [True] * below


def test_whether_a_teacher_is_below_is_in_the_record(tmp_path: Path) -> None:
    overrides = (
        "strategy=soft_label",
        "teacher=ngram",
        "teacher.recipe=['student=ngram_bag','student.training.epochs=12','student.training.learning_rate=0.1']",
    )
    assert main(["train", *RUN, *write(tmp_path), *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    teacher = read(tmp_path / "run")["teacher"]
    assert teacher["below_student"] == (metrics["teacher/val_accuracy"] < metrics["val/accuracy"])
    assert teacher["validation_accuracy"] > teacher["validation_majority"] > 0.5
