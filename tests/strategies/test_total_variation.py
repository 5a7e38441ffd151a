"""Total variation by hand, and by its other formulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.strategies.total_variation import TotalVariationDistiller
from kdresearch.structures import Batch

Make = Callable[..., Any]
Scores = tuple[torch.Tensor, torch.Tensor]


def test_constants() -> None:
    teacher = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    student = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.6, 0.2]]).log()
    assert float(losses.total_variation(student, teacher)) == pytest.approx((0.3 + 0.6) / 2)
    far = torch.tensor([[200.0, 0.0]])
    assert float(losses.total_variation(far, -far)) == pytest.approx(1)


def test_the_largest_difference_of_any_event() -> None:
    student, teacher = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(5))
    events = torch.tensor([[n >> c & 1 for c in range(4)] for n in range(16)]).float()
    largest = ((teacher.softmax(1) - student.softmax(1)) @ events.T).amax(1).mean()
    assert torch.allclose(losses.total_variation(student, teacher), largest)
    assert torch.allclose(losses.total_variation(teacher, student), largest)


def test_gradient_to_the_student_only() -> None:
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    losses.total_variation(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0 and teacher.grad is None


def test_loss_by_hand(rows: Batch, scores: Scores, distiller: Make) -> None:
    module = distiller(TotalVariationDistiller, weights={"label": 0.4, "total_variation": 0.6}, label_smoothing=0.1)
    student, teacher = scores
    labelled = [0, 1, 3]
    label = cross_entropy(student[labelled], rows.label[labelled], label_smoothing=0.1)
    distance = (teacher.softmax(1) - student.softmax(1)).abs().sum() / 2 / 5  # over all rows, labelled or not
    assert torch.allclose(module.training_step(rows, 0), 0.4 * label + 0.6 * distance)


def test_refused(distiller: Make) -> None:
    with pytest.raises(ValueError):
        losses.total_variation(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(UserError, match="label smoothing"):
        distiller(TotalVariationDistiller, weights={"label": 1, "total_variation": 1}, label_smoothing=2)
