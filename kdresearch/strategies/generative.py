"""Distillation on pseudo-samples (He et al. 2022, "Generate, Annotate, and Learn")."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from kdresearch.errors import UserError
from kdresearch.objectives.generative import LabelledSoftLabel, PseudoSample
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label
from kdresearch.structures import Model


def _labelled_soft_label(temperature: float = 2.0) -> LabelledSoftLabel:
    return LabelledSoftLabel(temperature)


class GenerativeDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.generative · CE(p_t, p_s).

    The first two are means over the labelled rows of a batch, the third is one over those without a label: the
    pseudo-samples, and unlabelled rows where they are trained on. Each batch has its share of both.

    Args:
        temperature: τ of the soft labels, of real rows and of pseudo-samples; see ``losses.pseudo_label``.
        hard: the pseudo-samples' labels are the teacher's class instead of its probabilities.
        labelled_share: of an epoch's rows, at least: labelled ones are repeated where there are more of the others, so
            that no batch is without them. ``data.transfer_share`` goes before it.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``generative``.

    Raises:
        UserError: a share outside [0, 1).
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(_labelled_soft_label, 0.5),
        "generative": Term(partial(PseudoSample, temperature=2.0), 1.0),
    }

    def __init__(self, student: Model, *, labelled_share: float = 0.5, **settings: Any) -> None:
        if not 0 <= labelled_share < 1:
            raise UserError(f"strategy.labelled_share must lie in [0, 1), not {labelled_share}")
        self.labelled_share = labelled_share
        super().__init__(student, **settings)
