from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

import pytest

from kdresearch import __version__
from kdresearch.cli import COMMANDS, main
from kdresearch.errors import UserError

HEAVY = ("torch", "hydra", "omegaconf", "lightning", "transformers", "wandb", "matplotlib", "scipy", "pandas")


def cli(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from kdresearch.cli import main; sys.exit(main())", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert cli(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["store", "list"]])
def test_help_is_quick_and_loads_nothing_heavy(arguments: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KDRESEARCH_HOME", str(tmp_path))
    limit = 0.3 if arguments == ["--help"] else 0.5
    assert min(cpu_seconds(*arguments) for _ in range(3)) < limit
    loaded = (
        "import sys\nfrom kdresearch.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        f"print('loaded', *(name for name in {HEAVY} if name in sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True).splitlines()[-1] == "loaded"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str) -> None:
    answer = cli(name, "--help")
    assert answer.returncode == 0
    assert answer.stderr == ""
    assert "examples:" in answer.stdout
    assert answer.stdout.split("examples:")[1].count(f"kdresearch {name}") >= 2


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "examples:" in told
    assert all(f"\n  {name}" in told for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_command_is_refused_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tran"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "unknown command 'tran' (did you mean 'train'?)" in told.err
    assert all(name in told.err for name in COMMANDS)


def test_a_users_mistake_is_one_line_without_a_traceback() -> None:
    answer = cli("predict", "/nowhere", "text")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("kdresearch predict: /nowhere does not exist")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("problem", "status"), [(UserError("no"), 2), (KeyboardInterrupt(), 130)], ids=["mistake", "interrupt"]
)
def test_statuses(problem: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise problem

    monkeypatch.setattr("kdresearch.commands.store.main", fail)
    assert main(["store"]) == status


@pytest.mark.skipif(os.name != "posix", reason="pipes are closed otherwise elsewhere")
def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "import sys; from kdresearch.cli import main; sys.exit(main())", "store", "path"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    answer = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, env=buffered)
    os.close(write)
    assert (answer.returncode, answer.stderr) == (141, "")


def test_what_nobody_foresaw_is_one_line_with_the_place_of_its_trace(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("kdresearch.commands.report.main", lambda arguments: [][len(arguments) + 1])
    assert main(["report", "x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (trace,) = tmp_path.iterdir()
    assert line.startswith("kdresearch report: IndexError: list index out of range") and str(trace) in line
    assert "Traceback" in trace.read_text()


def test_a_path_that_cannot_be_is_one_line(capsys) -> None:
    assert main(["report", "x" * 5000]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kdresearch report: ") and len(line) < 400
