from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import initialize_config_dir

from kdresearch.bench.budget import Budget, check_budget
from kdresearch.cli import main
from kdresearch.commands.compose import compose_overrides, plan_of
from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError

RUN = (
    "data.rows={train: 136, test: 40, unlabelled: 64}", "data.validation=40", "student=bilstm", "trainer=cpu",
    "student.model.embedding_dim=8", "student.model.hidden_dim=6", "threads=1", "logger=csv",
    "student.tokenizer.max_length=24", "evaluation.efficiency=false", "strategy=supervised",
    "student.training.batch_size=32",
)  # fmt: skip
# 96 rows, 3 batches an epoch


@pytest.fixture(autouse=True)
def _command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


def train(folder: Path, *given: str) -> dict[str, Any]:
    assert main(["train", *RUN, *given, f"hydra.run.dir={folder}"]) == 0
    return json.loads((folder / "run.json").read_text())


def validated(folder: Path) -> list[int]:
    """Epochs with a validation, from 1."""
    with (folder / "metrics.csv").open() as file:
        return [int(row["epoch"]) + 1 for row in csv.DictReader(file) if row.get("val/nll") and row["epoch"]]


def rates(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        values = [value for row in csv.DictReader(file) for name, value in row.items() if name.startswith("lr")]
    return [float(value) for value in values if value]


@pytest.mark.parametrize(
    ("given", "updates"),
    [
        (["min_epochs=2", "min_updates=20"], 21),  # whole epochs
        (["min_epochs=9", "min_updates=20"], 27),
        (["min_epochs=2", "min_updates=20", "epochs=4"], 12),  # exactly
        (["min_epochs=2", "min_updates=20", "updates=8"], 8),  # within the third epoch
    ],
)
def test_the_budget_is_counted_in_updates(given: list[str], updates: int, tmp_path: Path, capsys: Any) -> None:
    given = [f"student.training.{each}" for each in given]
    facts = train(tmp_path, *given, "trainer.log_every_n_steps=1", "scheduler.warmup=0")
    assert facts["updates"] == updates
    assert validated(tmp_path) == list(range(1, -(-updates // 3) + 1))  # the end within an epoch is one of them
    assert f"{-(-updates // 3)} epochs of 3 updates, {updates} in all" in capsys.readouterr().err
    learning = rates(tmp_path)  # the schedule ends with the training
    assert learning[0] == pytest.approx(2e-3, rel=0.2)
    assert learning[-1] == pytest.approx(learning[0] / updates, rel=0.35)


def test_trainer_limits_mean_what_they_say(tmp_path: Path) -> None:
    least = ("student.training.min_epochs=5", "student.training.min_updates=0")
    assert train(tmp_path / "steps", *least, "trainer.max_steps=7")["updates"] == 7
    assert train(tmp_path / "more", *least, "trainer.max_steps=70")["updates"] == 15
    assert train(tmp_path / "epochs", *least, "trainer.max_epochs=2")["updates"] == 6
    assert train(tmp_path / "accumulated", *least, "trainer.accumulate_grad_batches=2")["updates"] == 10


def test_the_least_number_counts_updates_and_not_batches(tmp_path: Path) -> None:
    least = ("student.training.min_epochs=1", "student.training.min_updates=10")
    assert train(tmp_path, *least, "trainer.accumulate_grad_batches=3")["updates"] == 10


def test_rows_without_labels_are_said_to_lengthen_the_training(tmp_path: Path, capsys: Any) -> None:
    shared = ("student.training.min_epochs=2", "student.training.min_updates=0", "teacher=ngram")
    taught = ("strategy=soft_label", "data.transfer=unlabelled", "teacher.recipe=['student=ngram']")
    distilled = train(tmp_path / "distilled", *shared, *taught)
    said = capsys.readouterr().err
    assert "2 epochs of 5 updates, 10 in all; 40% of the rows of an epoch have no label" in said
    option = re.search(r"student\.training\.updates=\d+", said)
    assert option is not None
    assert train(tmp_path / "control", option.group())["updates"] == distilled["updates"] == 10


def test_few_of_many_epochs_are_validated_and_the_best_of_them_is_kept(tmp_path: Path) -> None:
    facts = train(tmp_path, "student.training.epochs=11", "selection.validations=4")
    assert validated(tmp_path) == [3, 6, 9, 11]
    assert facts["best_epoch"] in (3, 6, 9, 11)
    train(tmp_path / "stopped", "student.training.epochs=11", "selection.validations=4", "selection.stop_after=4")
    assert validated(tmp_path / "stopped") == [3, 4]
    train(tmp_path / "each", "student.training.epochs=5", "selection.validations=null")
    assert validated(tmp_path / "each") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("epochs", [1, 2, 39, 40, 41, 97, 500])
@pytest.mark.parametrize("validations", [1, 7, 40])
def test_there_are_no_more_validations_than_allowed(epochs: int, validations: int) -> None:
    budget = Budget(validations=validations)
    budget._epochs, budget._thins = epochs, epochs > validations
    chosen = [epoch for epoch in range(1, epochs + 1) if budget.validates(epoch)]
    assert len(chosen) <= validations or epochs <= validations
    assert chosen[-1] == epochs and (len(chosen) == epochs if epochs <= validations else True)
    trainer = SimpleNamespace(check_val_every_n_epoch=1)
    for trainer.current_epoch in range(epochs):  # what the Trainer makes of it
        budget._choose(trainer)  # type: ignore[arg-type]
        validates = (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
        assert validates == (trainer.current_epoch + 1 in chosen)


def test_patience_counts_validations(tmp_path: Path) -> None:
    frozen = ("student.training.learning_rate=1e-12", "student.training.epochs=30", "selection.validations=10")
    facts = train(tmp_path, *frozen, "selection.patience=2")
    assert validated(tmp_path) == [3, 6, 9] and facts["updates"] == 27  # the first, and two no better
    assert facts["best_epoch"] == 3


# It dies in the fifth epoch, whose rows for validation are not read, or while the end within an epoch is reached.
KILLED = """
import os, signal, sys
from kdresearch.bench.budget import Budget
from kdresearch.cli import main

ends, last = Budget.on_train_batch_end, int(sys.argv[1])

def dies(self, trainer, *arguments):
    if trainer.global_step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return ends(self, trainer, *arguments)

Budget.on_train_batch_end = dies
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("at", "given"),
    [
        (14, ("student.training.min_epochs=1", "student.training.min_updates=26", "selection.validations=4")),
        (17, ("student.training.updates=17", "selection.validations=3")),
        (13, ("student.training.updates=17", "selection.validations=3", "checkpoint_every=2", "selection.patience=2")),
    ],
    ids=["between validations", "at the end", "within an epoch"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(at: int, given: tuple[str, ...], tmp_path: Path) -> None:
    command = ["train", *RUN, *given, "student.model.dropout=0.4", f"hydra.run.dir={tmp_path / 'killed'}"]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(at), *command], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert main(command) == 0
    whole = train(tmp_path / "whole", *given, "student.model.dropout=0.4")
    resumed = json.loads((tmp_path / "killed" / "run.json").read_text())
    for part in ("student", "updates", "best_epoch"):
        assert resumed[part] == whole[part]
    assert validated(tmp_path / "killed") == validated(tmp_path / "whole")
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("killed", "whole")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["student.training.epochs=3", "student.training.updates=50"], r"updates=50 and .*epochs=3 are two lengths"),
        (["student.training.updates=50", "trainer.max_epochs=3"], r"updates=50 and trainer\.max_epochs=3 are two"),
        (["student.training.updates=50", "trainer.max_steps=9"], r"updates=50 and trainer\.max_steps=9 are two"),
        (["student.training.updates=0"], r"student\.training\.updates must be a whole number of at least 1, not 0"),
        (["student.training.epochs=1.5"], r"student\.training\.epochs must be a whole number of at least 1, not 1\.5"),
        (["student.training.min_updates=-1"], r"student\.training\.min_updates must be .* at least 0, not -1"),
        (
            ["student.training.min_updates=null", "student.training.min_epochs=null"],
            r"the training has no length: give student\.training\.epochs",
        ),
        (
            ["selection.patience=3", "selection.stop_after=2"],
            r"stop_after=2 keeps that epoch .* selection\.patience=3 stops",
        ),
        (["selection.patience=-1"], r"selection\.patience must be at least 0, or null, not -1"),
        (["selection.validations=0"], r"selection\.validations must be at least 1, or null, not 0"),
    ],
)
def test_contradictions_are_refused_in_words(given: list[str], message: str) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        plan = plan_of(compose_overrides(["student=textcnn", *given]))
    with pytest.raises(UserError, match=message):
        check_budget(plan)


def test_an_epoch_beyond_the_schedule_is_refused(tmp_path: Path, capsys: Any) -> None:
    given = ("student.training.min_epochs=2", "student.training.min_updates=8", "selection.stop_after=4")
    assert main(["train", *RUN, *given, f"hydra.run.dir={tmp_path}"]) == 2
    assert "selection.stop_after=4: the schedule has 3 epochs" in capsys.readouterr().err
