"""Runs grouped into methods, and methods into one table per test set, each beside its controls.

Replicates are runs of one method, by their settings (``kdresearch.bench.identity``), that differ by seeds alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdresearch.errors import UserError, choices
from kdresearch.reporting import notes
from kdresearch.reporting.controls import with_differences, with_gaps
from kdresearch.reporting.names import ALONE, method_names, natural, teacher_names
from kdresearch.reporting.records import Record
from kdresearch.reporting.rows import Row, counted, student_row, teacher_rows, with_agreement

METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece")


@dataclass(frozen=True)
class Comparison:
    """One table: every method that was tested on the same rows of the same data."""

    title: str
    slug: str  # the title as part of a file name, unique within a report
    metric: str
    rows: tuple[Row, ...]
    facts: Mapping[str, str]  # runs, seeds, rows, versions, hardware, for the header
    footnotes: tuple[str, ...]
    against: str = ALONE  # the strategy that differences are measured against
    imbalanced: bool = False  # whether one class holds so many test rows that accuracy alone misleads


def compare(
    records: Sequence[Record], metric: str = "accuracy", against: str = ALONE, unfinished: Sequence[Record] = ()
) -> list[Comparison]:
    """One Comparison per data fingerprint and set of test rows among finished runs, by name.

    Args:
        against: the strategy of the same student that differences are measured against; by default the student alone.

    Raises UserError for an unknown metric, and for a strategy that no run has.
    """
    if metric not in METRICS:
        raise UserError(f"metric {choices(metric, METRICS)}")
    strategies = sorted({str(record.cell["strategy"]) for record in records} | {ALONE})
    if against not in strategies:
        raise UserError(f"--against {choices(against, strategies)}")
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        test = record.predictions
        groups[record.fingerprint, test.ids, test.label.tobytes()].append(record)
    tables = sorted(groups.values(), key=lambda group: (_title(group[0]), group[0].fingerprint, len(group)))
    names = Counter(_title(group[0]) for group in tables)
    comparisons, slugs = [], Counter[str]()
    for group in tables:
        title = _title(group[0])
        if names[title] > 1:  # other rows under the same name
            title += f", {len(group[0].predictions.ids):,} test rows, fingerprint {group[0].fingerprint[:8]}"
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        slugs[slug] += 1
        slug += f"-{slugs[slug]}" if slugs[slug] > 1 else ""
        comparisons.append(_comparison(group, metric, against, title, slug, unfinished))
    return comparisons


def _comparison(
    records: Sequence[Record], metric: str, against: str, title: str, slug: str, unfinished: Sequence[Record]
) -> Comparison:
    footnotes: list[str] = []
    if any(record.info["data"].get("synthetic") for record in records):
        footnotes.append("The data is synthetic: these numbers show that the machinery works and nothing else.")
    methods = _methods(records, footnotes)
    names = method_names(methods, teacher_names(records, mirrored=False))
    students = [student_row(runs, *name, metric) for runs, name in zip(methods, names, strict=True)]
    teachers = teacher_rows(records, teacher_names(records, mirrored=True), metric)
    students, borrowed = with_agreement(students, list(teachers.values()))
    if borrowed and len(teachers) > 1:
        first = next(iter(teachers.values()))
        footnotes.append(f"Agreement of students without a teacher is with {first.student}, the teacher of most runs.")
    failures, lost = _failures(methods, unfinished)
    students = [replace(row, failures=failures.get(row.runs[0].method, {})) for row in students]
    footnotes += lost
    students, pairs = with_differences(students, metric, against)
    students = with_gaps(students, teachers, metric)
    rows = _ordered(students, teachers.values())
    share = notes.majority(records)
    if share > notes.IMBALANCED:
        footnotes.append(f"{100 * share:.1f} % of the test rows are of one class: read macro F1 beside accuracy.")
    footnotes += notes.common_overrides(students)
    footnotes += notes.missing_controls(students)
    footnotes += notes.uneven(pairs)
    footnotes += notes.searches(rows)
    footnotes += notes.weak_teachers(rows)
    footnotes += notes.origins(records)
    footnotes += notes.caveats(records, students)
    facts, unique = notes.facts(records, rows), tuple(dict.fromkeys(footnotes))
    return Comparison(title, slug, metric, rows, facts, unique, against, share > notes.IMBALANCED)


def _methods(records: Iterable[Record], footnotes: list[str]) -> list[list[Record]]:
    """Runs by method, one per set of seeds and in their order."""
    groups: dict[str, dict[Any, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: str(record.path)):
        group = groups[record.method]
        if record.seeds in group:
            footnotes.append(
                f"{group[record.seeds].path} was run again with the same seeds as {record.path}, which counts."
            )
        group[record.seeds] = record
    return [[group[seeds] for seeds in sorted(group, key=natural)] for group in groups.values()]


def _failures(
    methods: Sequence[Sequence[Record]], unfinished: Iterable[Record]
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """How many runs of each method ended otherwise, by how, seeds that finished elsewhere not counted; and a line for
    each method on these data of which no run finished."""
    finished = {(runs[0].method, run.seeds) for runs in methods for run in runs}
    names = {runs[0].method for runs in methods}
    data = {runs[0].fingerprint for runs in methods}
    unfinished_runs: dict[str, dict[Any, Record]] = defaultdict(dict)
    for record in unfinished:
        same_data = (record.info.get("data") or {}).get("fingerprint") in data
        if same_data and (record.method, record.seeds) not in finished:
            unfinished_runs[record.method][record.seeds] = record
    counts = {
        method: dict(Counter(record.outcome for record in runs.values())) for method, runs in unfinished_runs.items()
    }
    lost = [
        f"{record.cell.get('student')} {record.cell.get('strategy')} ({record.path}): no run finished, "
        f"{counted(counts[method])}."
        for method, runs in unfinished_runs.items()
        if method not in names
        for record in list(runs.values())[:1]
    ]
    return counts, lost


def _ordered(students: Iterable[Row], teachers: Iterable[Row]) -> tuple[Row, ...]:
    """Floor, teachers, then student by student from the smallest, each alone first."""
    rank = {"floor": 0, "teacher": 1}
    size = {row.student: row.parameters or 0 for row in sorted(students, key=lambda row: -(row.parameters or 0))}

    def _rank(row: Row) -> tuple[Any, ...]:
        at = rank.get(row.kind, 2)
        family = (size.get(row.student, 0), row.student) if at == 2 else ()
        kind = (str(row.cell["strategy"]), str(row.cell.get("transfer"))) if row.kind == "distilled" else ()
        return at, family, row.kind == "distilled", kind, natural(row.method)

    return tuple(sorted([*students, *teachers], key=_rank))


def _title(record: Record) -> str:
    data = record.info["data"]
    return f"{data.get('name') or record.cell['data']}{' (synthetic)' if data.get('synthetic') else ''}"
