from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdresearch.strategies.logit_mse import LogitMseDistiller
from kdresearch.structures import Batch

Make = Callable[..., Any]
Scores = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize(("convention", "temperature"), [("house", 1.0), ("textbrewer", 4.0)])
def test_loss_by_hand(convention: str, temperature: float, rows: Batch, scores: Scores, distiller: Make) -> None:
    module = distiller(
        LogitMseDistiller,
        weights={"label": 0.3, "logit_mse": 0.7},
        temperature=temperature,
        convention=convention,
        label_smoothing=0.1,
    )
    student, teacher = scores
    labelled = [0, 1, 3]
    label = cross_entropy(student[labelled], rows.label[labelled], label_smoothing=0.1)
    squares = ((student - teacher) / temperature).pow(2)  # over all rows, labelled or not
    assert torch.allclose(module.training_step(rows, 0), 0.3 * label + 0.7 * squares.sum() / 15)


def test_logits_alone_bring_the_student_to_its_teacher(rows: Batch, scores: Scores, distiller: Make) -> None:
    module = distiller(LogitMseDistiller, weights={"label": 0, "logit_mse": 1})
    assert module.learns_from_unlabelled
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        module.terms(rows)["logit_mse"].backward()
        optimizer.step()
    assert torch.allclose(module(rows), scores[1], atol=0.02)
    assert torch.equal(module.teacher(rows).logits, scores[1])


def test_refused(distiller: Make) -> None:
    with pytest.raises(ValueError, match="convention"):
        distiller(LogitMseDistiller, weights={"label": 1, "logit_mse": 1}, convention="mean")
    with pytest.raises(ValueError, match=r"temperature=3\.0: the house convention compares the logits as they are"):
        distiller(LogitMseDistiller, weights={"label": 1, "logit_mse": 1}, temperature=3.0)
