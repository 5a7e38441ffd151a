"""What a strategy checks before any step: weights, classes, and that its objectives fit both signatures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdresearch.errors import UserError, choices
from kdresearch.models.frozen import FrozenModel
from kdresearch.objectives.logits import Label
from kdresearch.objectives.objective import Objective
from kdresearch.strategies.weights import WeightSchedule
from kdresearch.structures import RECORDED, Model, Reading, Signature, Teacher, check_signed

Classes = int | Sequence[str] | None


def as_teacher(teacher: Teacher | Model | None, student: nn.Module) -> Teacher | None:
    """What answers for the teacher's side; a model is frozen for it.

    Raises:
        UserError: something without a signature, or a model that shares parameters with the student.
    """
    if teacher is None:
        return None
    check_signed("teacher", teacher)
    if not isinstance(teacher, nn.Module):
        return teacher  # type: ignore[return-value]
    parameters = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in parameters for parameter in teacher.parameters()):
        raise UserError("teacher: it shares parameters with the student, and freezing it would freeze the student")
    return FrozenModel(teacher)  # type: ignore[arg-type]


def class_names(classes: Classes, student: Model, teacher: Teacher | None) -> tuple[str, ...]:
    """Names of the C classes: those given, else the student's; numbers where names are not known.

    Raises:
        UserError: a number of classes that nobody knows, or a student or teacher of other classes.
    """
    sides = [("student", student.signature)] + ([("teacher", teacher.signature)] if teacher is not None else [])
    if classes is None:
        classes = student.signature.classes or student.signature.class_count
    if classes is None:
        raise UserError("classes: give their number, or their names in the order of the logits")
    if isinstance(classes, bool | str) or not classes:
        raise UserError(f"classes must be their number or their names, not {classes!r}")
    if isinstance(classes, int):
        for side, signature in sides:
            check_number(classes, side, signature)
        names = next((signature.classes for _, signature in sides if signature.classes is not None), None)
        return names or tuple(map(str, range(classes)))
    names = tuple(map(str, classes))
    if len(set(names)) < len(names):
        raise UserError(f"classes: two of {', '.join(names)} have one name")
    for side, signature in sides:
        _check_names(names, side, signature)
    return names


def check_number(classes: int, side: str, signature: Signature) -> None:
    """Raise UserError for a student or teacher that is known to have another number of classes."""
    number = signature.class_count
    if number is not None and number != classes:
        names = "" if signature.classes is None else f" ({', '.join(signature.classes)})"
        raise UserError(f"classes: the {side}, {signature.name}, has {number}{names}, and the strategy {classes}")


def _check_names(classes: tuple[str, ...], side: str, signature: Signature) -> None:
    names = signature.classes
    if names is None:
        check_number(len(classes), side, signature)
    if names is None or names == classes:
        return
    both = f"the {side}'s ({signature.name}) are {', '.join(names)}, and the strategy's {', '.join(classes)}"
    if len(names) != len(classes):
        raise UserError(f"classes: {len(names)} against {len(classes)}: {both}")
    if set(names) == set(classes):
        raise UserError(f"classes: the same names in another order, so that logits would meet those of others: {both}")
    raise UserError(f"classes: other names: {both}; a class map (MappedTeacher, teacher.class_map) translates them")


def check_weights(strategy: str, objectives: Mapping[str, Objective], weights: Mapping[str, float]) -> dict[str, float]:
    """The weights, one for each objective; UserError otherwise, and where all are 0."""
    for name in weights:
        if name not in objectives:
            raise UserError(f"strategy.weights: {strategy} has no objective {choices(name, objectives)}")
    for name in objectives:
        if name not in weights:
            raise UserError(f"strategy.weights: {strategy} needs a weight for {name!r} (it has {', '.join(weights)})")
    checked = {name: float(weight) for name, weight in weights.items()}
    for name, weight in checked.items():
        if not math.isfinite(weight) or weight < 0:
            raise UserError(f"strategy.weights.{name} must be a number of at least 0, not {weight}")
    if not any(checked.values()):
        raise UserError(f"strategy.weights: all of {', '.join(checked)} are 0, there is nothing to learn")
    return checked


def check_schedules(
    schedules: Mapping[str, WeightSchedule | Mapping[str, Any]], objectives: Mapping[str, Objective]
) -> dict[str, WeightSchedule]:
    """The schedules by name; UserError for one of no objective, or bad arguments."""
    checked = {}
    for name, schedule in schedules.items():
        if name not in objectives:
            raise UserError(f"strategy.schedules: {choices(name, objectives)}")
        try:
            checked[name] = schedule if isinstance(schedule, WeightSchedule) else WeightSchedule(**schedule)
        except TypeError as error:
            raise UserError(f"strategy.schedules.{name}: {error}") from error
    return checked


def weigh_classes(objectives: Mapping[str, Objective], weights: Sequence[float]) -> None:
    """Give class weights to every objective on gold labels; UserError where there is none."""
    on_labels = [term for term in objectives.values() if isinstance(term, Label)]
    if not on_labels:
        raise UserError(
            f"student.training.class_weights: none of {', '.join(objectives)} is the cross-entropy with gold labels: "
            "strategy.weights.label must be above 0"
        )
    for term in on_labels:
        term.class_weights = torch.tensor(weights, dtype=torch.float32)


def check_objective(
    name: str, term: Objective, teacher: Signature | None, classes: int, batch_size: int | None
) -> None:
    """Refuse in words an objective that no pair of models could serve."""
    if classes < term.min_classes:
        raise UserError(
            f"objective {name} is dead on {classes} classes: it needs at least {term.min_classes}; on fewer, "
            "strategy=soft_label says all there is to say"
        )
    if batch_size is not None and batch_size < term.min_batch:
        raise UserError(
            f"objective {name} relates the rows of a batch and needs at least {term.min_batch}: "
            f"student.training.batch_size is {batch_size}"
        )
    if term.teacher_needs and _side(name, term, teacher) is None:
        raise UserError(f"objective {name} needs a teacher: choose one with teacher=NAME")


def bind(
    name: str,
    term: Objective,
    student: Signature,
    teacher: Signature | None,
    classes: tuple[str, ...],
    reading: Reading,
) -> None:
    """Let an objective meet both signatures; refuse in words what cannot be."""
    teacher = _side(name, term, teacher)
    between = f"objective {name}, of {student.name}"
    if teacher is not None:
        between += f" with {teacher.name} as its teacher"
    try:
        term.bind(_named(student, classes), None if teacher is None else _named(teacher, classes), reading)
    except UserError as error:
        raise UserError(f"{between}: {error}") from error
    sides = [("student", student, term.needs)]
    if teacher is not None:
        sides.append(("teacher", teacher, term.teacher_needs))
    for side, signature, needs in sides:
        if missing := sorted(needs - signature.fields):
            raise UserError(
                f"{between}: needs {', '.join(missing)} of the {side}, which provides only "
                f"{', '.join(sorted(signature.fields))}; {_instead(signature, needs)}"
            )
    if term.needs_shared_tokens and teacher is not None:
        _check_tokens(between, student, teacher, reading)


def _check_tokens(between: str, student: Signature, teacher: Signature, reading: Reading) -> None:
    for signature in (student, teacher):
        if signature.layout == "map":
            raise UserError(
                f"{between}: compares tokens, and the hidden states of {signature.name} are maps [B, D, H, W]: "
                "compare maps (strategy=feature), pooled vectors (strategy=relation) or class scores"
            )
    if reading.kind == "apart":
        raise UserError(
            f"{between}: compares tokens, and the two read different ones"
            f"{reading.reason and f' ({reading.reason})'}: choose tokenizers with character offsets (word, "
            "pretrained), or compare sentence vectors (strategy=feature strategy.level=sentence) or class scores "
            "(strategy=soft_label)"
        )


def _side(name: str, term: Objective, teacher: Signature | None) -> Signature | None:
    """The teacher that an objective learns from: a member, where it names one."""
    if teacher is None or term.member is None:
        return teacher
    members = teacher.members
    if members is None or not 0 <= term.member < len(members):
        kind = f"an ensemble of {len(members)}" if members is not None else "no ensemble (teacher=ensemble)"
        raise UserError(f"objective {name} learns from member {term.member} (from 0), and the teacher is {kind}")
    return members[term.member]


def _named(signature: Signature, classes: tuple[str, ...]) -> Signature:
    return signature if signature.classes is not None else replace(signature, classes=classes)


def _instead(signature: Signature, needs: frozenset[str]) -> str:
    """What would do where a model lacks a field."""
    if signature.recorded and not needs <= RECORDED:
        return "of a recorded teacher no more is kept: teacher.mode=live"
    if "pooled" in signature.fields:
        return "choose a model with layers, or compare sentence vectors (strategy=feature) or class scores (soft_label)"
    return "choose a model with sentence vectors, or compare class scores (strategy=soft_label)"
