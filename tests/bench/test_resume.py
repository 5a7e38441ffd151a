from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from kdresearch.bench.resume import RandomState
from kdresearch.cli import main

RUN = (
    "data.rows={train: 240, test: 40, unlabelled: 0}", "data.validation=40", "student=bilstm", "trainer=cpu",
    "student.model.embedding_dim=8", "student.model.hidden_dim=6", "student.model.dropout=0.4", "threads=1", "seed=4",
    "student.tokenizer.max_length=24", "student.training.epochs=4", "logger=none", "evaluation.efficiency=false",
    "trainer.log_every_n_steps=3",
)  # fmt: skip

# It dies in the middle of the third epoch, before the update of its fourth batch.
KILLED = """
import os, signal, sys
from kdresearch.bench.resume import RandomState
from kdresearch.cli import main

start = RandomState.on_train_batch_start

def dies(self, trainer, module, batch, number):
    if (trainer.current_epoch, number) == (2, 3):
        os.kill(os.getpid(), signal.SIGKILL)
    return start(self, trainer, module, batch, number)

RandomState.on_train_batch_start = dies
main(sys.argv[1:])
"""
TAUGHT = (
    "teacher=ngram",
    "teacher.recipe=['student=ngram', 'student.solver.method=none', 'student.training.epochs=2']",
)
PROCEDURES = {
    "staged": (*TAUGHT, "strategy.objectives.feature._target_=kdresearch.objectives.logits.LogitMse"),
    "annealed": TAUGHT,
    "mutual": (),
    "self": ("strategy.generations=1",),
    "assistant": (*TAUGHT, "strategy.assistants=[['student=ngram_bag', 'student.training.epochs=4']]"),
    "adversarial": TAUGHT,
}


def test_random_numbers_go_on_where_they_stopped() -> None:
    torch.manual_seed(0)
    torch.rand(3)
    saved = RandomState().state_dict()
    expected = torch.rand(5)
    torch.manual_seed(1)
    restored = RandomState()
    restored.load_state_dict(saved)
    torch.rand(4)  # what building the run took
    restored.on_train_batch_start(None, None, None, 0)
    assert torch.equal(torch.rand(5), expected)
    torch.manual_seed(2)
    restored.on_train_batch_start(None, None, None, 1)  # once
    torch.manual_seed(2)
    other = torch.rand(5)
    torch.manual_seed(2)
    restored.on_train_batch_start(None, None, None, 2)
    assert torch.equal(torch.rand(5), other)


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if value} for row in rows]


@pytest.mark.parametrize(("every", "saved"), [("null", 14), ("5", 15)], ids=["epochs", "updates"])
def test_a_killed_run_ends_as_if_it_had_not_been(
    every: str, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven batches an epoch: it goes on from the end of the second one, or from the first batch of the third."""
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    folder = tmp_path / "killed"
    given = ["train", *RUN, f"checkpoint_every={every}", f"hydra.run.dir={folder}"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *given], capture_output=True, timeout=120, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert not (folder / "metrics.json").exists()
    steps = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps == saved

    assert main(given) == 0
    assert main(["train", *RUN, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    facts = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in ("killed", "whole")}
    metrics = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in facts}
    assert metrics["killed"] == metrics["whole"]
    for part in ("student", "updates", "best_epoch", "identity"):
        assert facts["killed"][part] == facts["whole"][part]
    predictions = [pq.read_table(tmp_path / name / "predictions.parquet") for name in facts]
    assert predictions[0].equals(predictions[1])
    # the curves are whole, and have nothing twice
    assert curves(folder) == curves(tmp_path / "whole")
    assert [row["epoch"] for row in curves(folder) if "val/nll" in row and "epoch" in row] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("strategy", PROCEDURES)
def test_a_killed_procedure_ends_as_if_it_had_not_been(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several networks, optimizers, stages or generations; in chains the first link dies, and nothing is shared."""
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    given = ["train", *RUN, "student.training.learning_rate=0.03", f"strategy={strategy}", *PROCEDURES[strategy]]
    here = [*given, f"hydra.run.dir={tmp_path / 'killed'}"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *here], capture_output=True, timeout=120, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert main(here) == 0
    monkeypatch.setenv("KDRESEARCH_HOME", str(tmp_path / "elsewhere"))
    assert main([*given, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("killed", "whole")]
    assert metrics[0] == metrics[1]
    facts = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("killed", "whole")]
    assert facts[0]["student"]["fingerprint"] == facts[1]["student"]["fingerprint"]
    assert facts[0]["updates"] == facts[1]["updates"] == 28


def test_a_finished_run_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    given = ["train", *RUN, "student.training.epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(given) == 0
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    capsys.readouterr()
    assert main(given) == 0
    assert "going on from" not in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == before
    assert [row["epoch"] for row in curves(tmp_path / "run") if "val/nll" in row and "epoch" in row] == ["0"]
