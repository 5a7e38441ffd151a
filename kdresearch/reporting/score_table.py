"""Systems beside a baseline, on one data set and over all of them: what ``kdresearch compare`` prints."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdresearch.errors import UserError, choices
from kdresearch.evaluation.aggregates import (
    interquartile_mean,
    mean_ranks,
    probability_of_improvement,
    stratified_bootstrap,
)
from kdresearch.evaluation.statistics import (
    Interval,
    holm,
    mcnemar,
    mean_sd,
    paired_permutation,
    seeds_to_resolve,
    two_way_bootstrap,
    two_way_test,
)
from kdresearch.reporting.rows import counted
from kdresearch.reporting.scores import Floats, Scoreboard, System
from kdresearch.reporting.table import NOTHING, bullets, pipe_table, signed, tex


@dataclass(frozen=True)
class ScoreRow:
    """One system on one data set; scores in their own unit."""

    system: System
    mean: float | None  # None where no run finished
    sd: float | None  # None for one run
    difference: Interval | None = None  # to the baseline
    p: float | None = None  # over items and seeds, after Holm
    permutation: float | None = None  # over items, given these runs
    mcnemar: float | None = None  # of single runs of right and wrong
    more_seeds: int | None = None  # of both, to resolve the difference asked for
    unresolvable: bool = False  # whether no number of seeds does

    @property
    def noise(self) -> bool:
        """Whether the interval contains 0."""
        return self.difference is not None and self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True)
class ScoreTable:
    """The systems of one data set."""

    board: Scoreboard
    baseline: str
    rows: tuple[ScoreRow, ...]
    binary: bool  # whether scores are right and wrong, shown in per cent


@dataclass(frozen=True)
class Aggregate:
    """One system over all data sets."""

    system: str
    interquartile_mean: Interval
    improvement: Interval | None  # the probability that a run is better than one of the baseline
    rank: float


@dataclass(frozen=True)
class ScoreComparison:
    """A table for each data set, and one over all where systems were scored on several; printed, it is Markdown."""

    tables: tuple[ScoreTable, ...]
    aggregates: tuple[Aggregate, ...] = ()
    notes: tuple[str, ...] = ()
    resolve: float | None = None

    def __str__(self) -> str:
        return markdown(self)


def compare_scores(
    boards: Sequence[Scoreboard], baseline: str | None = None, resolve: float | None = None
) -> ScoreComparison:
    """Every system beside the baseline, p-values corrected over each table.

    Args:
        baseline: a system of every data set; by default the first that has a run on each.
        resolve: also say how many more seeds would make the interval no wider than ± this, in the scores' unit.

    Raises UserError for a baseline that a data set lacks, or of which no run finished.
    """
    if not boards:
        raise UserError("there are no scores to compare")
    name = baseline or _first(boards)
    tables = tuple(_table(board, name, resolve) for board in boards)
    everywhere = [system.name for system in boards[0].systems if all(system.name in _names(board) for board in boards)]
    notes = []
    if len(boards) > 1 and len(everywhere) < len({name for board in boards for name in _names(board)}):
        notes.append("Only systems that were scored on every data set stand in the table over all of them.")
    aggregates = tuple(_aggregates(boards, everywhere, name)) if len(boards) > 1 and len(everywhere) > 1 else ()
    return ScoreComparison(tables, aggregates, tuple(notes), resolve)


def _names(board: Scoreboard) -> list[str]:
    return [system.name for system in board.systems]


def _first(boards: Sequence[Scoreboard]) -> str:
    for system in boards[0].systems:
        if all(system.name in _names(board) and len(board[system.name].scores) for board in boards):
            return system.name
    raise UserError("there is no system with a finished run on every data set; name a --baseline")


def _table(board: Scoreboard, baseline: str, resolve: float | None) -> ScoreTable:
    if baseline not in _names(board):
        raise UserError(f"{board.data}: baseline {choices(baseline, _names(board))}")
    reference = board[baseline].scores
    if not len(reference):
        raise UserError(f"{board.data}: no run of the baseline {baseline!r} finished")
    binary = all(((system.scores == 0) | (system.scores == 1)).all() for system in board.systems)
    rows = [_row(system, None if system.name == baseline else reference, binary, resolve) for system in board.systems]
    corrected = holm({row.system.name: row.p for row in rows if row.p is not None})
    rows = [
        ScoreRow(**{**vars(row), "p": corrected.get(row.system.name)})
        for row in sorted(rows, key=lambda row: -math.inf if row.mean is None else row.mean, reverse=True)
    ]
    return ScoreTable(board, baseline, tuple(rows), binary)


def _row(system: System, reference: Floats | None, binary: bool, resolve: float | None) -> ScoreRow:
    scores = system.scores
    if not len(scores):
        return ScoreRow(system, None, None)
    mean, sd = mean_sd(scores.mean(1))
    if reference is None:
        return ScoreRow(system, mean, sd)
    single = len(scores) == len(reference) == 1
    permutation = paired_permutation(scores, reference)
    several = min(len(scores), len(reference)) > 1
    seeds_needed = seeds_to_resolve(scores, reference, resolve) if resolve and several else None
    return ScoreRow(
        system, mean, sd,
        difference=two_way_bootstrap(scores, reference),
        p=permutation if single else two_way_test(scores, reference),
        permutation=permutation,
        mcnemar=mcnemar(scores, reference) if single and binary else None,
        more_seeds=seeds_needed,
        unresolvable=bool(resolve and several and seeds_needed is None),
    )  # fmt: skip


def _aggregates(boards: Sequence[Scoreboard], names: Sequence[str], baseline: str) -> list[Aggregate]:
    runs = {name: [board[name].runs for board in boards] for name in names}
    ranks = mean_ranks(list(runs.values()))
    return [
        Aggregate(
            name,
            stratified_bootstrap(interquartile_mean, runs[name]),
            None if name == baseline else stratified_bootstrap(probability_of_improvement, runs[name], runs[baseline]),
            float(rank),
        )
        for name, rank in zip(names, ranks, strict=True)
    ]


def headings_and_rows(table: ScoreTable, resolve: float | None) -> tuple[list[str], list[list[str]]]:
    """A table's text."""
    columns = {
        "system": [row.system.name for row in table.rows],
        "runs": [_runs(row.system) for row in table.rows],
        "score (%)" if table.binary else "score": [_mean(row, table.binary) for row in table.rows],
        f"Δ to {table.baseline}": [_difference(row.difference, table.binary, row.noise) for row in table.rows],
        "p (Holm)": [_p(row.p) for row in table.rows],
        "p of these runs": [_p(row.permutation) for row in table.rows],
    }
    if any(row.mcnemar is not None for row in table.rows):
        columns["McNemar"] = [_p(row.mcnemar) for row in table.rows]
    if resolve is not None:
        columns["more seeds"] = [_seeds_needed(row) for row in table.rows]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def markdown(comparison: ScoreComparison) -> str:
    """Every table as a section."""
    sections = []
    for table in comparison.tables:
        headings, rows = headings_and_rows(table, comparison.resolve)
        title = f"## {table.board.data}, {len(table.board.items):,} items"
        sections.append(f"{title}\n\n{pipe_table(headings, rows, [False, *[True] * (len(headings) - 1)])}")
    sections.append(caption(comparison))
    if comparison.aggregates:
        sections.append(f"## Over {len(comparison.tables)} data sets\n\n{_over_all(comparison)}")
        sections.append(
            "The interquartile mean is that of the middle half of all runs; the probability of improvement that a run "
            f"is better than one of {comparison.tables[0].baseline}, a mean over data sets; both with 95 % intervals "
            "over seeds (Agarwal et al. 2021). A failed run counts as the worst."
        )
    if comparison.notes:
        sections.append(bullets(comparison.notes))
    return "\n\n".join(sections) + "\n"


def caption(comparison: ScoreComparison) -> str:
    """What the columns are."""
    words = (
        "± is the standard deviation over runs (seeds). Δ has its 95 % interval from a two-way bootstrap over items "
        "and seeds; “within noise” where that contains 0. p (Holm) is of a test over items and seeds (of single runs: "
        "over items), corrected over the table; p of these runs of a paired permutation over items, which takes the "
        "runs as they are."
    )
    if comparison.resolve is not None:
        words += f" More seeds: of both systems, until the interval is no wider than ± {comparison.resolve:g}."
    return words


def _over_all(comparison: ScoreComparison) -> str:
    percent = all(table.binary for table in comparison.tables)
    rows = [
        [
            aggregate.system,
            _interval(aggregate.interquartile_mean, percent),
            NOTHING if aggregate.improvement is None else _interval(aggregate.improvement, True),
            f"{aggregate.rank:.2f}",
        ]
        for aggregate in comparison.aggregates
    ]
    baseline = comparison.tables[0].baseline
    headings = ["system", "interquartile mean" + " (%)" * percent, f"P(better than {baseline}) (%)", "mean rank"]
    return pipe_table(headings, rows, [False, True, True, True])


def comma_separated(comparison: ScoreComparison) -> str:
    """The numbers themselves, one line for each system and data set."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["data", "items", "system", "runs", "failures", "mean", "sd", "baseline", "difference", "low", "high",
         "p_holm", "p_permutation", "p_mcnemar", "more_seeds"]
    )  # fmt: skip
    for table in comparison.tables:
        for row in table.rows:
            interval = row.difference or (None, None, None)
            writer.writerow(
                [table.board.data, len(table.board.items), row.system.name, len(row.system.scores),
                 counted(row.system.failures), row.mean, row.sd, table.baseline, *interval, row.p, row.permutation,
                 row.mcnemar, row.more_seeds]
            )  # fmt: skip
    return file.getvalue()


def latex(comparison: ScoreComparison) -> str:
    """A booktabs table for each data set."""
    sections = ["% needs \\usepackage{booktabs}"]
    for table in comparison.tables:
        headings, rows = headings_and_rows(table, comparison.resolve)
        body = "".join(f"{' & '.join(map(tex, row))} \\\\\n" for row in rows)
        title = tex(f"{table.board.data}, {len(table.board.items):,} items. {caption(comparison)}")
        sections.append(
            f"\\begin{{table}}\n\\centering\\small\n\\caption{{{title}}}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}\n\\toprule\n"
            f"{' & '.join(map(tex, headings))} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}"
        )
    return "\n\n".join(sections) + "\n"


def _runs(system: System) -> str:
    finished, lost = len(system.scores), sum(system.failures.values())
    return f"{finished} of {finished + lost}, {counted(system.failures)}" if lost else f"{finished}"


def _number(value: float, percent: bool) -> str:
    if not math.isfinite(value):
        return "failed"
    return f"{100 * value:.2f}" if percent else f"{value:.4f}"


def _mean(row: ScoreRow, percent: bool) -> str:
    if row.mean is None:
        return "failed"
    return _number(row.mean, percent) + ("" if row.sd is None else f" ± {_number(row.sd, percent)}")


def _difference(difference: Interval | None, percent: bool, noise: bool) -> str:
    if difference is None:
        return NOTHING
    scale, digits = (100.0, 2) if percent else (1.0, 4)
    middle, low, high = (signed(scale * value, digits) for value in difference)
    return f"{middle} [{low}, {high}]" + " within noise" * noise


def _interval(interval: Interval, percent: bool) -> str:
    middle, low, high = (_number(value, percent) for value in interval)
    return f"{middle} [{low}, {high}]"


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _seeds_needed(row: ScoreRow) -> str:
    if row.unresolvable:
        return "more items"
    return NOTHING if row.more_seeds is None else f"{row.more_seeds}"


def profiles(comparison: ScoreComparison, thresholds: Sequence[float]) -> Mapping[str, Floats]:
    """Each system's performance profile over all data sets that it was scored on: the share of runs above each."""
    from kdresearch.evaluation.aggregates import performance_profile

    runs: dict[str, list[Floats]] = {}
    for table in comparison.tables:
        for system in table.board.systems:
            runs.setdefault(system.name, []).append(system.runs)
    return {name: performance_profile(scores, np.asarray(thresholds)) for name, scores in runs.items()}
