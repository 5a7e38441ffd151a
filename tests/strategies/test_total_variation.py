"""Total variation by hand, and by its other formulation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.models.ngram import NgramLinear
from kdresearch.package import Package
from kdresearch.strategies.total_variation import TotalVariationDistiller
from kdresearch.structures import Batch, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")


def model(seed: int) -> NgramLinear:
    made = NgramLinear(12, 3, weighting="none")
    made.weight.weight.data = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))
    return made


def batch() -> Batch:
    ids = torch.randint(1, 12, (5, 6), generator=torch.Generator().manual_seed(1))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(torch.arange(5), torch.tensor([0, 2, -1, 1, -1]), tokens, tokens)


def distiller(**settings: object) -> TotalVariationDistiller:
    teacher = LiveTeacher(Package(model(2), None, CLASSES, "", {}))
    return TotalVariationDistiller(model(1), classes=CLASSES, teacher=teacher, **settings)


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


def test_loss_by_hand() -> None:
    rows = batch()
    module = distiller(weights={"label": 0.4, "total_variation": 0.6}, label_smoothing=0.1)
    student, teacher = model(1)(rows.student).logits, model(2)(rows.teacher).logits
    labelled = [0, 1, 3]
    label = cross_entropy(student[labelled], rows.label[labelled], label_smoothing=0.1)
    distance = (teacher.softmax(1) - student.softmax(1)).abs().sum() / 2 / 5  # over all rows, labelled or not
    module.log_dict = module.log = lambda *_, **__: None
    assert torch.allclose(module.training_step(rows, 0), 0.4 * label + 0.6 * distance)


def test_refused() -> None:
    with pytest.raises(ValueError):
        losses.total_variation(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(UserError, match="label smoothing"):
        distiller(weights={"label": 1, "total_variation": 1}, label_smoothing=2)
