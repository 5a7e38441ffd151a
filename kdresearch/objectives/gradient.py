"""Objectives on what a model's answer depends on."""

from __future__ import annotations

import torch
from torch import Tensor

from kdresearch import losses
from kdresearch.errors import UserError, choices
from kdresearch.losses.hidden import DISTANCES
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.pairing import pair, states
from kdresearch.structures import Batch, Outputs, Reading, Signature


class Jacobian(Objective):
    """The class score's sensitivity to each token, or to each word where tokens differ: ``losses.jacobian``.

    Both sides' score is that of the class which the teacher predicts; the gradient of a word is the mean over its
    tokens'. Training differentiates the student twice; the teacher runs live. A model that is linear in its embeddings
    piece by piece (TextCNN) has a sensitivity that they do not move: its other weights learn from this one.

    Args:
        distance: ``norm`` compares how much each token counts; ``cosine`` in which direction its embedding counts,
            which takes embeddings of one width.
        member: of an ensemble, the teacher that it learns from, from 0.

    Raises:
        UserError: an unknown distance.
    """

    needs = frozenset({"logits", "embeddings"})
    teacher_needs = frozenset({"logits", "sensitivity"})
    needs_shared_tokens = True

    def __init__(self, distance: str = "norm", member: int | None = None) -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise UserError(f"distance: {choices(distance, DISTANCES)}")
        self.distance, self.member = distance, member

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Raise UserError where distance=cosine meets embeddings of two widths."""
        if teacher is None or not (self.needs <= student.fields and self.teacher_needs <= teacher.fields):
            return  # refused by the strategy, which knows the objective's name
        if self.distance == "cosine" and student.embedding_width != teacher.embedding_width:
            raise UserError(
                f"distance=cosine compares embeddings of one width, and the student's ({student.name}) are "
                f"{student.embedding_width} wide and the teacher's {teacher.embedding_width}: use distance=norm"
            )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Raises ValueError for a student that ran without a graph, as under ``torch.no_grad``."""
        assert teacher is not None and teacher.logits is not None and teacher.sensitivity is not None
        pairing = pair(batch, student, teacher)
        sensitivity = self._sensitivity(student, teacher.logits.argmax(1))
        return losses.jacobian(
            states(sensitivity, pairing.student),
            states(teacher.sensitivity, pairing.teacher),
            mask=pairing.mask,
            distance=self.distance,
        )

    def _sensitivity(self, student: Outputs, predicted: Tensor) -> Tensor:
        """[B, T, E]: d(logit of the predicted class) / d(embeddings), itself to be differentiated."""
        assert student.logits is not None and student.embeddings is not None
        if not (student.logits.requires_grad and student.embeddings.requires_grad):
            raise ValueError("the sensitivity of a student takes its graph, and it ran without: not under no_grad")
        scores = student.logits.gather(1, predicted.unsqueeze(1))
        # Rows do not touch each other, so that the sum's gradient holds each row's own.
        return torch.autograd.grad(scores.sum(), student.embeddings, create_graph=True)[0]
