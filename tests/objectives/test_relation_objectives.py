"""Objectives on the relations of sentence vectors, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import Tensor

from kdresearch import losses
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.relation import Pkt, RkdAngle, RkdDistance, SimilarityPreserving
from kdresearch.structures import UNLABELLED, Batch, Outputs, Tokens

WIDTH, OTHER = 4, 6  # of the student's and the teacher's vectors


def vectors(seed: int, rows: int = 5, width: int = OTHER) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def batch(rows: list[int]) -> Batch:
    tokens = Tokens(torch.ones(len(rows), 1, dtype=torch.long), torch.ones(len(rows), 1, dtype=torch.bool))
    return Batch(torch.tensor(rows), torch.full((len(rows),), UNLABELLED), tokens)


def value(objective: Objective, student: Tensor, teacher: Tensor, rows: list[int] | None = None) -> Tensor:
    rows = list(range(len(student))) if rows is None else rows
    return objective(Outputs(pooled=student), Outputs(pooled=teacher), batch(rows))


def huber(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def numpy_distance(s: np.ndarray, t: np.ndarray) -> float:
    return float(huber(pdist(s) / pdist(s).mean() - pdist(t) / pdist(t).mean()).mean())


def numpy_angle(s: np.ndarray, t: np.ndarray) -> float:
    def cosines(x: np.ndarray) -> np.ndarray:
        found = []
        for corner in range(len(x)):
            arms = np.delete(x, corner, 0) - x[corner]
            found.append(1 - pdist(arms, "cosine"))
        return np.concatenate(found)

    return float(huber(cosines(s) - cosines(t)).mean())


def numpy_similarity(s: np.ndarray, t: np.ndarray) -> float:
    g_s, g_t = (x @ x.T / np.linalg.norm(x @ x.T, axis=1, keepdims=True) for x in (s, t))
    return float(((g_s - g_t) ** 2).mean())


def numpy_pkt(s: np.ndarray, t: np.ndarray) -> float:
    def near(x: np.ndarray) -> np.ndarray:
        kernel = (1 + np.corrcoef(np.concatenate([x, -x], 1))) / 2  # centred by their mirror image, so that r is cos
        np.fill_diagonal(kernel, 0)
        return kernel / kernel.sum(1, keepdims=True)

    p_s, p_t = near(s), near(t)
    off = ~np.eye(len(s), dtype=bool)
    return float((p_t[off] * np.log(p_t[off] / p_s[off])).sum() / len(s))


RELATIONS: list[tuple[Any, Any]] = [
    (RkdDistance, numpy_distance),
    (RkdAngle, numpy_angle),
    (SimilarityPreserving, numpy_similarity),
    (Pkt, numpy_pkt),
]
relations = pytest.mark.parametrize(("made", "by_numpy"), RELATIONS, ids=[each[0].__name__ for each in RELATIONS])


@relations
def test_relations_equal_numpy_and_want_no_label(made: Any, by_numpy: Any) -> None:
    student, teacher = vectors(1, width=WIDTH).requires_grad_(), vectors(2)
    found = value(made(), student, teacher)
    assert found.item() == pytest.approx(
        by_numpy(student.detach().double().numpy(), teacher.double().numpy()), rel=1e-4
    )
    found.backward()
    assert (student.grad.abs().sum(1) > 0).all()  # all rows are unlabelled
    assert value(made(), teacher, teacher).item() == pytest.approx(0, abs=1e-6)


@relations
def test_what_relations_need(made: Any, by_numpy: Any) -> None:
    objective = made(member=1)
    assert (objective.needs, objective.teacher_needs) == ({"pooled"}, {"pooled"})
    assert not objective.needs_labels and not objective.needs_shared_tokens
    assert objective.member == 1
    assert made().member is None


@relations
def test_too_few_rows_are_zero_with_a_gradient(made: Any, by_numpy: Any) -> None:
    for rows in range(1, made.min_batch):
        student = vectors(1, rows, WIDTH).requires_grad_()
        found = value(made(), student, vectors(2, rows))
        assert found.item() == pytest.approx(0, abs=1e-7)
        found.backward()
        assert torch.equal(student.grad, torch.zeros(rows, WIDTH))


@relations
def test_equal_vectors_are_finite(made: Any, by_numpy: Any) -> None:
    student = torch.ones(4, WIDTH).requires_grad_()
    found = value(made(), student, torch.zeros(4, OTHER))
    found.backward()
    assert found.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("made", [RkdDistance, RkdAngle, Pkt])
def test_conventions(made: Any) -> None:
    student, teacher = vectors(1, width=WIDTH), vectors(2)
    loss = {RkdDistance: losses.rkd_distance, RkdAngle: losses.rkd_angle, Pkt: losses.pkt}[made]
    published = value(made("published"), student, teacher)
    assert torch.equal(published, loss(student, teacher, convention="published"))
    assert not torch.isclose(published, value(made(), student, teacher))
    with pytest.raises(ValueError, match=r"'ours'.*house, published"):
        made("ours")


def test_rows_that_are_needed() -> None:
    assert [each.min_batch for each in (RkdDistance(), RkdAngle(), SimilarityPreserving(), Pkt())] == [3, 3, 2, 3]
