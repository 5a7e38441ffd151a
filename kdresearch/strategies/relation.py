"""Relational distillation: how the vectors of a batch lie to each other (RKD, Park et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.relation import Pkt, RkdAngle, RkdDistance, SimilarityPreserving
from kdresearch.objectives.settings import refuse_unused
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label, soft_label
from kdresearch.structures import Model

CONVENTIONAL = ("rkd_distance", "rkd_angle", "pkt")


class RelationDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + Σ weights.RELATION · losses.RELATION.

    Args:
        convention: of the relations but ``similarity_preserving``, ``house`` or ``published``; see ``losses``.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label``, ``rkd_distance``, ``rkd_angle``, ``similarity_preserving`` and ``pkt``. Park
            et al. have the angle at twice the distance: 1 and 2 on classification, 25 and 50 in their code for metric
            learning.

    Raises:
        UserError: a convention of no relation that is weighted.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(soft_label, 0.5),
        "rkd_distance": Term(RkdDistance, 1.0),
        "rkd_angle": Term(RkdAngle, 2.0),
        "similarity_preserving": Term(SimilarityPreserving, 0.0),
        "pkt": Term(Pkt, 0.0),
    }

    def __init__(self, student: Model, *, weights: Mapping[str, float] | None = None, **settings: Any) -> None:
        if "convention" in settings and weights is not None and not any(weights.get(name) for name in CONVENTIONAL):
            reason = f"similarity_preserving has one form, and none of {', '.join(CONVENTIONAL)} is weighted"
            refuse_unused(RkdDistance, reason, convention=settings["convention"])
        super().__init__(student, weights=weights, **settings)
