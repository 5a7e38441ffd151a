"""Class scores and layers in one weighted sum."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from kdresearch.objectives.hidden import Semantic
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class SemanticDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.semantic · (w·KL + (1−w)·mean layer MSE).

    Args:
        weight: w, of the KL term against the layers.
        temperature, divergence, convention: see ``losses.semantic``.
        layers, level, projection, shared_projection, embeddings: see ``objectives.hidden.StatePairs``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``semantic``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "semantic": Term(partial(Semantic, temperature=2.0), 0.5),
    }
