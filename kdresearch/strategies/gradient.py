"""Gradient distillation: what the answer depends on (Srinivas & Fleuret 2018; Czarnecki et al. 2017)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.objectives.gradient import Jacobian
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label, soft_label


class GradientDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.gradient · losses.jacobian.

    Args:
        distance: see ``objectives.gradient.Jacobian``.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``gradient``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(soft_label, 0.5),
        "gradient": Term(Jacobian, 1.0),
    }
