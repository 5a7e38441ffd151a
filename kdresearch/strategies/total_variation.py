"""Total variation distillation (Wen et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.objectives.logits import TotalVariation
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class TotalVariationDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.total_variation · ½·Σ|p_t − p_s|; unlabelled rows learn from the second.

    Args:
        label_smoothing: ε of the first term.
        weights: ``label`` and ``total_variation``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "total_variation": Term(TotalVariation, 0.5),
    }
