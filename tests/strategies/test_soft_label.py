"""Soft labels by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdresearch.strategies.soft_label import SoftLabelDistiller
from kdresearch.structures import Batch

Make = Callable[..., Any]
Scores = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_by_hand(temperature: float, rows: Batch, scores: Scores, distiller: Make) -> None:
    module = distiller(
        SoftLabelDistiller, weights={"label": 0.4, "soft_label": 0.6}, temperature=temperature, label_smoothing=0.1
    )
    student, teacher = scores
    labelled = [0, 1, 3]
    label = cross_entropy(student[labelled], rows.label[labelled], label_smoothing=0.1)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    soft = temperature**2 * (p * (p / q).log()).sum() / 5  # over all rows, labelled or not
    assert torch.allclose(module.training_step(rows, 0), 0.4 * label + 0.6 * soft)


def test_the_teacher_itself_has_nothing_to_learn(rows: Batch, distiller: Make) -> None:
    module = distiller(SoftLabelDistiller, weights={"label": 0, "soft_label": 1})
    module.student.load_state_dict(module.teacher.model.state_dict())
    value = module.terms(rows)["soft_label"]
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "setting", [{"temperature": -1.0}, {"divergence": "both"}, {"convention": "x"}, {"beta": 2}, {"beta": 0.1}]
)
def test_bad_settings_are_refused(setting: dict[str, object], distiller: Make) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        distiller(SoftLabelDistiller, weights={"label": 1, "soft_label": 1}, **setting)
