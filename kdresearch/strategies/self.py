"""Born-again networks (Furlanello et al. 2018): a student of its own earlier generations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from kdresearch.errors import UserError
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label, soft_label
from kdresearch.structures import Model


class SelfDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s), the teacher being the generation before.

    Generation 0 is trained on labels, each later one from the one before it (their §3, eq. 3); all are of the
    student's own architecture and training, and differ by their initial weights. Their generations after the first
    learn from the teacher's outputs alone, at τ=1: ``weights={label: 0, soft_label: 1}``; and they also let all
    generations answer together (BANE), which here is ``teacher=ensemble`` of kept generations.

    Args:
        generations: how many come before this student, at least 1; they are trained before it, and kept.
        temperature: τ.
        label_smoothing: ε of the first term, and of generation 0.
        weights: ``label`` and ``soft_label``.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(partial(soft_label, temperature=1.0), 0.5),
    }

    def __init__(self, student: Model, *, generations: int = 2, **settings: Any) -> None:
        check_generations(generations)
        self.generations = generations
        super().__init__(student, **settings)

    @classmethod
    def generations_before(cls, settings: Mapping[str, Any]) -> int:
        """How many generations come before the student; UserError for settings that are no number of them."""
        default = inspect.signature(cls).parameters["generations"].default
        check_generations(generations := settings.get("generations", default))
        return int(generations)


def check_generations(generations: object) -> None:
    """Raise UserError unless it is a number of generations."""
    if not isinstance(generations, int) or isinstance(generations, bool) or generations < 1:
        raise UserError(f"strategy.generations must be at least 1 (0 is strategy=supervised), not {generations!r}")
