"""Objectives on sentence vectors, against NumPy and, for the queue, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.special import logsumexp
from torch import Tensor

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.textcnn import TextCNN
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.relation import Contrastive, Pkt, RkdAngle, RkdDistance, SimilarityPreserving
from kdresearch.package import Package
from kdresearch.structures import UNLABELLED, Batch, Outputs, Reading, Tokens
from kdresearch.teachers.live import LiveTeacher

WIDTH, OTHER = 4, 6  # of the student's and the teacher's vectors


def vectors(seed: int, rows: int = 5, width: int = OTHER) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def batch(rows: list[int]) -> Batch:
    tokens = Tokens(torch.ones(len(rows), 1, dtype=torch.long), torch.ones(len(rows), 1, dtype=torch.bool))
    return Batch(torch.tensor(rows), torch.full((len(rows),), UNLABELLED), tokens)


def value(objective: Objective, student: Tensor, teacher: Tensor, rows: list[int] | None = None) -> Tensor:
    rows = list(range(len(student))) if rows is None else rows
    return objective(Outputs(pooled=student), Outputs(pooled=teacher), batch(rows))


def contrastive(**settings: Any) -> Contrastive:
    """Bound to a student of width 4 and a teacher of width 6."""
    torch.manual_seed(0)
    student = TextCNN(9, 2, embedding_dim=3, channels=WIDTH, kernel_sizes=(2,))
    teacher = LiveTeacher(Package(BiLSTM(9, 2, embedding_dim=3, hidden_dim=OTHER // 2), None, ("a", "b"), "", {}))
    objective = Contrastive(**settings)
    objective.bind(student, teacher, Reading())
    return objective


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


class Memory:
    """InfoNCE with a first-in, first-out list, in NumPy."""

    def __init__(self, size: int, temperature: float, in_batch: bool = True) -> None:
        self.size, self.temperature, self.in_batch = size, temperature, in_batch
        self.kept: list[tuple[int, np.ndarray]] = []

    def __call__(self, student: np.ndarray, teacher: np.ndarray, rows: list[int], keep: bool = True) -> float:
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher)]
        total = 0.0
        for place, row in enumerate(rows):
            others = [unit[1][i] for i in range(len(rows)) if i != place] if self.in_batch else []
            others += [vector for kept, vector in self.kept if kept != row]
            scores = np.array([unit[1][place], *others]) @ unit[0][place] / self.temperature
            total += logsumexp(scores) - scores[0]
        if keep:
            self.kept = (self.kept + list(zip(rows, unit[1], strict=True)))[-self.size :] if self.size else []
        return total / len(rows)


EPOCHS = [[0, 1, 2], [3, 4], [5], [2, 0, 4], [1, 5], [3], [0, 1, 2, 3, 4, 5], [5, 1]]


@pytest.mark.parametrize(("size", "in_batch"), [(0, True), (4, True), (4, False), (5, True), (2, False)])
def test_contrastive_equals_numpy_over_epochs(size: int, in_batch: bool) -> None:
    objective = contrastive(temperature=0.3, queue=size, in_batch=in_batch)
    memory = Memory(size, 0.3, in_batch)
    known = vectors(3, 6)  # a frozen teacher's: the same in every epoch
    for step, rows in enumerate(EPOCHS):
        student = vectors(10 + step, len(rows), WIDTH)
        projected = objective.projection(student).detach().double().numpy()
        found = value(objective, student, known[rows], rows)
        assert found.item() == pytest.approx(memory(projected, known[rows].double().numpy(), rows), rel=1e-4, abs=1e-6)


def test_the_queue_by_hand() -> None:
    objective = contrastive(queue=3)
    known = vectors(3, 7)

    def step(rows: list[int]) -> tuple[list[int], int, int]:
        value(objective, vectors(1, len(rows), WIDTH), known[rows], rows)
        filled = int(objective.filled)
        assert torch.equal(objective.queue[:filled], known[objective.rows[:filled]])
        assert torch.equal(objective.queue[filled:], torch.zeros(3 - filled, OTHER))
        return objective.rows[:filled].tolist(), filled, int(objective.pointer)

    assert step([0, 1]) == ([0, 1], 2, 2)
    assert step([2, 3]) == ([3, 1, 2], 3, 1)  # around the end, over the oldest
    assert step([4]) == ([3, 4, 2], 3, 2)
    assert step([5, 6, 0, 1]) == ([0, 1, 6], 3, 2)  # more than it holds: the last three, from the pointer on
    objective.eval()
    before = {name: each.clone() for name, each in objective.state_dict().items()}
    step([3])
    assert all(torch.equal(each, before[name]) for name, each in objective.state_dict().items())


def test_the_last_in_leaves_last_after_a_batch_larger_than_the_queue() -> None:
    objective = contrastive(queue=3)
    known = vectors(3, 8)
    value(objective, vectors(1, 1, WIDTH), known[:1], [0])
    value(objective, vectors(1, 5, WIDTH), known[1:6], [1, 2, 3, 4, 5])
    assert sorted(objective.rows.tolist()) == [3, 4, 5]
    value(objective, vectors(1, 1, WIDTH), known[6:7], [6])
    assert sorted(objective.rows.tolist()) == [4, 5, 6]  # 3 was the oldest
    value(objective, vectors(1, 1, WIDTH), known[7:], [7])
    assert sorted(objective.rows.tolist()) == [5, 6, 7]


def test_a_row_is_no_negative_of_its_own() -> None:
    objective = contrastive(queue=2, in_batch=False)
    student, known = vectors(1, 1, WIDTH), vectors(3, 2)
    assert value(objective, student, known[:1], [0]).item() == 0.0  # nothing in the queue yet
    assert value(objective, student, known[:1], [0]).item() == 0.0  # nothing but itself
    assert value(objective, student, known[1:], [1]).item() > 0.0  # row 0, twice


def test_without_negatives_the_gradient_is_zero_and_there() -> None:
    for objective in (contrastive(), contrastive(queue=3, in_batch=False)):
        found = value(objective, vectors(1, 1, WIDTH), vectors(2, 1))
        found.backward()
        assert found.item() == 0.0
        assert torch.equal(objective.projection.weight.grad, torch.zeros(OTHER, WIDTH))


def test_gradient_reaches_every_unlabelled_row_and_no_teacher() -> None:
    objective = contrastive(queue=4)
    student, known = vectors(1, width=WIDTH).requires_grad_(), vectors(2).requires_grad_()
    value(objective, student, known)
    value(objective, student, known).backward()
    assert (student.grad.abs().sum(1) > 0).all()
    assert objective.projection.weight.grad.abs().sum() > 0
    assert known.grad is None
    assert not objective.queue.requires_grad


def test_saved_and_restored_it_goes_on_as_if_nothing_had_been() -> None:
    known = vectors(3, 6)

    def steps(objective: Contrastive, batches: list[list[int]]) -> list[float]:
        return [value(objective, vectors(len(rows), len(rows), WIDTH), known[rows], rows).item() for rows in batches]

    whole = contrastive(queue=4)
    expected = steps(whole, EPOCHS)
    first = contrastive(queue=4)
    assert steps(first, EPOCHS[:4]) == expected[:4]
    second, fresh = contrastive(queue=4), contrastive(queue=4)
    second.load_state_dict({name: each.clone() for name, each in first.state_dict().items()}, strict=True)
    assert steps(second, EPOCHS[4:]) == expected[4:]
    assert steps(fresh, EPOCHS[4:]) != expected[4:]
    assert set(first.state_dict()) - set(contrastive().state_dict()) == {"queue", "rows", "filled", "pointer"}


def test_half_precision_and_double() -> None:
    objective = contrastive(queue=4)
    rows = vectors(1, width=WIDTH)
    full = [value(objective, rows, vectors(2)).item() for _ in range(2)]
    objective = contrastive(queue=4).double()
    double = [value(objective, rows.double(), vectors(2).double()).item() for _ in range(2)]
    assert double == pytest.approx(full, rel=1e-4)
    objective = contrastive(queue=4)
    low = [value(objective, rows, vectors(2).bfloat16()).item() for _ in range(2)]
    assert low == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"queue": -1}, UserError, "queue .* at least 0, not -1"),
        ({"in_batch": False}, UserError, "in_batch=false leaves no negatives: give a queue"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive, not 0.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Contrastive(**settings)


def test_rows_that_are_needed() -> None:
    assert [each.min_batch for each in (RkdDistance(), RkdAngle(), SimilarityPreserving(), Pkt())] == [3, 3, 2, 3]
    assert [each.min_batch for each in (Contrastive(), Contrastive(queue=1))] == [2, 1]
