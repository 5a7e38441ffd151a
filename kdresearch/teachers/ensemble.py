"""Teachers made of teachers: the mean of several, and one whose classes are mapped to the student's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kdresearch.errors import UserError, choices
from kdresearch.structures import LOGITS, Batch, Outputs, Signature, Teacher

AVERAGES = ("probabilities", "logits")


def check_weights(weights: Sequence[float] | None, members: int) -> list[float]:
    """Each member's share, which add up to 1; UserError unless there is one positive number for each."""
    share = torch.tensor([1.0] * members if weights is None else [float(weight) for weight in weights])
    if len(share) != members or (share <= 0).any():
        raise UserError(f"teacher.weights: needs one positive number for each of {members} members, not {weights}")
    return (share / share.sum()).tolist()


def check_classes(
    teacher: Sequence[str], classes: Sequence[str], class_map: Mapping[str, str] | None = None
) -> list[str]:
    """The student's class for each of the teacher's.

    Args:
        class_map: by the teacher's names; None wants the same names, in any order.

    Raises:
        UserError: names that do not match, naming both sides.
    """
    named = {str(name): str(target) for name, target in class_map.items()} if class_map else {}
    target = [named.get(name, name) for name in teacher]
    for name, mapped in zip(teacher, target, strict=True):
        if mapped not in classes:
            raise UserError(
                f"the teacher's classes ({', '.join(teacher)}) do not match the data's "
                f"({', '.join(classes)}): teacher.class_map gives no class for {name!r}"
            )
    if set(target) != set(classes):
        raise UserError(f"no class of the teacher stands for {', '.join(sorted(set(classes) - set(target)))}")
    for name in named:
        if name not in teacher:
            raise UserError(f"teacher.class_map: {choices(name, teacher)}")
    return target


class EnsembleTeacher:
    """The mean of several teachers of the same classes, and what each says in ``members``.

    Args:
        members: at least one.
        average: ``probabilities``, whose logits are the log of the mean probability, or ``logits``.
        weights: one positive number each; None weighs them alike.
    """

    def __init__(
        self, members: Sequence[Teacher], average: str = "probabilities", weights: Sequence[float] | None = None
    ) -> None:
        if average not in AVERAGES:
            raise UserError(f"teacher.average: {choices(average, AVERAGES)}")
        if not members:
            raise UserError("teacher.members: an ensemble needs at least one")
        names = [member.signature.classes for member in members]
        if len(set(names)) > 1:
            raise UserError(f"teacher.members: different classes: {names}")
        self.members, self.average = list(members), average
        self.share = check_weights(weights, len(members))
        self.signature = Signature(
            LOGITS,
            classes=names[0],
            name=type(self).__name__,
            recorded=any(member.signature.recorded for member in members),
            members=tuple(member.signature for member in members),
        )

    def to(self, device: torch.device | str) -> Teacher:
        """Move the members to a device."""
        for member in self.members:
            member.to(device)
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        answers = [member(batch, LOGITS | (needs & member.signature.fields)) for member in self.members]
        logits = self.combine([_logits(answer) for answer in answers])
        return Outputs(logits=logits, members=tuple(answers))

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """The members' logits, [B, C] each, as one."""
        if self.average == "logits":
            return torch.stack([weight * scores for weight, scores in zip(self.share, logits, strict=True)]).sum(0)
        weight = torch.tensor(self.share, device=logits[0].device).log()[:, None, None]
        return torch.logsumexp(torch.stack([F.log_softmax(scores, 1) for scores in logits]) + weight, 0)


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
        self.teacher = teacher
        names = teacher.signature.classes or ()
        target = check_classes(names, classes, class_map)
        # [C_student, C_teacher]: 0 where a class of the teacher counts, -inf elsewhere
        member = torch.tensor([[name == student for name in target] for student in classes])
        self._member = torch.zeros(member.shape).masked_fill(~member, -torch.inf)
        self._order = [target.index(name) for name in classes] if len(target) == len(classes) else None
        # Where classes are merged, the one predicted here may be another than the one that the teacher predicts.
        fields = teacher.signature.fields - (set() if self._order else {"sensitivity"})
        self.signature = replace(teacher.signature, fields=fields, classes=tuple(classes))

    def to(self, device: torch.device | str) -> Teacher:
        """Move the teacher to a device."""
        self.teacher.to(device)
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        if "sensitivity" in needs - self.signature.fields:
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
