"""What a teacher says, in the data's classes: recorded once, and live where more is needed than is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from kdresearch import package
from kdresearch.bench.context import Context, teacher_device
from kdresearch.bench.plan import BY_ACCURACY, FIT, Plan, TeacherPlan
from kdresearch.bench.room import check_room
from kdresearch.bench.teacher import TeacherPackages, compare_tokens
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.encoding import WordRows
from kdresearch.errors import UserError
from kdresearch.evaluation.metrics import better_than_chance, majority_share, task_metrics
from kdresearch.models.frozen import teacher_signature
from kdresearch.structures import Extract, Reading, Teacher
from kdresearch.teachers.ask import accuracy_of, logits_of, member_accuracies
from kdresearch.teachers.calibrated import CalibratedTeacher, fitted_temperature
from kdresearch.teachers.crossfit import CrossFittedTeacher
from kdresearch.teachers.ensemble import EnsembleTeacher, MappedTeacher, check_classes
from kdresearch.teachers.leaves import NUMBERS, leaves_of
from kdresearch.teachers.live import LiveTeacher
from kdresearch.teachers.recorded import Inside, RecordedTeacher, record

_CALIBRATION = ("accuracy", "nll", "ece", "brier")


@dataclass(frozen=True)
class Knowledge:
    """A teacher at work."""

    training: Teacher  # for training batches
    evaluation: Teacher  # for validation and test rows; always recorded
    reading: Reading  # how its tokens correspond to the student's


def obtain_knowledge(
    plan: Plan,
    packages: TeacherPackages,
    data: TextDataModule,
    context: Context,
    *,
    live: bool,
    token_level: bool,
    needs: Mapping[str, Extract] = MappingProxyType({}),
) -> Knowledge:
    """The teacher as it answers this run, in the data's classes.

    What is recorded is recorded here; a live teacher answers training batches only, and is recorded for the
    validation and test rows.

    Args:
        live: whether it runs beside the student.
        token_level: whether its tokens are compared with the student's.
        needs: the fields that training will need of a live one, and how much of each.

    Raises:
        UserError: class names that do not match, or a teacher no better than chance on the validation rows.
    """
    assert plan.teacher is not None
    for folder in packages.folders:  # names first: nothing is computed for a teacher that cannot fit
        check_classes(package.classes(folder), data.classes, packages.class_map)
    recorded_on = partial(record_teacher, plan, packages, data, context)
    # The validation rows first: a useless teacher is refused before the rest is paid for.
    validated = recorded_on(data.split.validation)
    _check_useful(packages, validated, data, context)
    temperature = _calibrate(plan.teacher, packages, validated, data, context)
    split = data.split
    rows = [split.validation, split.test] if plan.evaluation.test else [split.validation]
    recorded = recorded_on(np.concatenate(rows if live else [split.trained, split.generated, *rows]))
    if temperature is not None:
        recorded = CalibratedTeacher(recorded, temperature)
    packages.facts["mode"] = "live" if live else "recorded"
    if live:
        return _run_live(plan, packages, data, context, recorded, temperature, token_level, needs)
    training = _calibration(recorded, data, data.split.train)
    packages.facts["calibration"]["training"] = training
    context.say(
        f"teacher {packages.name}: what the student learns of its {len(data.split.train):,} rows: {_describe(training)}"
    )
    return Knowledge(recorded, recorded, Reading("apart", "the teacher is recorded"))


def _run_live(
    plan: Plan,
    packages: TeacherPackages,
    data: TextDataModule,
    context: Context,
    recorded: Teacher,
    temperature: float | None,
    token_level: bool,
    needs: Mapping[str, Extract],
) -> Knowledge:
    assert plan.teacher is not None
    folder = packages.folders[0]
    tokenizer = package.outline(folder)[1]
    data.read_teacher(tokenizer, package.fingerprint(folder), token_level=token_level)
    reading = Reading(data.reading)
    if reading.kind == "apart":
        reading = compare_tokens(data.tokenizer, tokenizer)
    if plan.teacher.keep:
        teacher = record_inside(plan, packages, data, context, needs)
    else:
        teacher = LiveTeacher(package.load(folder), str(plan.teacher.precision))
    teacher = MappedTeacher(teacher, data.classes, packages.class_map)
    return Knowledge(teacher if temperature is None else CalibratedTeacher(teacher, temperature), recorded, reading)


def record_inside(
    plan: Plan, packages: TeacherPackages, data: TextDataModule, context: Context, needs: Mapping[str, Extract]
) -> Teacher:
    """A live teacher as far as the objectives read it, recorded for the rows that are trained on.

    Where that is by word, the batches' ``teacher`` tokens are words from then on.

    Raises:
        UserError: more than the disk or ``store.limit`` holds.
    """
    assert plan.teacher is not None and data.teacher_rows is not None
    folder, classes = packages.folders[0], package.classes(packages.folders[0])
    signature = teacher_signature(package.outline(folder)[0].signature, classes)
    numbers = NUMBERS[0] if plan.teacher.keep is True else str(plan.teacher.keep)
    leaves = leaves_of(needs, signature, numbers, words=data.reading == "words")
    rows = units = data.teacher_rows
    if any(leaf.words for leaf in leaves):
        data.teacher_rows = units = WordRows(rows.encoded_parts, rows.pad_id)
    index = np.concatenate([data.split.trained, data.split.generated])
    pieces = record(
        package.fingerprint(folder),
        partial(package.load, folder),
        data.corpus,
        index,
        context.store,
        inside=Inside(leaves, rows, units),
        precision=str(plan.teacher.precision),
        batch_size=plan.teacher.batch_size,
        device=teacher_device(plan),
        check_room=partial(check_room, context, signature, units),
        say=context.say,
    )
    return RecordedTeacher(pieces, data.corpus, index, classes, leaves, signature)


def record_teacher(
    plan: Plan, packages: TeacherPackages, data: TextDataModule, context: Context, index: np.ndarray
) -> Teacher:
    """The teacher's recorded class scores and sentence vectors of corpus-wide rows [N]; computed where not yet."""
    teacher = plan.teacher
    assert teacher is not None
    members: list[Teacher] = []
    for number, folder in enumerate(packages.folders):
        rows = index
        if packages.trained_on:  # each model of a cross-fitted teacher answers only what it was not trained on
            rows = index[~np.isin(data.corpus.digests(index), packages.trained_on[number])]
        pieces = record(
            package.fingerprint(folder),
            partial(package.load, folder),
            data.corpus,
            rows,
            context.store,
            precision=str(teacher.precision),
            batch_size=teacher.batch_size,
            device=teacher_device(plan),
            say=context.say,
        )
        recorded = RecordedTeacher(pieces, data.corpus, rows, package.classes(folder))
        members.append(MappedTeacher(recorded, data.classes, packages.class_map))
    if packages.trained_on:
        digests = data.corpus.digests(np.arange(len(data.corpus)))
        was_trained_on = np.stack([np.isin(digests, texts) for texts in packages.trained_on], axis=1)
        return CrossFittedTeacher(members, torch.from_numpy(was_trained_on), teacher.average)
    if not teacher.ensemble or teacher.chain:
        return members[0]
    weights: Any = teacher.weights
    if weights == BY_ACCURACY:
        weights = [accuracy_of(member, data, data.split.validation) for member in members]
    return EnsembleTeacher(members, teacher.average, weights)


def _check_useful(packages: TeacherPackages, teacher: Teacher, data: TextDataModule, context: Context) -> None:
    index = data.split.validation
    accuracy, majority = accuracy_of(teacher, data, index), majority_share(torch.from_numpy(data.labels[index]))
    packages.facts |= {"validation_accuracy": accuracy, "classes": list(data.classes)}
    packages.facts["validation_majority"] = majority
    context.say(
        f"teacher {packages.name}: validation accuracy {accuracy:.4f} on {len(index):,} rows "
        f"(of which {majority:.4f} are of the commonest class)"
    )
    packages.facts["members_validation_accuracy"] = member_accuracies(teacher, data, index)
    if not better_than_chance(accuracy, torch.from_numpy(data.labels[index])):
        raise UserError(
            f"the teacher {packages.name} is no better than chance on the validation rows (accuracy {accuracy:.4f}): "
            "was it fine-tuned for these classes, and are their names in the right order (teacher.class_map)?"
        )


def _calibrate(
    plan: TeacherPlan, packages: TeacherPackages, teacher: Teacher, data: TextDataModule, context: Context
) -> float | None:
    """The temperature that the teacher's logits are divided by, with its calibration before and after in the facts."""
    index = data.split.validation
    temperature = None if plan.temperature in (None, FIT) else float(plan.temperature)
    if plan.temperature == FIT:
        label = torch.from_numpy(data.labels[index])
        temperature = fitted_temperature(logits_of(teacher, data, index), label)
    before = _calibration(teacher, data, index)
    after = before if temperature is None else _calibration(CalibratedTeacher(teacher, temperature), data, index)
    packages.facts |= {"temperature": temperature or 1.0, "calibration": {"before": before, "after": after}}
    if temperature is not None:
        described = f"{_describe(before)}; then {_describe(after)}"
        context.say(f"teacher {packages.name}: temperature {temperature:.3f}: {described}")
    return temperature


def _calibration(teacher: Teacher, data: TextDataModule, index: np.ndarray) -> dict[str, float]:
    scores = task_metrics(logits_of(teacher, data, index), torch.from_numpy(data.labels[index]))
    return {name: scores[name] for name in _CALIBRATION}


def _describe(calibration: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in calibration.items())
