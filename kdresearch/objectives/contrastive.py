"""Objectives in which each row's vector finds the other side's of the same row among those of other rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdresearch import losses
from kdresearch.errors import UserError, choices
from kdresearch.losses import checks
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.replicas import gather
from kdresearch.structures import UNLABELLED, Batch, Outputs, Reading, Signature, index_of

POOLED = frozenset({"pooled"})
NEGATIVES = ("classes", "rows")


class Contrastive(Objective):
    """InfoNCE in both directions, the student's vectors as anchors and the teacher's: ``losses.contrastive``'s mean.

    The student's vectors are projected to the teacher's width. Beside the batch's other rows, a queue of the latest
    vectors of both sides gives negatives. A row's own copy is none, in the batch (``transfer_share`` repeats rows) or
    in the queue. Rows need no label. ``Crd`` is the published form.

    The queue is saved with the objective and filled in training mode only, with the rows of all replicas.

    Args:
        temperature: τ.
        queue: K, rows of which both sides' vectors are kept; 0 keeps none. More than the data has rows would hold rows
            twice: keep it below.
        in_batch: whether the batch's other rows are negatives.
        negatives: ``classes``: rows of other classes only, where both labels are known (Tian et al. 2020 draw theirs
            so); ``rows``: all others.
        member: of an ensemble, the teacher that it learns from, from 0.

    Raises:
        UserError: a negative queue, no negatives at all, an unknown choice of them.
    """

    needs = teacher_needs = POOLED
    queue: Tensor  # [K, D of the teacher], the teacher's
    student_queue: Tensor  # the student's, projected
    rows: Tensor  # [K] int64: Batch.index of each entry
    labels: Tensor  # [K] int64
    filled: Tensor  # int64: entries so far, up to K
    pointer: Tensor  # int64: the entry that is replaced next

    def __init__(
        self,
        temperature: float = 0.07,
        queue: int = 0,
        in_batch: bool = True,
        negatives: str = "classes",
        member: int | None = None,
    ) -> None:
        super().__init__()
        if queue < 0:
            raise UserError(f"queue must be a number of vectors of at least 0, not {queue}")
        if not queue and not in_batch:
            raise UserError("in_batch=false leaves no negatives: give a queue, a number of vectors")
        checks.positive("temperature", temperature)  # raises ValueError
        self.temperature, self.size, self.in_batch, self.member = temperature, queue, in_batch, member
        self.by_class = _by_class(negatives)
        self.min_batch = 1 if queue else 2

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Make the projection to the teacher's width, and the queues."""
        if teacher is None or not (self.needs <= student.fields and self.teacher_needs <= teacher.fields):
            return  # refused by the strategy
        self.projection = nn.Linear(student.width, teacher.width)
        if self.size:
            for name in ("queue", "student_queue"):
                self.register_buffer(name, torch.zeros(self.size, teacher.width))
            self.register_buffer("rows", torch.zeros(self.size, dtype=torch.long))
            self.register_buffer("labels", torch.zeros(self.size, dtype=torch.long))
            self.register_buffer("filled", torch.zeros((), dtype=torch.long))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of sentence vectors [B, D]; in training mode they enter the queues."""
        assert student.pooled is not None and teacher is not None and teacher.pooled is not None
        if self.size:
            index = index_of(batch, "a queue of vectors")
        else:  # without numbers, no row is another's copy
            index = torch.arange(len(batch.label), device=batch.label.device) if batch.index is None else batch.index
        projected = self.projection(student.pooled)
        queues: dict[str, Tensor | None] = {"student": None, "teacher": None}
        mask = None
        if self.size:
            queues = {"student": self.queue, "teacher": self.student_queue}
            there = torch.arange(self.size, device=projected.device) < self.filled
            mask = there & _negatives(index, batch.label, self.rows, self.labels, self.by_class)
        directions = [
            losses.contrastive(
                projected,
                teacher.pooled,
                temperature=self.temperature,
                anchor=anchor,
                batch_mask=_negatives(index, batch.label, index, batch.label, self.by_class),
                queue=queue,
                queue_mask=mask,
                in_batch=self.in_batch,
            )
            for anchor, queue in queues.items()
        ]
        if self.size and self.training:
            self._keep(gather(teacher.pooled), gather(projected), gather(index), gather(batch.label))
        return torch.stack(directions).mean()

    @torch.no_grad()
    def _keep(self, teacher: Tensor, student: Tensor, rows: Tensor, labels: Tensor) -> None:
        """Put vectors [B, D] into the queues, over the oldest."""
        number = len(rows[-self.size :])
        places = (self.pointer + torch.arange(number, device=rows.device)) % self.size
        for buffer, latest in (
            (self.queue, teacher), (self.student_queue, student), (self.rows, rows), (self.labels, labels)
        ):  # fmt: skip
            buffer[places] = latest[-self.size :].to(buffer.dtype)
        self.pointer.copy_((self.pointer + number) % self.size)
        self.filled.copy_((self.filled + number).clamp(max=self.size))


class Crd(Objective):
    """CRD as published: NCE in both directions against memories of both sides (Tian et al. 2020, §3 and their code).

    Both sides are projected to ``width`` and normalised; a memory keeps one vector of each side for each row of the
    data, refreshed with momentum; a row's positive is the other side's memory of it, its negatives K drawn from the
    memory, of other classes only (their ``exact`` sampling); Z is fixed at the first batch; the two directions are
    added. Memories start at random, as theirs do, and rows take their place when they first come. They are saved with
    the objective, and hold the rows of all replicas.

    Args:
        memory: N, vectors of each side: at least as many as the training data have rows (all of them, with unlabelled
            ones and pseudo-samples).
        sampled: K, negatives of an anchor.
        width: of the projected vectors.
        momentum: share of the former vector that stays.
        temperature: τ.
        negatives: ``classes`` or ``rows``; see ``Contrastive``.
        member: of an ensemble, the teacher that it learns from, from 0.

    Raises:
        UserError: a number that makes no sense; later, more rows than the memory has places.
    """

    needs = teacher_needs = POOLED
    student_memory: Tensor  # [N, width]
    teacher_memory: Tensor
    rows: Tensor  # [N] int64: Batch.index, -1 for places that no row has taken
    labels: Tensor  # [N] int64
    filled: Tensor  # int64
    normalisers: Tensor  # [2]: Z of either direction, 0 before the first batch

    def __init__(
        self,
        memory: int,
        sampled: int = 16384,
        width: int = 128,
        momentum: float = 0.5,
        temperature: float = 0.07,
        negatives: str = "classes",
        member: int | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("memory", memory), ("sampled", sampled), ("width", width)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {number}")
        if not 0 <= momentum < 1:
            raise UserError(f"momentum must lie in [0, 1), not {momentum}")
        checks.positive("temperature", temperature)  # raises ValueError
        self.size, self.sampled, self.width, self.momentum = memory, sampled, width, momentum
        self.temperature, self.member = temperature, member
        self.by_class = _by_class(negatives)

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Make both projections and both memories [N, width]."""
        if teacher is None or not (self.needs <= student.fields and self.teacher_needs <= teacher.fields):
            return  # refused by the strategy
        self.student_projection = nn.Linear(student.width, self.width)
        self.teacher_projection = nn.Linear(teacher.width, self.width)
        bound = math.sqrt(3 / self.width)  # coordinates of vectors whose length is 1 on average
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(self.size, self.width).uniform_(-bound, bound))
        self.register_buffer("rows", torch.full((self.size,), -1))
        self.register_buffer("labels", torch.full((self.size,), UNLABELLED))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.register_buffer("normalisers", torch.zeros(2))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of sentence vectors [B, D]; UserError for more rows than the memory has places."""
        assert student.pooled is not None and teacher is not None and teacher.pooled is not None
        index = index_of(batch, "CRD's memory")
        student_vectors = checks.unit(self.student_projection(student.pooled).float())
        teacher_vectors = checks.unit(self.teacher_projection(teacher.pooled.to(student.pooled.dtype)).float())
        self._take_places(gather(index), gather(batch.label))
        places = (self.rows == index.unsqueeze(1)).int().argmax(1)
        negatives = self._draw(_negatives(index, batch.label, self.rows, self.labels, self.by_class))
        value = student_vectors.new_zeros(())
        directions = ((student_vectors, self.teacher_memory), (teacher_vectors, self.student_memory))
        for direction, (anchor, memory) in enumerate(directions):
            scores = checks.product(anchor, memory.clone().T.to(anchor.dtype))  # it changes before the backward pass
            positive, negative = scores.gather(1, places.unsqueeze(1)), scores.gather(1, negatives)
            with torch.no_grad():
                if not self.normalisers[direction]:
                    every = torch.cat([positive, negative], 1) / self.temperature
                    self.normalisers[direction] = every.exp().mean() * self.size
            value = value + losses.noise_contrastive(
                positive.squeeze(1),
                negative,
                normaliser=self.normalisers[direction],
                rows=self.size,
                temperature=self.temperature,
            )
        if self.training:
            self._refresh(gather(index), gather(student_vectors), gather(teacher_vectors))
        return value

    def _draw(self, allowed: Tensor) -> Tensor:
        """K places [B, K] of those allowed [B, N]; some twice where a row has fewer."""
        few = bool((allowed.sum(1) < self.sampled).any())
        if not allowed.any(1).all():
            raise UserError(f"memory={self.size} holds no row that another could be told from: give it more places")
        return torch.multinomial(allowed.float(), self.sampled, replacement=few)

    @torch.no_grad()
    def _take_places(self, rows: Tensor, labels: Tensor) -> None:
        """The next places for rows that have none, in their order of index: the same on every replica."""
        fresh = ~torch.isin(rows, self.rows)
        rows, labels = rows[fresh], labels[fresh]
        number = int(self.filled)
        for row in torch.unique(rows):
            if number == self.size:
                raise UserError(
                    f"memory={self.size} has a place for each of so many rows, and training shows more: give the "
                    "number of training rows, unlabelled ones and pseudo-samples included"
                )
            self.rows[number], self.labels[number] = row, labels[rows == row][0]
            number += 1
        self.filled.fill_(number)

    @torch.no_grad()
    def _refresh(self, rows: Tensor, student: Tensor, teacher: Tensor) -> None:
        places = (self.rows == rows.unsqueeze(1)).int().argmax(1)
        for memory, latest in ((self.student_memory, student), (self.teacher_memory, teacher)):
            mixed = self.momentum * memory[places] + (1 - self.momentum) * latest.to(memory.dtype)
            memory[places] = checks.unit(mixed)


def _by_class(negatives: str) -> bool:
    if negatives not in NEGATIVES:
        raise UserError(f"negatives: {choices(negatives, NEGATIVES)}")
    return negatives == "classes"


def _negatives(index: Tensor, label: Tensor, rows: Tensor, labels: Tensor, by_class: bool) -> Tensor:
    """[B, N] bool: which of N ``rows`` are negatives of the batch's: no copies, and of other classes ``by_class``."""
    allowed = rows != index.unsqueeze(1)
    if by_class:
        label = label.unsqueeze(1)
        allowed &= (label == UNLABELLED) | (labels == UNLABELLED) | (labels != label)
    return allowed
