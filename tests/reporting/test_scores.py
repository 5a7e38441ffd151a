"""Scores of any systems, from our records and from other people's files, through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import kdresearch as kd
from kdresearch.cli import main
from kdresearch.errors import UserError
from kdresearch.evaluation.aggregates import interquartile_mean, probability_of_improvement
from kdresearch.evaluation.statistics import holm, mcnemar, two_way_bootstrap, two_way_test
from kdresearch.reporting.score_table import comma_separated, compare_scores, latex
from kdresearch.reporting.scores import read_scores

Make = Callable[..., Path]
SKILL = {"base": 0.0, "better": 0.6, "same": 0.0}


def scores(items: int = 60, seeds: int = 3, data: tuple[str, ...] = ("a", "b")) -> dict[str, list]:
    """A table of right and wrong for three systems; the last run of ``same`` on ``a`` failed."""
    rng = np.random.default_rng(0)
    columns: dict[str, list] = {name: [] for name in ("data", "system", "seed", "item", "correct")}
    for name in data:
        hard = rng.normal(0.5, 1, size=items)
        for system, skill in SKILL.items():
            for seed in range(seeds):
                right = hard + skill + rng.normal(0, 0.5, size=items) > 0
                failed = (name, system, seed) == ("a", "same", seeds - 1)
                for item in rng.permutation(items):
                    values = (name, system, seed, f"q{item}", None if failed else bool(right[item]))
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
    return columns


def write(path: Path, columns: dict[str, list]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.table(columns), path)
    else:
        rows = pa.table(columns).to_pylist()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_kind_of_file_says_the_same(tmp_path: Path) -> None:
    texts = [str(kd.compare([write(tmp_path / f"s.{kind}", scores())])) for kind in ("parquet", "csv", "jsonl")]
    assert texts[0] == texts[1] == texts[2]
    assert "2 of 3, 1 failed" in texts[0] and "## Over 2 data sets" in texts[0]


def test_numbers_are_those_of_the_statistics(tmp_path: Path) -> None:
    boards = read_scores([write(tmp_path / "s.parquet", scores())])
    comparison = compare_scores(boards, baseline="base", resolve=0.05)
    a, b = boards
    assert a["same"].scores.shape == (2, 60) and b["same"].scores.shape == (3, 60)
    rows = {row.system.name: row for row in comparison.tables[1].rows}
    better, base = b["better"].scores, b["base"].scores
    assert rows["better"].difference == two_way_bootstrap(better, base)
    raw = {name: two_way_test(b[name].scores, base) for name in ("better", "same")}
    assert rows["better"].p == holm(raw)["better"]
    assert rows["base"].p is None and rows["base"].difference is None
    assert rows["better"].more_seeds is not None or rows["better"].unresolvable
    aggregates = {aggregate.system: aggregate for aggregate in comparison.aggregates}
    runs = {name: [a[name].runs, b[name].runs] for name in SKILL}
    assert runs["same"][0][-1] == -np.inf
    assert aggregates["same"].interquartile_mean.difference == interquartile_mean(runs["same"])
    improvement = aggregates["better"].improvement
    assert improvement is not None
    assert improvement.difference == probability_of_improvement(runs["better"], runs["base"])
    assert aggregates["better"].rank == 1.0


def test_single_runs_are_compared_by_the_tests_for_them(tmp_path: Path) -> None:
    (board,) = read_scores([write(tmp_path / "s.csv", scores(seeds=1, data=("b",)))])
    comparison = compare_scores([board], baseline="base")
    rows = {row.system.name: row for row in comparison.tables[0].rows}
    assert rows["better"].mcnemar == mcnemar(board["better"].scores, board["base"].scores)
    assert rows["better"].sd is None and "±" not in str(comparison).splitlines()[4]
    assert comparison.aggregates == ()


def test_scores_that_are_no_right_and_wrong(tmp_path: Path) -> None:
    columns = scores(data=("b",))
    columns["bleu"] = list(np.random.default_rng(0).normal(30, 2, size=len(columns["item"])))
    path = write(tmp_path / "s.parquet", columns)
    text = str(kd.compare([path], columns={"score": "bleu"}, baseline="base"))
    heading = text.splitlines()[2]
    assert [cell.strip() for cell in heading.split("|")][3] == "score"
    assert "McNemar" not in text


def samples(folder: Path, model: str, skill: float, when: str = "2025-01-02T03-04-05.678901") -> None:
    """A file as lm-evaluation-harness writes it with --log_samples."""
    rng = np.random.default_rng(0)
    right = rng.random(50) < skill
    (folder / model).mkdir(parents=True, exist_ok=True)
    with open(folder / model / f"samples_arc_easy_{when}.jsonl", "w") as file:
        for doc in range(50):
            for rule in ("strict", "flexible"):
                line = {
                    "doc_id": doc,
                    "doc": {"question": "?"},
                    "target": "A",
                    "filter": rule,
                    "metrics": ["acc", "f1"],
                }
                file.write(json.dumps(line | {"acc": float(right[doc] or rule == "flexible"), "f1": 0.5}) + "\n")


def test_samples_of_lm_evaluation_harness(tmp_path: Path) -> None:
    samples(tmp_path, "org__small", 0.4)
    samples(tmp_path, "org__large", 0.1, when="2024-01-01T00-00-00.000001")
    samples(tmp_path, "org__large", 0.9)  # the later file counts
    (board,) = read_scores([tmp_path], metric="acc,strict")
    assert board.data == "arc_easy" and len(board.items) == 50
    assert 0.8 < board["org__large"].scores.mean() < 1 and board["org__small"].scores.mean() < 0.6
    with pytest.raises(UserError, match="metric ''; one of: acc, f1"):
        read_scores([tmp_path])
    with pytest.raises(UserError, match="filter ''; one of: flexible, strict"):
        read_scores([tmp_path], metric="acc")


def test_records_beside_scores_of_others(study: Path, tmp_path: Path, record: Make) -> None:
    record(student="bilstm", seed=9, status="diverged")
    (board,) = read_scores([study])
    assert board["bilstm · alone"].scores.shape == (3, 400)
    assert board["bilstm · alone"].failures == {"diverged": 1}
    theirs = {
        "data": [board.data] * 400,
        "system": ["theirs"] * 400,
        "item": list(board.items),
        "score": board["bilstm · soft_label"].scores[0].tolist(),
    }
    (both,) = read_scores([study, write(tmp_path / "theirs.parquet", theirs)])
    assert (both["theirs"].scores[0] == both["bilstm · soft_label"].scores[0]).all()
    text = str(kd.compare([study], baseline="bilstm · alone"))
    assert "Δ to bilstm · alone" in text and "3 of 4, 1 diverged" in text


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write(tmp_path / "s.csv", scores()), tmp_path / "out"
    assert main(["compare", str(path), "--baseline", "base", "--resolve", "0.05", "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert (output / "compare.md").read_text() == printed
    lines = (output / "compare.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(SKILL) and lines[0].startswith("data,items,system")
    assert "\\toprule" in (output / "compare.tex").read_text()


def test_text_of_others_is_text_in_every_format(tmp_path: Path) -> None:
    columns = scores(data=("b",))
    columns["system"] = ["a|b_$" if name == "base" else name for name in columns["system"]]
    comparison = compare_scores(read_scores([write(tmp_path / "s.parquet", columns)]), "a|b_$")
    assert "a\\|b_$" in str(comparison)
    assert "a$|$b\\_\\$" in latex(comparison)
    assert comma_separated(comparison).count("a|b_$") >= 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.csv"], "no file or folder 'nowhere.csv'"),
        (["s.csv", "--baseline", "bass"], "baseline 'bass' \\(did you mean 'base'"),
        (["s.csv", "--columns", "sistem=x"], "column 'sistem' \\(did you mean 'system'"),
        (["s.csv", "--columns", "system=x"], "has no column 'x'"),
        (["s.csv", "--columns", "system"], "takes NAME=COLUMN"),
        (["s.csv", "--columns", "score=system"], "row 1: the score 'base' is no number"),
        (["s.csv", "--resolve", "0"], "must be > 0"),
        (["short.csv"], "'base' lacks 1 of 60 items"),
        (["twice.csv"], "two scores for item 'q1'"),
        (["notes.txt"], "the kind of file '.txt'"),
        (["broken.parquet"], "cannot be read"),
        (["empty"], "neither run records nor"),
        (["s.csv", "copy.csv"], "two scores for item"),
    ],
)
def test_mistakes_are_named(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    columns = scores(data=("b",))
    write(Path("s.csv"), columns)
    write(Path("copy.csv"), columns)
    keep = [not (s == "base" and i == "q1") for s, i in zip(columns["system"], columns["item"], strict=True)]
    short = {name: [v for v, k in zip(column, keep, strict=True) if k] for name, column in columns.items()}
    write(Path("short.csv"), short)
    twice = {name: [*column, column[columns["item"].index("q1")]] for name, column in columns.items()}
    write(Path("twice.csv"), twice)
    Path("notes.txt").write_text("?")
    Path("broken.parquet").write_text("?")
    Path("empty").mkdir()
    assert main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error and len(error.splitlines()) == 1


def test_common_items_on_request(tmp_path: Path) -> None:
    columns = scores(data=("b",))
    keep = [not (s == "base" and i == "q1") for s, i in zip(columns["system"], columns["item"], strict=True)]
    short = {name: [v for v, k in zip(column, keep, strict=True) if k] for name, column in columns.items()}
    (board,) = read_scores([write(tmp_path / "s.csv", short)], common_items=True)
    assert len(board.items) == 59 and "q1" not in board.items
