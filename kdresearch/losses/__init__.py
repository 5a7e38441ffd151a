"""Distillation losses: pure functions of tensors, float32 (float64 stays), gradient to the student only.

House convention: KL(teacher‖student), mean over the batch, temperature squared always on; token-level losses are means
over the tokens that are real on both sides, then over layers. ``convention=`` reproduces published code that differs.
"""

from kdresearch.losses.attention import attention_kl, attention_mse, relation_heads, value_relation
from kdresearch.losses.hidden import attention_transfer, cosine, fsp, gram, hidden_mse, jacobian, nst, patient, semantic
from kdresearch.losses.logits import (
    correlation,
    decoupled,
    logit_mse,
    pseudo_label,
    soft_label,
    standardised,
    total_variation,
    weighted_soft_label,
)
from kdresearch.losses.relation import (
    contrastive,
    noise_contrastive,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

__all__ = [
    "attention_kl",
    "attention_mse",
    "attention_transfer",
    "contrastive",
    "correlation",
    "cosine",
    "decoupled",
    "fsp",
    "gram",
    "hidden_mse",
    "jacobian",
    "logit_mse",
    "noise_contrastive",
    "nst",
    "patient",
    "pkt",
    "pseudo_label",
    "relation_heads",
    "rkd_angle",
    "rkd_distance",
    "semantic",
    "similarity_preserving",
    "soft_label",
    "standardised",
    "total_variation",
    "value_relation",
    "weighted_soft_label",
]
