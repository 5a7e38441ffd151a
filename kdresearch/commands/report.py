"""``kdresearch report``: every run below some folders, compared on the terminal, on a page, and in files to cite."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdresearch.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from kdresearch.reporting.comparison import Comparison
    from kdresearch.reporting.records import Records

EXAMPLES = """examples:
  kdresearch report sweeps                        every run below sweeps, written to ./report
  kdresearch report sweeps/temperature -o paper   one sweep, written to ./paper
  kdresearch report sweeps --metric macro_f1      another metric on the table's main column
  kdresearch report sweeps --against soft_label   differences to the same student by another strategy
  kdresearch report floor/ sweep/ --no-plots      several folders, tables only
"""


def main(argv: list[str]) -> int:
    """Run the command; the path of the page is the last line it prints.

    Raises UserError where there is no run to report on, or the metric or the strategy to compare with is unknown.
    """
    parser = argparse.ArgumentParser(
        prog="kdresearch report",
        description="Compare finished runs: methods by student and strategy, seeds as replicates, "
        "every difference beside its interval.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a run's folder, or any folder above it")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, default=Path("report"),
        help="where table.md, table.csv, table.tex, index.html and plots/ go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", default="accuracy", help="accuracy (default), macro_f1, nll, brier or ece, on the test rows"
    )
    parser.add_argument(
        "--against", metavar="STRATEGY", default="supervised",
        help="the strategy that differences are to, of the same student (default: %(default)s, the student alone)",
    )  # fmt: skip
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    arguments = parser.parse_args(argv)
    return report(arguments.folders, arguments.output, arguments.metric, arguments.against, not arguments.no_plots)


def left_out(runs: Records) -> list[str]:
    """What the report does not count: how many runs of which kind, then each with its reason. Empty if none."""
    kinds = Counter(record.status for record in runs.unfinished)
    if runs.broken:
        kinds["unreadable"] = len(runs.broken)
    if runs.untested:
        kinds["evaluated on validation rows alone (trials)"] = len(runs.untested)
    if not kinds:
        return []
    total = kinds.total() + len(runs.finished)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return [
        f"{kinds.total()} of {total} runs left out: {counts}",
        *(f"{path}: {reason}" for path, reason in runs.broken),
        *(f"{record.path}: {record.status}" for record in runs.unfinished),
    ]


def report(
    folders: list[Path], output: Path, metric: str = "accuracy", against: str = "supervised", plots: bool = True
) -> int:
    """Write the report on all runs below ``folders`` and print it; 0. Raises UserError as ``main`` does."""
    from rich.console import Console

    from kdresearch.reporting import table
    from kdresearch.reporting.comparison import compare
    from kdresearch.reporting.page import page
    from kdresearch.reporting.records import find

    console, warnings = Console(), Console(stderr=True)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {str(output)!r} is a file, not a folder")
    runs = find(folders)
    notes = left_out(runs)
    for note in notes:
        warnings.print(note, markup=False, highlight=False, soft_wrap=True)
    if not runs.finished:
        raise UserError(f"no finished run to report on: {notes[0]}")
    comparisons = compare(runs.finished, metric, against, runs.unfinished)
    text = table.markdown(comparisons, notes)

    pictures = {}
    if plots:
        from kdresearch.reporting.plots import draw

        pictures = {comparison.slug: draw(comparison) for comparison in comparisons}
    output.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "table.md": text,
        "table.csv": table.comma_separated(comparisons),
        "table.tex": table.latex(comparisons),
        "index.html": page(comparisons, pictures, notes),
    }.items():
        (output / name).write_text(content, encoding="utf-8", newline="\n")
    for slug, images in pictures.items():
        (output / "plots").mkdir(exist_ok=True)
        for name, (_, png) in images.items():
            (output / "plots" / f"{slug}-{name}.png").write_bytes(png)

    _print(console, comparisons, text)
    console.print(str(output / "index.html"), markup=False, highlight=False, soft_wrap=True)
    return 0


def _print(console: Console, comparisons: Sequence[Comparison], text: str) -> None:
    """Tables as wide as the terminal, or Markdown where there is none."""
    from kdresearch.reporting import table

    if console.is_terminal:
        for comparison in comparisons:
            console.print(table.terminal(comparison))
            for line in (table.caption(comparison), *comparison.footnotes):
                console.print(line, markup=False, highlight=False, style="dim")
            console.print()
    else:  # whole lines, whatever width is assumed: a log or a pipe can take them
        console.print(text, markup=False, highlight=False, soft_wrap=True)
