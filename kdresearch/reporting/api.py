"""Runs compared from Python: what ``kdresearch report`` prints, as a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kdresearch.errors import UserError
from kdresearch.reporting.comparison import Comparison
from kdresearch.reporting.comparison import compare as compare_records
from kdresearch.reporting.records import find
from kdresearch.reporting.score_table import ScoreComparison, compare_scores
from kdresearch.reporting.scores import read_scores
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


def compare(
    runs: Iterable[Runs | str | Path],
    metric: str = "accuracy",
    against: str = "supervised",
    *,
    baseline: str | None = None,
    columns: Mapping[str, str] | None = None,
    common_items: bool = False,
    resolve: float | None = None,
) -> Comparisons | ScoreComparison:
    """Methods by student and strategy, seeds as replicates, each difference with its interval; or anybody's scores.

    Args:
        runs: results of ``distil``, run directories, or any folders above them. Where one is a table of scores or a
            folder of lm-evaluation-harness samples, or where a ``baseline`` is named, everything is compared item by
            item with that baseline, as ``kdresearch compare`` does (``reporting.scores``).
        metric: of runs: accuracy, macro_f1, nll, brier or ece, on the test rows; of samples: a metric's name.
        against: the strategy of the same student that every difference is measured against.
        baseline: the system that every difference is measured against.
        columns: of tables whose columns are called otherwise.
        common_items: compare on the items that all systems have.
        resolve: also say how many more seeds would make the interval no wider than ± this.

    Raises:
        UserError: no finished run, an unknown metric or strategy; as ``read_scores`` and ``compare_scores`` do.
    """
    folders = [folder for source in runs for folder in _folders(source)]
    scores = baseline is not None or any(folder.is_file() for folder in folders)
    if scores or not any(any(folder.rglob("run.json")) for folder in folders if folder.exists()):
        name = None if metric == "accuracy" else metric
        boards = read_scores(folders, metric=name, columns=columns, common_items=common_items)
        return compare_scores(boards, baseline, resolve)
    records = find(folders)
    if not records.finished:
        raise UserError(f"no finished run to compare in {', '.join(map(str, folders))}")
    return Comparisons(tuple(compare_records(records.finished, metric, against, records.unfinished)))


def _folders(runs: Runs | str | Path) -> Sequence[Path]:
    return [Path(runs)] if isinstance(runs, str | Path) else runs.folders
