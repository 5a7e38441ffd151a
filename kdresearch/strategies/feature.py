"""Feature distillation: hidden states or sentence vectors (FitNets, Romero et al. 2015; PKD, Sun et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.hidden import Feature
from kdresearch.objectives.layers import LayerMap
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class FeatureDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.feature · losses.LOSS.

    Args:
        loss, layers, level, projection, shared_projection, embeddings, convention: see ``objectives.hidden.Feature``.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``feature``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "soft_label": SoftLabel, "feature": Feature}

    def __init__(
        self,
        student: Model,
        *,
        loss: str = "hidden_mse",
        layers: LayerMap = "uniform",
        level: str = "auto",
        projection: str = "auto",
        shared_projection: bool = False,
        embeddings: bool = False,
        convention: str = "house",
        temperature: float = 2.0,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 0.5, "soft_label": 0.5, "feature": 1.0},
        **wiring: Any,
    ) -> None:
        objectives = {
            "label": Label(label_smoothing),
            "soft_label": SoftLabel(temperature),
            "feature": Feature(loss, layers, level, projection, shared_projection, embeddings, convention),
        }
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
