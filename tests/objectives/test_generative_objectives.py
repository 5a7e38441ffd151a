from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdresearch import losses
from kdresearch.objectives.generative import LabelledSoftLabel, PseudoSample
from kdresearch.structures import UNLABELLED, Batch, Outputs, Tokens

MIXED = [2, UNLABELLED, 0, UNLABELLED]


def batch(label: list[int]) -> Batch:
    empty = Tokens(torch.zeros(len(label), 1, dtype=torch.long), torch.ones(len(label), 1, dtype=torch.bool))
    return Batch(torch.arange(len(label)), torch.tensor(label), empty)


def logits(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("hard", [False, True])
def test_each_speaks_of_its_own_rows(hard: bool) -> None:
    student, teacher = logits(0), logits(1).detach()
    pseudo = PseudoSample(2.0, hard)(Outputs(student), Outputs(teacher), batch(MIXED))
    soft = LabelledSoftLabel(2.0)(Outputs(student), Outputs(teacher), batch(MIXED))
    torch.testing.assert_close(
        pseudo, losses.pseudo_label(student[[1, 3]], teacher[[1, 3]], temperature=2.0, hard=hard)
    )
    torch.testing.assert_close(soft, losses.soft_label(student[[0, 2]], teacher[[0, 2]], temperature=2.0))
    for value, rows in ((pseudo, [1, 3]), (soft, [0, 2])):
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.abs().sum(1).nonzero().flatten().tolist() == rows


@pytest.mark.parametrize(
    ("objective", "label"), [(PseudoSample(), [0, 1, 2, 0]), (LabelledSoftLabel(), [UNLABELLED] * 4)], ids=str
)
def test_a_batch_without_their_rows_is_zero_with_zero_gradient(objective: PseudoSample, label: list[int]) -> None:
    student = logits(0)
    value = objective(Outputs(student), Outputs(logits(1)), batch(label))
    value.backward()
    assert float(value.detach()) == 0.0 and torch.equal(student.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("kind", [PseudoSample, LabelledSoftLabel])
def test_bad_temperatures_are_refused_at_once(kind: type[PseudoSample]) -> None:
    with pytest.raises(ValueError, match="temperature"):
        kind(0.0)


def test_what_they_learn_from() -> None:
    assert (PseudoSample().needs_labels, LabelledSoftLabel().needs_labels) == (False, True)


def test_the_published_formulas_on_a_small_case() -> None:
    """GAL (He et al. 2022): -sum_c p_t log p_s of soft labels at τ=1; ZeroGen (Ye et al. 2022): -log p_s(ŷ)."""
    student = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log()
    teacher = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    rows = Batch(torch.arange(2), torch.tensor([UNLABELLED] * 2), batch([0, 0]).student)
    soft = -(0.25 * math.log(0.8) + 0.75 * math.log(0.2) + math.log(0.5)) / 2
    hard = -(math.log(0.2) + math.log(0.5)) / 2
    for objective, expected in ((PseudoSample(1.0), soft), (PseudoSample(1.0, hard=True), hard)):
        assert float(objective(Outputs(student), Outputs(teacher), rows)) == pytest.approx(expected)
