"""A strategy's loss by the scores of all rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdresearch.models.ngram import NgramLinear
from kdresearch.objectives.logits import SoftLabel
from kdresearch.strategies.combined import CombinedDistiller
from kdresearch.strategies.generative import GenerativeDistiller
from kdresearch.strategies.scores import ScoreLoss
from kdresearch.strategies.soft_label import SoftLabelDistiller
from kdresearch.strategies.supervised import SupervisedDistiller
from kdresearch.strategies.weighted_soft_label import WeightedSoftLabelDistiller
from kdresearch.structures import LOGITS, UNLABELLED, Batch, Outputs, Signature, Tokens

CLASSES = ("a", "b", "c")
LABEL = torch.tensor([0, 2, UNLABELLED, 1, 1, UNLABELLED])
TOLD = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([7, 3, 12, 5, 1, 9])  # in no order


class Told:
    """A recorded teacher."""

    signature = Signature(LOGITS, classes=CLASSES, name="Told")

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        place = [INDEX.tolist().index(int(row)) for row in batch.index]
        return Outputs(logits=TOLD[place])

    def to(self, device: object) -> Told:
        return self


def batches() -> list[Batch]:
    tokens = Tokens(torch.ones(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool))
    return [Batch(INDEX[part], LABEL[part], tokens) for part in (slice(0, 3), slice(3, 6))]


def made(kind: Any, **options: Any) -> Any:
    return kind(NgramLinear(4, 3), classes=CLASSES, teacher=Told(), **options)


def test_soft_labels_and_labels_by_hand() -> None:
    loss = ScoreLoss(made(SoftLabelDistiller, weights={"label": 0.3, "soft_label": 0.7}), batches())
    logits = torch.randn(6, 3, dtype=torch.double, generator=torch.Generator().manual_seed(1)).requires_grad_()
    known = LABEL != UNLABELLED
    kl = F.kl_div((logits / 2).log_softmax(1), (TOLD.double() / 2).softmax(1), reduction="batchmean")
    expected = 0.3 * F.cross_entropy(logits[known], LABEL[known]) + 0.7 * 4 * kl
    (slope,) = torch.autograd.grad(expected, logits)
    value, gradient = loss(logits.detach().numpy())
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(gradient, slope.numpy(), atol=1e-6)


def test_repeats_count_as_often_as_they_come() -> None:
    epoch = np.array([5, 5, 1, 12, 7, 5])
    loss = ScoreLoss(made(SupervisedDistiller), batches(), epoch)
    logits = torch.randn(6, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    at = [INDEX.tolist().index(row) for row in epoch]
    known = LABEL[at] != UNLABELLED
    expected = F.cross_entropy(logits[at][known], LABEL[at][known])
    value, gradient = loss(logits.numpy())
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert not gradient[1].any() and not gradient[5].any()  # rows that the epoch does not have


def test_who_is_convex() -> None:
    halves = {"label": 0.5, "soft_label": 0.5}
    assert made(SupervisedDistiller).convex and made(SoftLabelDistiller, weights=halves).convex
    assert made(GenerativeDistiller, weights=halves | {"generative": 1.0}).convex
    assert not made(SoftLabelDistiller, weights=halves, divergence="reverse").convex
    assert not made(SoftLabelDistiller, weights=halves, schedules={"label": {"start": 1.0, "end": 0.0}}).convex
    assert not made(WeightedSoftLabelDistiller, weights={"label": 0.5, "weighted_soft_label": 0.5}).convex
    combined = {"first": SoftLabel(), "second": SoftLabel(divergence="jsd")}
    assert not made(CombinedDistiller, objectives=combined, weights={"first": 1.0, "second": 1.0}).convex
    assert made(CombinedDistiller, objectives=combined, weights={"first": 1.0, "second": 0.0}).convex
