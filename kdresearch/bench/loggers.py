"""The curves of a run as ``metrics.csv`` in its folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger


class CurveLogger(CSVLogger):
    """Writes ``metrics.csv`` in a run's folder.

    Args:
        resumed: the checkpoint that the run goes on from: the curves before it are kept.
    """

    def __init__(self, folder: Path, resumed: Path | None = None) -> None:
        super().__init__(str(folder), name="", version="")
        earlier = rows_before(folder / "metrics.csv", resumed) if resumed is not None else []
        for row in earlier:  # the logger begins by removing the file
            self.log_metrics(row, int(row.pop("step")))


def rows_before(curves: Path, resumed: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv from before a checkpoint."""
    if not curves.exists():
        return []
    end = torch.load(resumed, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    with curves.open(newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if int(row["step"]) < end]
