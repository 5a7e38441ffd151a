"""Distillation on pseudo-samples by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdresearch.models.ngram import NgramLinear
from kdresearch.package import Package
from kdresearch.strategies.generative import GenerativeDistiller
from kdresearch.structures import Batch, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")
WEIGHTS = {"label": 0.4, "soft_label": 0.6, "generative": 1.5}


def model(seed: int) -> NgramLinear:
    made = NgramLinear(12, 3, weighting="none")
    made.weight.weight.data = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))
    return made


def batch() -> Batch:
    ids = torch.randint(1, 12, (5, 6), generator=torch.Generator().manual_seed(1))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(torch.arange(5), torch.tensor([0, 2, -1, 1, -1]), tokens, tokens)


def distiller(**settings: object) -> GenerativeDistiller:
    teacher = LiveTeacher(Package(model(2), None, CLASSES, "", {}))
    return GenerativeDistiller(model(1), classes=CLASSES, teacher=teacher, **({"weights": WEIGHTS} | settings))


@pytest.mark.parametrize("hard", [False, True])
def test_loss_by_hand(hard: bool) -> None:
    rows, module = batch(), distiller(temperature=3.0, hard=hard)
    student, teacher = model(1)(rows.student).logits, model(2)(rows.teacher).logits
    real, pseudo = [0, 1, 3], [2, 4]
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    soft = 9 * (p[real] * (p[real] / q[real]).log()).sum() / 3
    generative = -9 * (p[pseudo] * q[pseudo].log()).sum() / 2
    if hard:
        generative = -(student.log_softmax(1)[pseudo, teacher[pseudo].argmax(1)]).sum() / 2
    module.log_dict = module.log = lambda *_, **__: None
    expected = 0.4 * cross_entropy(student[real], rows.label[real]) + 0.6 * soft + 1.5 * generative
    assert torch.allclose(module.training_step(rows, 0), expected)


def test_without_its_own_term_unlabelled_rows_teach_nothing() -> None:
    assert distiller().learns_from_unlabelled
    assert not distiller(weights=WEIGHTS | {"generative": 0}).learns_from_unlabelled
    assert not GenerativeDistiller.needs_teacher({"weights": {"label": 1.0, "soft_label": 0.0, "generative": 0.0}})


@pytest.mark.parametrize("setting", [{"temperature": -1.0}, {"label_smoothing": 2.0}])
def test_bad_settings_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting)).replace("_", " ")):
        distiller(**setting)
