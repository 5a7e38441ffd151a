"""The student alone: the control of every comparison, and the way teachers are trained."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class SupervisedDistiller(NamedDistiller):
    """Cross-entropy with the labels; no teacher.

    Args:
        label_smoothing: ε.
        weights: ``label``.
    """

    composition: ClassVar[Composition] = {"label": Term(label, 1.0)}
