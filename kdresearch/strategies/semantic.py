"""Class scores and layers in one weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.hidden import Semantic
from kdresearch.objectives.layers import LayerMap
from kdresearch.objectives.logits import Label
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model


class SemanticDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.semantic · (w·KL + (1−w)·mean layer MSE).

    Args:
        weight: w, of the KL term against the layers.
        temperature, divergence, convention: see ``losses.semantic``.
        layers, level, projection, shared_projection, embeddings: see ``objectives.hidden.StatePairs``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``semantic``.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "semantic": Semantic}

    def __init__(
        self,
        student: Model,
        *,
        weight: float = 0.5,
        temperature: float = 2.0,
        divergence: str = "forward",
        convention: str = "house",
        layers: LayerMap = "uniform",
        level: str = "auto",
        projection: str = "auto",
        shared_projection: bool = False,
        embeddings: bool = False,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 0.5, "semantic": 0.5},
        **wiring: Any,
    ) -> None:
        semantic = Semantic(
            weight, temperature, divergence, convention, layers, level, projection, shared_projection, embeddings
        )
        objectives = {"label": Label(label_smoothing), "semantic": semantic}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
