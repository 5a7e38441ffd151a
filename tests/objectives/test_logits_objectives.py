from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.objectives.logits import Label, LogitMse, SoftLabel
from kdresearch.structures import UNLABELLED, Batch, Outputs, Tokens


def batch(label: list[int]) -> Batch:
    empty = Tokens(torch.zeros(len(label), 1, dtype=torch.long), torch.ones(len(label), 1, dtype=torch.bool))
    return Batch(torch.arange(len(label)), torch.tensor(label), empty)


def logits(rows: int = 4, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_label_by_hand() -> None:
    # softmax(0, ln 3) = (1/4, 3/4): CE is ln 4 and ln 4/3
    student = Outputs(torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]]))
    value = Label()(student, None, batch([0, 1]))
    assert float(value) == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    # smoothing ε mixes the label with the uniform distribution
    smooth = Label(0.2)(student, None, batch([0, 1]))
    uniform = (math.log(4) + math.log(4 / 3)) / 2
    assert float(smooth) == pytest.approx(0.8 * float(value) + 0.2 * uniform)
    one = Label(0.2)(student, None, batch([1, UNLABELLED]))
    assert float(one) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_weights_are_torchs(smoothing: float) -> None:
    weights, label = torch.tensor([0.5, 1.0, 4.0]), [2, UNLABELLED, 0, 1]
    term, student, rows = Label(smoothing), logits(), batch(label)
    term.class_weights = weights
    kept = [0, 2, 3]
    reference = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)
    value = term(Outputs(student), None, rows)
    assert torch.allclose(value, reference(student[kept], rows.label[kept]))
    assert float(term.denominator(rows)) == 5.5
    if not smoothing:
        by_row = -student.log_softmax(1)[kept, [2, 0, 1]]
        assert torch.allclose(value, (by_row * weights[[2, 0, 1]]).sum() / 5.5)
    # values of two batches, weighed by what they are means over, give the value of both
    halves = [batch(label[:2]), batch(label[2:])]
    values = [term(Outputs(each), None, half) for each, half in zip(student.split(2), halves, strict=True)]
    over = [term.denominator(half) for half in halves]
    if not smoothing:
        assert torch.allclose((values[0] * over[0] + values[1] * over[1]) / (over[0] + over[1]), value)
    assert not term.state_dict()  # a setting, and no part of a checkpoint


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_without_a_label_do_not_count(smoothing: float) -> None:
    student = logits()
    mixed = Label(smoothing)(Outputs(student), None, batch([2, UNLABELLED, 0, UNLABELLED]))
    alone = Label(smoothing)(Outputs(student[[0, 2]]), None, batch([2, 0]))
    assert float(mixed.detach()) == pytest.approx(float(alone.detach()))
    mixed.backward()
    assert student.grad is not None
    assert (student.grad[[1, 3]] == 0).all()
    assert (student.grad[[0, 2]] != 0).all()


def test_a_batch_without_labels_is_zero_with_zero_gradient() -> None:
    student = logits()
    value = Label(0.1)(Outputs(student), None, batch([UNLABELLED] * 4))
    assert float(value.detach()) == 0.0
    value.backward()
    assert torch.equal(student.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2])
def test_smoothing_is_a_share(smoothing: float) -> None:
    with pytest.raises(UserError, match=r"\[0, 1\)"):
        Label(smoothing)


def test_what_each_needs() -> None:
    assert (Label().teacher_needs, Label().needs_labels) == (frozenset(), True)
    for objective in (SoftLabel(), LogitMse()):
        assert (objective.needs, objective.teacher_needs) == ({"logits"}, {"logits"})
        assert not objective.needs_labels


def test_settings_reach_the_losses() -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    sides = (Outputs(student), Outputs(teacher), batch([UNLABELLED] * 4))
    settings = {"temperature": 3.0, "divergence": "jsd", "beta": 0.3, "convention": "mean"}
    assert torch.equal(SoftLabel(**settings)(*sides), losses.soft_label(student, teacher, **settings))
    settings = {"temperature": 2.0, "convention": "textbrewer"}
    assert torch.equal(LogitMse(**settings)(*sides), losses.logit_mse(student, teacher, **settings))
    # by hand: the mean of squares of z/2
    expected = ((student - teacher) / 2).square().mean()
    assert float(LogitMse(**settings)(*sides).detach()) == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (SoftLabel, {"temperature": -1.0}),
        (SoftLabel, {"temperature": 0.0}),
        (SoftLabel, {"divergence": "backward"}),
        (SoftLabel, {"divergence": "jsd", "beta": 1.5}),
        (SoftLabel, {"convention": "ours"}),
        (LogitMse, {"temperature": 0.0}),
        (LogitMse, {"convention": "mean"}),
    ],
)
def test_bad_settings_are_refused_before_any_batch(objective: type, settings: dict[str, object]) -> None:
    (value,) = [value for name, value in settings.items() if name != "divergence" or len(settings) == 1]
    with pytest.raises(ValueError, match=str(value)):
        objective(**settings)


def test_no_gradient_reaches_the_teacher() -> None:
    for objective in (SoftLabel(2.0), LogitMse()):
        student, teacher = logits(seed=1), logits(seed=2)
        objective(Outputs(student), Outputs(teacher), batch([0, 1, 2, 0])).backward()
        assert teacher.grad is None
        assert student.grad is not None and student.grad.abs().sum() > 0
