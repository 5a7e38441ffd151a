"""Bags of n-grams: the linear floor of every table, and its embedding-bag cousin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdresearch.errors import UserError, choices
from kdresearch.structures import LOGITS, Batch, Outputs, Tokens, check_needs

WEIGHTINGS = ("nb", "none")


class NgramLinear(nn.Module):
    """Logistic regression on binary n-gram features, weighted by their log-count ratios (Wang & Manning 2012, eq. 2).

    z_c = b_c + Σ_i r_ic w_ic over the features i of the text, r the naive Bayes log-count ratio of class c against
    the rest. Two classes share one column of weights, as in binary logistic regression.

    Args:
        vocabulary: V, the padding id 0 included.
        classes: C.
        weighting: ``nb``, or ``none`` for plain features.
        smoothing: α added to the counts.
    """

    provides = LOGITS
    width = depth = heads = embedding_width = 0

    def __init__(self, vocabulary: int, classes: int, *, weighting: str = "nb", smoothing: float = 1.0) -> None:
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise UserError(f"student.model.weighting: {choices(weighting, WEIGHTINGS)}")
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "classes": classes,
            "weighting": weighting,
            "smoothing": smoothing,
        }
        self.vocabulary, self.classes, self.weighting, self.smoothing = vocabulary, classes, weighting, smoothing
        columns = 1 if classes == 2 else classes
        self.weight = nn.Embedding(vocabulary, columns, padding_idx=0)
        nn.init.zeros_(self.weight.weight)
        self.bias = nn.Parameter(torch.zeros(columns))
        self.ratio: Tensor
        self.register_buffer("ratio", torch.ones(vocabulary, columns))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Count the n-grams of each class in the labelled training rows."""
        if self.weighting == "none":
            return
        counts = torch.zeros(self.weight.num_embeddings, self.classes, dtype=torch.float64)
        for batch in batches:
            label = batch.label.unsqueeze(1).expand_as(batch.student.ids)
            kept = batch.student.mask & (label >= 0)
            place = batch.student.ids[kept] * self.classes + label[kept]
            counts += torch.bincount(place, minlength=counts.numel()).view_as(counts)
        self.ratio.copy_(log_count_ratio(counts, self.smoothing))

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        check_needs(self, needs)
        weight = self.weight.weight * self.ratio
        score = F.embedding_bag(tokens.ids, weight, mode="sum", padding_idx=0) + self.bias
        if self.classes == 2:
            score = torch.cat([-score / 2, score / 2], dim=1)
        return Outputs(logits=score if "logits" in needs else None, mask=tokens.mask)


def log_count_ratio(counts: Tensor, smoothing: float = 1.0) -> Tensor:
    """Log-count ratios of each class against the rest (Wang & Manning 2012).

    Args:
        counts: [V, C] rows of each class that hold each feature.

    Returns:
        [V, C], or for two classes [V, 1]: the second against the first; 0 for features that never occur.
    """
    own = counts + smoothing
    rest = counts.sum(1, keepdim=True) - counts + smoothing
    ratio = (own / own.sum(0)).log() - (rest / rest.sum(0)).log()
    ratio[counts.sum(1) == 0] = 0
    return (ratio[:, 1:] if counts.shape[1] == 2 else ratio).float()


class NgramBag(nn.Module):
    """The mean of n-gram embeddings and a linear classifier (Joulin et al. 2017, fastText).

    Args:
        vocabulary: V, the padding id 0 included.
        classes: C.
        embedding_dim: D, the width of the pooled vector.
    """

    provides = frozenset({"logits", "pooled"})
    depth = heads = embedding_width = 0

    def __init__(self, vocabulary: int, classes: int, *, embedding_dim: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "classes": classes,
            "embedding_dim": embedding_dim,
            "dropout": dropout,
        }
        self.vocabulary, self.width = vocabulary, embedding_dim
        self.embedding = nn.Embedding(vocabulary, embedding_dim, padding_idx=0)
        nn.init.uniform_(self.embedding.weight, -1 / embedding_dim, 1 / embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding_dim, classes)

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        check_needs(self, needs)
        pooled = F.embedding_bag(tokens.ids, self.embedding.weight, mode="mean", padding_idx=0)
        return Outputs(
            logits=self.classifier(self.dropout(pooled)) if "logits" in needs else None,
            pooled=pooled if "pooled" in needs else None,
            mask=tokens.mask,
        )
