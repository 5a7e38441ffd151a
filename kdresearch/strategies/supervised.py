"""The student alone: the control of every comparison, and the way teachers are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.logits import Label
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class SupervisedDistiller(Distiller):
    """Cross-entropy with the labels; no teacher.

    Args:
        label_smoothing: ε.
        weights: ``label``.
    """

    kinds: ClassVar[Kinds] = {"label": Label}

    def __init__(
        self,
        student: Model,
        *,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 1.0},
        **wiring: Any,
    ) -> None:
        super().__init__(student, objectives={"label": Label(label_smoothing)}, weights=weights, **wiring)
