"""``kdresearch sweep status``: how far the cells of a sweep have come; and what a sweep says at its end."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdresearch.errors import UserError

if TYPE_CHECKING:
    from kdresearch.bench.sweep import CellState
    from kdresearch.commands.compose import Composition

EXAMPLES = """examples:
  kdresearch train -m strategy=supervised,soft_label seed=1,2,3 --dry-run   the cells, what they share, what they cost
  kdresearch train -m strategy=supervised,soft_label seed=1,2,3             run what is missing; again: the rest
  kdresearch train -m strategy=supervised,soft_label seed=1,2,3 retry=failed
  kdresearch sweep status sweeps/kdresearch                                 done, running, failed (and why), missing
  kdresearch sweep status sweeps/kdresearch --watch 10
"""


def main(argv: list[str]) -> int:
    """Run the command; 1 where a cell failed. Raises UserError for a folder that is no sweep's."""
    parser = argparse.ArgumentParser(
        prog="kdresearch sweep", description="Look at a sweep.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", required=True, metavar="status")
    status = actions.add_parser("status", help="how far each cell has come")
    status.add_argument("folder", metavar="DIR", type=Path, help="the folder of a sweep")
    status.add_argument(
        "--watch", metavar="SECONDS", type=float, nargs="?", const=10.0, help="again every so often, until all is done"
    )
    arguments = parser.parse_args(argv)
    if arguments.watch is not None and not arguments.watch > 0:
        raise UserError(f"--watch takes seconds > 0, not {arguments.watch}")
    return _status(arguments.folder, arguments.watch)


def _status(folder: Path, watch: float | None) -> int:
    from kdresearch.bench import sweep

    while True:
        states = [sweep.state_of(folder, cell) for cell in sweep.read_manifest(folder)]
        _print_states(states)
        counts = Counter(state.state for state in states)
        remaining = sweep.remaining_seconds(states)
        print(sweep.summary(states) + ("" if not remaining else f"; about {duration(remaining)} of one process left"))
        if watch is None or not (counts[sweep.RUNNING] or counts[sweep.MISSING] or counts[sweep.RESUMABLE]):
            return 1 if counts[sweep.FAILED] + counts[sweep.DIVERGED] else 0
        time.sleep(watch)


def _print_states(states: Sequence[CellState]) -> None:
    width = max((len(state.cell.name) for state in states), default=0)
    for state in states:
        seconds = "" if state.seconds is None else duration(state.seconds)
        print(f"{state.cell.name:<{width}}  {state.state:<9}  {seconds:>8}  {state.reason or ''}".rstrip())


def show_end(folder: Path, states: Sequence[CellState], compare: bool = True) -> None:
    """Print what a sweep came to: the comparison of its finished cells and the page, then the cells that are not.

    Args:
        compare: False leaves the comparison out.

    Raises UserError where cells failed, so that the command does.
    """
    from kdresearch.bench.sweep import DIVERGED, DONE, FAILED, MISSING, summary
    from kdresearch.commands.console import say
    from kdresearch.commands.report import report

    recorded = [folder / state.cell.name for state in states if state.state not in (MISSING,)]
    if compare and any(state.state == DONE for state in states):
        report([path for path in recorded if path.is_dir()], folder / "report")
    lost = [state for state in states if state.state in (FAILED, DIVERGED)]
    for state in lost:
        say(f"{state.cell.name}: {state.state}" + ("" if state.reason is None else f": {state.reason}"))
    if lost:
        raise UserError(f"{summary(states)} of {len(states)} cells in {folder}; retry=failed runs those again")
    say(f"{folder}: {summary(states)}")


def describe(folder: Path, states: Sequence[CellState], compositions: Sequence[Composition]) -> None:
    """Print the cells of a sweep before anything runs: their states, the teachers that they share, hours and bytes."""
    from kdresearch.bench import sweep
    from kdresearch.commands.compose import plan_of

    _print_states(states)
    print(f"{len(states)} cells in {folder}: {sweep.summary(states)}")
    teachers: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for state, composition in zip(states, compositions, strict=True):
        teacher = plan_of(composition).teacher
        key = sweep.teacher_key(teacher)
        if teacher is not None and key is not None:
            names[key] = str(teacher.name)
            teachers.setdefault(key, []).append(state.cell.name)
    for key, cells in teachers.items():
        print(f"teacher {names[key]} ({key[:8]}): paid for once, shared by {len(cells)} cells")
    seconds, size = sweep.remaining_seconds(states), sweep.mean_bytes(states)
    if seconds is None or size is None:
        print("hours and bytes: not known before a cell of this sweep has finished")
        return
    missing = sum(state.state != sweep.DONE for state in states)
    print(f"about {duration(seconds)} of one process and {missing * size / 1e6:,.0f} MB, by the cells that are done")


def duration(seconds: float) -> str:
    """``1 h 20 min``, ``3 min``, ``12 s``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
