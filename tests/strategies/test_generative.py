"""Distillation on pseudo-samples by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdresearch.strategies.generative import GenerativeDistiller
from kdresearch.structures import Batch

Make = Callable[..., Any]
Scores = tuple[torch.Tensor, torch.Tensor]
WEIGHTS = {"label": 0.4, "soft_label": 0.6, "generative": 1.5}


@pytest.mark.parametrize("hard", [False, True])
def test_loss_by_hand(hard: bool, rows: Batch, scores: Scores, distiller: Make) -> None:
    module = distiller(GenerativeDistiller, weights=WEIGHTS, temperature=3.0, hard=hard)
    student, teacher = scores
    real, pseudo = [0, 1, 3], [2, 4]
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    soft = 9 * (p[real] * (p[real] / q[real]).log()).sum() / 3
    generative = -9 * (p[pseudo] * q[pseudo].log()).sum() / 2
    if hard:
        generative = -(student.log_softmax(1)[pseudo, teacher[pseudo].argmax(1)]).sum() / 2
    expected = 0.4 * cross_entropy(student[real], rows.label[real]) + 0.6 * soft + 1.5 * generative
    assert torch.allclose(module.training_step(rows, 0), expected)


def test_without_its_own_term_unlabelled_rows_teach_nothing(distiller: Make) -> None:
    assert distiller(GenerativeDistiller, weights=WEIGHTS).learns_from_unlabelled
    assert not distiller(GenerativeDistiller, weights=WEIGHTS | {"generative": 0}).learns_from_unlabelled
    assert not GenerativeDistiller.needs_teacher({"weights": {"label": 1.0, "soft_label": 0.0, "generative": 0.0}})


@pytest.mark.parametrize("setting", [{"temperature": -1.0}, {"label_smoothing": 2.0}, {"labelled_share": 1.0}])
def test_bad_settings_are_refused(setting: dict[str, object], distiller: Make) -> None:
    with pytest.raises(ValueError, match=next(iter(setting)).replace("_", ".")):
        distiller(GenerativeDistiller, **({"weights": WEIGHTS} | setting))
