"""Contrastive distillation: a row's vector is nearer to the teacher's of the same row than to others (CRD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdresearch.errors import UserError, choices
from kdresearch.objectives.contrastive import Contrastive, Crd
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.settings import refuse_unused
from kdresearch.strategies.distiller import Distiller, Kinds
from kdresearch.structures import Model

CONVENTIONS = ("house", "published")


class ContrastiveDistiller(Distiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.contrastive · the contrast.

    Args:
        contrastive_temperature: τ of the similarities.
        convention: ``house`` is InfoNCE (``objectives.contrastive.Contrastive``); ``published`` is CRD's NCE against a
            memory of the data (``Crd``; Tian et al. 2020, whose weights are 1 for labels, 0.8 for the contrast, and 1
            for soft labels where they are added).
        negatives: of either, see there.
        queue, in_batch: of ``house``, see there.
        memory, sampled, width, momentum: of ``published``, see there; ``memory`` must be given.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``contrastive``.

    Raises:
        UserError: an unknown convention, a setting of the other one, no memory for the published one.
    """

    kinds: ClassVar[Kinds] = {"label": Label, "soft_label": SoftLabel, "contrastive": Contrastive}

    def __init__(
        self,
        student: Model,
        *,
        contrastive_temperature: float = 0.07,
        convention: str = "house",
        negatives: str = "classes",
        queue: int = 0,
        in_batch: bool = True,
        memory: int | None = None,
        sampled: int = 16384,
        width: int = 128,
        momentum: float = 0.5,
        temperature: float = 2.0,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] = {"label": 0.5, "soft_label": 0.5, "contrastive": 0.1},
        **wiring: Any,
    ) -> None:
        if convention not in CONVENTIONS:
            raise UserError(f"convention: {choices(convention, CONVENTIONS)}")
        contrast: Objective
        if convention == "house":
            instead = "convention=house contrasts with the batch and a queue (in_batch, queue); convention=published"
            settings = {"memory": memory, "sampled": sampled, "width": width, "momentum": momentum}
            refuse_unused(ContrastiveDistiller, f"{instead} has it", **settings)
            contrast = Contrastive(contrastive_temperature, queue, in_batch, negatives)
        else:
            instead = "convention=published contrasts with a memory of the data (memory, sampled); convention=house"
            refuse_unused(ContrastiveDistiller, f"{instead} has it", queue=queue, in_batch=in_batch)
            if memory is None:
                raise UserError(
                    "convention=published keeps a vector of each side for every training row: give memory, at least "
                    "their number"
                )
            contrast = Crd(memory, sampled, width, momentum, contrastive_temperature, negatives)
        objectives = {"label": Label(label_smoothing), "soft_label": SoftLabel(temperature), "contrastive": contrast}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
