from __future__ import annotations

import ast
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert "quickstart.ipynb" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_without_outputs(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    train, classify, closer = (cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    there = ast.literal_eval(train[-1]["data"]["text/plain"])
    assert {"metrics.json", "predictions.parquet", "run.json", "student"} <= set(there)
    good, bad = (ast.literal_eval(line.split("} ")[0] + "}") for line in classify[0]["text"].splitlines())
    assert good["positive"] > 0.75 and bad["positive"] < 0.25
    found = ast.literal_eval(closer[-1]["data"]["text/plain"])
    metrics = json.loads((tmp_path / "quickstart-run" / "metrics.json").read_text())
    assert found["rows"] == 200
    assert found["student accuracy"] == metrics["test/accuracy"]
    assert found["teacher accuracy"] == metrics["teacher/test_accuracy"]
    assert found["agreement"] == metrics["test/agreement"]


def test_a_strategy_of_ones_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(FOLDER / "own_strategy.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [cell.outputs[-1] for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    short, trained = (each for each in outputs if "data" in each)
    assert float(short["data"]["text/plain"]) > 0
    assert {"train/label", "train/ranking", "val/accuracy"} <= set(ast.literal_eval(trained["data"]["text/plain"]))
