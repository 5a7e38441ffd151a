"""Relational distillation: how the vectors of a batch lie to each other (RKD, Park et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.objectives.relation import Pkt, RkdAngle, RkdDistance, SimilarityPreserving
from kdresearch.objectives.settings import refuse_unused
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model

CONVENTIONAL = ("rkd_distance", "rkd_angle", "pkt")


class RelationDistiller(Distiller):
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

    kinds: ClassVar[Kinds] = {
        "label": Label,
        "soft_label": SoftLabel,
        "rkd_distance": RkdDistance,
        "rkd_angle": RkdAngle,
        "similarity_preserving": SimilarityPreserving,
        "pkt": Pkt,
    }

    def __init__(
        self,
        student: Model,
        *,
        convention: str = "house",
        temperature: float = 2.0,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {
            "label": 0.5,
            "soft_label": 0.5,
            "rkd_distance": 1.0,
            "rkd_angle": 2.0,
            "similarity_preserving": 0.0,
            "pkt": 0.0,
        },
        **wiring: Any,
    ) -> None:
        if not any(weights.get(name) for name in CONVENTIONAL):
            instead = f"similarity_preserving has one form, and none of {', '.join(CONVENTIONAL)} is weighted"
            refuse_unused(RelationDistiller, instead, convention=convention)
        objectives = {
            "label": Label(label_smoothing),
            "soft_label": SoftLabel(temperature),
            "rkd_distance": RkdDistance(convention),
            "rkd_angle": RkdAngle(convention),
            "similarity_preserving": SimilarityPreserving(),
            "pkt": Pkt(convention),
        }
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
