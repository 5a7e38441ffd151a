"""Soft-label distillation (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class SoftLabelDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s); rows without a label learn from the second.

    Args:
        temperature, divergence, beta, convention: see ``losses.soft_label``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``soft_label``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "soft_label": SoftLabel}

    def __init__(
        self,
        student: Model,
        *,
        temperature: float = 2.0,
        divergence: str = "forward",
        beta: float = 0.5,
        convention: str = "house",
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 0.5, "soft_label": 0.5},
        **wiring: Any,
    ) -> None:
        objectives = {
            "label": Label(label_smoothing),
            "soft_label": SoftLabel(temperature, divergence, beta, convention),
        }
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
