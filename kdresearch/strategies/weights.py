"""Weights that change while a student trains; what was configured is never overwritten."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdresearch.errors import UserError, choices

KINDS = ("linear", "cosine", "switch")


@dataclass(frozen=True)
class WeightSchedule:
    """What a weight is multiplied by at each update.

    Args:
        kind: from ``start`` to ``end`` on a line (``linear``), on half a cosine (``cosine``), or at once (``switch``).
        steps: where it has arrived: a share of all updates (a number below 1, or 1.0), or a number of updates.
        start, end: the factors; 0 to 1 is a warm-up, 1 to 0 fades the objective out.

    Raises:
        UserError: an unknown kind, a negative or infinite number.
    """

    kind: str = "linear"
    steps: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"schedule: {choices(self.kind, KINDS)}")
        for name in ("steps", "start", "end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise UserError(f"schedule: {name} must be a number of at least 0, not {value}")

    def factor(self, step: int, total: float) -> float:
        """At update ``step`` (from 0) of ``total``; UserError for a share of a ``total`` without an end."""
        steps = self.steps * total if isinstance(self.steps, float) and self.steps <= 1 else self.steps
        if math.isinf(steps):
            raise UserError(
                f"schedule: steps={self.steps} is a share of all updates, and these have no end: set "
                "trainer.max_epochs or trainer.max_steps, or give a number of updates"
            )
        progress = min(1.0, step / steps) if steps else 1.0
        if self.kind == "switch":
            progress = math.floor(progress)
        elif self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress
