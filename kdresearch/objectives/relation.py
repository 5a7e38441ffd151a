"""Objectives on how a batch's sentence vectors lie to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.objectives.objective import Objective
from kdresearch.structures import Batch, Model, Outputs, Reading, Teacher

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


class Contrastive(Objective):
    """Each row's vector finds the teacher's of the same row among those of others: ``losses.contrastive``.

    The student's vectors are projected to the teacher's width. Beside the batch's other rows, a queue of the teacher's
    latest vectors gives negatives; an entry that is the row's own, of an earlier epoch, is none. Rows need no label.

    CRD (Tian et al. 2020) projects both sides to 128, keeps a memory of both with one vector for each row of the data,
    refreshed with momentum 0.5, and draws K = 16384 negatives from it. Here the teacher is frozen and not projected:
    its vectors do not age, so that the last K of them, first in, first out, need no momentum.

    The queue is saved with the objective and filled in training mode only. Under DDP every replica works with the
    first one's, which DDP copies to the others as it does all buffers.

    Args:
        temperature: τ.
        queue: K, vectors kept; 0 keeps none. More than the data has rows would hold rows twice: keep it below.
        in_batch: whether the batch's other rows are negatives.
        member: of an ensemble, the teacher that it learns from, from 0.

    Raises:
        UserError: a negative queue, no negatives at all.
    """

    needs = teacher_needs = POOLED
    queue: Tensor  # [K, D of the teacher]
    rows: Tensor  # [K] int64: Batch.index of each entry
    filled: Tensor  # int64: entries so far, up to K
    pointer: Tensor  # int64: the entry that is replaced next

    def __init__(
        self, temperature: float = 0.07, queue: int = 0, in_batch: bool = True, member: int | None = None
    ) -> None:
        super().__init__()
        if queue < 0:
            raise UserError(f"queue must be a number of vectors of at least 0, not {queue}")
        if not queue and not in_batch:
            raise UserError("in_batch=false leaves no negatives: give a queue, a number of vectors")
        losses.contrastive(torch.zeros(1, 1), torch.zeros(1, 1), temperature=temperature)  # raises ValueError
        self.temperature, self.size, self.in_batch, self.member = temperature, queue, in_batch, member
        self.min_batch = 1 if queue else 2

    def bind(self, student: Model, teacher: Teacher | None, reading: Reading) -> None:
        if teacher is None or not (self.needs <= student.provides and self.teacher_needs <= teacher.provides):
            return  # refused by the strategy
        self.projection = nn.Linear(student.width, teacher.width)
        if self.size:
            self.register_buffer("queue", torch.zeros(self.size, teacher.width))
            self.register_buffer("rows", torch.zeros(self.size, dtype=torch.long))
            self.register_buffer("filled", torch.zeros((), dtype=torch.long))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert student.pooled is not None and teacher is not None and teacher.pooled is not None
        queue = mask = None
        if self.size:
            queue = self.queue
            there = torch.arange(self.size, device=queue.device) < self.filled
            mask = there & (self.rows != batch.index.unsqueeze(1))
        value = losses.contrastive(
            self.projection(student.pooled),
            teacher.pooled,
            temperature=self.temperature,
            queue=queue,
            queue_mask=mask,
            in_batch=self.in_batch,
        )
        if self.size and self.training:
            self._keep(teacher.pooled, batch.index)
        return value

    @torch.no_grad()
    def _keep(self, vectors: Tensor, rows: Tensor) -> None:
        """Put vectors [B, D] into the queue, over the oldest."""
        vectors, rows = vectors[-self.size :], rows[-self.size :]
        places = (self.pointer + torch.arange(len(rows), device=rows.device)) % self.size
        self.queue[places] = vectors.to(self.queue.dtype)
        self.rows[places] = rows
        self.pointer.copy_((self.pointer + len(rows)) % self.size)
        self.filled.copy_((self.filled + len(rows)).clamp(max=self.size))
