"""Asking a recorded teacher about rows of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kdresearch.data.datamodule import TextDataModule
from kdresearch.evaluation.metrics import task_metrics
from kdresearch.structures import LOGITS, UNLABELLED, Batch, Teacher, Tokens
from kdresearch.teachers.calibrated import CalibratedTeacher
from kdresearch.teachers.crossfit import CrossFittedTeacher
from kdresearch.teachers.ensemble import EnsembleTeacher

_ROWS = 256  # of a batch


def logits_of(teacher: Teacher, data: TextDataModule, index: np.ndarray) -> torch.Tensor:
    """A recorded teacher's logits [N, C] on corpus-wide rows [N], on the CPU."""
    answers = torch.empty(len(index), len(data.classes))
    for first in range(0, len(index), _ROWS):
        rows = torch.from_numpy(index[first : first + _ROWS])
        empty = Tokens(torch.zeros(len(rows), 1, dtype=torch.long), torch.zeros(len(rows), 1, dtype=torch.bool))
        logits = teacher(Batch(rows, torch.full((len(rows),), UNLABELLED), empty), LOGITS).logits
        assert logits is not None
        answers[first : first + _ROWS] = logits.float().cpu()
    return answers


def accuracy_of(teacher: Teacher, data: TextDataModule, index: np.ndarray) -> float:
    """A recorded teacher's accuracy on corpus-wide rows [N]."""
    label = torch.from_numpy(data.labels[index])
    return task_metrics(logits_of(teacher, data, index), label)["accuracy"]


def member_accuracies(teacher: Teacher, data: TextDataModule, index: np.ndarray) -> list[float]:
    """Accuracy of each member of an ensemble, or model of a cross-fitted teacher, on rows; empty for a single one."""
    while isinstance(teacher, CalibratedTeacher):
        teacher = teacher.teacher
    members: Sequence[Teacher] = []
    if isinstance(teacher, EnsembleTeacher):
        members = teacher.members
    elif isinstance(teacher, CrossFittedTeacher):
        members = teacher.models
    return [accuracy_of(member, data, index) for member in members]
