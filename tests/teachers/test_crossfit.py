from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdresearch.errors import UserError
from kdresearch.structures import LOGITS, Batch, Outputs, Signature, Teacher, Tokens
from kdresearch.teachers.crossfit import CrossFittedTeacher
from kdresearch.teachers.ensemble import EnsembleTeacher

ROWS, FOLDS, CLASSES = 30, 4, ("a", "b", "c")
TRAINED = 20  # rows that are in the folds; the rest is in none


class Fold:
    """A model that must not be asked about what it has seen; it reads its row's number off the tokens."""

    signature = Signature(LOGITS, classes=CLASSES, name="Fold")

    def __init__(self, logits: Tensor, seen: Tensor) -> None:
        self.logits, self.seen, self.device = logits, seen, "cpu"

    def to(self, device: str) -> Teacher:
        self.device = device
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        assert len(batch.index) > 0
        assert not self.seen[batch.index].any(), "asked about a row that it was trained on"
        assert batch.teacher is not None
        for side in (batch.student, batch.teacher):
            assert torch.equal(side.ids[:, 0], batch.index) and torch.equal(side.words[:, 0], batch.index)
            assert side.mask.shape == side.ids.shape
        assert torch.equal(batch.label, batch.index % 3)
        return Outputs(logits=self.logits[batch.index])


def folds(seed: int = 0) -> tuple[list[Fold], Tensor]:
    """Models, and which rows [N, k] each was trained on: every fold but its own."""
    torch.manual_seed(seed)
    own = torch.full((ROWS,), -1)
    own[:TRAINED] = torch.arange(TRAINED)[torch.randperm(TRAINED)] % FOLDS
    seen = (own[:, None] != torch.arange(FOLDS)) & (own[:, None] >= 0)
    return [Fold(3 * torch.randn(ROWS, 3), seen[:, number]) for number in range(FOLDS)], seen


def batch(index: Tensor) -> Batch:
    tokens = Tokens(index[:, None].repeat(1, 2), torch.ones(len(index), 2, dtype=torch.bool), index[:, None])
    return Batch(index, index % 3, tokens, tokens)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("seed", range(3))
def test_a_training_row_is_answered_by_the_one_model_that_has_not_seen_it(average: str, seed: int) -> None:
    models, seen = folds(seed)
    teacher = CrossFittedTeacher(models, seen, average)
    assert (teacher.signature.fields, teacher.signature.classes) == (LOGITS, CLASSES)
    ensemble = EnsembleTeacher(models, average)
    for size in (1, 7, ROWS):
        index = torch.randperm(ROWS)[:size]
        answer = teacher(batch(index)).logits
        for row, told in zip(index.tolist(), answer, strict=True):
            if row < TRAINED:
                (own,) = [model for model in models if not model.seen[row]]
                expected = own.logits[row] if average == "logits" else own.logits[row].log_softmax(0)
            else:
                expected = ensemble(batch(torch.tensor([row]))).logits[0]
            torch.testing.assert_close(told, expected)


def test_the_mean_is_over_those_that_have_not_seen_it() -> None:
    """By hand: the second model has seen the row, the others say .9 and .5."""
    logits = [torch.tensor([[p, 1 - p]]).log() + shift for p, shift in ((0.9, 2.0), (0.1, 0.0), (0.5, -1.0))]
    seen = torch.tensor([[False, True, False]])
    models = [Fold(each, seen[:, number]) for number, each in enumerate(logits)]
    for model in models:
        model.signature = Signature(LOGITS, classes=("a", "b"))
    row = batch(torch.tensor([0]))
    answer = CrossFittedTeacher(models, seen)(row).logits
    torch.testing.assert_close(answer, torch.tensor([[math.log(0.7), math.log(0.3)]]))
    answer = CrossFittedTeacher(models, seen, "logits")(row).logits
    torch.testing.assert_close(answer, (logits[0] + logits[2]) / 2)


def test_it_moves_its_models() -> None:
    models, seen = folds()
    CrossFittedTeacher(models, seen).to("meta")
    assert {model.device for model in models} == {"meta"}


def test_refused() -> None:
    models, seen = folds()
    with pytest.raises(UserError, match=r"teacher\.average: 'votes'"):
        CrossFittedTeacher(models, seen, "votes")
    with pytest.raises(UserError, match=r"teacher\.folds"):
        CrossFittedTeacher(models[:1], seen[:, :1])
    with pytest.raises(UserError, match="every model was trained on"):
        CrossFittedTeacher(models, seen | (torch.arange(ROWS) == 5)[:, None])
    with pytest.raises(ValueError, match="gives logits, not pooled"):
        CrossFittedTeacher(models, seen)(batch(torch.arange(2)), frozenset({"logits", "pooled"}))
    models[2].signature = Signature(LOGITS, classes=("b", "a", "c"))
    with pytest.raises(UserError, match=r"models of the same classes"):
        CrossFittedTeacher(models, seen)
