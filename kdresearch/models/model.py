"""The base of every model that reads text: what it offers beside its forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from kdresearch.errors import UserError
from kdresearch.structures import Batch, Signature


def class_names(classes: int | Sequence[str]) -> tuple[int, tuple[str, ...] | None]:
    """How many classes there are, and their names where they are given; UserError for fewer than one."""
    names = None if isinstance(classes, int) else tuple(map(str, classes))
    number = classes if isinstance(classes, int) else len(classes)
    if number < 1 or isinstance(classes, bool | str):
        raise UserError(f"classes must be their number or their names, not {classes!r}")
    return number, names


class TextModel(nn.Module):
    """An ``nn.Module`` with a ``signature`` and a ``config``; see ``structures.Model``.

    A subclass sets both in its constructor and writes ``forward(tokens, needs) -> Outputs``.
    """

    signature: Signature
    config: dict[str, Any]

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Nothing: a model that counts its features before it is trained does it here."""

    def load_vectors(self, vectors: Tensor, has_vector: Tensor) -> None:
        """Start from word vectors [V, E] in the rows of ``has_vector`` [V] bool.

        Raises:
            UserError: the model has no table of them.
        """
        raise UserError(f"student.tokenizer.vectors: {type(self).__name__} has no word embeddings to load them into")

    def look_at(self, inputs: Any) -> None:
        """Nothing: the constructor's arguments determine the signature."""
