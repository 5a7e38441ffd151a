"""Named strategies: the objectives, settings and default weights of one are written once, in its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, NamedTuple

from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.objectives.objective import Objective
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import Model


class Term(NamedTuple):
    """An objective of a named strategy.

    Attributes:
        make: its class, or what makes one: a function, or a ``functools.partial`` with other defaults. Its arguments,
            but ``member``, are settings of the strategy.
        weight: by default.
    """

    make: Callable[..., Objective]
    weight: float

    @property
    def settings(self) -> dict[str, Parameter]:
        """The arguments of ``make`` that the strategy takes, by name."""
        parameters = signature(self.make).parameters
        return {name: parameter for name, parameter in parameters.items() if name != "member"}


Composition = Mapping[str, Term]
"""The terms of a strategy, by name."""


def label(label_smoothing: float = 0.0) -> Label:
    """Cross-entropy with the gold labels, under the name that strategies give its ε."""
    return Label(label_smoothing)


def soft_label(temperature: float = 2.0) -> SoftLabel:
    """Soft labels beside another term, of which a strategy sets τ alone."""
    return SoftLabel(temperature)


class NamedDistiller(Distiller):
    """A strategy whose objectives are those of its class.

    Its signature is made of theirs: ``student``, the keyword arguments of its own ``__init__``, those of every term,
    ``weights``, and what ``Distiller`` takes. A setting that two terms share has one value.

    Args:
        student: the model that is trained.
        weights: one number for each term, by name; None takes the terms' own.
        settings: of the terms, and what ``Distiller`` takes.

    Raises:
        UserError: what the objectives and ``Distiller`` refuse.
        TypeError: a setting that neither a term nor ``Distiller`` takes.
    """

    composition: ClassVar[Composition] = {}
    __signature__: ClassVar[Signature]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.__signature__ = _signature(cls)

    def __init__(self, student: Model, *, weights: Mapping[str, float] | None = None, **settings: Any) -> None:
        objectives = {
            name: term.make(**{key: settings[key] for key in term.settings if key in settings})
            for name, term in self.composition.items()
        }
        of_terms = {key for term in self.composition.values() for key in term.settings}
        wiring = {key: value for key, value in settings.items() if key not in of_terms}
        weights = self.default_weights() if weights is None else weights
        super().__init__(student, objectives=objectives, weights=weights, **wiring)

    @classmethod
    def default_weights(cls) -> dict[str, float]:
        """The weight of every term, by name, where none is set."""
        return {name: term.weight for name, term in cls.composition.items()}

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:
        """See ``Distiller``; what a term learns from does not depend on its settings."""
        return super().needs_teacher(
            {**settings, "objectives": {name: term.make() for name, term in cls.composition.items()}}
        )


def _signature(strategy: type[NamedDistiller]) -> Signature:
    """``student``, then the settings of the constructors and of the terms, ``weights``, and ``**wiring``."""
    settings: dict[str, Parameter] = {}
    for base in reversed(strategy.__mro__):
        if issubclass(base, NamedDistiller) and "__init__" in vars(base):
            parameters = signature(base.__init__).parameters
            settings |= {name: value for name, value in parameters.items() if value.kind is Parameter.KEYWORD_ONLY}
    weights = settings.pop("weights").replace(default=strategy.default_weights(), annotation="Mapping[str, float]")
    for term in strategy.composition.values():
        for name, parameter in term.settings.items():
            settings.setdefault(name, parameter.replace(kind=Parameter.KEYWORD_ONLY))
    return Signature(
        [
            Parameter("student", Parameter.POSITIONAL_OR_KEYWORD, annotation="Model"),
            *settings.values(),
            weights,
            Parameter("wiring", Parameter.VAR_KEYWORD, annotation="Any"),
        ]
    )
