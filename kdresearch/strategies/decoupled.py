"""Decoupled distillation (DKD, Zhao et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.objectives.logits import Decoupled
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label


class DecoupledDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.decoupled · losses.decoupled.

    Zhao et al. have ``nontarget_weight`` 8 on CIFAR-100 and ½ on ImageNet, by how far the teacher's class stands out.
    With 8 a TextCNN lost 5 points on TREC (4 with their warm-up) and 7 on BANKING77: 1 is the default.

    Args:
        temperature, target_weight, nontarget_weight: see ``losses.decoupled``.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``decoupled``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 1.0),
        "decoupled": Term(Decoupled, 1.0),
    }
