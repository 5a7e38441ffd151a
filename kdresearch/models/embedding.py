"""What the models that start from an embedding table share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdresearch.errors import UserError
from kdresearch.models.differentiation import tracked
from kdresearch.models.model import TextModel
from kdresearch.structures import Tokens

PADDING = 0
"""The id of padding; its embedding is zero and is never trained."""


def uniform_table(vocabulary: int, width: int, bound: float) -> nn.Embedding:
    """A table [V, E] drawn from U(-bound, bound), of standard deviation bound / √3; the row of padding is zero."""
    table = nn.Embedding(vocabulary, width, padding_idx=PADDING)
    nn.init.uniform_(table.weight, -bound, bound)
    nn.init.zeros_(table.weight[PADDING])
    return table


@torch.no_grad()
def copy_vectors(embedding: nn.Embedding, vectors: Tensor, has_vector: Tensor) -> None:
    """Copy pre-trained word vectors into a table [V, E], for the words that have one; padding stays zero.

    Args:
        vectors: [V, E] floats, read where ``has_vector`` [V] bool is true.

    Raises:
        UserError: shapes that do not fit the table, or ``has_vector`` is not bool.
    """
    table = embedding.weight
    if vectors.shape != table.shape:
        raise UserError(f"vectors of shape {list(vectors.shape)} do not fit an embedding of {list(table.shape)}")
    if has_vector.shape != table.shape[:1] or has_vector.dtype != torch.bool:
        mask = f"{has_vector.dtype} {list(has_vector.shape)}"
        raise UserError(f"has_vector is {mask}; it must be torch.bool {list(table.shape[:1])}")
    rows = has_vector.clone()
    rows[PADDING] = False
    table[rows.to(table.device)] = vectors[rows.to(vectors.device)].to(table)


class EmbeddingModel(TextModel):
    """A model whose first layer is a table of word vectors, ``embedding`` [V, E]; a subclass makes it."""

    embedding: nn.Embedding

    def load_vectors(self, vectors: Tensor, has_vector: Tensor) -> None:
        """Start from word vectors [V, E] in the rows of ``has_vector`` [V] bool; UserError on other shapes."""
        copy_vectors(self.embedding, vectors, has_vector)

    def embed(self, tokens: Tokens, needs: frozenset[str]) -> Tensor:
        """Embeddings [B, T, E], zero on padding; with a gradient of their own where ``needs`` has ``embeddings``."""
        words: Tensor = self.embedding(tokens.ids).masked_fill(~tokens.mask[..., None], 0.0)
        return tracked(words) if "embeddings" in needs else words
