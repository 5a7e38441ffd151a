"""A comparison as a table: columns that some row fills, in text, CSV, LaTeX, or on a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.table import Table

from kdresearch.reporting.comparison import Comparison
from kdresearch.reporting.names import ALONE
from kdresearch.reporting.notes import BELOW, UNLIKE
from kdresearch.reporting.rows import Row, counted

_HEADINGS = {"accuracy": "accuracy (%)", "macro_f1": "macro F1 (%)", "nll": "NLL", "brier": "Brier", "ece": "ECE (%)"}
_PERCENT = frozenset({"accuracy", "macro_f1", "ece"})
NOTHING = "–"


class Column(NamedTuple):
    """A heading and what stands below it, None where a row has nothing to say."""

    heading: str
    cell: Callable[[Row], str | None]
    numeric: bool = True


def heading(metric: str) -> str:
    """The metric's name as it is written over numbers."""
    return _HEADINGS[metric]


def percentage(metric: str) -> bool:
    """Whether the metric is shown in per cent."""
    return metric in _PERCENT


def caption(comparison: Comparison) -> str:
    """One sentence on what the differences are; empty where there are none."""
    if all(row.change is None for row in comparison.rows):
        return ""
    same = "the same student alone" if comparison.against == ALONE else f"the same student by {comparison.against}"
    if all(row.difference is None for row in comparison.rows):
        return (
            f"± is the standard deviation over seeds. Δ is the difference of means to {same}; intervals and tests are "
            "for metrics that are means over rows: accuracy, nll, brier."
        )
    points = " in points" if comparison.metric == "accuracy" else ""
    return (
        f"± is the standard deviation over seeds. Δ is the difference to {same}{points}, with its 95 % interval from a "
        "two-way bootstrap over test rows and seeds; “within noise” where that contains 0. p is of a test over rows "
        "and seeds (of single runs: a permutation over rows, which speaks of these runs alone), corrected over the "
        "table (Holm). Gap closed is (distilled − alone) / (teacher − alone)."
    )


def columns(comparison: Comparison) -> list[Column]:
    """The columns that at least one row fills."""
    metric, against = comparison.metric, "alone" if comparison.against == ALONE else comparison.against
    every = [
        Column("method", lambda row: f"{row.method} {BELOW}" if row.below else row.method, numeric=False),
        Column("seeds", _seeds),
        Column("M parameters / without embeddings", _parameters),
        Column("MB", lambda row: _number(row.bytes, 1, 1e-6)),
        Column(heading(metric), lambda row: _score(row, metric)),
        Column("macro F1 (%)", lambda row: _macro(row) if comparison.imbalanced and metric != "macro_f1" else None),
        Column(f"Δ to {against}", lambda row: _change(row, metric)),
        Column("p (Holm)", lambda row: None if row.p is None else _p(row.p)),
        Column("gap closed (%)", lambda row: _number(row.gap, 0, 100)),
        Column("agreement (%)", lambda row: _number(row.agreement, 1, 100)),
        Column("NLL", lambda row: None if metric == "nll" else _number(row.nll, 3)),
        Column("ECE (%)", lambda row: None if metric == "ece" else _number(row.ece, 1, 100)),
        Column("ms p50 / p95", _latency),
        Column("trials", lambda row: None if row.trials is None else f"{row.trials}"),
        Column("updates", lambda row: None if row.updates is None else _updates(row.updates)),
    ]
    return [column for column in every if any(column.cell(row) is not None for row in comparison.rows)]


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and rows as text."""
    shown = columns(comparison)
    return [c.heading for c in shown], [[c.cell(row) or NOTHING for c in shown] for row in comparison.rows]


def markdown(comparisons: Sequence[Comparison], notes: Sequence[str] = ()) -> str:
    """Every comparison as a section with a pipe table, aligned so that it reads as plain text too."""
    sections = []
    for comparison in comparisons:
        numeric = [column.numeric for column in columns(comparison)]
        sections.append(f"## {comparison.title}\n\n{pipe_table(*cells(comparison), numeric)}")
        sections += [text for text in (caption(comparison), bullets(comparison.footnotes)) if text]
    if notes:
        sections.append("## Left out\n\n" + bullets(notes))
    return "\n\n".join(sections) + "\n"


def comma_separated(comparisons: Sequence[Comparison]) -> str:
    """The numbers themselves, unrounded and in the metric's own unit, one line per method, all data in one file."""
    file = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for comparison in comparisons:
        for row in comparison.rows:
            values = {
                "data": comparison.title,
                "method": row.method,
                "kind": row.kind,
                "seeds": len(row.scores),
                "failures": counted(row.failures),
                "parameters": row.parameters,
                "parameters_without_embeddings": row.parameters_without_embeddings,
                "bytes": row.bytes,
                "metric": comparison.metric,
                "mean": row.mean,
                "sd": row.sd,
                "difference": row.change,
                "low": row.difference.low if row.difference else None,
                "high": row.difference.high if row.difference else None,
                "unlike_control": "; ".join(row.unlike),
                "p_holm": row.p,
                "within_noise": row.noise if row.difference else None,
                "gap_closed": row.gap,
                "agreement": row.agreement,
                "nll": row.nll,
                "ece": row.ece,
                "macro_f1": row.macro_f1,
                "teacher_accuracy": row.teacher_accuracy,
                "trials": row.trials,
                "latency_p50_ms": row.latency_p50,
                "latency_p95_ms": row.latency_p95,
                "updates_min": row.updates[0] if row.updates else None,
                "updates_max": row.updates[1] if row.updates else None,
            }
            if writer is None:
                writer = csv.DictWriter(file, list(values), lineterminator="\n")
                writer.writeheader()
            writer.writerow(values)
    return file.getvalue()


def latex(comparisons: Sequence[Comparison]) -> str:
    """A table environment per comparison (packages booktabs, graphicx, threeparttable)."""
    tables = ["% needs \\usepackage{booktabs,graphicx,threeparttable}"]
    for comparison in comparisons:
        headings, rows = cells(comparison)
        align = "".join("r" if column.numeric else "l" for column in columns(comparison))
        notes = "".join(f"\\item {tex(note)}\n" for note in comparison.footnotes)
        tables.append(
            "\\begin{table}\n\\centering\n\\begin{threeparttable}\n"
            f"\\caption{{{tex(comparison.title)}. {tex(caption(comparison))}}}\n"
            f"\\label{{tab:{comparison.slug}}}\n"
            f"\\resizebox{{\\linewidth}}{{!}}{{%\n\\begin{{tabular}}{{{align}}}\n\\toprule\n"
            f"{' & '.join(map(tex, headings))} \\\\\n\\midrule\n"
            + "".join(f"{' & '.join(map(tex, row))} \\\\\n" for row in rows)
            + "\\bottomrule\n\\end{tabular}}\n"
            + (f"\\begin{{tablenotes}}\\footnotesize\n{notes}\\end{{tablenotes}}\n" if notes else "")
            + "\\end{threeparttable}\n\\end{table}"
        )
    return "\n\n".join(tables) + "\n"


def terminal(comparison: Comparison) -> Table:
    """For a rich console."""
    table = Table(title=comparison.title, title_style="bold", title_justify="left", caption_justify="left")
    for column in columns(comparison):
        table.add_column(column.heading, justify="right" if column.numeric else "left", vertical="middle")
    _, rows = cells(comparison)
    for row, texts in zip(comparison.rows, rows, strict=True):
        style = {"floor": "dim", "teacher": "italic"}.get(row.kind) or ("dim" if row.noise else None)
        table.add_row(*(text.replace("[", "\\[") for text in texts), style=style)
    return table


# How numbers are written


def signed(value: float, digits: int) -> str:
    """With its sign, and a real minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _number(value: float | None, digits: int, scale: float = 1.0) -> str | None:
    return None if value is None else f"{value * scale:,.{digits}f}".replace("-", "−")


def _seeds(row: Row) -> str:
    finished, lost = len(row.scores), sum(row.failures.values())
    return f"{finished} of {finished + lost}, {counted(row.failures)}" if lost else f"{finished}"


def _parameters(row: Row) -> str | None:
    if row.parameters is None:
        return None
    body = row.parameters_without_embeddings
    return f"{_millions(row.parameters)} / {NOTHING if body is None else _millions(body)}"


def _millions(value: int) -> str:
    """Three digits that count, whatever the size."""
    return f"{value / 1e6:,.{0 if value >= 1e8 else 1 if value >= 1e7 else 2 if value >= 1e6 else 3}f}"


def _score(row: Row, metric: str) -> str:
    scale, digits = (100.0, 2) if percentage(metric) else (1.0, 4)
    return f"{row.mean * scale:.{digits}f}" + ("" if row.sd is None else f" ± {row.sd * scale:.{digits}f}")


def _macro(row: Row) -> str | None:
    if row.macro_f1 is None:
        return None
    return f"{100 * row.macro_f1:.2f}" + ("" if row.macro_f1_sd is None else f" ± {100 * row.macro_f1_sd:.2f}")


def _change(row: Row, metric: str) -> str | None:
    if row.change is None:
        return None
    scale, digits = (100.0, 2) if percentage(metric) else (1.0, 4)
    mark = f" {UNLIKE}" if row.unlike else ""
    if row.difference is None:
        return signed(row.change * scale, digits) + mark
    low, high = signed(row.difference.low * scale, digits), signed(row.difference.high * scale, digits)
    return f"{signed(row.change * scale, digits)} [{low}, {high}]" + (" within noise" if row.noise else "") + mark


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _latency(row: Row) -> str | None:
    if row.latency_p50 is None:
        return None
    p95 = NOTHING if row.latency_p95 is None else f"{row.latency_p95:.2f}"
    return f"{row.latency_p50:.2f} / {p95}"


def _updates(updates: tuple[int, int]) -> str:
    return f"{updates[0]:,}" if updates[0] == updates[1] else f"{updates[0]:,}–{updates[1]:,}"


def pipe_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """A Markdown table, aligned so that it reads as plain text too; numbers to the right."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [headings, *rows]]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*escaped, strict=True)]
    rule = (("-" * (w - 1) + (":" if n else "-")) for w, n in zip(widths, numeric, strict=True))
    lines = [_pipes(row, widths, numeric) for row in escaped]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _pipes(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True))
    return f"| {' | '.join(padded)} |"


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def tex(text: str) -> str:
    """Text for LaTeX: its special characters escaped, signs in mathematics."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {"±": "$\\pm$", "−": "$-$", "Δ": "$\\Delta$", "·": "$\\cdot$", "–": "--", "“": "``", "”": "''"}
    special |= {"†": "$\\dagger$", "‡": "$\\ddagger$", "…": "\\ldots{}"}
    special |= {"<": "$<$", ">": "$>$", "|": "$|$"}
    return "".join(special.get(character, character) for character in text)
