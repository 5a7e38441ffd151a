"""Logit standardisation (Sun et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.objectives.logits import Standardised
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class StandardisedDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.standardised · losses.standardised.

    Args:
        temperature, convention: see ``losses.standardised``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``standardised``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "standardised": Term(Standardised, 0.5),
    }
