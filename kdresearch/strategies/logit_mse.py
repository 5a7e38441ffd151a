"""Logit regression (Ba & Caruana 2014; Tang et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.logits import Label, LogitMse
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class LogitMseDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.logit_mse · mean (z_s − z_t)².

    Args:
        temperature, convention: see ``losses.logit_mse``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``logit_mse``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "logit_mse": LogitMse}

    def __init__(
        self,
        student: Model,
        *,
        temperature: float = 1.0,
        convention: str = "house",
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 0.5, "logit_mse": 0.5},
        **wiring: Any,
    ) -> None:
        objectives = {"label": Label(label_smoothing), "logit_mse": LogitMse(temperature, convention)}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
