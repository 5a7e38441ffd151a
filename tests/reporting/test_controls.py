"""Cells and controls by settings: which runs are averaged, and which rows are compared."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdresearch.reporting import table
from kdresearch.reporting.comparison import Comparison, compare
from kdresearch.reporting.records import find
from kdresearch.reporting.rows import Row

Make = Callable[..., Path]
TUNING = {"trials": 12, "space": {"shared": {}}, "chosen_by": "val/accuracy (max)", "search_seed": 0}


def settings(strategy: str = "supervised", teacher: Any = None, seed: int = 1, **changes: Any) -> dict[str, Any]:
    """Settings as a record has them; ``changes`` by dotted key with __ for the dots."""
    result: dict[str, Any] = {
        "data": {"content": "d3dd40c3db49", "transfer": "none"},
        "student": {"model": {"width": 8}, "training": {"epochs": 6, "learning_rate": 0.001}},
        "strategy": {"_target_": f"k.{strategy}", "label_smoothing": 0, "weights": {"label": 1}},
        "seeds": {"init": seed},
    }
    if strategy != "supervised":
        result["strategy"]["temperature"] = 2
        result["teacher"] = teacher or {"package": "minilm"}
    result = copy.deepcopy(result)
    for key, value in changes.items():
        node = result
        *path, last = key.split("__")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return result


@pytest.fixture
def run(record: Make) -> Make:
    """Write a record with settings."""

    def write(
        strategy: str = "supervised", seed: int = 1, skill: float = 1.9, info: Any = None, **changes: Any
    ) -> Path:
        teacher = None if strategy == "supervised" else "minilm"
        values = settings(strategy, seed=seed, **changes)
        return record(strategy=strategy, teacher=teacher, seed=seed, skill=skill, settings=values, **(info or {}))

    return write


def compared(folder: Path) -> tuple[Comparison, dict[str, Row]]:
    (comparison,) = compare(find([folder]).finished)
    return comparison, {row.method: row for row in comparison.rows}


def test_a_default_and_the_same_value_typed_are_one_cell(record: Make, tmp_path: Path) -> None:
    for seed, overrides in ((1, []), (2, ["student.training.epochs=6"])):
        record(seed=seed, settings=settings(seed=seed), overrides=overrides)
    _, rows = compared(tmp_path)
    assert [(row.method, len(row.runs)) for row in rows.values()] == [("bilstm · alone", 2)]


def test_of_two_controls_the_equal_one_counts(run: Make, tmp_path: Path) -> None:
    for seed in (1, 2):
        run(seed=seed, skill=1.0)
        run(seed=seed, skill=3.0, student__training__epochs=12)
        run("soft_label", seed=seed, skill=2.0, student__training__epochs=12)
    comparison, rows = compared(tmp_path)
    row, equal = rows["bilstm · soft_label · epochs=12"], rows["bilstm · alone · epochs=12"]
    assert row.change == pytest.approx(row.mean - equal.mean) and row.change < 0
    assert row.unlike == () and not any("set apart" in note for note in comparison.footnotes)


def test_a_near_control_stands_in_and_the_row_says_in_what_it_differs(run: Make, tmp_path: Path) -> None:
    run()
    run("soft_label", student__training__epochs=12, optimizer__momentum=0.9)
    comparison, rows = compared(tmp_path)
    row = rows["bilstm · soft_label · momentum=0.9 · epochs=12"]
    assert row.unlike == ("momentum=0.9 (control none)", "epochs=12 (control 6)")
    headings, cells = table.cells(comparison)
    changes = [line[headings.index("Δ to alone")] for line in cells]
    assert [change.endswith("†") for change in changes if change != table.NOTHING] == [True]
    assert any(
        "† set apart from bilstm · alone" in note and "epochs=12 (control 6)" in note for note in comparison.footnotes
    )


@pytest.mark.parametrize("change", [{"data__limit": 50}, {"student__model__width": 4}])
def test_a_student_of_other_rows_or_another_shape_is_no_control(run: Make, tmp_path: Path, change: dict) -> None:
    run(**change)
    run("soft_label")
    comparison, rows = compared(tmp_path)
    assert all(row.change is None for row in rows.values())
    assert any(note.startswith("Nothing to compare") for note in comparison.footnotes)


def test_other_texts_and_edited_options_are_no_seeds(run: Make, tmp_path: Path) -> None:
    for content in ("aaaaaaaa", "bbbbbbbb"):
        run("generative", generator={"_target_": "OwnTexts", "path": f"content {content * 3}"}, info={"labels": None})
    for temperature in (2, 4):
        run("soft_label", strategy__temperature=temperature)
    _, rows = compared(tmp_path)
    assert {name: len(row.runs) for name, row in rows.items() if row.kind != "teacher"} == {
        "bilstm · generative · path=aaaaaaaa": 1,
        "bilstm · generative · path=bbbbbbbb": 1,
        "bilstm · soft_label · temperature=2": 1,
        "bilstm · soft_label · temperature=4": 1,
    }


def test_teachers_of_other_data_are_rows_of_their_own(record: Make, tmp_path: Path) -> None:
    for limit in (10, 100):
        recipe = {"recipe": {"data": {"limit": limit}, "seeds": {"init": 0}}}
        values = settings("soft_label", recipe, data__limit=limit)
        folder = record(strategy="soft_label", teacher="ngram", settings=values)
        facts = json.loads((folder / "run.json").read_text())
        facts["teacher"]["fingerprint"] = f"fingerprint {limit}"
        (folder / "run.json").write_text(json.dumps(facts))
    _, rows = compared(tmp_path)
    assert set(rows) == {
        "ngram · limit=10 · teacher", "ngram · limit=100 · teacher",
        "bilstm · soft_label · limit=10", "bilstm · soft_label · limit=100",
    }  # fmt: skip


def test_a_teacher_below_its_student_is_marked(run: Make, tmp_path: Path) -> None:
    run()
    run("soft_label", skill=6.0)
    comparison, rows = compared(tmp_path)
    row = rows["bilstm · soft_label"]
    lines = pq.read_table(row.runs[0].path / "predictions.parquet", filters=[("split", "=", "test")]).to_pylist()
    teacher = np.mean([np.argmax(line["teacher_logits"]) == line["label"] for line in lines])
    assert row.below and row.teacher_accuracy == pytest.approx(teacher)
    assert "bilstm · soft_label ‡" in [line[0] for line in table.cells(comparison)[1]]
    assert any(f"its teacher ({100 * teacher:.2f} % accuracy) is below it" in note for note in comparison.footnotes)


def test_unequal_budgets_are_told_and_equal_ones_are_not(run: Make, tmp_path: Path) -> None:
    run()
    run("soft_label", info={"tuning": TUNING}, student__training__learning_rate=0.01)
    comparison, _ = compared(tmp_path)
    assert any("control: 1 trial, method: 12 trials" in note for note in comparison.footnotes)
    run(info={"tuning": TUNING}, skill=2.5, student__training__learning_rate=0.003)
    comparison, rows = compared(tmp_path)
    row, control = rows["bilstm · soft_label · learning_rate=0.01"], rows["bilstm · alone · learning_rate=0.003"]
    assert row.change == pytest.approx(row.mean - control.mean) and row.unlike == ()
    assert not any("unequal tuning" in note for note in comparison.footnotes)
    assert any("settings are the best of 12 trials by val/accuracy" in note for note in comparison.footnotes)
    assert "trials" in table.cells(comparison)[0]


def test_macro_f1_is_shown_where_one_class_holds_most_rows(run: Make, tmp_path: Path) -> None:
    run()
    assert "macro F1 (%)" not in table.cells(compared(tmp_path)[0])[0]
    folder = run(seed=2, info={"fingerprint": "other", "data": "skewed"}, data__content="other")
    facts = json.loads((folder / "run.json").read_text())
    facts["data"]["majority"] = {"test": 0.8}
    (folder / "run.json").write_text(json.dumps(facts))
    skewed = next(each for each in compare(find([tmp_path]).finished) if each.title == "skewed")
    headings, (cells,) = table.cells(skewed)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert cells[headings.index("macro F1 (%)")] == f"{100 * metrics['test/macro_f1']:.2f}"
    assert any("80.0 % of the test rows are of one class" in note for note in skewed.footnotes)


def test_old_records_take_their_settings_from_the_configuration_beside_them(record: Make, tmp_path: Path) -> None:
    config = (
        "data: {limit: null, source: {path: x}}\nstrategy: {_target_: k, weights: {label: 1}}\n"
        "student: {model: {width: 8}, training: {epochs: %s}}\ntrainer: {max_epochs: '${student.training.epochs}'}\n"
    )
    for seed, epochs in ((1, "6"), (2, "6.0"), (3, "7")):
        folder = record(seed=seed, overrides=[f"student.training.epochs={epochs}"])
        (folder / ".hydra" / "config.yaml").write_text(config % epochs)
    comparison, rows = compared(tmp_path)
    assert {name: len(row.runs) for name, row in rows.items()} == {
        "bilstm · alone · epochs=6": 2, "bilstm · alone · epochs=7": 1,
    }  # fmt: skip
    assert any("3 of 3 runs were recorded without their settings" in note for note in comparison.footnotes)


def test_trials_are_left_out_and_counted(run: Make, tmp_path: Path) -> None:
    from kdresearch.commands.report import left_out

    run()
    for seed in (2, 3):
        run(seed=seed, info={"untested": True})
    found = find([tmp_path])
    assert (len(found.finished), len(found.untested)) == (1, 2)
    assert left_out(found) == ["2 of 3 runs left out: 2 evaluated on validation rows alone (trials)"]
