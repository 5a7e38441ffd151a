"""The curves of a run as ``metrics.csv`` in its folder."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from kdresearch.bench.schema import replaced


class CurveWriter(ExperimentWriter):
    """Adds rows to a file of curves. Lightning's removes it first, and knows no columns of another process."""

    def save(self) -> None:
        """Add the rows that were logged; a new column means a new file, which takes the old one's place at once."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        columns = _columns(path)
        if not {name for row in self.metrics for name in row} <= set(columns):
            write_curves(path, [*read_curves(path), *self.metrics])
        else:
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerows(self.metrics)
        self.metrics = []

    def _check_log_dir_exists(self) -> None:
        """Nothing: what is there stays."""


class CurveLogger(CSVLogger):
    """Writes ``metrics.csv`` in a run's folder.

    Args:
        resumed: the checkpoint that the run goes on from: the curves before it are kept.
    """

    def __init__(self, folder: Path, resumed: Path | None = None) -> None:
        super().__init__(str(folder), name="", version="")
        path = folder / "metrics.csv"
        if resumed is None:
            path.unlink(missing_ok=True)
        elif path.exists():
            end = torch.load(resumed, map_location="cpu", weights_only=True, mmap=True)["global_step"]
            write_curves(path, [row for row in read_curves(path) if int(row["step"]) < end])

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the file, in this process."""
        if not isinstance(self._experiment, CurveWriter):
            self._experiment = CurveWriter(self.log_dir)
        return self._experiment


def _columns(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of curves, as far as they can be read: a kill may have torn the last line."""
    if not path.exists():
        return []
    text = path.read_bytes().decode(errors="replace").replace("\0", "")
    complete = text[: text.rfind("\n") + 1]
    rows = [
        {key: value for key, value in row.items() if key and value} for row in csv.DictReader(complete.splitlines())
    ]
    return [row for row in rows if str(row.get("step", "")).isdecimal()]


def write_curves(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of curves, whole or not at all."""
    rows = list(rows)
    columns = sorted({name for row in rows for name in row})
    with replaced(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
