"""Soft-label distillation (Hinton et al. 2015)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from kdresearch.objectives.logits import SoftLabel
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class SoftLabelDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s); rows without a label learn from the second.

    Args:
        temperature, divergence, beta, convention: see ``losses.soft_label``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``soft_label``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(partial(SoftLabel, temperature=2.0), 0.5),
    }
