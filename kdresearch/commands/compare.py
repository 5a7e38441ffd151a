"""``kdresearch compare``: the statistics of a comparison, of our records or of anybody's scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdresearch.errors import UserError

EXAMPLES = """examples:
  kdresearch compare runs/                                 methods of run records, on their test rows
  kdresearch compare scores.parquet --baseline bert        columns: system, item, score or correct; also seed, data
  kdresearch compare s.csv --columns system=model item=id  columns that are called otherwise
  kdresearch compare results/ --metric acc_norm            lm-evaluation-harness, written with --log_samples
  kdresearch compare runs/ --resolve 0.005 -o paper        how many more seeds for ± .5 points; files to cite
"""


def main(argv: list[str]) -> int:
    """Run the command. Raises UserError as ``read_scores`` and ``compare_scores`` do."""
    parser = argparse.ArgumentParser(
        prog="kdresearch compare",
        description="Compare systems item by item: means over seeds, two-way bootstrap intervals of each difference, "
        "tests corrected over the table (Holm), aggregates over data sets. A run with the score NaN failed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="tables, run folders or sample folders")
    parser.add_argument("--baseline", metavar="SYSTEM", help="what differences are to (default: the first system)")
    parser.add_argument("--metric", help="of lm-evaluation-harness samples: NAME or NAME,FILTER")
    parser.add_argument("--columns", metavar="NAME=COLUMN", nargs="+", default=[], help="what columns are called")
    parser.add_argument("--common-items", action="store_true", help="compare on the items that all systems have")
    parser.add_argument(
        "--resolve", metavar="DIFFERENCE", type=float, help="say how many more seeds resolve it (scores' unit)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, help="where compare.md, compare.csv and compare.tex go"
    )
    arguments = parser.parse_args(argv)
    if arguments.resolve is not None and not arguments.resolve > 0:
        raise UserError(f"--resolve must be > 0, not {arguments.resolve}")
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        raise UserError(f"--output {str(arguments.output)!r} is a file, not a folder")
    columns = dict(_pair(word) for word in arguments.columns)

    from kdresearch.reporting import score_table
    from kdresearch.reporting.scores import read_scores

    boards = read_scores(arguments.paths, metric=arguments.metric, columns=columns, common_items=arguments.common_items)
    comparison = score_table.compare_scores(boards, arguments.baseline, arguments.resolve)
    text = score_table.markdown(comparison)
    print(text, end="")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        for name, content in {
            "compare.md": text,
            "compare.csv": score_table.comma_separated(comparison),
            "compare.tex": score_table.latex(comparison),
        }.items():
            (arguments.output / name).write_text(content, encoding="utf-8", newline="\n")
    return 0


def _pair(word: str) -> tuple[str, str]:
    name, separator, column = word.partition("=")
    if not separator or not column:
        raise UserError(f"--columns takes NAME=COLUMN, not {word!r}")
    return name, column
