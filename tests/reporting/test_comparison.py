"""The numbers of the table, against numpy on the very files, and who is compared with whom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdresearch.errors import UserError
from kdresearch.evaluation.statistics import holm, two_way_bootstrap, two_way_test
from kdresearch.reporting import table
from kdresearch.reporting.comparison import Comparison, compare
from kdresearch.reporting.records import find
from kdresearch.reporting.rows import Row

Make = Callable[..., Path]


def tables(folder: Path, metric: str = "accuracy", against: str = "supervised") -> list[Comparison]:
    return compare(find([folder]).finished, metric, against)


def by_name(comparison: Comparison) -> dict[str, Row]:
    return {row.method: row for row in comparison.rows}


def correctness(folder: Path, student: str, strategy: str) -> np.ndarray:
    """[S, N] from the files alone, in the order of the ids."""
    found = []
    for run in sorted(folder.glob("*")):
        info = json.loads((run / "run.json").read_text())
        if (info["cell"]["student"], info["cell"]["strategy"]) == (student, strategy):
            lines = [row for row in pq.read_table(run / "predictions.parquet").to_pylist() if row["split"] == "test"]
            lines.sort(key=lambda row: row["id"])
            found.append([np.argmax(row["student_logits"]) == row["label"] for row in lines])
    return np.array(found)


def test_rows_stand_floor_first_then_teacher_then_each_student_alone_and_distilled(study: Path) -> None:
    (comparison,) = tables(study)
    assert [(row.method, row.kind, len(row.scores)) for row in comparison.rows] == [
        ("ngram · floor", "floor", 1),
        ("minilm · teacher", "teacher", 1),
        ("textcnn · alone", "alone", 3),  # the smaller student first
        ("textcnn · soft_label", "distilled", 3),
        ("bilstm · alone", "alone", 3),
        ("bilstm · soft_label", "distilled", 3),
    ]


def test_numbers_are_those_of_the_predictions(study: Path) -> None:
    rows = by_name(tables(study)[0])
    kd, alone = correctness(study, "bilstm", "soft_label"), correctness(study, "bilstm", "supervised")
    row, control = rows["bilstm · soft_label"], rows["bilstm · alone"]
    assert kd.shape == (3, 400)
    assert row.mean == pytest.approx(kd.mean())
    assert row.sd == pytest.approx(kd.mean(axis=1).std(ddof=1))
    assert control.mean == pytest.approx(alone.mean())
    assert row.change == pytest.approx(kd.mean() - alone.mean())
    assert row.difference == two_way_bootstrap(kd, alone)
    assert rows["ngram · floor"].sd is None
    teacher = json.loads((study / "02" / "metrics.json").read_text())["teacher/test_accuracy"]
    assert rows["minilm · teacher"].mean == pytest.approx(teacher)
    assert row.gap == pytest.approx((kd.mean() - alone.mean()) / (teacher - alone.mean()))


def test_p_values_are_corrected_over_the_whole_table(study: Path) -> None:
    rows = by_name(tables(study)[0])
    raw = {
        s: two_way_test(correctness(study, s, "soft_label"), correctness(study, s, "supervised"))
        for s in ("textcnn", "bilstm")
    }
    for student, p in holm(raw).items():
        assert rows[f"{student} · soft_label"].p == p
    assert {row.p for row in rows.values() if row.kind != "distilled"} == {None}


def test_metrics_that_are_means_over_rows_have_intervals_as_well(study: Path) -> None:
    rows = by_name(tables(study, "nll")[0])
    row = rows["bilstm · soft_label"]
    recorded = []
    for run in study.glob("*"):
        cell = json.loads((run / "run.json").read_text())["cell"]
        if (cell["student"], cell["strategy"]) == ("bilstm", "soft_label"):
            recorded.append(json.loads((run / "metrics.json").read_text())["test/nll"])
    assert row.mean == pytest.approx(np.mean(recorded))
    assert row.mean == row.nll
    assert row.difference is not None and row.p is not None
    assert row.difference.difference == pytest.approx(row.mean - rows["bilstm · alone"].mean)
    losses, squares = row.item_scores("nll"), row.item_scores("brier")
    assert losses is not None and losses.mean() == pytest.approx(row.mean)
    (brier,) = [each for each in tables(study, "brier")[0].rows if each.method == row.method]
    assert squares is not None and squares.mean() == pytest.approx(brier.mean)
    assert by_name(tables(study, "ece")[0])["bilstm · soft_label"].difference is None
    # lower is better: the gap is closed from above
    control, teacher = rows["bilstm · alone"], rows["minilm · teacher"]
    assert row.gap == pytest.approx((control.mean - row.mean) / (control.mean - teacher.mean))


def test_runs_that_failed_are_counted_beside_those_that_finished(study: Path, record: Make) -> None:
    distilled = {"student": "bilstm", "strategy": "soft_label", "teacher": "minilm"}
    record(**distilled, seed=4, status="diverged")
    record(**distilled, seed=5, status="interrupted")
    record(**distilled, seed=3, status="failed")  # seed 3 finished elsewhere
    record(**distilled, seed=6, status="failed", fingerprint="other")
    record(student="textcnn", strategy="attention", teacher="minilm", status="diverged")
    runs = find([study])
    (comparison,) = compare(runs.finished, unfinished=runs.unfinished)
    headings, lines = table.cells(comparison)
    seeds = {line[0]: line[headings.index("seeds")] for line in lines}
    assert seeds["bilstm · soft_label"] == "3 of 5, 1 diverged, 1 unfinished"
    assert seeds["bilstm · alone"] == "3"
    assert any("textcnn attention" in note and "no run finished, 1 diverged" in note for note in comparison.footnotes)
    assert '"3 of' not in table.comma_separated([comparison]) and "1 diverged" in table.comma_separated([comparison])


def test_differences_to_another_strategy(study: Path, record: Make) -> None:
    for seed in (1, 2, 3):
        record(seed=seed, strategy="attention", teacher="minilm", skill=3.0)
    (usual,), (comparison,) = tables(study), tables(study, against="soft_label")
    rows, before = by_name(comparison), by_name(usual)
    attention, soft, alone = (correctness(study, "bilstm", s) for s in ("attention", "soft_label", "supervised"))
    other = [correctness(study, "textcnn", s) for s in ("supervised", "soft_label")]
    assert rows["bilstm · attention"].difference == two_way_bootstrap(attention, soft)
    assert rows["bilstm · alone"].difference == two_way_bootstrap(alone, soft)
    assert rows["bilstm · alone"].change == pytest.approx(-before["bilstm · soft_label"].change)
    raw = {
        "bilstm · attention": two_way_test(attention, soft),
        "bilstm · alone": two_way_test(alone, soft),
        "textcnn · alone": two_way_test(*other),
    }
    assert {name: row.p for name, row in rows.items() if row.p is not None} == holm(raw)
    for name in ("bilstm · soft_label", "textcnn · soft_label", "ngram · floor"):
        assert rows[name].difference is None
    assert {name: row.gap for name, row in rows.items()} == {name: row.gap for name, row in before.items()}
    assert "Δ to soft_label" in table.cells(comparison)[0] and "same student by soft_label" in table.caption(comparison)


def test_a_strategy_that_no_run_has_is_refused(study: Path) -> None:
    with pytest.raises(UserError, match=r"--against 'soft_labl' \(did you mean 'soft_label'\?\)"):
        tables(study, against="soft_labl")


def test_an_unknown_metric_is_refused(study: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        tables(study, "acuracy")


def test_students_alone_agree_with_the_teacher_of_their_siblings(study: Path) -> None:
    rows = by_name(tables(study)[0])
    label, taught = {}, {}
    for line in pq.read_table(study / "02" / "predictions.parquet").to_pylist():
        label[line["id"]], taught[line["id"]] = line["label"], line["teacher_logits"]
    shares = []
    for run in study.glob("*"):
        cell = json.loads((run / "run.json").read_text())["cell"]
        if (cell["student"], cell["strategy"]) == ("bilstm", "supervised"):
            lines = [r for r in pq.read_table(run / "predictions.parquet").to_pylist() if r["split"] == "test"]
            shares.append(np.mean([np.argmax(r["student_logits"]) == np.argmax(taught[r["id"]]) for r in lines]))
    assert taught["test/00000"] is not None
    assert rows["bilstm · alone"].agreement == pytest.approx(np.mean(shares))
    assert rows["minilm · teacher"].agreement is None


def test_noise_is_an_interval_that_holds_zero(record: Make, tmp_path: Path) -> None:
    for seed in (1, 2):
        record(seed=seed)
        record(seed=seed, strategy="soft_label", teacher="minilm")  # no more skill
        record(seed=seed, strategy="attention", teacher="minilm", skill=3.5)
    rows = by_name(tables(tmp_path)[0])
    assert rows["bilstm · soft_label"].noise
    assert not rows["bilstm · attention"].noise
    assert not rows["bilstm · alone"].noise  # nothing to compare


def test_a_name_says_what_differs_and_nothing_else(record: Make, tmp_path: Path) -> None:
    common = "trainer.precision=32"
    record(overrides=[common])
    for extra in (["strategy.temperature=4"], ["strategy.temperature=16"], ["strategy.weights.label=0.1"], []):
        record(strategy="soft_label", teacher="minilm", overrides=[common, *extra])
    record(strategy="soft_label", teacher="minilm", transfer="unlabelled", overrides=[common])
    record(strategy="soft_label", teacher="ngram", overrides=[common])
    (comparison,) = tables(tmp_path)
    assert [row.method for row in comparison.rows if row.kind != "teacher"] == [
        "bilstm · alone",
        "bilstm · soft_label · from minilm",
        "bilstm · soft_label · from minilm · temperature=4",
        "bilstm · soft_label · from minilm · temperature=16",
        "bilstm · soft_label · from minilm · weights.label=0.1",
        "bilstm · soft_label · from ngram",
        "bilstm · soft_label + unlabelled · from minilm",
    ]
    assert any("students without a teacher is with minilm" in note for note in comparison.footnotes)


def test_a_path_is_named_by_its_end_where_that_tells_it_apart(record: Make, tmp_path: Path) -> None:
    chain = "strategy.assistants=[['student=bilstm','student.tokenizer.path=/far/away/encoder'],['student=textcnn']]"
    paths = [
        "teacher.path=/runs/one/",
        "teacher.path=/runs/two",
        "optimizer.path=/a/same",
        "student.path=/b/same",
        chain,
    ]
    for path in paths:
        record(strategy="soft_label", teacher="minilm", overrides=[path])
    (comparison,) = tables(tmp_path)
    assert {row.variant for row in comparison.rows if row.kind != "teacher"} == {
        "soft_label · from minilm · path=one/",
        "soft_label · from minilm · path=two",
        "soft_label · from minilm · optimizer.path=same",
        "soft_label · from minilm · student.path=same",
        "soft_label · from minilm · assistants=[['student=bilstm','student.tokenizer.path=encoder'],['stud…",
    }


def test_names_that_would_coincide_are_written_out(record: Make, tmp_path: Path) -> None:
    record(strategy="soft_label", teacher="minilm", overrides=["strategy.width=4"])
    record(strategy="soft_label", teacher="minilm", overrides=["student.width=4"])
    methods = set(by_name(tables(tmp_path)[0]))
    assert {"bilstm · soft_label · strategy.width=4", "bilstm · soft_label · student.width=4"} <= methods


def test_a_student_is_compared_with_itself_alone_built_alike(record: Make, tmp_path: Path) -> None:
    narrow, wide = "student.model.hidden_dim=32", "student.model.hidden_dim=256"
    record(overrides=[narrow], skill=1.0)
    record(overrides=[wide], skill=2.0)
    record(overrides=[wide, "strategy.label_smoothing=0.1"], skill=2.5)
    record(strategy="soft_label", teacher="minilm", overrides=[wide, "strategy.temperature=4"], skill=2.2)
    rows = by_name(tables(tmp_path)[0])
    control = rows["bilstm · alone · hidden_dim=256"]
    row = rows["bilstm · soft_label · hidden_dim=256"]
    assert row.change == pytest.approx(row.mean - control.mean)


def test_a_student_built_otherwise_is_no_control(record: Make, tmp_path: Path) -> None:
    record(overrides=["student.model.hidden_dim=32"])
    record(overrides=["student.model.hidden_dim=64"], strategy="soft_label", teacher="minilm")
    record(overrides=["student.model.hidden_dim=32", "student.training.epochs=2"], strategy="soft", teacher="minilm")
    (comparison,) = tables(tmp_path)
    compared = {row.method for row in comparison.rows if row.change is not None}
    assert compared == {"bilstm · soft · hidden_dim=32 · epochs=2"}  # trained otherwise, and that is said
    assert any("no equal control is there: epochs=2 (control none)" in note for note in comparison.footnotes)


def test_a_student_of_another_number_of_labels_is_no_control(record: Make, tmp_path: Path) -> None:
    record(labels=1000)
    record(labels=100, strategy="soft_label", teacher="minilm")
    (comparison,) = tables(tmp_path)
    assert all(row.change is None for row in comparison.rows)
    assert {"bilstm · alone · 1,000 labels", "bilstm · soft_label · 100 labels"} <= set(by_name(comparison))


def test_other_data_is_another_table(record: Make, tmp_path: Path) -> None:
    record()
    record(fingerprint="another")
    record(n=100)  # the same data, other test rows
    record(data="reviews", synthetic=True, fingerprint="grammar", strategy="soft_label", teacher="minilm")
    comparisons = tables(tmp_path)
    assert len(comparisons) == 4
    assert len({comparison.slug for comparison in comparisons}) == 4
    assert len({comparison.title for comparison in comparisons}) == 4
    synthetic = comparisons[-1]
    assert synthetic.title == "reviews (synthetic)"
    assert any("synthetic" in note for note in synthetic.footnotes)
    assert all(row.change is None for row in synthetic.rows)  # imdb's bilstm is no control here


def test_a_repeated_run_counts_once(study: Path) -> None:
    before = by_name(tables(study)[0])
    shutil.copytree(study / "02", study / "repeated")
    (comparison,) = tables(study)
    assert {name: row.mean for name, row in by_name(comparison).items()} == {n: r.mean for n, r in before.items()}
    assert any("run again" in note for note in comparison.footnotes)


def test_missing_controls_come_with_the_command_that_adds_them(record: Make, tmp_path: Path) -> None:
    for seed in (1, 2):
        record(
            seed=seed,
            strategy="soft_label",
            teacher="minilm",
            transfer="unlabelled",
            overrides=["strategy.temperature=4", "student.model.hidden_dim=64", "data.transfer=unlabelled"],
        )
    notes = "\n".join(tables(tmp_path)[0].footnotes)
    assert "kdresearch train -m data=imdb student=ngram strategy=supervised seed=1,2" in notes
    alone = "kdresearch train -m data=imdb student=bilstm strategy=supervised student.model.hidden_dim=64 seed=1,2"
    assert alone in notes


def test_a_whole_table_has_no_footnote_but_that_of_its_single_seed(study: Path) -> None:
    (comparison,) = tables(study)
    assert len(comparison.footnotes) == 2
    assert "recorded without their settings" in comparison.footnotes[0]  # as these fixtures are
    assert comparison.footnotes[1].startswith("ngram · floor: one seed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"updates": 9999}, "9,999 updates, but 3,910 alone"),
        ({"git": {"commit": "abc", "dirty": True}}, "1 of 2 runs come from a working tree with uncommitted changes"),
        ({"hardware": {"device": "cuda"}}, "different hardware"),
        ({"versions": {"torch": "3.0"}}, "different versions"),
        ({"overrides": ["optimizer.lr=0.1"]}, "no equal control is there: learning_rate=0.1 (control none)"),
    ],
)
def test_what_makes_a_comparison_uneven_is_said(record: Make, tmp_path: Path, options: dict, words: str) -> None:
    record()
    record(strategy="soft_label", teacher="minilm", **options)
    assert words in "\n".join(tables(tmp_path)[0].footnotes)


def test_metrics_that_contradict_the_predictions_are_told_on(record: Make, tmp_path: Path) -> None:
    folder = record()
    (folder / "metrics.json").write_text(json.dumps({"test/accuracy": 0.999}))
    (comparison,) = tables(tmp_path)
    assert any("metrics.json says accuracy 0.9990" in note for note in comparison.footnotes)
    assert comparison.rows[0].mean == correctness(tmp_path / "runs", "bilstm", "supervised").mean()


def test_teachers_of_several_seeds_are_replicates_of_one_row(record: Make, tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = record(strategy="soft_label", teacher="minilm", seeds={"init": 1, "teacher": seed})
        run = json.loads((folder / "run.json").read_text())
        run["teacher"]["fingerprint"] = f"teacher-{seed}"
        (folder / "run.json").write_text(json.dumps(run))
    rows = by_name(tables(tmp_path)[0])
    assert len(rows["minilm · teacher"].scores) == 2
    assert len(rows["bilstm · soft_label"].scores) == 2


def test_the_order_of_the_runs_does_not_matter(study: Path) -> None:
    finished = find([study]).finished
    forwards, backwards = compare(finished)[0], compare(finished[::-1])[0]
    assert [(r.method, r.mean, r.difference, r.p) for r in forwards.rows] == [
        (r.method, r.mean, r.difference, r.p) for r in backwards.rows
    ]
    assert forwards.facts == backwards.facts


def test_teachers_that_say_different_things_have_rows_of_their_own(record: Make, tmp_path: Path) -> None:
    record()
    given = {
        "temperature=fit": ["teacher.temperature=fit", "teacher.precision=bf16", "teacher.keep=true"],
        "folds=5": ["teacher.folds=5", "teacher.precision=bf16"],
        "plain": ["teacher.precision=bf16", "teacher.batch_size=8", "teacher.recipe=[student=ngram]"],
    }
    for overrides in given.values():
        record(strategy="soft_label", teacher="ngram", overrides=overrides)
    rows = by_name(tables(tmp_path)[0])
    assert {name for name, row in rows.items() if row.kind == "teacher"} == {
        "ngram · teacher", "ngram · temperature=fit · teacher", "ngram · folds=5 · teacher",
    }  # fmt: skip


def test_teachers_of_one_option_are_told_apart_by_their_own_names(record: Make, tmp_path: Path) -> None:
    record(skill=1.0)
    for strategy, name in (("soft_label", "encoder"), ("logit_mse", "encoder"), ("self", "bilstm generation 1")):
        folder = record(strategy=strategy, teacher="checkpoint", skill=2.0)
        run = json.loads((folder / "run.json").read_text())
        run["teacher"] |= {"name": name, "fingerprint": name}
        (folder / "run.json").write_text(json.dumps(run))
    rows = by_name(tables(tmp_path)[0])
    assert {name for name, row in rows.items() if row.kind == "teacher"} == {
        "encoder · teacher", "bilstm generation 1 · teacher",
    }  # fmt: skip
    for method, teacher in (("logit_mse", "encoder"), ("self", "bilstm generation 1")):
        alone, taught = rows["bilstm · alone"].mean, rows[f"{teacher} · teacher"].mean
        row = rows[f"bilstm · {method} · from {teacher}"]
        assert row.gap == pytest.approx((row.mean - alone) / (taught - alone))


def test_teachers_of_one_option_keep_their_settings(record: Make, tmp_path: Path) -> None:
    record()
    for name in ("encoder", "bilstm generation 1"):
        for overrides in ([], ["teacher.temperature=fit"]):
            folder = record(strategy="soft_label", teacher="checkpoint", overrides=[f"student.tag={name}", *overrides])
            run = json.loads((folder / "run.json").read_text())
            run["teacher"] |= {"name": name, "fingerprint": name}
            (folder / "run.json").write_text(json.dumps(run))
    (comparison,) = tables(tmp_path)
    assert {row.student for row in comparison.rows if row.kind == "teacher"} == {
        "encoder", "encoder · temperature=fit", "bilstm generation 1", "bilstm generation 1 · temperature=fit",
    }  # fmt: skip
