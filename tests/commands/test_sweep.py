"""The contract of a sweep: the same command runs what is missing, whatever happened to it before."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdresearch.artifacts import Store
from kdresearch.bench import sweep as sweeps
from kdresearch.cli import main

GRID = (
    "data.rows={train: 240, test: 60, unlabelled: 100}", "data.validation=40", "trainer=cpu", "logger=none",
    "threads=1", "evaluation.efficiency=false", "student=bilstm", "student.model.embedding_dim=12",
    "student.model.hidden_dim=8", "student.tokenizer.max_length=24", "student.training.epochs=2", "teacher=ngram",
)  # fmt: skip
COMMAND = [sys.executable, "-c", "import sys; from kdresearch.cli import main; sys.exit(main())", "train", "-m"]


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


def run(folder: Path, *words: str) -> int:
    return main(["train", "-m", *GRID, *words, f"hydra.sweep.dir={folder}"])


def states(folder: Path) -> dict[str, str]:
    return {cell.name: sweeps.state_of(folder, cell).state for cell in sweeps.read_manifest(folder)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a sweep's results are in."""
    names = ("metrics.json", "predictions.parquet", "student/model.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.glob(f"*/{name}")}


def test_what_is_finished_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ("strategy=supervised,soft_label", "seed=1,2")
    assert run(tmp_path, *grid) == 0
    printed = capsys.readouterr()
    assert printed.err.count("training: 2 epochs") == 4
    assert "| bilstm · soft_label |" in printed.out and printed.out.endswith(f"{tmp_path / 'report' / 'index.html'}\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/run.json")}
    assert run(tmp_path, *grid) == 0
    again = capsys.readouterr()
    assert "4 done; 0 to run" in again.err and "training:" not in again.err
    assert again.out == printed.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(tmp_path, *grid, "hydra.sweeper.report=false") == 0
    assert capsys.readouterr().out == ""
    # a larger grid adds to it, and an equal value written otherwise does not
    assert run(tmp_path, "strategy=supervised,soft_label", "seed=1,2,3", "optimizer=adamw") == 0
    assert capsys.readouterr().err.count("training: 2 epochs") == 2
    assert len(states(tmp_path)) == 6


def test_a_changed_option_is_another_cell(tmp_path: Path) -> None:
    options = tmp_path / "options" / "student"
    options.mkdir(parents=True)
    grid = [word for word in GRID if not word.startswith(("student=", "student.model"))]
    words = ["--config-dir", str(tmp_path / "options"), "student=small", "strategy=supervised", "seed=1"]
    folder, first = tmp_path / "s", {}
    for dim in (8, 10, 8):
        text = f"defaults: [bilstm]\nmodel: {{embedding_dim: {dim}, hidden_dim: 8}}\n"
        (options / "small.yaml").write_text(text)
        assert main(["train", *words[:2], "-m", *grid, *words[2:], f"hydra.sweep.dir={folder}"]) == 0
        first = first or contents(folder)
    assert len(states(folder)) == 2
    assert {name: content for name, content in contents(folder).items() if name in first} == first


def test_failures_stay_failed_until_they_are_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("strategy=supervised", "student.training.learning_rate=0.01,1e30", "student.model.pooling=attention,sum")
    assert run(tmp_path, *grid) == 2
    told = capsys.readouterr().err
    assert sorted(states(tmp_path).values()) == ["diverged", "done", "failed", "failed"]
    assert "pooling is 'sum'" in told and "diverged" in told and "retry=failed" in told.splitlines()[-1]
    assert run(tmp_path, *grid) == 2
    told = capsys.readouterr().err
    assert "0 to run" in told and "training:" not in told
    assert run(tmp_path, *grid, "retry=failed") == 2
    assert "3 to run" in capsys.readouterr().err
    assert main(["sweep", "status", str(tmp_path)]) == 1
    table = capsys.readouterr().out
    assert "1 done, 1 diverged, 2 failed" in table and "pooling is 'sum'" in table


def test_the_first_failure_ends_a_sweep_on_request(tmp_path: Path) -> None:
    assert run(tmp_path, "strategy=supervised", "student.model.pooling=sum,max", "on_failure=stop") == 2
    assert list(states(tmp_path).values()) == ["failed", "missing"]


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    assert run(tmp_path, "strategy=supervised", "seed=1,2") == 0
    before = contents(tmp_path)
    (cell, _) = sweeps.read_manifest(tmp_path)
    path = tmp_path / cell.name / "predictions.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert sorted(states(tmp_path).values()) == ["done", "missing"]
    assert run(tmp_path, "strategy=supervised", "seed=1,2") == 0
    assert contents(tmp_path) == before


def test_a_dry_run_says_what_would_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ("strategy=supervised,soft_label", "seed=1,2")
    assert run(tmp_path, *grid, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "4 missing" in printed and "shared by 2 cells" in printed and "not known" in printed
    assert not list(tmp_path.iterdir()) and not list(Store().artifacts("teacher"))
    assert run(tmp_path, "strategy=supervised", "seed=1") == 0
    capsys.readouterr()
    assert run(tmp_path, *grid, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "1 done, 3 missing" in printed and "of one process and" in printed


def test_killed_at_any_moment_it_ends_as_one_left_alone(tmp_path: Path) -> None:
    grid = [*GRID, "strategy=soft_label", "seed=1,2,3", "student.training.epochs=8"]
    environment = {**os.environ, "KDRESEARCH_HOME": str(tmp_path / "alone_store")}
    alone = [*COMMAND, *grid, f"hydra.sweep.dir={tmp_path / 'alone'}"]
    table = subprocess.run(alone, env=environment, capture_output=True, text=True, check=True).stdout
    environment = {**os.environ, "KDRESEARCH_HOME": str(tmp_path / "killed_store")}
    command = [*COMMAND, *grid, f"hydra.sweep.dir={tmp_path / 'killed'}"]
    for finished in (1, 2):  # killed within the cell after so many
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed").glob("*/metrics.json"))) < finished and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    end = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert end.stdout.replace("/killed/", "/alone/") == table
    assert contents(tmp_path / "killed") == contents(tmp_path / "alone")


@pytest.mark.parametrize(
    ("words", "message"),
    [(("retry=all",), "retry 'all'"), (("on_failure=halt",), "on_failure 'halt'"), (("seed=1,-2",), "seed")],
)
def test_mistakes_are_named(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(tmp_path, "strategy=supervised", *words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_names_of_folders() -> None:
    config = {"student": {"training": {"epochs": 2}}, "seeds": {"init": 1}, "data": {"source": {"train": "a.csv"}}}
    name = sweeps.cell_name(config, ["student=bilstm", "strategy.temperature=0.5", "seed=1", "data.train=/a/b.csv"])
    assert name.startswith("bilstm-temperature_0.5-seed_1-train__a_b.csv-")
    longer = {**config, "student": {"training": {"epochs": 3}}}
    assert sweeps.cell_name(longer, ["seed=1"]) != sweeps.cell_name(config, ["seed=1"])
    equal = {**config, "student": {"training": {"epochs": 2.0}}, "logger": {"kind": "csv"}, "threads": 2}
    assert sweeps.cell_name(equal, ["seed=1"]) == sweeps.cell_name(config, ["seed=1"])
    other = {**config, "data": {"source": {"train": "b.csv"}}}
    assert sweeps.cell_name(other, ["seed=1"]) != sweeps.cell_name(config, ["seed=1"])


@pytest.mark.parametrize("experiment", ["temperature", "labels", "zoo", "inputs", "overconfident"])
def test_grids_compose(experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "-m", f"experiment={experiment}", "student=textcnn", "teacher=ngram", "--dry-run"]
    assert main([*words, f"hydra.sweep.dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    cells = int(re.search(r"^(\d+) cells in", printed, re.M)[1])  # type: ignore[index]
    assert cells == len(set(re.findall(r"^(\S+) +missing", printed, re.M))) >= 12
    assert "paid for once" in printed


def test_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "status", str(tmp_path)]) == 2
    assert "no folder of a sweep" in capsys.readouterr().err
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": [3]}))
    assert main(["sweep", "status", str(tmp_path)]) == 2
