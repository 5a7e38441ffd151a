"""What differs between tasks: how outputs are scored, what is monitored and in which direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from kdresearch.evaluation.metrics import fidelity_metrics, task_metrics
from kdresearch.structures import UNLABELLED


class Task(Protocol):
    """How a student's outputs are judged, while it trains and when it is done."""

    monitors: Mapping[str, str]  # what may choose the epoch, and its direction: min or max
    monitor: str  # what does, unless the selection says otherwise
    headline: str  # the test score that is told first
    shown: frozenset[str]  # scores that the progress bar shows

    def running(self, classes: int) -> RunningScores:
        """Scores that are gathered batch by batch over the validation rows."""

    def score(self, logits: Tensor, label: Tensor) -> dict[str, float]:
        """Scores of N rows by name."""

    def compare(self, student: Tensor, teacher: Tensor, label: Tensor) -> dict[str, float]:
        """How close a student's outputs are to a teacher's, by name."""


class RunningScores(nn.Module):
    """Validation scores over batches; what a task's ``running`` gives."""

    names: Sequence[str]

    def update(self, logits: Tensor, label: Tensor) -> None:
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """The scores of all rows since the last call."""
        raise NotImplementedError


class ClassificationScores(RunningScores):
    """Accuracy, macro F1 and NLL of logits [B, C] against labels [B]; UNLABELLED rows do not count."""

    names = ("val/accuracy", "val/macro_f1", "val/nll")

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.macro_f1 = MulticlassF1Score(classes, average="macro")
        self.nll = MeanMetric()

    def update(self, logits: Tensor, label: Tensor) -> None:
        labelled = label != UNLABELLED
        logits, label = logits[labelled].float(), label[labelled]
        if not len(label):
            return
        self.accuracy.update(logits, label)
        self.macro_f1.update(logits, label)
        self.nll.update(nn.functional.cross_entropy(logits, label, reduction="none"))

    def compute(self) -> dict[str, Tensor]:
        metrics = (self.accuracy, self.macro_f1, self.nll)
        values = {name: metric.compute() for name, metric in zip(self.names, metrics, strict=True)}
        for metric in metrics:
            metric.reset()
        return values


class Classification:
    """One of C classes for each row."""

    monitors: Mapping[str, str] = {"val/accuracy": "max", "val/macro_f1": "max", "val/nll": "min"}
    monitor = "val/accuracy"
    headline = "accuracy"
    shown = frozenset({"val/accuracy", "val/nll"})

    def running(self, classes: int) -> RunningScores:
        return ClassificationScores(classes)

    def score(self, logits: Tensor, label: Tensor) -> dict[str, float]:
        return task_metrics(logits, label)

    def compare(self, student: Tensor, teacher: Tensor, label: Tensor) -> dict[str, float]:
        return fidelity_metrics(student, teacher, label)


CLASSIFICATION = Classification()
