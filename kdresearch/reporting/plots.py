"""A comparison in pictures. Each function draws one figure, or gives None where no run has the data for it.

Colour is the method and marker the student, in every figure alike; figures are built without pyplot, so that drawing
leaves no global state, and carry no dates, so that the same runs give the same bytes.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdresearch.evaluation.metrics import reliability
from kdresearch.reporting.comparison import Comparison
from kdresearch.reporting.rows import Row
from kdresearch.reporting.table import heading, percentage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GRID, _QUIET = "#1f2430", "#e4e7ec", "#8a93a3"
_FIXED = {"floor": "#b07d2b", "teacher": "#1f2430", "alone": "#8a93a3"}
# Okabe & Ito's colours for all eyes, without their yellow and black, and then some
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#7b4fb3",
    "#a33b3b",
    "#4c6b1f",
    "#e69f00",
    "#2aa198",
)
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h", "<", ">")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#b8bfca",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.wspace": 0.06,  # between panels, so that tick labels at their edges do not touch
    "savefig.dpi": 144,
}


def draw(comparison: Comparison) -> dict[str, tuple[str, bytes]]:
    """Every figure there is data for: its name to (what it shows, the PNG)."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kinds: dict[str, tuple[str, Callable[[Comparison], Figure | None]]] = {
        "score": ("Each seed, their mean and, for accuracy, its 95 % interval over test rows and seeds.", score),
        "curves": ("On validation by epoch: each seed thin, the mean over seeds thick.", curves),
        "reliability": (
            "How often a model is right at the confidence it states, over all seeds' test rows.",
            calibration,
        ),
        "agreement": (
            "How often a student agrees with its teacher, and how good it is: means over seeds.",
            agreement,
        ),
        "size": ("What the parameters buy: mean over seeds.", size),
    }
    pictures = {}
    for name, (text, function) in kinds.items():
        with rc_context(_STYLE):
            figure = function(comparison)
            if figure is not None:
                FigureCanvasAgg(figure)
                file = io.BytesIO()
                figure.savefig(file, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.12)
                pictures[name] = (text, file.getvalue())
    return pictures


def score(comparison: Comparison) -> Figure | None:
    """The metric of every method, best read against the teacher's line and the floor's."""
    rows = comparison.rows
    figure, (axes,) = _figure(9.6, 0.9 + 0.32 * len(rows))
    scale = _scale(comparison)
    colours = _colours(rows)
    for y, row in enumerate(rows):
        colour = colours[row.variant]
        span = row.span() if comparison.metric == "accuracy" else None
        if span:
            axes.plot(
                [scale * span[0], scale * span[1]], [y, y], color=colour, lw=5, alpha=0.22, solid_capstyle="round"
            )
        if len(row.scores) > 1:
            jitter = np.linspace(-0.16, 0.16, len(row.scores))
            axes.scatter(scale * row.scores, y + jitter, s=13, color=colour, alpha=0.75, lw=0, zorder=3)
        axes.scatter([scale * row.mean], [y], s=46, color=colour, edgecolor="white", lw=1.1, zorder=4)
        if row.kind in ("teacher", "floor"):
            axes.axvline(scale * row.mean, color=colour, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(rows)), [_folded(row.method) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"test {heading(comparison.metric)}")
    return figure


def curves(comparison: Comparison) -> Figure | None:
    """The metric on validation by epoch, a panel per student; None without curves."""
    from matplotlib.ticker import MaxNLocator

    curves_by_student: dict[str, list[tuple[Row, list[Any]]]] = {}
    for row in comparison.rows:
        runs = [run.curve(f"val/{comparison.metric}") for run in row.runs]
        if any(len(run) > 1 for run in runs):
            curves_by_student.setdefault(row.student, []).append((row, [run for run in runs if len(run)]))
    if not curves_by_student:
        return None
    figure, panels = _panels(curves_by_student)
    colours, scale = _colours(comparison.rows), _scale(comparison)
    for axes, (student, methods) in zip(panels, curves_by_student.items(), strict=True):
        for row, runs in methods:
            colour = colours[row.variant]
            for run in runs:
                axes.plot(run[:, 0] + 1, scale * run[:, 1], color=colour, lw=0.8, alpha=0.35)
            epochs = sorted(set.intersection(*(set(run[:, 0]) for run in runs)))
            mean = [np.mean([run[run[:, 0] == epoch, 1][0] for run in runs]) for epoch in epochs]
            axes.plot(np.array(epochs) + 1, scale * np.array(mean), color=colour, lw=2, marker="o", ms=3.2)
        axes.set_title(student)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_rows(panels, f"validation {heading(comparison.metric)}")
    _legend(figure, [row for methods in curves_by_student.values() for row, _ in methods], colours)
    return figure


def calibration(comparison: Comparison) -> Figure | None:
    """Reliability diagrams (Guo et al. 2017), a panel per student with the teacher; bins of 30 rows and more."""
    students = {row.student: None for row in comparison.rows if row.kind != "teacher"}
    teachers = [row for row in comparison.rows if row.kind == "teacher" and row.logits]
    figure, panels = _panels(students)
    colours = _colours(comparison.rows)
    lowest = 1.0
    for axes, student in zip(panels, students, strict=True):
        axes.plot([0, 1], [0, 1], color=_QUIET, lw=1, ls=(0, (4, 3)), zorder=1)
        methods = [row for row in comparison.rows if row.kind != "teacher" and row.student == student]
        for row in [*teachers, *methods]:
            logits, label = np.concatenate(row.logits), np.tile(row.label, len(row.logits))
            confidence, right, count = reliability(torch.from_numpy(logits), torch.from_numpy(label))
            x, y = confidence[count >= 30], right[count >= 30]
            lowest = min([lowest, *x, *y])
            axes.plot(x, y, color=colours[row.variant], lw=1.6, marker="o", ms=3.4, alpha=0.9)
        axes.set_title(student)
        axes.set_xlabel("stated confidence")
    for axes in panels:
        start = math.floor(lowest * 10) / 10
        axes.set(xlim=(start, 1.01), ylim=(start, 1.01))
        axes.set_aspect("equal")
    _label_rows(panels, "share that is right")
    _legend(figure, comparison.rows, colours)
    return figure


def agreement(comparison: Comparison) -> Figure | None:
    """Fidelity against the metric, one point per method; None where there is no teacher to agree with."""
    rows = [row for row in comparison.rows if row.agreement is not None]
    if len(rows) < 2:
        return None
    figure, (axes,) = _figure(5.4, 3.9)
    scale = _scale(comparison)
    _scatter(axes, figure, comparison, [(row, 100 * (row.agreement or 0), scale * row.mean) for row in rows])
    axes.set_xlabel("agreement with the teacher (%)")
    axes.set_ylabel(f"test {heading(comparison.metric)}")
    return figure


def size(comparison: Comparison) -> Figure | None:
    """The metric against parameters; None unless two sizes are known."""
    from matplotlib.ticker import LogLocator

    rows = [row for row in comparison.rows if row.parameters]
    if len({row.parameters for row in rows}) < 2:
        return None
    figure, (axes,) = _figure(5.4, 3.9)
    scale = _scale(comparison)
    _scatter(axes, figure, comparison, [(row, (row.parameters or 0) / 1e6, scale * row.mean) for row in rows])
    axes.set_xscale("log")
    low, high = min(row.parameters or 0 for row in rows) / 1e6, max(row.parameters or 0 for row in rows) / 1e6
    axes.set_xlim(low / 1.6, high * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xlabel("parameters (M)")
    axes.set_ylabel(f"test {heading(comparison.metric)}")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot()]


def _panels(students: Iterable[str]) -> tuple[Figure, list[Axes]]:
    """One panel per student with shared axes, at most four in a row."""
    from matplotlib.figure import Figure

    count = len(list(students))
    across = min(count, 4 if count != 5 else 3)
    down = math.ceil(count / across)
    figure = Figure(figsize=(max(3.6, 2.75 * across), 2.75 * down), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for unused in grid[count:]:
        unused.remove()
    return figure, list(grid[:count])


def _label_rows(panels: Iterable[Axes], text: str) -> None:
    for axes in panels:
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(text)


def _scatter(axes: Axes, figure: Figure, comparison: Comparison, points: Iterable[tuple[Row, float, float]]) -> None:
    """Points coloured by method and shaped by student, explained beside the axes where nothing can overlap."""
    points = list(points)
    colours = _colours(comparison.rows)
    students = dict.fromkeys(row.student for row in comparison.rows)
    markers = {student: _MARKERS[i % len(_MARKERS)] for i, student in enumerate(students)}
    markers = {student: markers[student] for student in dict.fromkeys(row.student for row, _, _ in points)}
    for row, x, y in points:
        axes.scatter(x, y, s=58, color=colours[row.variant], marker=markers[row.student], edgecolor="white", lw=0.9)
    axes.margins(0.08)
    _legend(figure, [row for row, _, _ in points], colours, markers)


def _folded(name: str) -> str:
    """A name on lines short enough to stand beside axes."""
    return textwrap.fill(name, 34, break_long_words=False, break_on_hyphens=False)


def _legend(
    figure: Figure, rows: Iterable[Row], colours: dict[str, str], markers: dict[str, str] | None = None
) -> None:
    from matplotlib.lines import Line2D

    variants = dict.fromkeys(row.variant for row in rows)
    blank = {"ls": "none", "ms": 7}
    if markers is None:
        handles = [Line2D([], [], color=colours[variant], lw=2.4, label=_folded(variant)) for variant in variants]
    else:
        handles = [Line2D([], [], color=colours[v], marker="s", label=_folded(v), **blank) for v in variants]  # type: ignore[arg-type]
        shapes = markers.items()
        handles += [Line2D([], [], color=_QUIET, marker=m, label=s, **blank) for s, m in shapes]  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside right upper", handlelength=1.2, labelspacing=0.55)


def _colours(rows: Iterable[Row]) -> dict[str, str]:
    """A colour per variant: fixed for the controls, in the order of the table for the rest."""
    colours: dict[str, str] = {}
    for row in rows:
        if row.kind == "distilled" and row.variant not in colours:
            used = sum(variant in colours for variant in colours if colours[variant] in _COLOURS)
            colours[row.variant] = _COLOURS[used % len(_COLOURS)]
        elif row.kind != "distilled":
            colours.setdefault(row.variant, _FIXED[row.kind])
    return colours


def _scale(comparison: Comparison) -> float:
    return 100.0 if percentage(comparison.metric) else 1.0
