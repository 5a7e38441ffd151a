"""Objectives on labels and class scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.objectives.objective import Objective
from kdresearch.structures import UNLABELLED, Batch, Outputs


class Label(Objective):
    """Cross-entropy with the gold labels, over the labelled rows of the batch.

    Args:
        smoothing: label smoothing ε (Szegedy et al. 2016, §7).

    Attributes:
        class_weights: w [C], of each row by its label: Σ w_y · CE / Σ w_y, as ``torch.nn.CrossEntropyLoss(weight=w)``
            has it (with smoothing, the part of the other classes is weighted by theirs); None weighs rows alike. No
            part of a checkpoint.
    """

    teacher_needs = frozenset()
    needs_labels = True
    convex = True

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise UserError(f"label smoothing must lie in [0, 1), not {smoothing}")
        self.smoothing = smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)

    def denominator(self, batch: Batch) -> Tensor | None:
        """The number of labelled rows, or the sum of their class weights."""
        if self.class_weights is None:
            return super().denominator(batch)
        return self.class_weights[batch.label[batch.label != UNLABELLED]].sum()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar cross-entropy of logits [B, C]; 0 for a batch without a label."""
        assert student.logits is not None
        labelled = batch.label != UNLABELLED
        if not labelled.any():  # a mean over no rows is NaN, even at weight 0
            return student.logits.float().sum() * 0.0
        return F.cross_entropy(
            student.logits.float(),
            batch.label,
            self.class_weights,
            ignore_index=UNLABELLED,
            label_smoothing=self.smoothing,
        )


class LogitsObjective(Objective):
    """A loss between both sides' class scores, with its settings; bad ones are refused in the constructor.

    Args:
        loss: ``loss(student, teacher, **settings)``, and ``label=`` where the objective needs labels.
    """

    def __init__(self, loss: Callable[..., Tensor], **settings: Any) -> None:
        super().__init__()
        self.loss, self.settings = loss, settings
        self._value(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))  # raises ValueError

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of both sides' logits [B, C]."""
        assert student.logits is not None and teacher is not None and teacher.logits is not None
        return self._value(student.logits, teacher.logits, batch.label)

    def _value(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        extra = {"label": label} if self.needs_labels else {}
        return self.loss(student, teacher, **self.settings, **extra)


class SoftLabel(LogitsObjective):
    """Divergence from the teacher's tempered probabilities: ``losses.soft_label``."""

    def __init__(
        self, temperature: float = 1.0, divergence: str = "forward", beta: float = 0.5, convention: str = "house"
    ) -> None:
        super().__init__(
            losses.soft_label, temperature=temperature, divergence=divergence, beta=beta, convention=convention
        )
        self.convex = divergence == "forward" or (divergence == "jsd" and beta == 0)


class LogitMse(LogitsObjective):
    """Squared difference of logits: ``losses.logit_mse``."""

    convex = True

    def __init__(self, temperature: float = 1.0, convention: str = "house") -> None:
        super().__init__(losses.logit_mse, temperature=temperature, convention=convention)


class Decoupled(LogitsObjective):
    """The target class against the rest, and the rest among themselves: ``losses.decoupled``.

    On two classes the second part is identically 0 and nothing is decoupled.
    """

    needs_labels = True
    min_classes = 3

    def __init__(self, temperature: float = 4.0, target_weight: float = 1.0, nontarget_weight: float = 1.0) -> None:
        super().__init__(
            losses.decoupled, temperature=temperature, target_weight=target_weight, nontarget_weight=nontarget_weight
        )


class Correlation(LogitsObjective):
    """Pearson correlation between classes and within them: ``losses.correlation``; dead between two classes."""

    min_classes = 3

    def __init__(self, temperature: float = 1.0, inter_weight: float = 1.0, intra_weight: float = 1.0) -> None:
        super().__init__(
            losses.correlation, temperature=temperature, inter_weight=inter_weight, intra_weight=intra_weight
        )


class Standardised(LogitsObjective):
    """Soft labels of standardised logits: ``losses.standardised``; without gradient on two classes."""

    min_classes = 3

    def __init__(self, temperature: float = 2.0, convention: str = "house") -> None:
        super().__init__(losses.standardised, temperature=temperature, convention=convention)


class WeightedSoftLabel(LogitsObjective):
    """Soft labels weighted by how much better the teacher knows the row: ``losses.weighted_soft_label``."""

    needs_labels = True

    def __init__(self, temperature: float = 2.0, convention: str = "house") -> None:
        super().__init__(losses.weighted_soft_label, temperature=temperature, convention=convention)


class TotalVariation(LogitsObjective):
    """Half the absolute difference of the two sides' probabilities: ``losses.total_variation``."""

    def __init__(self) -> None:
        super().__init__(losses.total_variation)
