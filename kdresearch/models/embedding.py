"""What the models that start from an embedding table share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdresearch.errors import UserError

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
