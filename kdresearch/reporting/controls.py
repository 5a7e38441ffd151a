"""Which row a method is compared with: the same student under equal settings, without the teacher.

Every difference is over the same test rows; p-values are corrected over the table they stand in (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdresearch.bench.identity import comparable, differences
from kdresearch.evaluation.statistics import gap_closed, holm, paired_permutation, two_way_bootstrap, two_way_test
from kdresearch.reporting.names import ALONE, short, teacher_key, text
from kdresearch.reporting.rows import Row

LOWER_IS_BETTER = frozenset({"nll", "brier", "ece"})
_SEARCHED = frozenset({"student.model.dropout"})  # a model's setting that is no part of its shape


def control(row: Row, rows: Iterable[Row], strategy: str = ALONE) -> tuple[Row, dict[str, tuple[Any, Any]]] | None:
    """The row that differs from this one by the teacher alone; else the one that differs in least besides.

    Data, model and tokenizer are always equal: a student of another shape or of other rows is no control.

    Returns:
        The control, and by dotted key the values in which this row and the control differ; None where there is none.
    """
    candidates = []
    for candidate in rows:
        if candidate.cell.get("strategy") != strategy or candidate is row:
            continue
        unlike = differences(comparable(row.settings, candidate.settings), comparable(candidate.settings, row.settings))
        if not any(_another_student(key) for key in unlike):
            candidates.append((_distance(row, candidate, unlike), candidate, unlike))
    if not candidates:
        return None
    _, nearest, unlike = min(candidates, key=lambda entry: entry[0])
    return nearest, {} if _tuned_alike(row, nearest) else unlike


def _distance(row: Row, candidate: Row, unlike: Mapping[str, tuple[Any, Any]]) -> tuple[Any, ...]:
    return not _tuned_alike(row, candidate) if row.trials else False, len(unlike), candidate.method


def _tuned_alike(row: Row, candidate: Row) -> bool:
    """Whether one search over one space with one budget selected the settings of both rows, for each its best."""
    searches = [method.runs[0].tuning for method in (row, candidate)]
    budgets = [
        search and [search["trials"], search["chosen_by"], search["search_seed"], search["space"].get("shared")]
        for search in searches
    ]
    return budgets[0] is not None and budgets[0] == budgets[1]


def _another_student(key: str) -> bool:
    section, _, rest = key.partition(".")
    return section == "data" or (section == "student" and not rest.startswith("training.") and key not in _SEARCHED)


def with_differences(rows: Sequence[Row], metric: str, against: str) -> tuple[list[Row], list[tuple[Row, Row]]]:
    """Each row beside its control by a strategy, and the pairs; p-values are corrected over all of them."""
    p_values: dict[str, float] = {}
    result, pairs = [], []
    for row in rows:
        compared = row.kind == "distilled" if against == ALONE else row.cell["strategy"] != against
        match = control(row, rows, against) if compared else None
        if match is None:
            result.append(row)
            continue
        partner, unlike = match
        difference = None
        scores, partners = row.item_scores(metric), partner.item_scores(metric)
        if scores is not None and partners is not None:
            difference = two_way_bootstrap(scores, partners)
            single = len(scores) == len(partners) == 1
            p_values[row.method] = (paired_permutation if single else two_way_test)(scores, partners)
        change = row.mean - partner.mean
        result.append(replace(row, change=change, difference=difference, unlike=tuple(_in_words(unlike))))
        pairs.append((result[-1], partner))
    corrected = holm(p_values)
    return [replace(row, p=corrected.get(row.method)) for row in result], pairs


def _in_words(unlike: Mapping[str, tuple[Any, Any]]) -> list[str]:
    names = short(unlike.keys())
    return [f"{names[key]}={text(value)} (control {text(controls)})" for key, (value, controls) in unlike.items()]


def with_gaps(rows: Sequence[Row], teachers: Mapping[str, Row], metric: str) -> list[Row]:
    """How far each distilled row comes from the same student alone to its teacher.

    Args:
        teachers: by ``teacher_key``.
    """
    sign, result = -1 if metric in LOWER_IS_BETTER else 1, []
    for row in rows:
        match = control(row, rows) if row.kind == "distilled" else None
        teacher = teachers.get(teacher_key(row.runs[0])) if match and row.runs[0].teacher else None
        gap = gap_closed(sign * match[0].mean, sign * row.mean, sign * teacher.mean) if match and teacher else None
        result.append(replace(row, gap=gap))
    return result
