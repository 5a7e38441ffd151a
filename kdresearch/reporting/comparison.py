"""Runs grouped into methods, and methods into one table per test set, each beside its controls.

Replicates are runs of one cell that differ by seeds alone. Every difference is to the same student alone, over the
same test rows; p-values are corrected over the table they stand in (Holm 1979). Scores are computed anew from the
recorded predictions, so that the table, its intervals and its tests speak of the same numbers.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdresearch.errors import UserError, choices
from kdresearch.evaluation.metrics import fidelity_metrics, task_metrics
from kdresearch.evaluation.statistics import Interval, gap_closed, holm, mean_sd, paired_permutation, two_way_bootstrap
from kdresearch.reporting.records import Floats, Record

ALONE = "supervised"
FLOOR = "ngram"
METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece")
LOWER_IS_BETTER = frozenset({"nll", "brier", "ece"})
_KNOWN = frozenset({"data", "labels", "student", "strategy", "teacher", "transfer", "overrides"})
_HOW_IT_RUNS = ("mode", "keep", "batch_size", "jobs", "class_map")  # a teacher's options that change no class score
_DISTILLING = frozenset({"strategy", "teacher", "generator", "weights"})  # groups that no student alone has a use for

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One method: a line of the table. Scores are in the metric's own unit (shares, not per cent)."""

    method: str
    kind: str  # floor, teacher, alone or distilled
    student: str  # in a teacher's row, the teacher's name
    variant: str  # the method's name without its student
    label: Labels  # [N]
    logits: tuple[Floats, ...]  # S times [N, C]; empty for a teacher whose outputs were not recorded
    scores: Floats  # [S]
    mean: float
    sd: float | None  # None for one replicate
    runs: tuple[Record, ...] = ()  # empty for a teacher
    change: float | None = None  # mean − mean of the same student alone, or by the strategy it is held against
    difference: Interval | None = None  # the same with its 95 % interval; accuracy only
    p: float | None = None  # paired permutation, after Holm; accuracy only
    gap: float | None = None  # (S_kd − S)/(T − S)
    agreement: float | None = None  # share of rows with the teacher's top class
    nll: float | None = None
    ece: float | None = None
    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    bytes: int | None = None
    latency_p50: float | None = None  # ms
    latency_p95: float | None = None  # ms
    updates: tuple[int, int] | None = None  # fewest and most over the seeds

    @property
    def noise(self) -> bool:
        """Whether the interval of the difference contains 0."""
        return self.difference is not None and self.difference.low <= 0 <= self.difference.high

    @property
    def cell(self) -> dict[str, Any]:
        return self.runs[0].cell if self.runs else {}

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """[S, N]: which rows each replicate gets right."""
        chosen: Labels = np.stack([logits.argmax(axis=1) for logits in self.logits])
        right: NDArray[np.bool_] = chosen == self.label
        return right

    def span(self) -> tuple[float, float] | None:
        """The 95 % two-way bootstrap interval of the accuracy itself; None where no outputs were recorded."""
        if not self.logits:
            return None
        interval = two_way_bootstrap(self.correct, np.zeros_like(self.correct))  # the difference to none right
        return interval.low, interval.high


@dataclass(frozen=True)
class Comparison:
    """One table: every method that was tested on the same rows of the same data."""

    title: str
    slug: str  # the title as part of a file name, unique within a report
    metric: str
    rows: tuple[Row, ...]
    facts: Mapping[str, str]  # runs, seeds, rows, versions, hardware, for the header
    footnotes: tuple[str, ...]
    against: str = ALONE  # the strategy that differences are to


def compare(records: Sequence[Record], metric: str = "accuracy", against: str = ALONE) -> list[Comparison]:
    """One Comparison per data fingerprint and set of test rows among finished runs, by name.

    Args:
        against: the strategy of the same student that every difference is to; the default is the student alone.

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
        comparisons.append(_comparison(group, metric, against, title, slug))
    return comparisons


def _comparison(records: Sequence[Record], metric: str, against: str, title: str, slug: str) -> Comparison:
    notes: list[str] = []
    if any(record.info["data"].get("synthetic") for record in records):
        notes.append("The data is synthetic: these numbers show that the machinery works and nothing else.")
    methods = _methods(records, notes)
    names = _names([runs[0].cell for runs in methods])
    students = [_student(runs, *name, metric) for runs, name in zip(methods, names, strict=True)]
    taught_by = _teacher_names(records)
    teachers = _teachers(records, taught_by, metric)
    students = _with_agreement(students, teachers, notes)
    students = _with_differences(students, metric, against, notes)
    students = _with_gaps(students, teachers, taught_by, metric)
    rows = _ordered(students, teachers)
    notes += _student_settings(students)
    notes += _missing_controls(students)
    notes += _caveats(records, students)
    return Comparison(title, slug, metric, rows, _facts(records, rows), tuple(dict.fromkeys(notes)), against)


# Rows


def _methods(records: Iterable[Record], notes: list[str]) -> list[list[Record]]:
    """Runs by equal cell, one per set of seeds and in their order."""
    groups: dict[str, dict[Any, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: str(record.path)):
        group = groups[json.dumps(record.cell, sort_keys=True)]
        if record.seeds in group:
            notes.append(
                f"{group[record.seeds].path} was run again with the same seeds as {record.path}, which counts."
            )
        group[record.seeds] = record
    return [[group[seeds] for seeds in sorted(group, key=_natural)] for group in groups.values()]


def _names(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(method, variant) of every cell: student, strategy, and whatever of the rest differs between the cells."""

    def varies(key: str) -> bool:
        return len({json.dumps(cell.get(key), sort_keys=True) for cell in cells if cell["strategy"] != ALONE}) > 1

    labels = len({json.dumps(cell.get("labels")) for cell in cells}) > 1
    extra = sorted({key for cell in cells for key in cell} - _KNOWN)
    taught = varies("teacher")
    common = _common(cells)
    short = Counter(_short(o) for o in {o for cell in cells for o in _overrides(cell)})
    names = []
    for cell in cells:
        alone = "floor" if cell["student"] == FLOOR else "alone"
        parts = [alone if cell["strategy"] == ALONE else str(cell["strategy"])]
        if (cell.get("transfer") or "none") != "none":
            parts[0] += f" + {cell['transfer']}"
        if cell["strategy"] != ALONE and taught and cell.get("teacher"):
            parts.append(f"from {cell['teacher']}")
        if labels and cell.get("labels") is not None:
            parts.append(f"{cell['labels']:,} labels" if isinstance(cell["labels"], int) else str(cell["labels"]))
        parts += [f"{key}={cell[key]}" for key in extra if key in cell and varies(key)]
        for override in _overrides(cell):
            if override not in common[_scope(override, cell)]:
                parts.append(_short(override) if short[_short(override)] == 1 else override)
        variant = " · ".join(parts)
        names.append((f"{cell['student']} · {variant}", variant))
    return names


def _scope(override: str, cell: Mapping[str, Any]) -> tuple[str, str]:
    """The cells that an override is told apart from: of one strategy, of any teacher, or of one student."""
    group = _group(override)
    if group == "strategy":
        return group, str(cell["strategy"])
    return (group, "") if group in _DISTILLING else ("student", str(cell["student"]))


def _common(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """By scope, the overrides that every cell of it has: they say nothing in a name."""
    everywhere: dict[tuple[str, str], set[str]] = {}
    for cell in cells:
        scopes = {("strategy", str(cell["strategy"])), ("student", str(cell["student"]))}
        if cell["strategy"] != ALONE:
            scopes |= {(group, "") for group in _DISTILLING - {"strategy"}}
        for scope in scopes:
            own = {override for override in _overrides(cell) if _scope(override, cell) == scope}
            everywhere[scope] = everywhere[scope] & own if scope in everywhere else own
    return defaultdict(set, everywhere)


def _student_settings(rows: Sequence[Row]) -> list[str]:
    """What every run of a student has set and its rows' names therefore leave out."""
    common = _common([row.cell for row in rows if row.runs])
    return [
        f"{student}: {' · '.join(sorted(map(_short, settings), key=_natural))}."
        for (kind, student), settings in sorted(common.items())
        if kind == "student" and settings
    ]


def _student(runs: Sequence[Record], method: str, variant: str, metric: str) -> Row:
    cell, size = runs[0].cell, runs[0].info.get("student") or {}
    kind = "distilled" if cell["strategy"] != ALONE else "floor" if cell["student"] == FLOOR else "alone"
    updates = [int(run.info["updates"]) for run in runs if run.info.get("updates") is not None]
    test = runs[0].predictions
    row = _row(method, kind, cell["student"], variant, test.label, [run.predictions.student for run in runs], metric)
    return replace(
        row,
        runs=tuple(runs),
        parameters=size.get("parameters"),
        parameters_without_embeddings=size.get("parameters_without_embeddings"),
        bytes=size.get("bytes"),
        latency_p50=_mean(run.metric("latency/p50_ms") for run in runs),
        latency_p95=_mean(run.metric("latency/p95_ms") for run in runs),
        updates=(min(updates), max(updates)) if updates else None,
    )


def _teachers(records: Iterable[Record], names: Mapping[Path, str], metric: str) -> list[Row]:
    """One row per teacher's name, the one of most runs first; its fingerprints are its replicates."""
    found: dict[str, dict[str, Record]] = defaultdict(dict)
    runs: Counter[str] = Counter()
    for record in records:
        known = record.metric(f"teacher/test_{metric}") is not None
        if record.teacher and (known or record.predictions.teacher is not None):
            runs[names[record.path]] += 1
            found[names[record.path]].setdefault(str(record.teacher.get("fingerprint")), record)
    rows = []
    for name in sorted(found, key=lambda name: (-runs[name], name)):
        sources = [found[name][fingerprint] for fingerprint in sorted(found[name])]
        outputs = [test.teacher for test in (source.predictions for source in sources) if test.teacher is not None]
        recorded = [source.metric(f"teacher/test_{metric}") for source in sources]
        info = sources[0].teacher or {}
        row = _row(f"{name} · teacher", "teacher", name, "teacher", sources[0].predictions.label, outputs, metric)
        if not outputs:
            mean, sd = mean_sd([value for value in recorded if value is not None])
            row = replace(row, scores=np.array([value for value in recorded if value is not None]), mean=mean, sd=sd)
        rows.append(
            replace(
                row,
                parameters=info.get("parameters"),
                parameters_without_embeddings=info.get("parameters_without_embeddings"),
                bytes=info.get("bytes"),
            )
        )
    return rows


def _row(
    method: str, kind: str, student: str, variant: str, label: Labels, logits: Sequence[Floats], metric: str
) -> Row:
    """The row with what follows from its outputs."""
    measured = [task_metrics(torch.from_numpy(output), torch.from_numpy(label)) for output in logits]
    scores = np.array([values[metric] for values in measured])
    mean, sd = mean_sd(scores) if len(scores) and np.isfinite(scores).all() else (float(np.sum(scores)), None)
    return Row(
        method,
        kind,
        student,
        variant,
        label,
        tuple(logits),
        scores,
        mean,
        sd,
        nll=_mean(values["nll"] for values in measured),
        ece=_mean(values["ece"] for values in measured),
    )


def _with_agreement(students: Sequence[Row], teachers: Sequence[Row], notes: list[str]) -> list[Row]:
    """Agreement with each run's own teacher; without one, with the teacher that most runs of the table had.

    Test rows stand in the order of their ids everywhere, so a sibling run's teacher joins by position.
    """
    done, borrowed = [], False
    for row in students:
        own = [(run.predictions.student, run.predictions.teacher) for run in row.runs]
        if any(teacher is None for _, teacher in own):
            own = [(student, teacher) for student, _ in own for teacher in (teachers[0].logits if teachers else ())]
            borrowed = borrowed or bool(own)
        values = [
            fidelity_metrics(torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(row.label))
            for student, teacher in own
            if teacher is not None and teacher.shape == student.shape
        ]
        done.append(replace(row, agreement=_mean(value["agreement"] for value in values)))
    if borrowed and len(teachers) > 1:
        notes.append(f"Students without a teacher are held against {teachers[0].student}, which most runs had.")
    return done


def _with_differences(rows: Sequence[Row], metric: str, against: str, notes: list[str]) -> list[Row]:
    """Each row beside the same student by the strategy it is held against; p-values corrected over all of them."""
    p_values: dict[str, float] = {}
    done, pairs = [], []
    for row in rows:
        compared = row.kind == "distilled" if against == ALONE else row.cell["strategy"] != against
        control = _control(row, rows, against) if compared else None
        if control is None:
            done.append(row)
            continue
        pairs.append((row, control))
        difference = None
        if metric == "accuracy":
            difference = two_way_bootstrap(row.correct, control.correct)
            p_values[row.method] = paired_permutation(row.correct, control.correct)
        done.append(replace(row, change=row.mean - control.mean, difference=difference))
    notes += _unlike(pairs)
    corrected = holm(p_values)
    return [replace(row, p=corrected.get(row.method)) for row in done]


def _with_gaps(rows: Sequence[Row], teachers: Sequence[Row], taught_by: Mapping[Path, str], metric: str) -> list[Row]:
    """How far each distilled row comes from the same student alone to its teacher."""
    by_name = {teacher.student: teacher for teacher in teachers}
    sign, done = -1 if metric in LOWER_IS_BETTER else 1, []
    for row in rows:
        alone = _control(row, rows) if row.kind == "distilled" else None
        teacher = by_name.get(taught_by.get(row.runs[0].path, "")) if alone else None
        gap = gap_closed(sign * alone.mean, sign * row.mean, sign * teacher.mean) if alone and teacher else None
        done.append(replace(row, gap=gap))
    return done


def _control(row: Row, rows: Iterable[Row], strategy: str = ALONE) -> Row | None:
    """The same student, built alike and on the same labels, by a strategy; of several, the one set most alike."""

    def same(other: Row) -> tuple[Any, ...]:
        settings = {o for o in _settings(other) if _group(o) in ("student", "data") and ".training." not in o}
        return other.cell["student"], other.cell.get("labels"), settings

    candidates = [other for other in rows if other.cell["strategy"] == strategy and same(other) == same(row)]
    return min(
        candidates,
        key=lambda other: (len(_settings(other) ^ _settings(row)), len(_overrides(other.cell)), other.method),
        default=None,
    )


def _settings(row: Row) -> set[str]:
    """The overrides that a student alone could have been given as well."""
    return {
        override
        for override in _overrides(row.cell)
        if _group(override) not in _DISTILLING and not override.lstrip("+").startswith("data.transfer")
    }


def _ordered(students: Iterable[Row], teachers: Iterable[Row]) -> tuple[Row, ...]:
    """Floor, teachers, then student by student from the smallest, each alone first."""
    rank = {"floor": 0, "teacher": 1}
    size = {row.student: row.parameters or 0 for row in sorted(students, key=lambda row: -(row.parameters or 0))}

    def key(row: Row) -> tuple[Any, ...]:
        at = rank.get(row.kind, 2)
        family = (size.get(row.student, 0), row.student) if at == 2 else ()
        kind = (str(row.cell["strategy"]), str(row.cell.get("transfer"))) if row.kind == "distilled" else ()
        return at, family, row.kind == "distilled", kind, _natural(row.method)

    return tuple(sorted([*students, *teachers], key=key))


# What the reader must know


def _unlike(pairs: Iterable[tuple[Row, Row]]) -> list[str]:
    """In what, besides the teacher, methods and their controls differ."""
    found: dict[str, list[str]] = defaultdict(list)
    for row, control in pairs:
        if differ := sorted(_settings(row) ^ _settings(control)):
            found[f"set apart from {control.method} by more than the teacher: {', '.join(differ)}."].append(row.method)
        if row.updates and control.updates and row.updates != control.updates:
            name = control.variant if control.kind == "distilled" else "alone"
            found[
                f"{_range(row.updates)} updates, but {_range(control.updates)} {name}: part of the difference may come "
                "from the number of updates."
            ].append(row.method)
    return [f"{'; '.join(methods)}: {text}" for text, methods in found.items()]


def _missing_controls(rows: Sequence[Row]) -> list[str]:
    """The commands that would add the floor and the students alone."""
    notes = []
    if not any(row.kind == "floor" for row in rows):
        on = sorted(override for override in _settings(rows[0]) if _group(override) == "data")
        notes.append(f"No floor; this adds it: {_command(rows[0], FLOOR, on)}")
    bereft: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.kind == "distilled" and _control(row, rows) is None:
            bereft[_command(row, row.student, sorted(_settings(row)))].append(row.method)
    return notes + [f"Nothing to compare {'; '.join(m)} with; this adds it: {command}" for command, m in bereft.items()]


def _command(row: Row, student: str, overrides: Sequence[str]) -> str:
    """What trains ``student`` alone on the data and seeds of ``row``."""
    cell = row.cell
    seeds = sorted({run.info["seed"] for run in row.runs if run.info.get("seed") is not None}, key=_natural)
    parts = [f"data={cell['data']}", f"student={student}", f"strategy={ALONE}", *overrides]
    if (labels := cell.get("labels")) is not None:
        key = "data.limit" if isinstance(labels, int) else "data.labels"
        if not any(override.lstrip("+").startswith(f"{key}=") for override in overrides):
            parts.append(f"{key}={labels}")
    if seeds:
        parts.append(f"seed={','.join(map(str, seeds))}")
    return f"kdresearch train {'-m ' if len(seeds) > 1 else ''}{' '.join(parts)}"


def _caveats(records: Sequence[Record], rows: Sequence[Row]) -> list[str]:
    notes = []
    if single := [row.method for row in rows if len(row.runs) == 1]:
        who = "Every method" if len(single) == len(rows) else ", ".join(single)
        notes.append(f"{who}: one seed, so the interval holds the test rows' variance and not the seeds'.")
    for record in records:
        told, predicted = record.metric("test/accuracy"), record.predictions.student.argmax(axis=1)
        seen = float((predicted == _label(record)).mean())
        if told is not None and abs(told - seen) > 1e-4:
            notes.append(
                f"{record.path}: metrics.json says accuracy {told:.4f}, its predictions {seen:.4f}; this is shown."
            )
    if dirty := sum(bool((record.info.get("git") or {}).get("dirty")) for record in records):
        notes.append(f"{dirty} of {len(records)} runs come from a working tree with uncommitted changes.")
    if len({json.dumps(record.info.get("hardware"), sort_keys=True) for record in records}) > 1:
        notes.append("The runs come from different hardware: latencies do not compare.")
    if len({json.dumps(record.info.get("versions"), sort_keys=True) for record in records}) > 1:
        notes.append("The runs come from different versions of the software.")
    return notes


def _facts(records: Sequence[Record], rows: Sequence[Row]) -> dict[str, str]:
    """The header, most telling first; what no run says is left out."""
    data = records[0].info["data"]
    seeds: dict[str, set[Any]] = defaultdict(set)
    for record in records:
        for name, value in record.seeds:
            seeds[name].add(value)
    count = {str(name): f"{number:,}" for name, number in (data.get("counts") or {}).items()}
    dropped = {str(name): f"{number:,}" for name, number in (data.get("duplicates_dropped") or {}).items() if number}
    classes = [str(name) for name in data.get("classes") or ()]
    facts = {
        "Runs": f"{len(records)} of {sum(row.kind != 'teacher' for row in rows)} methods",
        "Seeds": "; ".join(f"{name} {', '.join(map(str, sorted(s, key=_natural)))}" for name, s in seeds.items()),
        "Rows": ", ".join(f"{name} {number}" for name, number in count.items()),
        "Scored on": f"{len(_label(records[0])):,} test rows",
        "Duplicates dropped": ", ".join(f"{name} {number}" for name, number in dropped.items()),
        "Classes": ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else ""),
        "Data fingerprint": records[0].fingerprint[:16],
        "Versions": _distinct(_flat(record.info.get("versions")) for record in records),
        "Hardware": _distinct(_flat(record.info.get("hardware")) for record in records),
        "Commit": _distinct(str((record.info.get("git") or {}).get("commit") or "")[:10] for record in records),
    }
    return {name: value for name, value in facts.items() if value}


# Names and small change


def _title(record: Record) -> str:
    data = record.info["data"]
    return f"{data.get('name') or record.cell['data']}{' (synthetic)' if data.get('synthetic') else ''}"


def _teacher_names(records: Sequence[Record]) -> dict[Path, str]:
    """What each run's teacher is called, by the run's folder.

    Its option and those of its settings that not every teacher has; its own name where that would be one name for
    several (the links of a chain, a student's earlier generations).
    """
    own = {record.path: str(record.teacher.get("name")) for record in records if record.teacher}
    cells = {record.path: record.cell for record in records if record.teacher}
    settings = {path: [o for o in _overrides(cell) if _of_teacher(o)] for path, cell in cells.items()}
    common = set.intersection(*map(set, settings.values())) if settings else set()
    more = {path: [_short(o) for o in mine if o not in common] for path, mine in settings.items()}
    names = {path: " · ".join([str(cell.get("teacher") or own[path]), *more[path]]) for path, cell in cells.items()}
    called = defaultdict(set)
    for path, name in names.items():
        called[name].add(own[path])
    return {
        path: name if len(called[name]) == 1 else " · ".join([own[path], *more[path]]) for path, name in names.items()
    }


def _of_teacher(override: str) -> bool:
    """Whether it changes what a teacher says; a recipe's content is in its name."""
    name = override.lstrip("+").partition("=")[0]
    return _group(override) == "teacher" and name.partition(".")[2] not in ("", "recipe", *_HOW_IT_RUNS)


def _label(record: Record) -> Labels:
    return record.predictions.label


def _overrides(cell: Mapping[str, Any]) -> list[str]:
    return [str(override) for override in cell.get("overrides") or ()]


def _group(override: str) -> str:
    """The config group an override belongs to: ``strategy`` of ``+strategy.temperature=4``."""
    return re.split(r"[.=@/]", override.lstrip("+~"), maxsplit=1)[0]


def _short(override: str) -> str:
    """``temperature=4`` of ``strategy.temperature=4``, ``path=b`` of ``teacher.path=/a/b``; a weight says it is one."""
    key, _, value = re.sub(r"(path=)[^,'\"\]]*/(?=[^/])", r"\1", override).partition("=")
    name = key if ".weights." not in f".{key}" else "weights." + key.rpartition("weights.")[2]
    return f"{name if name.startswith('weights.') else key.rpartition('.')[2]}={value}"


def _natural(value: object) -> list[Any]:
    """A sort key that puts 2 before 10 and temperature=4 before temperature=16."""
    return [(0, float(part), "") if number else (1, 0.0, part) for part, number in _pieces(str(value))]


def _pieces(text: str) -> Iterable[tuple[str, bool]]:
    for match in re.finditer(r"(\d+(?:\.\d+)?)|\D+", text):
        yield match.group(), match.group(1) is not None


def _range(updates: tuple[int, int]) -> str:
    return f"{updates[0]:,}" if updates[0] == updates[1] else f"{updates[0]:,}–{updates[1]:,}"


def _flat(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (mapping or {}).items() if value not in (None, ""))


def _distinct(values: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(value for value in values if value))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
