"""Soft labels by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdresearch.models.ngram import NgramLinear
from kdresearch.package import Package
from kdresearch.strategies.soft_label import SoftLabelDistiller
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


def distiller(**settings: object) -> SoftLabelDistiller:
    teacher = LiveTeacher(Package(model(2), None, CLASSES, "", {}))
    return SoftLabelDistiller(model(1), classes=CLASSES, teacher=teacher, **settings)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_by_hand(temperature: float) -> None:
    rows = batch()
    module = distiller(weights={"label": 0.4, "soft_label": 0.6}, temperature=temperature, label_smoothing=0.1)
    student, teacher = model(1)(rows.student).logits, model(2)(rows.teacher).logits
    labelled = [0, 1, 3]
    label = cross_entropy(student[labelled], rows.label[labelled], label_smoothing=0.1)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    soft = temperature**2 * (p * (p / q).log()).sum() / 5  # over all rows, labelled or not
    module.log_dict = module.log = lambda *_, **__: None
    assert torch.allclose(module.training_step(rows, 0), 0.4 * label + 0.6 * soft)


def test_the_teacher_itself_has_nothing_to_learn() -> None:
    rows = batch()
    module = distiller(weights={"label": 0, "soft_label": 1})
    module.student.load_state_dict(module.teacher.model.state_dict())
    value = module.terms(rows)["soft_label"]
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("setting", [{"temperature": -1.0}, {"divergence": "both"}, {"convention": "x"}, {"beta": 2}])
def test_bad_settings_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        distiller(weights={"label": 1, "soft_label": 1}, **setting)
