"""Bags of n-grams: the linear floor of every table, and its embedding-bag cousin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from kdresearch.errors import UserError, choices
from kdresearch.models.model import TextModel, class_names
from kdresearch.structures import LOGITS, UNLABELLED, Batch, Outputs, Signature, Tokens, check_needs

WEIGHTINGS = ("auto", "nb", "tfidf", "nb_tfidf", "none")
UNIT = ("tfidf", "nb_tfidf")  # those whose rows have length 1
TFIDF_WORDS = 2  # words of the n-grams that TF-IDF reads: longer ones take too much of a row's length
_LARGEST = 1 << 28  # weights beyond which ``auto`` does not try ``nb_tfidf``, which makes as many ratios


class NgramLinear(TextModel):
    """Logistic regression on binary n-gram features.

    z_c = b_c + Σ_i r_ic w_ic over the features i of the text. Two classes share one column of weights, as in binary
    logistic regression. What r is, ``weighting`` says:

    - ``nb``: the naive Bayes log-count ratio of class c against the rest (Wang & Manning 2012, eq. 2);
    - ``tfidf``: (ln((1 + n) / (1 + n_i)) + 1) / ‖·‖₂, of n_i rows out of n, divided by the length that all of a text's
      have together; n-grams of more than two words are left out where the tokenizer tells which these are;
    - ``nb_tfidf``: as ``tfidf``, of n-grams of any length, each times √ρ, ρ being the root mean square of its
      log-count ratios over the classes: supervised term weighting (Debole & Sebastiani 2003; for two classes, with ρ
      instead of √ρ, the delta TF-IDF of Martineau & Finin 2009, in rows of length 1 as Paltoglou & Thelwall 2010 have
      them), damped as Wu et al. (2017) ask for, which does better on validation rows;
    - ``none``: 1;
    - ``auto``: ``nb_tfidf`` or ``tfidf``, whichever does better on the validation rows; ``nb`` where it is not solved.

    Where it is solved (``models.solver``), r of ``nb`` is folded into the weights: they are those of plain features.

    Args:
        vocabulary: V, the padding id 0 included.
        classes: C, or their names.
        smoothing: α added to the counts of ``nb``.
    """

    def __init__(
        self, vocabulary: int, classes: int | Sequence[str], *, weighting: str = "auto", smoothing: float = 1.0
    ) -> None:
        super().__init__()
        classes, names = class_names(classes)
        if weighting not in WEIGHTINGS:
            raise UserError(f"student.model.weighting: {choices(weighting, WEIGHTINGS)}")
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "classes": classes,
            "weighting": weighting,
            "smoothing": smoothing,
        }
        self.signature = Signature(
            LOGITS, vocabulary=vocabulary, classes=names, logits=classes, name=type(self).__name__
        )
        self.vocabulary, self.classes, self.smoothing = vocabulary, classes, smoothing
        self.columns = 1 if classes == 2 else classes
        self.weight = nn.Embedding(vocabulary, self.columns, padding_idx=0)
        nn.init.zeros_(self.weight.weight)
        self.bias = nn.Parameter(torch.zeros(self.columns))
        self.ratio: Tensor
        self.register_buffer("ratio", torch.ones(vocabulary if weighting in UNIT else 1, 1))

    @property
    def weighting(self) -> str:
        return str(self.config["weighting"])

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Weigh the n-grams by the labelled training rows."""
        if self.weighting == "auto":
            self.config["weighting"] = "nb"
        if self.weighting != "none":
            rows, label = sparse_rows(batches, self.vocabulary)
            ratio = self.ratios(rows, label, self.weighting)
            assert ratio is not None
            self.ratio = torch.from_numpy(ratio).float()

    def candidates(self) -> tuple[str, ...]:
        """The weightings that are tried."""
        if self.weighting != "auto":
            return (self.weighting,)
        return ("tfidf",) if self.vocabulary * self.columns > _LARGEST else ("nb_tfidf", "tfidf")

    def ratios(
        self, rows: sparse.csr_matrix, label: np.ndarray, weighting: str, lengths: np.ndarray | None = None
    ) -> np.ndarray | None:
        """r [V, columns] of ``nb``, [V, 1] of the ``UNIT`` weightings before any row's length; None for plain features.

        Args:
            rows: [N, V] features.
            label: [N], UNLABELLED where there is none; the log-count ratios are of the others.
            lengths: [V] words of each feature, 0 of those that are no words; None where it is not known.
        """
        if weighting == "none":
            return None
        if weighting == "nb":
            return self._log_count_ratios(rows, label)
        frequency = np.bincount(rows.indices, minlength=self.vocabulary)
        factors: np.ndarray = np.log((1 + rows.shape[0]) / (1.0 + frequency)) + 1
        factors[0] = 0
        if weighting == "nb_tfidf":
            factors *= np.square(self._log_count_ratios(rows, label)).mean(1) ** 0.25
        elif lengths is not None:
            factors[lengths > TFIDF_WORDS] = 0
        return factors[:, None]

    def _log_count_ratios(self, rows: sparse.csr_matrix, label: np.ndarray) -> np.ndarray:
        labelled = label != UNLABELLED
        one = sparse.csr_matrix((np.ones(labelled.sum()), (label[labelled], np.flatnonzero(labelled))))
        one.resize(self.classes, len(label))
        counts = torch.from_numpy((one @ rows).T.toarray()).double()
        return np.asarray(log_count_ratio(counts, self.smoothing).numpy())

    def place(self, weighting: str, ratio: np.ndarray | None, weights: np.ndarray, bias: np.ndarray) -> None:
        """Take over weights [V, columns] of plain features, or of those of a ``UNIT`` weighting, and biases."""
        self.config["weighting"] = weighting
        self.ratio = torch.from_numpy(ratio).float() if weighting in UNIT and ratio is not None else torch.ones(1, 1)
        with torch.no_grad():
            self.weight.weight.copy_(torch.from_numpy(weights))
            self.weight.weight[0] = 0
            self.bias.copy_(torch.from_numpy(bias))

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        check_needs(self, needs)
        weight, values = self.weight.weight, None
        if self.weighting in UNIT:
            values = self.ratio[tokens.ids, 0] * tokens.mask
            values = values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)
        elif self.ratio.numel() > 1:
            weight = weight * self.ratio
        score = F.embedding_bag(tokens.ids, weight, mode="sum", padding_idx=0, per_sample_weights=values) + self.bias
        if self.classes == 2:
            score = torch.cat([-score / 2, score / 2], dim=1)
        return Outputs(logits=score if "logits" in needs else None, mask=tokens.mask)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        ratio = state_dict.get(f"{prefix}ratio")
        if ratio is not None:  # of whatever shape its weighting has
            self.ratio = torch.empty_like(ratio, device=self.ratio.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def sparse_rows(batches: Iterable[Batch], vocabulary: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The features of rows as a matrix [N, V], and their labels [N]."""
    ids, boundaries, labels, size = [], [np.zeros(1, np.int64)], [], 0
    for batch in batches:
        lengths = batch.student.mask.sum(1).numpy()
        ids.append(batch.student.ids[batch.student.mask].numpy().astype(np.int32))
        boundaries.append(size + np.cumsum(lengths))
        size += int(lengths.sum())
        labels.append(batch.label.numpy())
    indices, label = np.concatenate(ids), np.concatenate(labels)
    rows = sparse.csr_matrix((np.ones(size), indices, np.concatenate(boundaries)), shape=(len(label), vocabulary))
    return rows, label


def log_count_ratio(counts: Tensor, smoothing: float = 1.0) -> Tensor:
    """Log-count ratios of each class against the rest (Wang & Manning 2012).

    Args:
        counts: [V, C] rows of each class that hold each feature.

    Returns:
        [V, C], or for two classes [V, 1]: the second against the first; 0 for features that never occur.
    """
    smoothed = counts + smoothing
    rest = counts.sum(1, keepdim=True) - counts + smoothing
    ratio = (smoothed / smoothed.sum(0)).log() - (rest / rest.sum(0)).log()
    ratio[counts.sum(1) == 0] = 0
    return (ratio[:, 1:] if counts.shape[1] == 2 else ratio).float()


class NgramBag(TextModel):
    """The mean of n-gram embeddings and a linear classifier (Joulin et al. 2017, fastText).

    Args:
        vocabulary: V, the padding id 0 included.
        classes: C, or their names.
        embedding_dim: D, the width of the pooled vector.
    """

    def __init__(
        self, vocabulary: int, classes: int | Sequence[str], *, embedding_dim: int = 32, dropout: float = 0.1
    ) -> None:
        super().__init__()
        classes, names = class_names(classes)
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "classes": classes,
            "embedding_dim": embedding_dim,
            "dropout": dropout,
        }
        self.signature = Signature(
            LOGITS | {"pooled"},
            width=embedding_dim,
            vocabulary=vocabulary,
            classes=names,
            logits=classes,
            name=type(self).__name__,
        )
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
