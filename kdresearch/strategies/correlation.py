"""Correlation of predictions (DIST, Huang et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.objectives.logits import Correlation
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class CorrelationDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.correlation · losses.correlation.

    Args:
        temperature, inter_weight, intra_weight: see ``losses.correlation``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``correlation``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 1.0),
        "correlation": Term(Correlation, 1.0),
    }
