"""Attention distillation: maps (TinyBERT, Jiao et al. 2020) or relations (MiniLM, Wang et al. 2020, 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.errors import UserError, choices
from kdresearch.objectives.attention import MAP_LOSSES, AttentionMaps, RelationHeads, ValueRelation
from kdresearch.objectives.layers import LayerMap
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.settings import refuse_unused
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model

ATTENTION_LOSSES = (*MAP_LOSSES, "minilm", "relation_heads")
LAST = ("uniform", "final")  # maps that say no more than that of the last layer


class AttentionDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.attention · LOSS.

    Args:
        loss: ``attention_kl`` or ``attention_mse`` between maps; ``minilm``: attention and value relation of the last
            layers; ``relation_heads``: relations among queries, keys and values of one layer (MiniLMv2).
        inputs, heads, attention_temperature, convention: of the maps alone; see ``objectives.attention.AttentionMaps``.
        layers: of the maps, see there; of ``relation_heads`` a list of one pair, or ``uniform`` or ``final`` for the
            last layers; ``minilm`` reads the last.
        relation_heads: how many of them.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``attention``. Neither MiniLM has soft labels: both are distilled without
            labels, for fine-tuning afterwards (with both weights 0 the classifier stays as it was).

    Raises:
        UserError: an unknown loss, or a setting that it does not read.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "soft_label": SoftLabel, "attention": AttentionMaps}

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
        weights: Mapping[str, float] = {"label": 0.5, "soft_label": 0.5, "attention": 1.0},
        **wiring: Any,
    ) -> None:
        attention: Objective
        if loss not in ATTENTION_LOSSES:
            raise UserError(f"loss: {choices(loss, ATTENTION_LOSSES)}")
        maps = {"inputs": inputs, "heads": heads, "attention_temperature": attention_temperature}
        maps["convention"] = convention
        if loss == "minilm":
            instead = "loss=minilm is the attention and values of the last layers, as published"
            refuse_unused(AttentionDistiller, instead, layers=layers, relation_heads=relation_heads, **maps)
            attention = ValueRelation()
        elif loss == "relation_heads":
            refuse_unused(AttentionDistiller, "loss=relation_heads has relation_heads and layers alone", **maps)
            if isinstance(layers, str) and layers not in LAST:
                raise UserError(
                    f"layers={layers} has no effect: loss=relation_heads is of one layer, the last of both sides "
                    f"({' or '.join(LAST)}) or a pair [[student, teacher]]"
                )
            if not isinstance(layers, str) and len(layers) != 1:
                raise UserError(f"layers: relation_heads takes one pair [[student, teacher]], not {layers}")
            attention = RelationHeads(relation_heads, None if isinstance(layers, str) else layers[0])
        else:
            instead = f"loss={loss} compares maps head by head (heads); loss=relation_heads has it"
            refuse_unused(AttentionDistiller, instead, relation_heads=relation_heads)
            attention = AttentionMaps(loss, inputs, layers, heads, attention_temperature, convention)
        objectives = {"label": Label(label_smoothing), "soft_label": SoftLabel(temperature), "attention": attention}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
