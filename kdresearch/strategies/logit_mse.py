"""Logit regression (Ba & Caruana 2014; Tang et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.objectives.logits import LogitMse
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class LogitMseDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.logit_mse · mean (z_s − z_t)².

    Args:
        temperature, convention: see ``losses.logit_mse``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``logit_mse``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "logit_mse": Term(LogitMse, 0.5),
    }
