"""Runs compared from Python: what ``kdresearch report`` prints, as a value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kdresearch.errors import UserError
from kdresearch.reporting.comparison import Comparison
from kdresearch.reporting.comparison import compare as compare_records
from kdresearch.reporting.records import find
from kdresearch.reporting.table import markdown


class Runs(Protocol):
    """Anything that has the folders of its runs, like ``bench.distil.Distillation``."""

    @property
    def folders(self) -> Sequence[Path]:
        """The run directories."""


@dataclass(frozen=True)
class Comparisons:
    """One table for each data set that runs were tested on; printed, they are Markdown."""

    tables: tuple[Comparison, ...]

    def __str__(self) -> str:
        return markdown(self.tables, [])


def compare(runs: Iterable[Runs | str | Path], metric: str = "accuracy", against: str = "supervised") -> Comparisons:
    """Methods by student and strategy, seeds as replicates, each difference with its interval.

    Args:
        runs: results of ``distil``, run directories, or any folders above them.
        metric: accuracy, macro_f1, nll, brier or ece, on the test rows.
        against: the strategy of the same student that every difference is measured against.

    Raises:
        UserError: no finished run, an unknown metric or strategy.
    """
    folders = [folder for source in runs for folder in _folders(source)]
    records = find(folders)
    if not records.finished:
        raise UserError(f"no finished run to compare in {', '.join(map(str, folders))}")
    return Comparisons(tuple(compare_records(records.finished, metric, against)))


def _folders(runs: Runs | str | Path) -> Sequence[Path]:
    return [Path(runs)] if isinstance(runs, str | Path) else runs.folders
