"""The exceptions that mean: the user can mend this, and the message says how."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what was asked for. The command line prints the message without a traceback."""


class Diverged(UserError):
    """A training whose numbers are no longer finite: a result of its settings, where others may do better."""


def choices(offending: object, allowed: Iterable[object]) -> str:
    """Say which values are allowed, the nearest first: ``'bilstn' (did you mean 'bilstm'?); one of: ...``."""
    names = [str(name) for name in allowed]
    alike = [name for name in names if name.lower() == str(offending).lower()]
    near = alike or difflib.get_close_matches(str(offending), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{offending!r}{hint}; one of: {', '.join(names)}"
