"""A bidirectional LSTM that reads the tokens and pools them into one vector."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdresearch.errors import UserError, choices
from kdresearch.models.differentiation import tracked, twice_differentiable
from kdresearch.models.embedding import PADDING, copy_vectors
from kdresearch.structures import LOGITS, Outputs, Tokens, check_needs

POOLINGS = ("attention", "max", "mean", "last")


class BiLSTM(nn.Module):
    """Embedding, ``layers`` bidirectional LSTMs, pooling over the real tokens, linear classifier.

    The recurrence is that of a packed ``nn.LSTM(bidirectional=True)``: the backward direction starts at each row's
    own last token. It runs as two unidirectional LSTMs, the second on reversed rows, because training on packed
    sequences takes O(T²) time on a CPU and cannot be exported.

    Shapes: ``width`` is 2·hidden_dim, of ``pooled`` and of every layer's states, but ``hidden[0]``, which is also
    ``embeddings``, is embedding_dim wide. Hidden states are those before dropout and are zero on padding; so is the
    attention.

    Args:
        vocabulary: rows of the embedding table; id 0 is padding.
        classes: width of the logits.
        embedding_dim: E.
        hidden_dim: H, units per direction.
        layers: bidirectional layers, at least one.
        dropout: probability, on the embeddings, between layers and on the pooled vector.
        pooling: ``attention`` (additive, one learned query: Yang et al. 2016, "Hierarchical Attention Networks",
            eq. 5-7), ``max`` or ``mean`` over the real tokens, or ``last``, the final state of either direction.

    Raises UserError on an unknown pooling or fewer than one layer.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        embedding_dim: int = 128,
        hidden_dim: int = 128,
        layers: int = 1,
        dropout: float = 0.3,
        pooling: str = "attention",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(f"pooling is {choices(pooling, POOLINGS)}")
        if layers < 1:
            raise UserError(f"layers is {layers}; a BiLSTM has at least 1")
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "classes": classes,
            "embedding_dim": embedding_dim,
            "hidden_dim": hidden_dim,
            "layers": layers,
            "dropout": dropout,
            "pooling": pooling,
        }
        self.pooling = pooling
        self.vocabulary = vocabulary
        self.width = 2 * hidden_dim
        self.depth = layers
        self.heads = int(pooling == "attention")
        self.embedding_width = embedding_dim
        self.provides = LOGITS | {"pooled", "hidden", "embeddings"} | ({"attention"} if self.heads else set())

        inputs = [embedding_dim] + [self.width] * (layers - 1)
        self.embedding = nn.Embedding(vocabulary, embedding_dim, padding_idx=PADDING)
        self.rightward = nn.ModuleList(nn.LSTM(size, hidden_dim, batch_first=True) for size in inputs)
        self.leftward = nn.ModuleList(nn.LSTM(size, hidden_dim, batch_first=True) for size in inputs)
        if self.heads:
            self.scorer = nn.Sequential(
                nn.Linear(self.width, self.width), nn.Tanh(), nn.Linear(self.width, 1, bias=False)
            )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.width, classes)

    def load_vectors(self, vectors: Tensor, known: Tensor) -> None:
        """Start from pre-trained word vectors [V, E] where ``known`` [V] bool says; UserError on other shapes."""
        copy_vectors(self.embedding, vectors, known)

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        """Read B rows of T tokens, padded on the right; a row without tokens pools to zero.

        Raises ValueError where ``needs`` names what the model does not provide.
        """
        check_needs(self, needs)
        mask = tokens.mask
        words = self.embedding(tokens.ids).masked_fill(~mask[..., None], 0.0)
        if "embeddings" in needs:
            words = tracked(words)
        with twice_differentiable() if "embeddings" in needs else nullcontext():
            hidden = self._read(words, mask)
        attention = self._attend(hidden[-1], mask) if needs - {"hidden", "embeddings"} and self.heads else None
        pooled = self._pool(hidden[-1], mask, attention) if needs & {"logits", "pooled"} else None
        return Outputs(
            logits=self.classifier(self.dropout(pooled)) if "logits" in needs else None,
            pooled=pooled if "pooled" in needs else None,
            hidden=hidden if "hidden" in needs else None,
            attention=(attention[:, None, None],) if "attention" in needs and attention is not None else None,
            embeddings=words if "embeddings" in needs else None,
            mask=mask,
        )

    def _read(self, words: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """The embeddings [B, T, E] and each layer's states [B, T, 2H], zero on padding."""
        padding = ~mask[..., None]
        step = torch.arange(mask.shape[1], device=mask.device)
        length = mask.sum(1, keepdim=True)
        mirror = torch.where(step < length, length - 1 - step, step)[..., None]  # its own inverse; padding stays put

        hidden = [words]
        for rightward, leftward in zip(self.rightward, self.leftward, strict=True):
            inputs = self.dropout(hidden[-1])
            right, _ = rightward(inputs)
            left, _ = leftward(inputs.gather(1, mirror.expand_as(inputs)))
            left = left.gather(1, mirror.expand_as(left))
            hidden.append(torch.cat((right, left), dim=2).masked_fill(padding, 0.0))
        return tuple(hidden)

    def _attend(self, states: Tensor, mask: Tensor) -> Tensor:
        """Weights [B, T] that sum to 1 over the real tokens."""
        scores: Tensor = self.scorer(states).squeeze(2)
        # The lowest finite value, not -inf, and zeros afterwards: a row without tokens must not become NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=1).masked_fill(~mask, 0.0)

    def _pool(self, states: Tensor, mask: Tensor, attention: Tensor | None) -> Tensor:
        """One vector [B, 2H] per row."""
        if attention is not None:
            return torch.einsum("bt,btd->bd", attention.to(states.dtype), states)
        length = mask.sum(1, keepdim=True).clamp(min=1)
        if self.pooling == "mean":
            return states.sum(1) / length
        if self.pooling == "max":
            # Padding is below every state; the row without tokens falls back on its zeros.
            real = mask | ~mask.any(1, keepdim=True)
            return states.masked_fill(~real[..., None], -torch.inf).amax(1)
        right, left = states.chunk(2, dim=2)
        final = (length - 1)[..., None].expand(-1, -1, right.shape[2])
        return torch.cat((right.gather(1, final).squeeze(1), left[:, 0]), dim=1)
