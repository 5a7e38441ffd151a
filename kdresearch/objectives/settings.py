"""Settings that a choice leaves without effect are refused: runs would differ by name alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from kdresearch.errors import UserError


def refuse_unused(constructor: Callable[..., Any], reason: str, **settings: Any) -> None:
    """Raise UserError for the first of ``settings`` that is not the default of ``constructor``'s signature.

    Args:
        constructor: the class or function whose arguments they are.
        reason: what reads none of them, and what would.
    """
    parameters = inspect.signature(constructor).parameters
    for name, value in settings.items():
        if value != parameters[name].default:
            raise UserError(f"{name}={value} has no effect: {reason}")
