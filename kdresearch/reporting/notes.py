"""The footnotes and the header of a table: what its reader must know beside its numbers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdresearch.reporting.controls import control
from kdresearch.reporting.names import ALONE, FLOOR, natural
from kdresearch.reporting.records import Record
from kdresearch.reporting.rows import Row
from kdresearch.reporting.settings import CONFIGURED, TYPED, typed_overrides

UNLIKE, BELOW = "†", "‡"
IMBALANCED = 0.6  # share of the largest class above which accuracy alone misleads
_DISTILLING = frozenset({"strategy", "teacher", "generator", "start"})  # sections that no student alone has a use for
_ORIGINS = {
    CONFIGURED: "taken from the configuration beside them",
    TYPED: "read off the words of their commands, where a default and the same value typed are two methods",
}


def uneven(pairs: Iterable[tuple[Row, Row]]) -> list[str]:
    """The settings besides the teacher in which methods and their controls differ."""
    methods: dict[str, list[str]] = defaultdict(list)
    for row, partner in pairs:
        if row.unlike:
            methods[
                f"{UNLIKE} set apart from {partner.method} by more than the teacher, and no equal control is there: "
                f"{', '.join(row.unlike)}."
            ].append(row.method)
        if row.updates and partner.updates and row.updates != partner.updates:
            name = partner.variant if partner.kind == "distilled" else "alone"
            methods[
                f"{_range(row.updates)} updates, but {_range(partner.updates)} {name}: part of the difference may come "
                "from the number of updates."
            ].append(row.method)
        if row.trials != partner.trials:
            methods[
                f"unequal tuning (control: {_trials(partner.trials)}, method: {_trials(row.trials)}): part of the "
                "difference may come from the search."
            ].append(row.method)
    return [f"{'; '.join(names)}: {words}" for words, names in methods.items()]


def _trials(number: int | None) -> str:
    return f"{number or 1} trial{'' if (number or 1) == 1 else 's'}"


def searches(rows: Iterable[Row]) -> list[str]:
    """The search that selected the settings, for the methods that have one."""
    methods: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.runs and (tuning := row.runs[0].tuning):
            search = f"best of {_trials(row.trials)} by {tuning['chosen_by']}, search seed {tuning['search_seed']}"
            methods[search].append(row.method)
    return [f"{'; '.join(names)}: settings are the {search}." for search, names in methods.items()]


def weak_teachers(rows: Iterable[Row]) -> list[str]:
    """Methods whose teacher is less accurate than they are."""
    return [
        f"{BELOW} {row.method}: its teacher ({100 * row.teacher_accuracy:.2f} % accuracy) is below it "
        f"({100 * row.accuracy:.2f} %)."
        for row in rows
        if row.below and row.teacher_accuracy is not None
    ]


def origins(records: Sequence[Record]) -> list[str]:
    """Where settings come from that the records do not hold."""
    notes = []
    for origin, words in _ORIGINS.items():
        if number := sum(record.settings_origin == origin for record in records):
            notes.append(f"{number} of {len(records)} runs were recorded without their settings: these are {words}.")
    return notes


def common_overrides(rows: Iterable[Row]) -> list[str]:
    """The overrides that all runs of a student share, which the names of its rows therefore leave out."""
    common: dict[str, set[str]] = {}
    for row in rows:
        for run in row.runs:
            words = {word for word in typed_overrides(run) if _section(word) in ("student", "data", "trainer")}
            common[row.student] = common[row.student] & words if row.student in common else words
    shared = {student: sorted(filter(_is_setting, words), key=natural) for student, words in sorted(common.items())}
    return [f"{student}: {' · '.join(words)}." for student, words in shared.items() if words]


def _is_setting(override: str) -> bool:
    return "." in override.partition("=")[0] and "/" not in override


def missing_controls(rows: Sequence[Row]) -> list[str]:
    """The commands that would add the floor and the students alone."""
    notes = []
    if not any(row.kind == "floor" for row in rows):
        data = [word for word in typed_overrides(rows[0].runs[0]) if _section(word) == "data"]
        notes.append(f"No floor; this adds it: {_command(rows[0], FLOOR, data)}")
    alone: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.kind == "distilled" and control(row, rows) is None:
            words = [word for word in typed_overrides(row.runs[0]) if _section(word) not in _DISTILLING]
            alone[_command(row, row.student, words)].append(row.method)
    return notes + [f"Nothing to compare {'; '.join(m)} with; this adds it: {command}" for command, m in alone.items()]


def _section(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0].partition("@")[0]


def _command(row: Row, student: str, overrides: Iterable[str]) -> str:
    """What trains ``student`` alone on the data and seeds of ``row``."""
    cell = row.cell
    words = sorted(word for word in overrides if not word.lstrip("+").startswith("data.transfer"))
    seeds = sorted({run.info["seed"] for run in row.runs if run.info.get("seed") is not None}, key=natural)
    arguments = [f"data={cell['data']}", f"student={student}", f"strategy={ALONE}", *words]
    if (labels := cell.get("labels")) is not None:
        key = "data.limit" if isinstance(labels, int) else "data.labels"
        if not any(word.lstrip("+").startswith(f"{key}=") for word in words):
            arguments.append(f"{key}={labels}")
    if seeds:
        arguments.append(f"seed={','.join(map(str, seeds))}")
    return f"kdresearch train {'-m ' if len(seeds) > 1 else ''}{' '.join(arguments)}"


def caveats(records: Sequence[Record], rows: Sequence[Row]) -> list[str]:
    """Reasons in the records themselves to doubt a comparison."""
    notes = []
    if single := [row.method for row in rows if len(row.runs) == 1]:
        subject = "Every method" if len(single) == len(rows) else ", ".join(single)
        notes.append(f"{subject}: one seed, so the interval holds the test rows' variance and not the seeds'.")
    for record in records:
        recorded, test = record.metric("test/accuracy"), record.predictions
        computed = float((test.student.argmax(axis=1) == test.label).mean())
        if recorded is not None and abs(recorded - computed) > 1e-4:
            notes.append(
                f"{record.path}: metrics.json says accuracy {recorded:.4f}, its predictions {computed:.4f}; this is "
                "shown."
            )
    if dirty := sum(bool((record.info.get("git") or {}).get("dirty")) for record in records):
        notes.append(f"{dirty} of {len(records)} runs come from a working tree with uncommitted changes.")
    if len({json.dumps(record.info.get("hardware"), sort_keys=True) for record in records}) > 1:
        notes.append("The runs come from different hardware: latencies do not compare.")
    if len({json.dumps(record.info.get("versions"), sort_keys=True) for record in records}) > 1:
        notes.append("The runs come from different versions of the software.")
    return notes


def facts(records: Sequence[Record], rows: Sequence[Row]) -> dict[str, str]:
    """The header, the most important fact first; a fact that no run has is left out."""
    data = records[0].info["data"]
    seeds: dict[str, set[Any]] = defaultdict(set)
    for record in records:
        for name, value in record.seeds:
            seeds[name].add(value)
    count = {str(name): f"{number:,}" for name, number in (data.get("counts") or {}).items()}
    dropped = {str(name): f"{number:,}" for name, number in (data.get("duplicates_dropped") or {}).items() if number}
    classes = [str(name) for name in data.get("classes") or ()]
    lines = {
        "Runs": f"{len(records)} of {sum(row.kind != 'teacher' for row in rows)} methods",
        "Seeds": "; ".join(f"{name} {', '.join(map(str, sorted(s, key=natural)))}" for name, s in seeds.items()),
        "Rows": ", ".join(f"{name} {number}" for name, number in count.items()),
        "Scored on": f"{len(records[0].predictions.label):,} test rows",
        "Duplicates dropped": ", ".join(f"{name} {number}" for name, number in dropped.items()),
        "Classes": ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else ""),
        "Data fingerprint": records[0].fingerprint[:16],
        "Versions": _distinct(_flat(record.info.get("versions")) for record in records),
        "Hardware": _distinct(_flat(record.info.get("hardware")) for record in records),
        "Commit": _distinct(str((record.info.get("git") or {}).get("commit") or "")[:10] for record in records),
    }
    return {name: value for name, value in lines.items() if value}


def majority(records: Sequence[Record]) -> float:
    """The share of the largest class among the test rows."""
    recorded = (records[0].info["data"].get("majority") or {}).get("test")
    if isinstance(recorded, int | float):
        return float(recorded)
    label = records[0].predictions.label
    return float(np.bincount(label).max() / len(label))


def _range(updates: tuple[int, int]) -> str:
    return f"{updates[0]:,}" if updates[0] == updates[1] else f"{updates[0]:,}–{updates[1]:,}"


def _flat(mapping: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (mapping or {}).items() if value not in (None, ""))


def _distinct(values: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(value for value in values if value))
