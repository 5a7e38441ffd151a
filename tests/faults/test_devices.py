"""Two processes by gloo, from the command line, against one that sees as many rows before each update."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdresearch.cli import main

RUN = (
    "data.rows={train: 240, test: 40, unlabelled: 0}", "data.validation=40", "student=bilstm", "trainer=cpu",
    "student.model.embedding_dim=8", "student.model.hidden_dim=6", "student.model.dropout=0", "threads=1", "seed=4",
    "student.tokenizer.max_length=24", "student.training.epochs=2", "student.training.batch_size=25", "logger=none",
    "evaluation.efficiency=false", "trainer.log_every_n_steps=2",
)  # fmt: skip
COMMAND = "import sys; from kdresearch.cli import main\nif __name__ == '__main__': sys.exit(main())"


def command(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """What the console script does: a file that the processes of a training can import."""
    script = folder.parent / "kdresearch"
    script.write_text(COMMAND)
    given = [sys.executable, str(script), "train", *RUN, *overrides, f"hydra.run.dir={folder}"]
    return subprocess.run(given, capture_output=True, text=True, timeout=240, env=os.environ)


def results(folder: Path) -> tuple[dict[str, float], dict[str, object], list[dict[str, str]]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return json.loads((folder / "metrics.json").read_text()), json.loads((folder / "run.json").read_text()), rows


def compare(one: Path, two: Path) -> None:
    """The same metrics to rounding, updates, best epoch, last checkpoint and curves."""
    (metrics, facts, rows), (expected, single, _) = results(two), results(one)
    assert metrics == pytest.approx(expected, abs=1e-5)
    assert facts["updates"] == single["updates"] == 8
    assert facts["best_epoch"] == single["best_epoch"]
    last = torch.load(two / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["global_step"], last["epoch"]) == (8, 1)
    assert [row["epoch"] for row in rows if row["val/nll"] and row["epoch"]] == ["0", "1"]
    assert len([row for row in rows if row["train/loss"]]) >= 3
    assert sum(bool(row["test/accuracy"]) for row in rows) == 1


def test_two_processes_train_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    assert main(["train", *RUN, "trainer.accumulate_grad_batches=2", f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    forked = ("trainer.devices=2", "+trainer.strategy=ddp_fork")
    assert main(["train", *RUN, *forked, f"hydra.run.dir={tmp_path / 'two'}"]) == 0
    compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_spawn", "ddp_fork"])
def test_the_command_trains_in_two_processes_what_one_does(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    one = ["train", *RUN, "trainer.accumulate_grad_batches=2", f"hydra.run.dir={tmp_path / 'one'}"]
    assert main(one) == 0
    extra = [] if strategy == "auto" else [f"+trainer.strategy={strategy}"]
    ended = command(tmp_path / "two", "trainer.devices=2", *extra)
    assert ended.returncode == 0, ended.stderr
    compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.usefixtures("long")
def test_what_a_process_refuses_is_one_line(tmp_path: Path) -> None:
    ended = command(tmp_path / "two", "trainer.devices=2", "student.training.learning_rate=1e30")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "kdresearch train: the student diverged" in ended.stderr.splitlines()[-1]
    assert json.loads((tmp_path / "two" / "run.json").read_text())["status"] == "diverged"


def test_a_strategy_that_starts_the_command_again_is_refused(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    given = ["train", *RUN, "trainer.devices=2", "+trainer.strategy=deepspeed"]
    assert main([*given, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "Traceback" not in capsys.readouterr().err
