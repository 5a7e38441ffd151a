"""Logit standardisation (Sun et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.logits import Label, Standardised
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class StandardisedDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.standardised · losses.standardised.

    Args:
        temperature, convention: see ``losses.standardised``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``standardised``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "standardised": Standardised}

    def __init__(
        self,
        student: Model,
        *,
        temperature: float = 2.0,
        convention: str = "house",
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 0.5, "standardised": 0.5},
        **wiring: Any,
    ) -> None:
        objectives = {"label": Label(label_smoothing), "standardised": Standardised(temperature, convention)}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
