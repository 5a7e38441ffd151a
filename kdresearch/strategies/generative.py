"""Distillation on pseudo-samples (He et al. 2022, "Generate, Annotate, and Learn")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdresearch.objectives.generative import LabelledSoftLabel, PseudoSample
from kdresearch.objectives.logits import Label
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import Model


class GenerativeDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.generative · CE(p_t, p_s).

    The first two are means over the labelled rows of a batch, the third is one over those without a label: the
    pseudo-samples, and unlabelled rows where they are trained on.

    Args:
        temperature: τ of the soft labels, of real rows and of pseudo-samples; see ``losses.pseudo_label``.
        hard: the pseudo-samples' labels are the teacher's class instead of its probabilities.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``generative``.
    """

    def __init__(
        self,
        student: Model,
        *,
        temperature: float = 2.0,
        hard: bool = False,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float],
        **wiring: Any,
    ) -> None:
        objectives = {
            "label": Label(label_smoothing),
            "soft_label": LabelledSoftLabel(temperature),
            "generative": PseudoSample(temperature, hard),
        }
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
