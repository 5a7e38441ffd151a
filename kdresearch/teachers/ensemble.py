"""Teachers made of teachers: the mean of several, and one whose classes are mapped to the student's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdresearch.errors import UserError, choices
from kdresearch.structures import LOGITS, Batch, Outputs, Teacher

AVERAGES = ("probabilities", "logits")


class EnsembleTeacher:
    """The mean of several teachers of the same classes, and what each says in ``members``.

    Args:
        members: at least one.
        average: ``probabilities``, whose logits are the log of the mean probability, or ``logits``.
        weights: one positive number each; None weighs them alike.
    """

    provides = LOGITS
    width = depth = heads = embedding_width = 0

    def __init__(
        self, members: Sequence[Teacher], average: str = "probabilities", weights: Sequence[float] | None = None
    ) -> None:
        if average not in AVERAGES:
            raise UserError(f"teacher.average: {choices(average, AVERAGES)}")
        if not members:
            raise UserError("teacher.members: an ensemble needs at least one")
        if len({member.classes for member in members}) > 1:
            raise UserError(f"teacher.members: different classes: {[member.classes for member in members]}")
        share = torch.tensor([1.0] * len(members) if weights is None else [float(weight) for weight in weights])
        if len(share) != len(members) or (share <= 0).any():
            raise UserError(
                f"teacher.weights: needs one positive number for each of {len(members)} members, not {weights}"
            )
        self.members, self.average, self.classes = list(members), average, members[0].classes
        self.share = (share / share.sum()).tolist()

    def to(self, device: torch.device | str) -> Teacher:
        for member in self.members:
            member.to(device)
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        answers = [member(batch, LOGITS | (needs & member.provides)) for member in self.members]
        logits = self.combine([_logits(answer) for answer in answers])
        return Outputs(logits=logits, members=tuple(answers))

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """The members' logits, [B, C] each, as one."""
        if self.average == "logits":
            return torch.stack([weight * each for weight, each in zip(self.share, logits, strict=True)]).sum(0)
        weight = torch.tensor(self.share, device=logits[0].device).log()[:, None, None]
        return torch.logsumexp(torch.stack([F.log_softmax(each, 1) for each in logits]) + weight, 0)


class MappedTeacher:
    """A teacher whose logits are put in the student's classes, by name.

    It provides what the teacher does, but ``sensitivity`` only where the classes match one to one.

    Args:
        teacher: with classes of its own.
        classes: the student's.
        class_map: the student's class for each of the teacher's; several may share one, and their probabilities
            add up. None wants the same names, in any order.

    Raises:
        UserError: names that do not match, naming both sides.
    """

    def __init__(self, teacher: Teacher, classes: tuple[str, ...], class_map: Mapping[str, str] | None = None) -> None:
        self.teacher, self.classes = teacher, tuple(classes)
        self.width, self.depth, self.heads = teacher.width, teacher.depth, teacher.heads
        self.embedding_width = teacher.embedding_width
        named = {str(own): str(target) for own, target in class_map.items()} if class_map else {}
        target = [named.get(own, own) for own in teacher.classes]
        for own, name in zip(teacher.classes, target, strict=True):
            if name not in classes:
                raise UserError(
                    f"the teacher's classes ({', '.join(teacher.classes)}) do not match the data's "
                    f"({', '.join(classes)}): teacher.class_map gives no class for {own!r}"
                )
        if set(target) != set(classes):
            raise UserError(f"no class of the teacher stands for {', '.join(sorted(set(classes) - set(target)))}")
        for own in named:
            if own not in teacher.classes:
                raise UserError(f"teacher.class_map: {choices(own, teacher.classes)}")
        # [C_student, C_teacher]: 0 where a class of the teacher counts, -inf elsewhere
        member = torch.tensor([[name == each for name in target] for each in classes])
        self._member = torch.zeros(member.shape).masked_fill(~member, -torch.inf)
        self._order = [target.index(name) for name in classes] if len(target) == len(classes) else None
        # Where classes are merged, the one predicted here may be another than the one that the teacher predicts.
        self.provides = teacher.provides - (set() if self._order else {"sensitivity"})

    def to(self, device: torch.device | str) -> Teacher:
        self.teacher.to(device)
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        if "sensitivity" in needs - self.provides:
            raise ValueError("a teacher of which classes are merged does not provide sensitivity")
        answer = self.teacher(batch, needs)
        return answer if answer.logits is None else answer._replace(logits=self.map(answer.logits))

    def map(self, logits: Tensor) -> Tensor:
        """[B, C of the teacher] to [B, C of the student]."""
        if self._order is not None:  # one to one: the logits as they are
            return logits[:, self._order]
        member = self._member.to(logits.device)
        return torch.logsumexp(F.log_softmax(logits, 1).unsqueeze(1) + member, dim=2)


def _logits(outputs: Outputs) -> Tensor:
    assert outputs.logits is not None
    return outputs.logits
