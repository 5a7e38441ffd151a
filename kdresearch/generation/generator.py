"""What makes pseudo-samples: texts for the teacher to label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kdresearch.errors import UserError


@dataclass(frozen=True)
class Preparation:
    """What a generator may learn from, and where it works.

    Args:
        texts: N texts, of training and unlabelled rows.
        labels: [N] int64 into ``classes``, UNLABELLED (-1) where there is none.
        folder: None where ``preparation_key`` is. Else empty the first time; what a killed preparation (the training
            of a language model) leaves in it is there at the next call; that of a finished one becomes an artifact,
            which a later call reads and does not change. It moves after ``prepare``.
        device: where models run.
        say: called with messages of progress.
    """

    texts: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    folder: Path | None = None
    device: str = "cpu"
    say: Callable[[str], None] = lambda _: None


class Generator(Protocol):
    """Makes texts: a pure function of its settings, of what it was prepared with, and of a chunk's seed and place."""

    def key(self) -> dict[str, Any]:
        """Settings, JSON-able, with the digest of every model or file that is read: part of the artifact's key."""
        ...

    def preparation_key(self) -> dict[str, Any] | None:
        """The settings that the content of ``prepare``'s folder depends on; None where it leaves nothing there."""
        ...

    def prepare(self, preparation: Preparation) -> None:
        """Learn what is needed from the rows that may be learned from; called once, before ``generate``."""
        ...

    def generate(self, number: int, seed: int, start: int) -> list[str]:
        """One chunk, a pure function of the three arguments.

        Args:
            number: texts to make; fewer say that the source is exhausted.
            seed: of this chunk alone, an integer of 32 bits.
            start: the number of texts in the chunks before, for those that go through a source in order.
        """
        ...


def check_least(settings: object, **least: float) -> None:
    """Raise UserError for a setting of a generator that is below its least value; None passes.

    Args:
        settings: has an attribute of each name.
        least: the least value by name.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise UserError(f"generator.{name} must be at least {bound}, not {value}")
