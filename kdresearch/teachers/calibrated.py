"""A teacher of which the logits are divided by a temperature (Guo et al. 2017, §4.2)."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from kdresearch.errors import UserError
from kdresearch.structures import LOGITS, UNLABELLED, Batch, Outputs, Teacher

BOUNDS = (0.05, 20.0)


class CalibratedTeacher:
    """A teacher whose logits, and their slopes, are divided by T; what it predicts does not change.

    What it gives of the members of an ensemble is their own, as it is.

    Args:
        temperature: T, above 0; above 1 makes it less certain.
    """

    def __init__(self, teacher: Teacher, temperature: float) -> None:
        if not (temperature > 0 and math.isfinite(temperature)):
            raise UserError(f"teacher.temperature must be above 0, not {temperature}")
        self.teacher, self.temperature = teacher, temperature
        self.signature = teacher.signature

    def to(self, device: torch.device | str) -> Teacher:
        """Move the teacher to a device."""
        self.teacher.to(device)
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        answer = self.teacher(batch, needs)
        if answer.sensitivity is not None:
            answer = answer._replace(sensitivity=answer.sensitivity / self.temperature)
        return answer if answer.logits is None else answer._replace(logits=answer.logits / self.temperature)


def fitted_temperature(logits: Tensor, label: Tensor) -> float:
    """The T that minimises the mean NLL of softmax(logits / T), between 0.05 and 20 (Guo et al. 2017, §4.2).

    The NLL is convex in 1/T, so that it has one minimum in log T, too. A bound is reached where every row is right
    (the surer the better), or where the logits say nothing.

    Args:
        logits: [N, C].
        label: [N]; rows that are UNLABELLED do not count.

    Raises:
        UserError: no row is labelled.
    """
    logits, label = logits.double()[label != UNLABELLED], label[label != UNLABELLED]
    if not len(label):
        raise UserError("teacher.temperature=fit: no validation row is labelled")
    minimum = minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits / math.exp(log_t), label)),
        bounds=[math.log(bound) for bound in BOUNDS],
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(minimum.x)
