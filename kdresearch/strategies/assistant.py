"""Distillation by way of assistants (TAKD, Mirzadeh et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from kdresearch.errors import UserError
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label, soft_label
from kdresearch.structures import Model


class AssistantDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s), the teacher being the last assistant.

    The first assistant learns from the configured teacher, each later one from the one before it (their §3 and
    fig. 2), by this same objective unless its recipe says anything of its strategy. Theirs is (1−λ)·CE + λ·τ²·KL
    (eq. 3) with λ and τ searched for each pair, and their code averages KL over rows and classes (``convention=mean``
    of ``strategy=soft_label``); assistants here have one λ, the weights, and one τ.

    Args:
        assistants: recipes, at least one, from the teacher's side to the student's; each a list of overrides. They
            are trained before this student, and kept.
        temperature: τ.
        label_smoothing: ε of the first term.
        weights: ``label`` and ``soft_label``.
    """

    composition: ClassVar[Composition] = {"label": Term(label, 0.5), "soft_label": Term(soft_label, 0.5)}

    def __init__(self, student: Model, *, assistants: Sequence[Sequence[str]], **settings: Any) -> None:
        check_assistants(assistants)
        self.assistants = [list(recipe) for recipe in assistants]
        super().__init__(student, **settings)

    @classmethod
    def assistants_between(cls, settings: Mapping[str, Any]) -> list[list[str]]:
        """The recipes of the assistants; UserError for settings that are no list of recipes."""
        check_assistants(recipes := settings.get("assistants", ()))
        return [list(recipe) for recipe in recipes]


def check_assistants(assistants: object) -> None:
    """Raise UserError unless it is a list of recipes."""
    if not isinstance(assistants, list | tuple) or not assistants:
        raise UserError(
            f"strategy.assistants needs at least one recipe, e.g. [['student=textcnn']], not {assistants!r}"
        )
    for recipe in assistants:
        if not isinstance(recipe, list | tuple):
            raise UserError(
                f"strategy.assistants: each is a list of overrides, e.g. ['student=textcnn'], not {recipe!r}"
            )
