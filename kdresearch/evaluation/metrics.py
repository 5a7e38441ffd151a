"""How well a model answers, how well it knows when it does, and how close it is to its teacher.

Everything is computed in float64 over all rows at once: calibration and macro F1 are not means over batches.
Shapes: N rows, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics.functional.classification import multiclass_f1_score

from kdresearch.errors import UserError
from kdresearch.structures import UNLABELLED

BINS = 15


class Reliability(NamedTuple):
    """Top-label confidence against accuracy, in bins of equal width over (0, 1]; empty bins are NaN with 0 rows."""

    confidence: np.ndarray  # [bins] float64: mean confidence of the rows in the bin
    accuracy: np.ndarray  # [bins] float64: the share of them that is right
    rows: np.ndarray  # [bins] int64: how many they are

    @property
    def ece(self) -> float:
        """The expected calibration error: Σ rows/N · |accuracy - confidence|."""
        gap = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(np.average(gap, weights=self.rows))


def task_metrics(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Score logits [N, C] against labels [N]; UNLABELLED rows do not count.

    ``accuracy``; ``macro_f1``, the unweighted mean over the classes that occur among labels or predictions;
    ``nll`` in nats; ``brier``, Σ_c (p_c - y_c)² averaged over rows, from 0 to 2 (Brier 1950; for two classes twice
    the one-sided score); ``ece``, top label, 15 bins of equal width (Guo et al. 2017, eq. 3). An impossible label,
    a logit of -inf, makes ``nll`` inf.

    Raises UserError if no row is labelled, ValueError on shapes, types or values that make no sense.
    """
    logits, label = _labelled(logits, label)
    classes = logits.shape[1]
    log_p = logits.log_softmax(1)
    predicted = logits.argmax(1)
    return {
        "accuracy": _mean(predicted == label),
        "macro_f1": float(multiclass_f1_score(predicted, label, num_classes=classes, average="macro")),
        "nll": _mean(-log_p.gather(1, label[:, None])),
        "brier": _mean((log_p.exp() - one_hot(label, classes)).square().sum(1)),
        "ece": _reliability(logits, label, BINS).ece,
    }


def fidelity_metrics(student: Tensor, teacher: Tensor, label: Tensor) -> dict[str, float]:
    """Compare two sets of logits [N, C] for the same rows, labelled or not (Stanton et al. 2021).

    ``agreement`` of the top class; ``kl_to_teacher``, KL(p_t‖p_s), and ``js_to_teacher``, at most ln 2: means over
    rows, in nats. ``agreement_on_teacher_errors`` looks at the labelled rows that the teacher gets wrong; the key is
    absent when there are none. Probabilities of exactly 0 (logits of -inf) are fine: what only the student rules out
    makes the KL inf, never NaN.

    Raises ValueError on shapes, types or values that make no sense.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student logits {list(student.shape)} and teacher logits {list(teacher.shape)} differ")
    teacher, _ = _checked(teacher, label, "teacher logits")
    student, label = _checked(student, label, "student logits")
    log_s, log_t = student.log_softmax(1), teacher.log_softmax(1)
    log_mean = torch.logaddexp(log_s, log_t) - math.log(2)
    agree = student.argmax(1) == teacher.argmax(1)
    metrics = {
        "agreement": _mean(agree),
        "kl_to_teacher": _mean(_kl(log_t, log_s)),
        "js_to_teacher": _mean((_kl(log_t, log_mean) + _kl(log_s, log_mean)) / 2),
    }
    errors = (label != UNLABELLED) & (teacher.argmax(1) != label)
    if errors.any():
        metrics["agreement_on_teacher_errors"] = _mean(agree[errors])
    return metrics


def reliability(logits: Tensor, label: Tensor, bins: int = BINS) -> Reliability:
    """The reliability diagram of logits [N, C] against labels [N]; UNLABELLED rows do not count.

    Bin m holds the rows with confidence in ((m-1)/bins, m/bins] (Guo et al. 2017, §2), so certainty lies in the
    last bin. (torchmetrics gives a confidence of exactly 1 a bin of its own; saturated models reach it.)

    Raises UserError if no row is labelled, ValueError on shapes, types or values that make no sense.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    logits, label = _labelled(logits, label)
    return _reliability(logits, label, bins)


def better_than_chance(accuracy: float, label: Tensor) -> bool:
    """Is an accuracy (a share, 0 to 1) strictly above that of always naming the commonest class of labels [N]?

    Raises UserError if no row is labelled, ValueError if the accuracy is no share.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy must be a share from 0 to 1, not {accuracy}")
    return bool(accuracy > majority_share(label) + 1e-6)  # an accuracy rounded to float32 is not above its own share


def majority_share(label: Tensor) -> float:
    """The share of the commonest class among labels [N]; UserError if no row is labelled."""
    label = label[label != UNLABELLED]
    if not len(label):
        raise UserError("no row is labelled: there is nothing to compare an accuracy with")
    return _mean(label == label.mode().values)


def _reliability(logits: Tensor, label: Tensor, bins: int) -> Reliability:
    confidence, predicted = logits.softmax(1).max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    place = torch.bucketize(confidence, edges[1:-1])
    rows = place.bincount(minlength=bins)
    return Reliability(
        (place.bincount(confidence, bins) / rows).numpy(),
        (place.bincount((predicted == label).double(), bins) / rows).numpy(),
        rows.numpy(),
    )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) per row, with 0·log 0 = 0; rounding cannot take it below 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1).clamp(min=0)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _labelled(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    logits, label = _checked(logits, label, "logits")
    keep = label != UNLABELLED
    if not keep.any():
        raise UserError(f"none of the {len(label)} rows is labelled: there is nothing to score")
    return logits[keep], label[keep]


def _checked(logits: Tensor, label: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Detached, on the CPU, logits in float64: the accelerators' float32 is not worth a second set of numbers."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"{name} must be [N, C] with at least 2 classes, not {list(logits.shape)}")
    if label.shape != logits.shape[:1]:
        raise ValueError(f"label must be [{len(logits)}] like the rows of the {name}, not {list(label.shape)}")
    if not len(logits):
        raise ValueError(f"{name} have no rows")
    if not logits.is_floating_point():
        raise ValueError(f"{name} must be floating point, not {logits.dtype}")
    if label.is_floating_point() or label.dtype == torch.bool:
        raise ValueError(f"label must be int64, not {label.dtype}")
    logits, label = logits.detach().cpu().double(), label.detach().cpu().long()
    if not logits.max(1).values.isfinite().all():  # NaN and +inf win the maximum; -inf only if all of the row is
        raise ValueError(f"{name} hold NaN, +inf or a row of -inf, first in row {_first_bad(logits)}")
    wrong = label[(label != UNLABELLED) & ((label < 0) | (label >= logits.shape[1]))]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])} is none of the {logits.shape[1]} classes of the {name}")
    return logits, label


def _first_bad(logits: Tensor) -> int:
    return int((~logits.max(1).values.isfinite()).nonzero()[0])
