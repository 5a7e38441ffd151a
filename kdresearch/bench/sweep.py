"""A sweep as a contract: its cells, each in a folder named by its settings, and how far each has come.

The folders are all the state there is: a command given again finds what is finished, goes on with what was interrupted,
and runs what is missing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdresearch.artifacts import digest
from kdresearch.bench import identity
from kdresearch.bench.contents import FINISHED, damage
from kdresearch.bench.lock import is_held
from kdresearch.bench.schema import RUN, read_json, write_json, write_record
from kdresearch.errors import UserError

DONE, RUNNING, RESUMABLE, DIVERGED, FAILED, MISSING = STATES = (
    "done", "running", "resumable", "diverged", "failed", "missing",
)  # fmt: skip
MANIFEST = "sweep.json"
_LONGEST = 60  # characters of a folder's readable part


@dataclass(frozen=True)
class Cell:
    """One combination of a sweep."""

    name: str  # of its folder, in that of the sweep
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class CellState:
    """How far a cell has come.

    Attributes:
        state: done, running, resumable (interrupted or killed: the same command goes on), diverged, failed or missing.
        reason: a line on how it ended; None where there is none.
        seconds: that its phases took so far, where they are known.
        bytes: of its folder, where it is done.
    """

    cell: Cell
    state: str
    reason: str | None = None
    seconds: float | None = None
    bytes: int | None = None


def cell_name(config: Mapping[str, Any], values: Sequence[str]) -> str:
    """The folder of a combination: what distinguishes it, readable, and a digest of every setting.

    Args:
        config: the resolved configuration; what cannot change a result (loggers, threads, names) does not count.
        values: the overrides that were swept over, e.g. ``seed=1``.
    """
    words = [re.split(r"[./]", key)[-1] + f"_{value}" for key, _, value in (word.partition("=") for word in values)]
    words = [re.sub(r"^(student|strategy)_", "", word) for word in words]
    readable = re.sub(r"[^\w.-]+|_{2,}", "_", "-".join(words))[:_LONGEST].strip("_.-")
    settings = {name: config.get(name) for name in identity.SECTIONS}
    settings["source"] = (config.get("data") or {}).get("source")  # where the rows are: another file, another cell
    resolved = identity.settings(settings, content=digest(identity.normalised(settings["source"])), teacher=None)
    resolved["teacher"] = identity.normalised(config.get("teacher"))
    return f"{readable or 'run'}-{identity.identity(resolved)[:8]}"


def settled_name(folder: Path, name: str) -> str:
    """The name under which a sweep's folder has a cell already, from a grid over other values; else this one."""
    digest_of = name.rpartition("-")[2]
    return next((cell.name for cell in _read_manifest(folder) if cell.name.endswith(f"-{digest_of}")), name)


def state_of(folder: Path, cell: Cell) -> CellState:
    """How far a cell has come, by its folder in that of the sweep."""
    run = folder / cell.name
    facts = read_json(run / RUN)
    if is_held(run):
        return CellState(cell, RUNNING)
    status = facts.get("status")
    seconds = sum((facts.get("seconds") or {}).values()) or None
    if status == FINISHED:
        broken = damage(run, facts)
        if broken is not None:
            return CellState(cell, MISSING, f"its record is damaged: {broken}")
        size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
        return CellState(cell, DONE, None, seconds, size)
    if status in (DIVERGED, FAILED):
        return CellState(cell, status, facts.get("reason"), seconds)
    if status is None:
        return CellState(cell, MISSING)
    return CellState(cell, RESUMABLE, facts.get("reason"), seconds)


def write_manifest(folder: Path, cells: Sequence[Cell]) -> None:
    """Keep the cells of a sweep beside them, with those of earlier commands in the same folder."""
    cells_by_name = {cell.name: cell for cell in _read_manifest(folder)} | {cell.name: cell for cell in cells}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MANIFEST, {"cells": [asdict(cell) for cell in cells_by_name.values()]})


def read_manifest(folder: Path) -> list[Cell]:
    """The cells of a sweep. Raises UserError where the folder holds none."""
    cells = _read_manifest(folder)
    if not cells:
        raise UserError(f"{str(folder)!r} is no folder of a sweep: it holds no {MANIFEST} with cells")
    return cells


def _read_manifest(folder: Path) -> list[Cell]:
    content = read_json(folder / MANIFEST).get("cells")
    try:
        return [Cell(str(entry["name"]), tuple(map(str, entry["overrides"]))) for entry in content or ()]
    except (TypeError, KeyError):
        return []


def summary(states: Iterable[CellState]) -> str:
    """``3 done, 1 failed``."""
    counts = Counter(state.state for state in states)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "no cells"


def remaining_seconds(states: Sequence[CellState]) -> float | None:
    """What the cells that are not done would take one after another, by the mean of those that are; None without."""
    durations = [state.seconds for state in states if state.state == DONE and state.seconds is not None]
    pending = [state for state in states if state.state in (RUNNING, RESUMABLE, MISSING)]
    if not durations:
        return None
    mean = sum(durations) / len(durations)
    return sum(max(0.0, mean - (state.seconds or 0.0)) for state in pending)


def mean_bytes(states: Iterable[CellState]) -> float | None:
    """Of the folder of a finished cell; None where none is finished."""
    sizes = [state.bytes for state in states if state.bytes is not None]
    return sum(sizes) / len(sizes) if sizes else None


def record_failure(folder: Path, reason: str) -> None:
    """Leave a record of a run that could not begin, where there is none that says more."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = read_json(folder / RUN)
    if facts.get("status") is None:
        write_record(folder / RUN, {"status": FAILED, "cell": {}, "reason": reason})


def teacher_key(teacher: Any) -> str | None:
    """A name for what a plan's teacher is: cells that share it share its training and recording; None without one."""
    return None if teacher is None else digest(json.loads(json.dumps(teacher, default=repr, sort_keys=True)))
