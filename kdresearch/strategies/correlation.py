"""Correlation of predictions (DIST, Huang et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.logits import Correlation, Label
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class CorrelationDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.correlation · losses.correlation.

    Args:
        temperature, inter_weight, intra_weight: see ``losses.correlation``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``correlation``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "correlation": Correlation}

    def __init__(
        self,
        student: Model,
        *,
        temperature: float = 1.0,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 1.0, "correlation": 1.0},
        **wiring: Any,
    ) -> None:
        objectives = {
            "label": Label(label_smoothing),
            "correlation": Correlation(temperature, inter_weight, intra_weight),
        }
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
