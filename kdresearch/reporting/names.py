"""What methods and teachers are called: their options, and the settings in which they differ from their neighbours."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from kdresearch.bench.identity import TRANSFER, flat, method, without_seeds
from kdresearch.reporting.records import Record

ALONE = "supervised"
FLOOR = "ngram"
_WITH_PARENT = ("weights", "start", "schedules")  # nodes whose keys say little alone
_NAMED_OTHERWISE = ("data.content", "data.transfer", "data.labels")
_LONGEST = 60  # characters of a value


def natural(value: object) -> list[Any]:
    """A sort key that puts 2 before 10 and temperature=4 before temperature=16."""
    pieces = re.finditer(r"(\d+(?:\.\d+)?)|\D+", str(value))
    return [(0, float(piece[0]), "") if piece[1] else (1, 0.0, piece[0]) for piece in pieces]


def text(value: Any) -> str:
    """A setting's value in a name: paths by their ends, long digests by their beginnings."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    words = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    words = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{16}\b", r"\1", words.removeprefix("content "))
    words = re.sub(r"[^,='\"\]\[\s]*/(?=[^/])", "", words)
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def short(keys: Collection[str]) -> dict[str, str]:
    """By dotted key its shortest suffix that no other key has; a weight or a start keeps its parent's name."""
    result = {}
    for key in keys:
        path = key.split(".")
        first = 2 if len(path) > 1 and path[-2] in _WITH_PARENT else 1
        suffixes = (".".join(path[-length:]) for length in range(first, len(path) + 1))
        rivals = [f".{rival}" for rival in keys if rival != key]
        result[key] = next(
            (suffix for suffix in suffixes if not any(rival.endswith(f".{suffix}") for rival in rivals)), key
        ).lstrip("_")
    return {key: name.replace("_target_", "class").removesuffix("_") for key, name in result.items()}


def value_labels(settings: Mapping[str, Any], keys: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """``name=value`` of those keys that the settings have."""
    labels = []
    for key in sorted(keys, key=natural):
        if settings.get(key) is not None:
            value = settings[key].rpartition(".")[2] if key.endswith("_target_") else text(settings[key])
            labels.append(f"{names[key]}={value}")
    return labels


def varying(subjects: Iterable[Mapping[str, Any]]) -> set[str]:
    """The keys whose values are not the same in all of the settings."""
    everything = list(subjects)
    keys = {key for settings in everything for key in settings}
    return {key for key in keys if len({json.dumps(settings.get(key)) for settings in everything}) > 1}


def method_names(methods: Sequence[Sequence[Record]], teachers: Mapping[str, str]) -> list[tuple[str, str]]:
    """(method, variant) of every method, each once: student, strategy, and the settings that distinguish it.

    Args:
        methods: the runs of every method.
        teachers: the name of every teacher, by ``teacher_key``.
    """
    cells = [runs[0].cell for runs in methods]
    settings = [flat(without_seeds(runs[0].settings)) for runs in methods]
    scopes: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for cell, values in zip(cells, settings, strict=True):
        for scope in {_scope(key, cell) for key in values}:
            scopes[scope].append(values)
    differing = {scope: varying(members) for scope, members in scopes.items()}
    shown = [
        [key for key in values if key in differing[_scope(key, cell)] and _distinguishes(key, cell)]
        for cell, values in zip(cells, settings, strict=True)
    ]
    names = short({key for keys in shown for key in keys})
    several = len({teachers[teacher_key(runs[0])] for runs in methods if _has_teacher(runs[0])}) > 1
    amounts = len({json.dumps(cell.get("labels")) for cell in cells}) > 1
    variants = []
    for runs, cell, values, keys in zip(methods, cells, settings, shown, strict=True):
        words = [("floor" if cell["student"] == FLOOR else "alone") if cell["strategy"] == ALONE else cell["strategy"]]
        if (cell.get("transfer") or "none") != "none":
            words[0] += f" + {cell['transfer']}"
        if several and _has_teacher(runs[0]):
            words.append(f"from {teachers[teacher_key(runs[0])]}")
        if amounts and cell.get("labels") is not None:
            words.append(f"{cell['labels']:,} labels" if isinstance(cell["labels"], int) else str(cell["labels"]))
        variants.append(" · ".join([*words, *value_labels(values, keys, names)]))
    full = [f"{cell['student']} · {variant}" for cell, variant in zip(cells, variants, strict=True)]
    suffixes = [
        f" · {runs[0].method[:6]}" if full.count(name) > 1 else "" for runs, name in zip(methods, full, strict=True)
    ]
    return [(name + suffix, variant + suffix) for name, variant, suffix in zip(full, variants, suffixes, strict=True)]


def _has_teacher(record: Record) -> bool:
    return record.cell["strategy"] != ALONE and bool(record.cell.get("teacher")) and record.teacher is not None


def _distinguishes(key: str, cell: Mapping[str, Any]) -> bool:
    """Whether a setting distinguishes methods beyond the teacher, the rows and the options, which are named anyway."""
    in_teacher_name = key.startswith("teacher.") and bool(cell.get("teacher"))
    return not in_teacher_name and key not in _NAMED_OTHERWISE and not key.endswith(".option")


def _scope(key: str, cell: Mapping[str, Any]) -> tuple[str, str]:
    """The methods among which a setting may vary: of one strategy, of any teacher, or of one student."""
    section = key.partition(".")[0]
    if section == "strategy":
        return section, str(cell["strategy"])
    if section in ("teacher", "generator"):
        return section, str(cell.get(section))
    if key.removeprefix("data.") in TRANSFER:
        return "transfer", str(cell.get("transfer"))
    return "student", str(cell["student"])


def teacher_key(record: Record) -> str:
    """The name that a teacher shares with its replicates, whatever student it teaches."""
    return method(record.settings.get("teacher") or {"name": (record.teacher or {}).get("name")})


def teacher_names(records: Iterable[Record], *, mirrored: bool) -> dict[str, str]:
    """Every teacher's name, by ``teacher_key``: its option, else its own name, and the settings that distinguish it.

    Args:
        mirrored: whether settings that a recipe takes over from its run (a limit of rows) are named too.
    """
    first: dict[str, Record] = {}
    runs = [record for record in records if record.teacher]
    for record in runs:
        first.setdefault(teacher_key(record), record)
    options = {key: str(record.cell.get("teacher") or _teacher_name(record)) for key, record in first.items()}
    names_by_option: dict[str, set[str]] = defaultdict(set)
    for key, record in first.items():
        names_by_option[options[key]].add(_teacher_name(record))
    bases = {
        key: options[key] if len(names_by_option[options[key]]) == 1 else _teacher_name(first[key]) for key in first
    }
    settings = {key: flat(without_seeds(record.settings.get("teacher") or {})) for key, record in first.items()}
    copied = set() if mirrored else _copied_settings(runs)
    families: dict[str, list[str]] = defaultdict(list)
    for key, base in bases.items():
        families[base].append(key)
    differing = {base: varying(settings[key] for key in keys) for base, keys in families.items()}
    shown = {
        key: [
            setting
            for setting in settings[key]
            if setting in differing[base] and setting not in copied and _distinguishes_teacher(setting)
        ]
        for key, base in bases.items()
    }
    names = short({setting for keys in shown.values() for setting in keys})
    return {key: " · ".join([base, *value_labels(settings[key], shown[key], names)]) for key, base in bases.items()}


def _distinguishes_teacher(key: str) -> bool:
    return not key.endswith((".content", "name", "option"))


def _copied_settings(records: Iterable[Record]) -> set[str]:
    """Settings of teachers that equal those of their runs, in every run: ``recipe.data.limit``."""
    same: dict[str, bool] = defaultdict(lambda: True)
    for record in records:
        run = flat(record.settings)
        for key, value in flat(record.settings.get("teacher") or {}).items():
            end = key.rpartition("recipe.")[2].replace("recipe_data.", "data.")
            end = f"data.{end}" if key == "limit" else end
            same[key] &= end != key and run.get(end) == value
    return {key for key, equal in same.items() if equal}


def _teacher_name(record: Record) -> str:
    return str((record.teacher or {}).get("name"))
