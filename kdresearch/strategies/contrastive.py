"""Contrastive distillation: a row's vector is nearer to the teacher's of the same row than to others (CRD)."""

from __future__ import annotations

from typing import ClassVar

from kdresearch.errors import UserError, choices
from kdresearch.objectives.contrastive import Contrastive, Crd
from kdresearch.objectives.settings import refuse_unused
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label, soft_label

CONVENTIONS = ("house", "published")


def contrast(
    contrastive_temperature: float = 0.07,
    convention: str = "house",
    negatives: str = "classes",
    queue: int = 0,
    in_batch: bool = True,
    memory: int | None = None,
    sampled: int = 16384,
    width: int = 128,
    momentum: float = 0.5,
) -> Contrastive | Crd:
    """The objective of a convention; UserError for an unknown one, and for a setting that it does not read."""
    if convention not in CONVENTIONS:
        raise UserError(f"convention: {choices(convention, CONVENTIONS)}")
    if convention == "house":
        reason = "convention=house contrasts with the batch and a queue (in_batch, queue); convention=published has it"
        refuse_unused(contrast, reason, memory=memory, sampled=sampled, width=width, momentum=momentum)
        return Contrastive(contrastive_temperature, queue, in_batch, negatives)
    reason = "convention=published contrasts with a memory of the data (memory, sampled); convention=house has it"
    refuse_unused(contrast, reason, queue=queue, in_batch=in_batch)
    if memory is None:
        raise UserError(
            "convention=published keeps a vector of each side for every training row: give memory, at least "
            "their number"
        )
    return Crd(memory, sampled, width, momentum, contrastive_temperature, negatives)


class ContrastiveDistiller(NamedDistiller):
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

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(soft_label, 0.5),
        "contrastive": Term(contrast, 0.1),
    }
