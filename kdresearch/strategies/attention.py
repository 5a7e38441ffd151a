"""Attention distillation: maps (TinyBERT, Jiao et al. 2020) or relations (MiniLM, Wang et al. 2020, 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from kdresearch.errors import UserError, choices
from kdresearch.objectives.attention import MAP_LOSSES, AttentionMaps, RelationHeads, ValueRelation
from kdresearch.objectives.layers import LayerMap
from kdresearch.objectives.settings import refuse_unused
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label, soft_label

ATTENTION_LOSSES = (*MAP_LOSSES, "minilm", "relation_heads")
LAST = ("uniform", "final")  # maps that say no more than that of the last layer


def attention(
    loss: str = "attention_kl",
    inputs: str = "probabilities",
    layers: LayerMap = "uniform",
    heads: str = "auto",
    attention_temperature: float = 1.0,
    convention: str = "house",
    relation_heads: int = 4,
) -> AttentionMaps | ValueRelation | RelationHeads:
    """The objective of a loss; UserError for an unknown one, and for a setting that it does not read."""
    if loss not in ATTENTION_LOSSES:
        raise UserError(f"loss: {choices(loss, ATTENTION_LOSSES)}")
    of_maps: dict[str, Any] = {"inputs": inputs, "heads": heads, "attention_temperature": attention_temperature}
    of_maps["convention"] = convention
    if loss == "minilm":
        reason = "loss=minilm is the attention and values of the last layers, as published"
        refuse_unused(attention, reason, layers=layers, relation_heads=relation_heads, **of_maps)
        return ValueRelation()
    if loss == "relation_heads":
        refuse_unused(attention, "loss=relation_heads has relation_heads and layers alone", **of_maps)
        return RelationHeads(relation_heads, _one_pair(layers))
    reason = f"loss={loss} compares maps head by head (heads); loss=relation_heads has it"
    refuse_unused(attention, reason, relation_heads=relation_heads)
    return AttentionMaps(loss, inputs, layers, heads, attention_temperature, convention)


def _one_pair(layers: LayerMap) -> Sequence[int] | None:
    """The pair of layers whose relations are compared; None the last of both sides."""
    if isinstance(layers, str):
        if layers not in LAST:
            raise UserError(
                f"layers={layers} has no effect: loss=relation_heads is of one layer, the last of both sides "
                f"({' or '.join(LAST)}) or a pair [[student, teacher]]"
            )
        return None
    if len(layers) != 1:
        raise UserError(f"layers: relation_heads takes one pair [[student, teacher]], not {layers}")
    return layers[0]


class AttentionDistiller(NamedDistiller):
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

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(soft_label, 0.5),
        "attention": Term(attention, 1.0),
    }
