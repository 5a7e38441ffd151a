"""Total variation distillation (Wen et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.logits import Label, TotalVariation
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class TotalVariationDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.total_variation · ½·Σ|p_t − p_s|; unlabelled rows learn from the second.

    Args:
        label_smoothing: ε of the first term.
        weights: ``label`` and ``total_variation``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "total_variation": TotalVariation}

    def __init__(
        self,
        student: Model,
        *,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 0.5, "total_variation": 0.5},
        **wiring: Any,
    ) -> None:
        objectives = {"label": Label(label_smoothing), "total_variation": TotalVariation()}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
