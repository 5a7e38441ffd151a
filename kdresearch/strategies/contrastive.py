"""Contrastive distillation: a row's vector is nearer to the teacher's of the same row than to others (CRD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.objectives.relation import Contrastive
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import Model


class ContrastiveDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.contrastive · InfoNCE.

    After Tian et al. 2020; what differs is told at ``objectives.relation.Contrastive``.

    Args:
        contrastive_temperature: τ of the similarities.
        queue, in_batch: see ``objectives.relation.Contrastive``.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``contrastive``.
    """

    def __init__(
        self,
        student: Model,
        *,
        contrastive_temperature: float = 0.07,
        queue: int = 0,
        in_batch: bool = True,
        temperature: float = 2.0,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float],
        **wiring: Any,
    ) -> None:
        objectives = {
            "label": Label(label_smoothing),
            "soft_label": SoftLabel(temperature),
            "contrastive": Contrastive(contrastive_temperature, queue, in_batch),
        }
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
