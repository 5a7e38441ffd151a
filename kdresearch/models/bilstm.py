"""A bidirectional LSTM that reads the tokens and pools them into one vector."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdresearch.errors import UserError, choices
from kdresearch.models.differentiation import twice_differentiable
from kdresearch.models.embedding import EmbeddingModel, uniform_table
from kdresearch.models.model import class_names
from kdresearch.structures import LOGITS, Outputs, Signature, Tokens, check_needs

POOLINGS = ("attention", "max", "mean", "last")


class BiLSTM(EmbeddingModel):
    """Embedding, ``layers`` bidirectional LSTMs, pooling over the real tokens, linear classifier.

    The recurrence is that of a packed ``nn.LSTM(bidirectional=True)``: the backward direction starts at each row's
    own last token. It runs as two unidirectional LSTMs, the second on reversed rows, because training on packed
    sequences takes O(T²) time on a CPU and cannot be exported.

    Shapes: the signature's width is 2·hidden_dim, of ``pooled`` and of every layer's states, but ``hidden[0]``, which
    is also ``embeddings``, is embedding_dim wide. Hidden states are those before dropout and are zero on padding; so is
    the attention.

    It starts with embeddings from U(-.25, .25) as TextCNN's (Kim 2014), recurrent weights that are orthogonal in each
    gate (Saxe et al. 2014), input weights after Glorot & Bengio 2010 in each gate, and forget gates open by a bias of
    1 (Jozefowicz et al. 2015, §3.2), zero elsewhere; attention and classifier after Glorot & Bengio, biases zero.

    Args:
        vocabulary: rows of the embedding table; id 0 is padding.
        classes: of the logits: how many, or their names.
        embedding_dim: E.
        hidden_dim: H, units per direction.
        layers: bidirectional layers, at least one.
        dropout: probability, between layers and on the pooled vector.
        embedding_dropout: probability that a dimension of the embeddings is dropped, the same ones at every token of
            a row (Gal & Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural
            Networks", §4); None is ``dropout``.
        word_dropout: probability that a token's embedding is dropped as a whole (Iyyer et al. 2015, "Deep Unordered
            Composition", §2.3; of the tokens left, nothing is scaled up).
        pooling: ``attention`` (additive, one learned query: Yang et al. 2016, "Hierarchical Attention Networks",
            eq. 5-7), ``max`` or ``mean`` over the real tokens, or ``last``, the final state of either direction.

    Raises UserError on an unknown pooling, fewer than one layer, or a word_dropout that is no probability.
    """

    EMBEDDING_BOUND = 0.25

    def __init__(
        self,
        vocabulary: int,
        classes: int | Sequence[str],
        *,
        embedding_dim: int = 128,
        hidden_dim: int = 128,
        layers: int = 1,
        dropout: float = 0.5,
        embedding_dropout: float | None = None,
        word_dropout: float = 0.0,
        pooling: str = "attention",
    ) -> None:
        super().__init__()
        classes, names = class_names(classes)
        if pooling not in POOLINGS:
            raise UserError(f"pooling is {choices(pooling, POOLINGS)}")
        if layers < 1:
            raise UserError(f"layers is {layers}; a BiLSTM has at least 1")
        if not 0 <= word_dropout < 1:
            raise UserError(f"word_dropout is a probability of at least 0 and below 1, not {word_dropout}")
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "classes": classes,
            "embedding_dim": embedding_dim,
            "hidden_dim": hidden_dim,
            "layers": layers,
            "dropout": dropout,
            "embedding_dropout": embedding_dropout,
            "word_dropout": word_dropout,
            "pooling": pooling,
        }
        self.pooling = pooling
        self.signature = self._sign(names)
        width = self.signature.width
        inputs = [embedding_dim] + [width] * (layers - 1)
        self.embedding = uniform_table(vocabulary, embedding_dim, self.EMBEDDING_BOUND)
        self.rightward = nn.ModuleList(nn.LSTM(size, hidden_dim, batch_first=True) for size in inputs)
        self.leftward = nn.ModuleList(nn.LSTM(size, hidden_dim, batch_first=True) for size in inputs)
        if self._attends:
            self.scorer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))
        self.dropout = nn.Dropout(dropout)
        locked = dropout if embedding_dropout is None else embedding_dropout
        self.embedding_dropout, self.word_dropout = nn.Dropout(locked), word_dropout
        self.classifier = nn.Linear(width, classes)
        self._start()

    @property
    def _attends(self) -> bool:
        return self.pooling == "attention"

    def _sign(self, names: tuple[str, ...] | None) -> Signature:
        return Signature(
            LOGITS | {"pooled", "hidden", "embeddings"} | ({"attention"} if self._attends else set()),
            width=2 * self.config["hidden_dim"],
            depth=self.config["layers"],
            heads=int(self._attends),
            embedding_width=self.config["embedding_dim"],
            vocabulary=self.config["vocabulary"],
            classes=names,
            logits=self.config["classes"],
            name=type(self).__name__,
        )

    @torch.no_grad()
    def _start(self) -> None:
        for lstm in (*self.rightward, *self.leftward):
            for gate in range(4):  # input, forget, cell, output
                rows = slice(gate * lstm.hidden_size, (gate + 1) * lstm.hidden_size)
                nn.init.xavier_uniform_(lstm.weight_ih_l0[rows])
                nn.init.orthogonal_(lstm.weight_hh_l0[rows])
            nn.init.zeros_(lstm.bias_ih_l0)
            nn.init.zeros_(lstm.bias_hh_l0)
            lstm.bias_ih_l0[lstm.hidden_size : 2 * lstm.hidden_size] = 1.0  # of two that are added up
        for part in (self.classifier, *(self.scorer if self._attends else ())):
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        """Read B rows of T tokens, padded on the right; a row without tokens pools to zero.

        Raises ValueError where ``needs`` names what the model does not provide.
        """
        check_needs(self, needs)
        mask = tokens.mask
        words = self.embed(tokens, needs)
        with twice_differentiable() if "embeddings" in needs else nullcontext():
            hidden = self._read(words, mask)
        attention = self._attend(hidden[-1], mask) if needs - {"hidden", "embeddings"} and self._attends else None
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
            inputs = self.dropout(hidden[-1]) if len(hidden) > 1 else self._drop(words)
            rightward_states, _ = rightward(inputs)
            leftward_states, _ = leftward(inputs.gather(1, mirror.expand_as(inputs)))
            leftward_states = leftward_states.gather(1, mirror.expand_as(leftward_states))
            hidden.append(torch.cat((rightward_states, leftward_states), dim=2).masked_fill(padding, 0.0))
        return tuple(hidden)

    def _drop(self, words: Tensor) -> Tensor:
        """Embeddings [B, T, E] as training sees them."""
        if not self.training:
            return words
        words = words * self.embedding_dropout(words.new_ones(len(words), 1, words.shape[2]))
        if self.word_dropout > 0:
            words = words * (torch.rand_like(words[..., :1]) >= self.word_dropout)
        return words

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
            # Padding is below every state; a row without tokens keeps its zeros.
            real = mask | ~mask.any(1, keepdim=True)
            return states.masked_fill(~real[..., None], -torch.inf).amax(1)
        rightward_states, leftward_states = states.chunk(2, dim=2)
        final = (length - 1)[..., None].expand(-1, -1, rightward_states.shape[2])
        return torch.cat((rightward_states.gather(1, final).squeeze(1), leftward_states[:, 0]), dim=1)
