"""Feature distillation: hidden states or sentence vectors (FitNets, Romero et al. 2015; PKD, Sun et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.objectives.hidden import Feature
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label, soft_label


class FeatureDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.feature · losses.LOSS.

    Args:
        loss, layers, level, projection, shared_projection, embeddings, convention: see ``objectives.hidden.Feature``.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``feature``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(soft_label, 0.5),
        "feature": Term(Feature, 1.0),
    }
