"""Objectives that part real rows from pseudo-samples, which are the rows without a label."""

from __future__ import annotations

import torch
from torch import Tensor

from kdresearch import losses
from kdresearch.objectives.logits import LogitsObjective, SoftLabel
from kdresearch.structures import UNLABELLED, Batch


class PseudoSample(LogitsObjective):
    """Cross-entropy with the teacher's labels, soft or hard, of the rows without one of their own: the mean over them.

    See ``losses.pseudo_label``; 0 for a batch that has no such row.
    """

    convex = True

    def __init__(self, temperature: float = 1.0, hard: bool = False) -> None:
        super().__init__(losses.pseudo_label, temperature=temperature, hard=hard)
        self.loss(torch.zeros(2, 3), torch.zeros(2, 3), **self.settings)  # raises ValueError

    def denominator(self, batch: Batch) -> Tensor:
        """The number of rows without a label."""
        return (batch.label == UNLABELLED).sum()

    def _value(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        rows = label == UNLABELLED
        if not rows.any():
            return student.float().sum() * 0.0
        return self.loss(student[rows], teacher[rows], **self.settings)


class LabelledSoftLabel(SoftLabel):
    """``SoftLabel`` of the labelled rows: the mean over them, and 0 for a batch that has none."""

    needs_labels = True

    def _value(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        rows = label != UNLABELLED
        if not rows.any():
            return student.float().sum() * 0.0
        return self.loss(student[rows], teacher[rows], **self.settings)
