"""Attention distillation: maps (TinyBERT, Jiao et al. 2020) or relations (MiniLM, Wang et al. 2020, 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdresearch.errors import UserError, choices
from kdresearch.objectives.attention import MAP_LOSSES, AttentionMaps, RelationHeads, ValueRelation
from kdresearch.objectives.layers import LayerMap
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.objectives.objective import Objective
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import Model

ATTENTION_LOSSES = (*MAP_LOSSES, "minilm", "relation_heads")


class AttentionDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.attention · LOSS.

    Args:
        loss: ``attention_kl`` or ``attention_mse`` between maps; ``minilm``: attention and value relation of the last
            layers; ``relation_heads``: relations among queries, keys and values of one layer (MiniLMv2).
        inputs, heads, attention_temperature, convention: of the maps; see ``objectives.attention.AttentionMaps``.
        layers: of the maps, see there; of ``relation_heads`` a list of one pair, or any name for the last layers.
        relation_heads: how many of them.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``attention``.
    """

    def __init__(
        self,
        student: Model,
        *,
        loss: str = "attention_kl",
        inputs: str = "probabilities",
        layers: LayerMap = "uniform",
        heads: str = "auto",
        attention_temperature: float = 1.0,
        convention: str = "house",
        relation_heads: int = 4,
        temperature: float = 2.0,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float],
        **wiring: Any,
    ) -> None:
        attention: Objective
        if loss not in ATTENTION_LOSSES:
            raise UserError(f"loss: {choices(loss, ATTENTION_LOSSES)}")
        if loss == "minilm":
            attention = ValueRelation()
        elif loss == "relation_heads":
            if not isinstance(layers, str) and len(layers) != 1:
                raise UserError(f"layers: relation_heads takes one pair [[student, teacher]], not {layers}")
            attention = RelationHeads(relation_heads, None if isinstance(layers, str) else layers[0])
        else:
            attention = AttentionMaps(loss, inputs, layers, heads, attention_temperature, convention)
        objectives = {"label": Label(label_smoothing), "soft_label": SoftLabel(temperature), "attention": attention}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
