"""Any objectives with weights, by configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdresearch.errors import UserError
from kdresearch.objectives.objective import Objective
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import Model


class CombinedDistiller(Distiller):
    """Σ weights.NAME · objectives.NAME.

    Args:
        objectives: by names of your choosing, which are the weights' names and the log keys.
        weights: one for each.

    Raises:
        UserError: something among the objectives that is none.
    """

    def __init__(
        self, student: Model, *, objectives: Mapping[str, Objective], weights: Mapping[str, float], **wiring: Any
    ) -> None:
        for name, objective in objectives.items():
            if not isinstance(objective, Objective):
                raise UserError(
                    f"strategy.objectives.{name} must be an objective with its _target_ (kdresearch.objectives...), "
                    f"not {objective!r}"
                )
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
