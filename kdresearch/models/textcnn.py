"""Convolutions over word vectors, and the strongest answer of each filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kdresearch.errors import UserError
from kdresearch.models.embedding import EmbeddingModel, uniform_table
from kdresearch.models.model import class_names
from kdresearch.structures import LOGITS, Outputs, Signature, Tokens, check_needs


class TextCNN(EmbeddingModel):
    """The single-channel network of Kim 2014, "Convolutional Neural Networks for Sentence Classification".

    Each filter looks at every window of k tokens that lies within the row, and only its highest answer counts
    (eq. 2-4), so padding changes nothing. A row of fewer than k tokens is one window, filled up with zeros.
    The width of ``pooled`` is channels x number of kernel sizes.

    It starts with embeddings from U(-.25, .25) and biases of zero, as in Kim's code (github.com/yoonkim/CNN_sentence).
    Filters and classifier are drawn from U(-1/√n, 1/√n) over n inputs (LeCun et al. 1998, §4.6). There Kim has
    U(-.01, .01) and zero, for Adadelta: under Adam those give a higher validation NLL, and a classifier of zero has
    no gradient with respect to the words, which objectives compare.

    Args:
        vocabulary: rows of the embedding table; id 0 is padding.
        classes: of the logits: how many, or their names.
        embedding_dim: E.
        channels: filters per kernel size.
        kernel_sizes: widths k of the windows, in tokens, each at least 1.
        dropout: probability, on the pooled vector (§2.1), and nowhere else.
        max_norm: L2 norm above which a class's weights are scaled back to it before a training step (§2.1; Kim has 3,
            over Adadelta); None lets them grow.

    Raises UserError without kernel sizes, or with one below 1, or with a max_norm of 0 or less.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int | Sequence[str],
        *,
        embedding_dim: int = 128,
        channels: int = 128,
        kernel_sizes: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
        max_norm: float | None = None,
    ) -> None:
        super().__init__()
        classes, names = class_names(classes)
        sizes = [int(size) for size in kernel_sizes]
        if not sizes or min(sizes) < 1:
            raise UserError(f"kernel_sizes is {sizes}; give one or more widths, each at least 1")
        if max_norm is not None and max_norm <= 0:
            raise UserError(f"max_norm must be above 0, or null for none, not {max_norm}")
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "classes": classes,
            "embedding_dim": embedding_dim,
            "channels": channels,
            "kernel_sizes": sizes,
            "dropout": dropout,
            "max_norm": max_norm,
        }
        self.kernel_sizes = sizes
        self.max_norm = max_norm
        self.signature = Signature(
            LOGITS | {"pooled", "embeddings"},
            width=channels * len(sizes),
            embedding_width=embedding_dim,
            vocabulary=vocabulary,
            classes=names,
            logits=classes,
            name=type(self).__name__,
        )
        self.embedding = uniform_table(vocabulary, embedding_dim, 0.25)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding_dim, channels, size) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.signature.width, classes)
        for part in (*self.convolutions, self.classifier):
            bound = part.weight[0].numel() ** -0.5
            nn.init.uniform_(part.weight, -bound, bound)
            nn.init.zeros_(part.bias)

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        """Read B rows of T tokens, padded on the right.

        Raises ValueError where ``needs`` names what the model does not provide.
        """
        check_needs(self, needs)
        if self.training and self.max_norm is not None:
            # By .data: a second forward of the same step changes nothing, and must not look as if it did.
            self.classifier.weight.data.renorm_(2, 0, self.max_norm)
        words = self.embed(tokens, needs)
        pooled = self._pool(words, tokens.mask)
        return Outputs(
            logits=self.classifier(self.dropout(pooled)) if "logits" in needs else None,
            pooled=pooled if "pooled" in needs else None,
            embeddings=words if "embeddings" in needs else None,
            mask=tokens.mask,
        )

    def _pool(self, words: Tensor, mask: Tensor) -> Tensor:
        """The highest answer of each filter, no lower than zero: [B, channels x number of kernel sizes]."""
        words = pad(words.transpose(1, 2), (0, max(self.kernel_sizes) - 1))  # so that the shortest row has a window
        length = mask.sum(1, keepdim=True)
        pooled = []
        for size, convolution in zip(self.kernel_sizes, self.convolutions, strict=True):
            answers = convolution(words)
            start = torch.arange(answers.shape[2], device=answers.device)
            outside = start >= (length - size + 1).clamp(min=1)  # [B, windows]
            pooled.append(answers.masked_fill(outside[:, None], -torch.inf).amax(2))
        return torch.cat(pooled, dim=1).relu()  # relu after max is max after relu, on far fewer numbers
