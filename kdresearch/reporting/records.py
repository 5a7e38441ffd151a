"""Run records from disk, read below any folder and checked; a broken one is named instead of used."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdresearch.artifacts import file_sha256, without_sum
from kdresearch.bench.identity import method
from kdresearch.errors import UserError
from kdresearch.reporting.settings import settings_of

Floats = NDArray[np.float64]
_FILES = {"metrics.json", "metrics.csv", "predictions.parquet"}  # those that a report reads


class BrokenRecord(Exception):
    """A record that cannot be read; the message says which file and why."""


@dataclass(frozen=True)
class Predictions:
    """The N labelled test rows of one run, in the order of their ids, so that runs line up by position."""

    ids: tuple[str, ...]
    label: NDArray[np.int64]  # [N]
    student: Floats  # [N, C] logits
    teacher: Floats | None  # [N, C] logits


@dataclass(frozen=True)
class Record:
    """One run. ``info`` and ``metrics`` are run.json and metrics.json as they stand on disk."""

    path: Path
    info: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """Of run.json: running, finished, failed, interrupted or diverged."""
        return str(self.info["status"])

    @property
    def outcome(self) -> str:
        """What is said of a run without results: diverged, failed, or unfinished (interrupted, or still running)."""
        return "unfinished" if self.status in ("running", "interrupted") else self.status

    @property
    def cell(self) -> dict[str, Any]:
        """What the options of the run are called."""
        return dict(self.info["cell"])

    @cached_property
    def _settings(self) -> tuple[dict[str, Any], str]:
        return settings_of(self)

    @property
    def settings(self) -> dict[str, Any]:
        """What could change the run's results; see ``kdresearch.bench.identity``."""
        return self._settings[0]

    @property
    def settings_origin(self) -> str:
        """Where the settings come from; see ``kdresearch.reporting.settings``."""
        return self._settings[1]

    @cached_property
    def method(self) -> str:
        """The name that replicates share."""
        return method(self.settings)

    @property
    def tuning(self) -> Mapping[str, Any] | None:
        """How the settings were chosen, where ``kdresearch tune`` chose them."""
        return self.info.get("tuning")

    @property
    def fingerprint(self) -> str:
        """The digest of the data."""
        return str(self.info["data"]["fingerprint"])

    @property
    def teacher(self) -> Mapping[str, Any] | None:
        """The teacher's entry of run.json; None for a run without one."""
        return self.info.get("teacher")

    @property
    def seeds(self) -> tuple[tuple[str, Any], ...]:
        """Every seed of the run by name, as a key that tells replicates from repetitions."""
        return tuple(sorted((self.info.get("seeds") or {"seed": self.info.get("seed")}).items()))

    def metric(self, name: str) -> float | None:
        """A finite entry of metrics.json, else None."""
        value = self.metrics.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    @cached_property
    def predictions(self) -> Predictions:
        """The test rows. Raises BrokenRecord."""
        return read_predictions(self.path / "predictions.parquet")

    def curve(self, name: str) -> Floats:
        """One column of metrics.csv as ``[E, 2]`` pairs (epoch, last value in it); empty where it was never logged."""
        values: dict[float, float] = {}
        try:
            with open(self.path / "metrics.csv", newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    try:
                        values[float(row["epoch"])] = float(row[name])
                    except (KeyError, TypeError, ValueError):
                        continue  # the logger writes one line per kind of metric and leaves the others empty
        except (OSError, UnicodeDecodeError, csv.Error):
            return np.empty((0, 2))
        return np.array(sorted(values.items()), dtype=np.float64).reshape(-1, 2)


@dataclass(frozen=True)
class Records:
    """All run records below some folders, by state; every record is in exactly one of the four."""

    finished: tuple[Record, ...]
    unfinished: tuple[Record, ...]
    broken: tuple[tuple[Path, str], ...]  # (folder, reason)
    untested: tuple[Record, ...] = ()  # finished, and evaluated on the validation rows alone


def find(folders: Iterable[Path]) -> Records:
    """Read every run record at or below ``folders``, each once however often it is reached.

    Raises UserError where a folder does not exist or no run.json lies below any of them.
    """
    folders = list(folders)
    finished: list[Record] = []
    unfinished: list[Record] = []
    untested: list[Record] = []
    broken: list[tuple[Path, str]] = []
    paths: dict[Path, Path] = {}  # resolved -> as reached
    for folder in folders:
        if not folder.exists():
            raise UserError(f"there is no folder {str(folder)!r} to report on")
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is a file; give the folder of a run, or one above it")
        for root, below, files in os.walk(folder):
            below.sort()
            if "run.json" in files:
                paths.setdefault(Path(root).resolve(), Path(root))
                below.clear()
    if not paths:
        raise UserError(f"no run record (a folder with run.json) at or below: {', '.join(map(str, folders))}")
    for path in sorted(paths.values()):
        try:
            record = read(path)
            if record.status == "finished" and record.info.get("untested"):
                untested.append(record)
                continue
            if record.status == "finished":
                record.predictions  # noqa: B018  (read here, so that a truncated file is named with the others)
        except BrokenRecord as problem:
            broken.append((path, str(problem)))
        else:
            (finished if record.status == "finished" else unfinished).append(record)
    return Records(tuple(finished), tuple(unfinished), tuple(broken), tuple(untested))


def read(path: Path) -> Record:
    """The record in folder ``path``; metrics are read of finished runs only. Raises BrokenRecord."""
    info = _json(path / "run.json")
    missing = [key for key in ("status", "cell") if key not in info]
    if missing or not isinstance(info["cell"], dict):
        raise BrokenRecord(f"run.json lacks {', '.join(missing) or 'a readable cell'}")
    if info["status"] != "finished":
        return Record(path, info)
    for section, keys in {"cell": ("data", "student", "strategy"), "data": ("fingerprint",)}.items():
        absent = [key for key in keys if key not in (info.get(section) or {})]
        if absent:
            raise BrokenRecord(f"run.json lacks {', '.join(f'{section}.{key}' for key in absent)}")
    for name in _FILES & (info.get("files") or {}).keys():  # records of earlier versions have no checksums
        if (path / name).is_file() and file_sha256(path / name) != info["files"][name]:
            raise BrokenRecord(f"{name} is damaged (it is not the file that was written)")
    return Record(path, info, _json(path / "metrics.json"))


def read_predictions(path: Path) -> Predictions:
    """The labelled test rows of a predictions.parquet, sorted by id. Raises BrokenRecord."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["id", "label", "student_logits", "teacher_logits"]
    try:
        rows = [("split", "=", "test"), ("label", ">=", 0)]
        table = pq.read_table(path, columns=columns, filters=rows, page_checksum_verification=True)
    except FileNotFoundError:
        raise BrokenRecord(f"{path.name} is missing") from None
    except (pa.ArrowException, OSError) as problem:
        raise BrokenRecord(f"{path.name} is damaged ({_reason(problem, path)})") from problem
    if not table.num_rows:
        raise BrokenRecord(f"{path.name} has no labelled test row")
    missing = [name for name in columns[:3] if name not in table.column_names]
    if missing:
        raise BrokenRecord(f"{path.name} lacks the column {', '.join(missing)}")
    ids = table["id"].to_pylist()
    if len(set(ids)) != len(ids):
        raise BrokenRecord(f"{path.name} names a test id twice")
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__))
    label = table["label"].to_numpy()[order].astype(np.int64)
    student = _logits(table["student_logits"], path.name)
    if student is None:
        raise BrokenRecord(f"{path.name} has no student_logits")
    teacher = _logits(table["teacher_logits"], path.name) if "teacher_logits" in table.column_names else None
    if label.max() >= student.shape[1]:
        raise BrokenRecord(f"{path.name} has label {label.max()} with {student.shape[1]} student logits")
    return Predictions(tuple(ids[i] for i in order), label, student[order], None if teacher is None else teacher[order])


def _logits(column: Any, file: str) -> Floats | None:
    """A list column as ``[N, C]``; None where every row is null."""
    import pyarrow.compute as pc

    if column.null_count == len(column):
        return None
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if column.null_count or len(widths) != 1:
        raise BrokenRecord(f"{file} has logits of several lengths: {widths}")
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    logits: Floats = values.reshape(len(column), widths[0])
    if widths[0] < 2 or not np.isfinite(logits.max(axis=1)).all():  # −inf is a probability of 0; NaN and +inf are not
        raise BrokenRecord(f"{file} has logits that are not finite, or of fewer than 2 classes")
    return logits


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenRecord(f"{path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as problem:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise BrokenRecord(f"{path.name} is damaged ({_reason(problem, path)})") from problem
    if not isinstance(content, dict):
        raise BrokenRecord(f"{path.name} is not a mapping")
    try:
        return without_sum(content)
    except ValueError as problem:
        raise BrokenRecord(f"{path.name} is damaged ({problem})") from problem


def _reason(problem: Exception, path: Path) -> str:
    """The first line of what went wrong, without the path, which is named already."""
    line = (str(problem).splitlines() or [type(problem).__name__])[0]
    return line.rpartition(f"'{path}'")[2].lstrip(": ") or line
