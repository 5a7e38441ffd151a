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
from kdresearch.bench.loggers import CurveLogger
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
from kdresearch.bench.loggers import CurveLogger
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


# It sends itself a signal in the middle of its third epoch.
SIGNALLED = KILLED.replace("SIGKILL", "{signal}")


def stopped(given: list[str], name: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    """The command, which this signal reaches in its third epoch."""
    script = SIGNALLED.replace("{signal}", name).replace("main(sys.argv[1:])", "sys.exit(main(sys.argv[1:]))")
    return subprocess.run(
        [sys.executable, "-c", script, *given], capture_output=True, text=True, timeout=120, env=os.environ
    )


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The metrics of the run of ``given`` that nothing happened to."""
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    assert main(["train", *RUN, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    return json.loads((tmp_path / "whole" / "metrics.json").read_text())


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_a_run_with_its_status_and_a_line(name: str, status: int, whole, tmp_path: Path) -> None:
    given = ["train", *RUN, f"hydra.run.dir={tmp_path / 'run'}"]
    ended = stopped(given, name)
    assert ended.returncode == status, ended.stderr
    assert "interrupted after epoch 2 (update 14): the same command goes on" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert main(given) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == whole


@pytest.mark.parametrize("harm", ["torn", "flipped", "both", "best"])
def test_a_damaged_checkpoint_does_not_end_a_run(harm: str, whole, tmp_path: Path, capsys) -> None:
    """The earlier one is gone on from, or the run starts anew; either way it ends as if nothing had been."""
    given = ["train", *RUN, f"hydra.run.dir={tmp_path / 'run'}"]
    stopped(given)
    folder = tmp_path / "run" / "checkpoints"
    names = {"both": ("last.ckpt", "before-last.ckpt"), "best": ("best.ckpt", "before-best.ckpt")}.get(
        harm, ("last.ckpt",)
    )
    for name in names:
        data = bytearray((folder / name).read_bytes())
        if harm == "flipped":
            data[len(data) // 2] ^= 4
        (folder / name).write_bytes(data if harm == "flipped" else data[: len(data) // 2])
    capsys.readouterr()
    assert main(given) == 0
    said = capsys.readouterr().err
    assert f"{names[0]} is damaged" in said
    assert ("going on from" in said) == (harm in ("torn", "flipped"))
    assert ("starts anew" in said) == (harm in ("both", "best"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == whole
    assert curves(tmp_path / "run") == curves(tmp_path / "whole")
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_run_whose_folder_moved_keeps_its_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    # At this rate the first epoch stays the best one.
    given = ["train", *RUN, "student.training.learning_rate=1"]
    assert main([*given, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    facts = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert facts["best_epoch"] == 1
    stopped([*given, f"hydra.run.dir={tmp_path / 'run'}"])
    (tmp_path / "run").rename(tmp_path / "moved")
    assert main([*given, f"hydra.run.dir={tmp_path / 'moved'}"]) == 0
    moved = json.loads((tmp_path / "moved" / "run.json").read_text())
    assert moved["best_epoch"] == facts["best_epoch"]
    assert moved["student"] == facts["student"]
    assert moved["files"]["metrics.json"] == facts["files"]["metrics.json"]


def test_a_second_process_in_a_folder_is_refused(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    folder = tmp_path / "run"
    given = ["train", *RUN, f"hydra.run.dir={folder}"]
    script = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "print('there', flush=True); input()")
    with subprocess.Popen(
        [sys.executable, "-c", script, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    ) as first:
        assert first.stdout.readline() == b"there\n"
        before = contents(folder)
        assert main(given) == 2
        assert f"process {first.pid} on " in capsys.readouterr().err.splitlines()[-1]
        assert main([*given, "seed=5"]) == 2
        assert contents(folder) == before
        first.communicate(b"\n", timeout=60)
    assert main(given) == 0
    assert "already finished" in capsys.readouterr().err
    assert not [path for path in folder.iterdir() if path.name.startswith((".lock", ".holder"))]


def test_curves_outlive_a_kill_and_torn_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    checkpoint = tmp_path / "last.ckpt"
    torch.save({"global_step": 6}, checkpoint)
    file.write_bytes(b"a,step\n1.0,2\n\xff\x00,x\n2.0,4\n3.0,6\n4.0,1")
    CurveLogger(tmp_path, checkpoint)  # killed before it logs anything
    assert file.read_text() == "a,step\n1.0,2\n2.0,4\n"
    logger = CurveLogger(tmp_path, checkpoint)
    logger.log_metrics({"a": 5.0}, 8)
    logger.save()
    other = CurveLogger(tmp_path, checkpoint)  # as in the process that started those of a training
    logger.log_metrics({"b": 6.0}, 10)
    logger.save()
    other.log_metrics({"c": 7.0}, 12)
    other.save()
    assert curves(tmp_path) == [
        {"a": "1.0", "step": "2"}, {"a": "2.0", "step": "4"}, {"b": "6.0", "step": "10"}, {"c": "7.0", "step": "12"}
    ]  # fmt: skip
