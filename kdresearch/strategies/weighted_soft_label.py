"""Weighted soft labels (Zhou et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.logits import Label, WeightedSoftLabel
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class WeightedSoftLabelDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.weighted_soft_label · losses.weighted_soft_label.

    Args:
        temperature, convention: see ``losses.weighted_soft_label``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``weighted_soft_label``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "weighted_soft_label": WeightedSoftLabel}

    def __init__(
        self,
        student: Model,
        *,
        temperature: float = 2.0,
        convention: str = "house",
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 1.0, "weighted_soft_label": 2.5},
        **wiring: Any,
    ) -> None:
        objectives = {
            "label": Label(label_smoothing),
            "weighted_soft_label": WeightedSoftLabel(temperature, convention),
        }
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
