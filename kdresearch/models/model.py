"""The base of every model that reads text: what it offers beside its forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from kdresearch.errors import UserError
from kdresearch.structures import Batch, Signature


class TextModel(nn.Module):
    """An ``nn.Module`` with a ``signature`` and a ``config``; see ``structures.Model``.

    A subclass sets both in its constructor and writes ``forward(tokens, needs) -> Outputs``.
    """

    signature: Signature
    config: dict[str, Any]

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Nothing: a model that counts its features before it is trained does it here."""

    def load_vectors(self, vectors: Tensor, known: Tensor) -> None:
        """Start from word vectors [V, E] where ``known`` [V] bool says.

        Raises:
            UserError: the model has no table of them.
        """
        raise UserError(f"student.tokenizer.vectors: {type(self).__name__} has no word embeddings to load them into")
