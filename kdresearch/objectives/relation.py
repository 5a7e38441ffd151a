"""Objectives on how a batch's sentence vectors lie to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdresearch import losses
from kdresearch.objectives.objective import Objective
from kdresearch.structures import Batch, Outputs

POOLED = frozenset({"pooled"})


class RelationObjective(Objective):
    """A loss between the relations of both sides' sentence vectors; bad settings are refused in the constructor.

    Widths may differ. A batch with too few rows, as the last of an epoch may be, gives 0.

    Args:
        loss: ``loss(student, teacher, **settings)``.
        member: of an ensemble, the teacher that it learns from, from 0.
    """

    needs = teacher_needs = POOLED

    def __init__(self, loss: Callable[..., Tensor], member: int | None = None, **settings: Any) -> None:
        super().__init__()
        self.loss, self.settings, self.member = loss, settings, member
        self.loss(torch.zeros(2, 1), torch.zeros(2, 1), **settings)  # raises ValueError

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of both sides' sentence vectors [B, D]."""
        assert student.pooled is not None and teacher is not None and teacher.pooled is not None
        return self.loss(student.pooled, teacher.pooled, **self.settings)


class RkdDistance(RelationObjective):
    """Distances between the vectors, relative to their mean: ``losses.rkd_distance``.

    Two rows have one distance, which is its own mean and says nothing.
    """

    min_batch = 3

    def __init__(self, convention: str = "house", member: int | None = None) -> None:
        super().__init__(losses.rkd_distance, member, convention=convention)


class RkdAngle(RelationObjective):
    """Angles of all triplets of vectors: ``losses.rkd_angle``."""

    min_batch = 3

    def __init__(self, convention: str = "house", member: int | None = None) -> None:
        super().__init__(losses.rkd_angle, member, convention=convention)


class SimilarityPreserving(RelationObjective):
    """Rows of the matrix of dot products: ``losses.similarity_preserving``."""

    min_batch = 2

    def __init__(self, member: int | None = None) -> None:
        super().__init__(losses.similarity_preserving, member)


class Pkt(RelationObjective):
    """Neighbourhoods as probabilities: ``losses.pkt``."""

    min_batch = 3

    def __init__(self, convention: str = "house", member: int | None = None) -> None:
        super().__init__(losses.pkt, member, convention=convention)
