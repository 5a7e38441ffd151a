"""What an objective is: it picks tensors out of both sides' outputs and calls a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from kdresearch.structures import UNLABELLED, Batch, Extract, Outputs, Reading, Signature


class Objective(nn.Module):
    """One term of a student's loss.

    Attributes:
        needs: fields of ``Outputs`` that it reads on the student's side.
        teacher_needs: the same on the teacher's side; empty if it has no use for a teacher.
        teacher_extracts: how much of each of those fields; one that is not named is read whole.
        min_classes: classes below which its gradient is dead.
        min_batch: rows of a batch below which it says nothing.
        convex: whether it is, by its settings, a mean over rows of a convex function of the row's class scores.
        needs_labels: whether it is about labelled rows only.
        needs_shared_tokens: whether it compares tokens, so that both sides must read the same ones, or the same words.
        member: of an ensemble, the one teacher that it learns from; None learns from their mean.
    """

    needs: frozenset[str] = frozenset({"logits"})
    teacher_needs: frozenset[str] = frozenset({"logits"})
    teacher_extracts: Mapping[str, Extract] = {}
    min_classes: int = 2
    min_batch: int = 1
    convex: bool = False
    needs_labels: bool = False
    needs_shared_tokens: bool = False
    member: int | None = None

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Meet both models' signatures, once, before training: choose layers, make projections, set what is needed.

        Raises:
            UserError: the models do not fit, naming both and what would do instead.
        """

    def denominator(self, batch: Batch) -> Tensor | None:
        """What its value is a mean over, to weigh the values of several batches: rows that count; None says all."""
        return (batch.label != UNLABELLED).sum() if self.needs_labels else None

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of a batch; ``teacher`` is None where ``teacher_needs`` is empty."""
        raise NotImplementedError


def join_extracts(objectives: Iterable[Objective]) -> dict[str, Extract]:
    """The fields that bound objectives read on the teacher's side, and how much of each."""
    extracts: dict[str, Extract] = {}
    for objective in objectives:
        for field in objective.teacher_needs:
            extract = objective.teacher_extracts.get(field, Extract())._replace(words=objective.needs_shared_tokens)
            extracts[field] = extracts[field].union(extract) if field in extracts else extract
    return extracts
