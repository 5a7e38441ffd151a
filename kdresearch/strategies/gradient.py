"""Gradient distillation: what the answer depends on (Srinivas & Fleuret 2018; Czarnecki et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.gradient import Jacobian
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class GradientDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.gradient · losses.jacobian.

    Args:
        distance: see ``objectives.gradient.Jacobian``.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``gradient``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "soft_label": SoftLabel, "gradient": Jacobian}

    def __init__(
        self,
        student: Model,
        *,
        distance: str = "norm",
        temperature: float = 2.0,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 0.5, "soft_label": 0.5, "gradient": 1.0},
        **wiring: Any,
    ) -> None:
        objectives = {
            "label": Label(label_smoothing),
            "soft_label": SoftLabel(temperature),
            "gradient": Jacobian(distance),
        }
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
