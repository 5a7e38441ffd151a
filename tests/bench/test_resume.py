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

from kdresearch.bench.contents import damage
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
from kdresearch.bench.contents import damage
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


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a run that is finished in ``run``."""
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    given = ["train", *RUN, "student.training.epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(given) == 0
    return given


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file but Hydra's, which writes the configuration anew."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".hydra" not in path.parts]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_finished_run_is_not_run_again(finished: list[str], tmp_path: Path, capsys) -> None:
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert main(finished) == 0
    said = capsys.readouterr().err
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())["test/accuracy"]
    assert "already finished" in said and f"{accuracy:.4f}" in said and "resume=false" in said
    assert "training:" not in said
    assert contents(tmp_path / "run") == before


def test_a_finished_run_is_done_again_where_that_is_said(finished: list[str], tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    before, names = contents(folder), sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    assert main([*finished, "resume=false"]) == 0
    assert "going on from" not in capsys.readouterr().err
    after = contents(folder)
    assert after["metrics.json"][0] == before["metrics.json"][0]
    assert after["metrics.json"][1] > before["metrics.json"][1]
    assert sorted(path.name for path in folder.iterdir()) == names  # nothing of the draft is left
    assert [row["epoch"] for row in curves(folder) if "val/nll" in row and "epoch" in row] == ["0"]


@pytest.mark.parametrize("extra", [["resume=false"], ["seed=9"]], ids=["same", "other"])
def test_the_earlier_record_is_there_until_the_new_one_is(
    finished: list[str], extra: list[str], tmp_path: Path
) -> None:
    """Killed in its third epoch, a run that takes a finished one's place leaves that one as it was."""
    before = contents(tmp_path / "run")
    given = [*finished, "student.training.epochs=4", *extra]
    killed = subprocess.run([sys.executable, "-c", KILLED, *given], capture_output=True, timeout=120, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    after = contents(tmp_path / "run")
    assert {name: after.get(name) for name in before} == before
    # the same command goes on with the new one, which then takes the place
    again = [part for part in given if part != "resume=false"]
    assert main(again) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["status"] == "finished" and facts["updates"] == 28
    assert not (tmp_path / "run" / ".next").exists()


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet", "student/model.safetensors"])
def test_a_record_that_is_not_whole_is_done_again(name: str, finished: list[str], tmp_path: Path, capsys) -> None:
    file = tmp_path / "run" / name
    good = file.read_bytes()
    file.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    capsys.readouterr()
    assert main(finished) == 0
    said = capsys.readouterr().err
    assert "already finished" not in said and name.split("/")[-1] in said
    assert main(finished) == 0
    assert "already finished" in capsys.readouterr().err


def test_a_draft_is_put_in_place_though_it_was_killed_there(finished: list[str], tmp_path: Path, monkeypatch) -> None:
    """However many of its files were there already."""
    folder = tmp_path / "run"
    replace, moves = Path.replace, []

    class Killed(BaseException):
        pass

    for number in range(1, 9):

        def move(path: Path, target: Path, number: int = number) -> Path:
            moves.append(path)
            if len(moves) == number:
                raise Killed
            return replace(path, target)

        moves.clear()
        monkeypatch.setattr(Path, "replace", move)
        try:
            main([*finished, f"seed={number}", "student.training.epochs=1"])
        except Killed:
            monkeypatch.setattr(Path, "replace", replace)
            record = json.loads((folder / ".next" / "run.json").read_text())
            assert record["status"] == "finished"
            assert main([*finished, f"seed={number}"]) == 0
        else:
            break
        assert json.loads((folder / "run.json").read_text())["seed"] == number
        assert damage(folder, json.loads((folder / "run.json").read_text())) is None
        assert (folder / "checkpoints" / "best.ckpt").exists() and not (folder / ".next").exists()
    assert number == 7  # there were six files and folders to move
