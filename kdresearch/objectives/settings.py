"""Settings that a choice leaves without effect are refused: runs would differ by name alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from kdresearch.errors import UserError


def refuse_unused(made: Callable[..., Any], instead: str, **settings: Any) -> None:
    """Raise UserError for the first of ``settings`` that is not the default of ``made``'s signature.

    Args:
        made: the constructor whose arguments they are.
        instead: what reads none of them, and what would do.
    """
    parameters = inspect.signature(made).parameters
    for name, value in settings.items():
        if value != parameters[name].default:
            raise UserError(f"{name}={value} has no effect: {instead}")
