"""Methods and teachers as rows: scores computed anew from recorded predictions, and what a model weighs and takes.

The table, its intervals and its tests speak of the same numbers that way, whatever metrics.json says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from kdresearch.evaluation.metrics import fidelity_metrics, task_metrics
from kdresearch.evaluation.statistics import Interval, mean_sd, two_way_bootstrap
from kdresearch.reporting.names import ALONE, FLOOR, teacher_key
from kdresearch.reporting.records import Floats, Record

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One method: a line of the table. Scores are in the metric's own unit (shares, not per cent)."""

    method: str
    kind: str  # floor, teacher, alone or distilled
    student: str  # in a teacher's row, the teacher's name
    variant: str  # the method's name without its student
    label: Labels  # [N]
    logits: tuple[Floats, ...]  # S times [N, C]; empty for a teacher whose outputs were not recorded
    scores: Floats  # [S]
    mean: float
    sd: float | None  # None for one replicate
    runs: tuple[Record, ...] = ()  # empty for a teacher
    change: float | None = None  # mean − mean of the same student alone, or by the strategy it is compared with
    difference: Interval | None = None  # the same with its 95 % interval, of metrics that are means over rows
    p: float | None = None  # of no difference, after Holm
    gap: float | None = None  # (S_kd − S)/(T − S)
    agreement: float | None = None  # share of rows with the teacher's top class
    nll: float | None = None
    ece: float | None = None
    macro_f1: float | None = None
    macro_f1_sd: float | None = None
    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    bytes: int | None = None
    latency_p50: float | None = None  # ms
    latency_p95: float | None = None  # ms
    updates: tuple[int, int] | None = None  # fewest and most over the seeds
    unlike: tuple[str, ...] = ()  # in what, besides the teacher, it differs from its control
    failures: Mapping[str, int] = field(default_factory=dict)  # further runs by how they ended: diverged, failed, ...
    teacher_accuracy: float | None = None  # of its own teacher on the test rows, a mean over the runs

    @property
    def noise(self) -> bool:
        """Whether the interval of the difference contains 0."""
        return self.difference is not None and self.difference.low <= 0 <= self.difference.high

    @property
    def below(self) -> bool:
        """Whether its teacher is less accurate than itself."""
        return self.teacher_accuracy is not None and self.teacher_accuracy < self.accuracy

    @property
    def trials(self) -> int | None:
        """How many settings were tried before these were taken; None where no search was recorded."""
        tuning = self.runs[0].tuning if self.runs else None
        return None if tuning is None else int(tuning["trials"])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the first run; empty for a teacher."""
        return self.runs[0].settings if self.runs else {}

    @property
    def cell(self) -> dict[str, Any]:
        """The options of the first run; empty for a teacher."""
        return self.runs[0].cell if self.runs else {}

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """[S, N]: which rows each replicate gets right."""
        predicted: Labels = np.stack([logits.argmax(axis=1) for logits in self.logits])
        right: NDArray[np.bool_] = predicted == self.label
        return right

    def item_scores(self, metric: str) -> Floats | None:
        """[S, N]: what each replicate gets for each row, where the metric is a mean over rows (accuracy, nll, brier);
        else, and where a row's is infinite, None."""
        if metric == "accuracy":
            return self.correct.astype(np.float64)
        if metric not in ("nll", "brier"):
            return None
        log_probabilities = np.stack([log_softmax(logits, axis=1) for logits in self.logits])
        if metric == "nll":
            losses: Floats = -log_probabilities[:, np.arange(len(self.label)), self.label]
            return losses if np.isfinite(losses).all() else None
        target = np.eye(log_probabilities.shape[2])[self.label]
        squares: Floats = ((np.exp(log_probabilities) - target) ** 2).sum(2)
        return squares

    @property
    def accuracy(self) -> float:
        """The mean over replicates."""
        return float(self.correct.mean())

    def span(self) -> tuple[float, float] | None:
        """The 95 % two-way bootstrap interval of the accuracy itself; None where no outputs were recorded."""
        if not self.logits:
            return None
        interval = two_way_bootstrap(self.correct, np.zeros_like(self.correct))  # the difference to none right
        return interval.low, interval.high


def counted(failures: Mapping[str, int]) -> str:
    """``1 diverged, 2 failed``."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(failures.items()))


def student_row(runs: Sequence[Record], method: str, variant: str, metric: str) -> Row:
    """The row of a method from its runs."""
    cell, size = runs[0].cell, runs[0].info.get("student") or {}
    kind = "distilled" if cell["strategy"] != ALONE else "floor" if cell["student"] == FLOOR else "alone"
    updates = [int(run.info["updates"]) for run in runs if run.info.get("updates") is not None]
    test = runs[0].predictions
    row = _row(method, kind, cell["student"], variant, test.label, [run.predictions.student for run in runs], metric)
    teacher_logits = [run.predictions.teacher for run in runs]
    return replace(
        row,
        runs=tuple(runs),
        parameters=size.get("parameters"),
        parameters_without_embeddings=size.get("parameters_without_embeddings"),
        bytes=size.get("bytes"),
        latency_p50=_mean(run.metric("latency/p50_ms") for run in runs),
        latency_p95=_mean(run.metric("latency/p95_ms") for run in runs),
        updates=(min(updates), max(updates)) if updates else None,
        teacher_accuracy=_mean(
            float((logits.argmax(axis=1) == test.label).mean()) for logits in teacher_logits if logits is not None
        ),
    )


def teacher_rows(records: Iterable[Record], names: Mapping[str, str], metric: str) -> dict[str, Row]:
    """One row per teacher, by its key, the one of most runs first; its fingerprints are its replicates.

    Args:
        names: the name of every teacher, by its key.
    """
    sources: dict[str, dict[str, Record]] = defaultdict(dict)
    runs: Counter[str] = Counter()
    for record in records:
        scored = record.metric(f"teacher/test_{metric}") is not None
        if record.teacher and (scored or record.predictions.teacher is not None):
            key = teacher_key(record)
            runs[key] += 1
            sources[key].setdefault(str(record.teacher.get("fingerprint")), record)
    order = sorted(sources, key=lambda key: (-runs[key], names[key]))
    return {
        key: _teacher_row([sources[key][fingerprint] for fingerprint in sorted(sources[key])], names[key], metric)
        for key in order
    }


def _teacher_row(sources: Sequence[Record], name: str, metric: str) -> Row:
    outputs = [test.teacher for test in (source.predictions for source in sources) if test.teacher is not None]
    info = sources[0].teacher or {}
    row = _row(f"{name} · teacher", "teacher", name, "teacher", sources[0].predictions.label, outputs, metric)
    if not outputs:
        recorded = [source.metric(f"teacher/test_{metric}") for source in sources]
        scores = np.array([value for value in recorded if value is not None])
        mean, sd = mean_sd(scores)
        row = replace(row, scores=scores, mean=mean, sd=sd)
    return replace(
        row,
        parameters=info.get("parameters"),
        parameters_without_embeddings=info.get("parameters_without_embeddings"),
        bytes=info.get("bytes"),
    )


def _row(
    method: str, kind: str, student: str, variant: str, label: Labels, logits: Sequence[Floats], metric: str
) -> Row:
    """The row with what follows from its outputs."""
    measured = [task_metrics(torch.from_numpy(output), torch.from_numpy(label)) for output in logits]
    scores = np.array([values[metric] for values in measured])
    mean, sd = mean_sd(scores) if len(scores) and np.isfinite(scores).all() else (float(np.sum(scores)), None)
    macro, macro_sd = mean_sd([values["macro_f1"] for values in measured]) if measured else (None, None)
    return Row(
        method,
        kind,
        student,
        variant,
        label,
        tuple(logits),
        scores,
        mean,
        sd,
        nll=_mean(values["nll"] for values in measured),
        ece=_mean(values["ece"] for values in measured),
        macro_f1=macro,
        macro_f1_sd=macro_sd,
    )


def with_agreement(students: Sequence[Row], teachers: Sequence[Row]) -> tuple[list[Row], bool]:
    """Agreement with each run's own teacher; without one, with the teacher that most runs of the table had.

    Test rows stand in the order of their ids everywhere, so a sibling run's teacher joins by position.

    Returns:
        The rows, and whether any was compared with a teacher that is not its own.
    """
    rows, borrowed = [], False
    for row in students:
        pairs = [(run.predictions.student, run.predictions.teacher) for run in row.runs]
        if any(teacher is None for _, teacher in pairs):
            pairs = [(student, teacher) for student, _ in pairs for teacher in (teachers[0].logits if teachers else ())]
            borrowed = borrowed or bool(pairs)
        values = [
            fidelity_metrics(torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(row.label))
            for student, teacher in pairs
            if teacher is not None and teacher.shape == student.shape
        ]
        rows.append(replace(row, agreement=_mean(value["agreement"] for value in values)))
    return rows, borrowed


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
