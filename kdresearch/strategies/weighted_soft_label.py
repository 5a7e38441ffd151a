"""Weighted soft labels (Zhou et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.objectives.logits import WeightedSoftLabel
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class WeightedSoftLabelDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.weighted_soft_label · losses.weighted_soft_label.

    Args:
        temperature, convention: see ``losses.weighted_soft_label``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``weighted_soft_label``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 1.0),
        "weighted_soft_label": Term(WeightedSoftLabel, 2.5),
    }
