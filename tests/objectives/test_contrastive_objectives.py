"""Objectives that tell a row's vector from those of others, against NumPy and, for queue and memory, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor, distributed, multiprocessing

from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.textcnn import TextCNN
from kdresearch.objectives.contrastive import Contrastive, Crd
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.replicas import gather
from kdresearch.package import Package
from kdresearch.structures import UNLABELLED, Batch, Outputs, Reading, Tokens
from kdresearch.teachers.live import LiveTeacher

WIDTH, OTHER = 4, 6  # of the student's and the teacher's vectors


def vectors(seed: int, rows: int = 5, width: int = OTHER) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def batch(rows: list[int], labels: list[int] | None = None) -> Batch:
    tokens = Tokens(torch.ones(len(rows), 1, dtype=torch.long), torch.ones(len(rows), 1, dtype=torch.bool))
    return Batch(torch.tensor(rows), torch.tensor(labels or [UNLABELLED] * len(rows)), tokens)


def value(
    objective: Objective,
    student: Tensor,
    teacher: Tensor,
    rows: list[int] | None = None,
    labels: list[int] | None = None,
) -> Tensor:
    rows = list(range(len(student))) if rows is None else rows
    return objective(Outputs(pooled=student), Outputs(pooled=teacher), batch(rows, labels))


def bound(objective: Any) -> Any:
    """Bound to a student of width 4 and a teacher of width 6."""
    torch.manual_seed(0)
    student = TextCNN(9, 2, embedding_dim=3, channels=WIDTH, kernel_sizes=(2,))
    teacher = LiveTeacher(Package(BiLSTM(9, 2, embedding_dim=3, hidden_dim=OTHER // 2), None, ("a", "b"), "", {}))
    objective.bind(student.signature, teacher.signature, Reading())
    return objective


def contrastive(**settings: Any) -> Contrastive:
    return bound(Contrastive(**settings))


class Queue:
    """InfoNCE in both directions with a first-in, first-out list, in NumPy."""

    def __init__(self, size: int, temperature: float, in_batch: bool = True, by_class: bool = True) -> None:
        self.size, self.temperature, self.in_batch, self.by_class = size, temperature, in_batch, by_class
        self.kept: list[tuple[int, int, tuple[np.ndarray, np.ndarray]]] = []

    def differs(self, row: int, label: int, other: int, its_label: int) -> bool:
        known = UNLABELLED not in (label, its_label)
        return row != other and not (self.by_class and known and label == its_label)

    def __call__(self, student: np.ndarray, teacher: np.ndarray, rows: list[int], labels: list[int]) -> float:
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher)]
        total = 0.0
        latest = [(rows[i], labels[i], (unit[0][i], unit[1][i])) for i in range(len(rows))]
        candidates = (latest if self.in_batch else []) + self.kept
        for i in range(len(rows)):
            for anchor, side in ((0, 1), (1, 0)):
                others = [v[side] for row, label, v in candidates if self.differs(rows[i], labels[i], row, label)]
                scores = np.array([unit[side][i], *others]) @ unit[anchor][i] / self.temperature
                total += (logsumexp(scores) - scores[0]) / 2
        self.kept = (self.kept + latest)[-self.size :] if self.size else []
        return total / len(rows)


EPOCHS = [[0, 1, 2], [3, 4], [5], [2, 0, 4], [1, 5], [3], [0, 1, 2, 3, 4, 5], [5, 1], [2, 2, 3, 3], [1, 0, 1]]
LABELS = [0, 1, 0, 2, UNLABELLED, 1]  # of the six rows


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize(("size", "in_batch"), [(0, True), (4, True), (4, False), (5, True), (2, False)])
def test_contrastive_equals_numpy_over_epochs(size: int, in_batch: bool, by_class: bool) -> None:
    """Both directions, rows of other classes, a row's copies left out in batch and queue."""
    negatives = "classes" if by_class else "rows"
    objective = contrastive(temperature=0.3, queue=size, in_batch=in_batch, negatives=negatives)
    queue = Queue(size, 0.3, in_batch, by_class)
    known = vectors(3, 6)  # a frozen teacher's: the same in every epoch
    for step, rows in enumerate(EPOCHS):
        student, labels = vectors(10 + step, len(rows), WIDTH), [LABELS[row] for row in rows]
        projected = objective.projection(student).detach().double().numpy()
        found = value(objective, student, known[rows], rows, labels)
        expected = queue(projected, known[rows].double().numpy(), rows, labels)
        assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


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


def test_copies_of_a_row_in_a_batch_are_no_negatives() -> None:
    """As where ``transfer_share`` repeats rows: two copies alone have nothing to be told from."""
    student, known = vectors(1, 1, WIDTH).repeat(2, 1), vectors(3, 2)
    for negatives in ("classes", "rows"):
        objective = contrastive(negatives=negatives)
        assert value(objective, student, known[[0, 0]], [7, 7]).item() == 0.0
        assert value(objective, student, known[[0, 1]], [7, 8]).item() > 0.0


def test_rows_of_the_same_class_are_no_negatives() -> None:
    student, known = vectors(1, 2, WIDTH), vectors(3, 2)
    objective = contrastive()
    assert value(objective, student, known, [0, 1], [2, 2]).item() == 0.0
    assert value(objective, student, known, [0, 1], [2, 1]).item() > 0.0
    assert value(objective, student, known, [0, 1], [2, UNLABELLED]).item() > 0.0
    assert value(contrastive(negatives="rows"), student, known, [0, 1], [2, 2]).item() > 0.0


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
    kept = {"queue", "student_queue", "rows", "labels", "filled", "pointer"}
    assert set(first.state_dict()) - set(contrastive().state_dict()) == kept


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
        ({"negatives": "class"}, UserError, r"negatives: 'class' \(did you mean 'classes'\?\)"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Contrastive(**settings)


class Memory:
    """CRD in NumPy: the memories of both sides, NCE with its Z, momentum; every allowed row is a negative."""

    def __init__(self, objective: Crd) -> None:
        self.objective, self.z = objective, [0.0, 0.0]
        self.sides = [
            each.double().numpy().copy() for each in (objective.teacher_memory, objective.student_memory)
        ]  # what the student's and what the teacher's vectors are compared with
        self.place: dict[int, int] = {}
        self.labels = dict.fromkeys(range(objective.size), UNLABELLED)

    def __call__(self, own: np.ndarray, other: np.ndarray, rows: list[int], labels: list[int]) -> float:
        tau, size, taken = self.objective.temperature, self.objective.size, {}
        for row in sorted(set(rows) - set(self.place)):
            self.place[row] = len(self.place)
        for row, label in zip(rows, labels, strict=True):
            self.labels[self.place[row]] = label
        total = 0.0
        for direction, anchors in enumerate((own, other)):
            scores = anchors @ self.sides[direction].T / tau
            pairs = []
            for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
                allowed = [
                    n for n in range(size)
                    if n != self.place[row] and (UNLABELLED in (label, self.labels[n]) or label != self.labels[n])
                ]  # fmt: skip
                pairs.append((scores[i, self.place[row]], scores[i, allowed]))
            if not self.z[direction]:
                self.z[direction] = size * np.mean([np.exp(each) for p, n in pairs for each in (p, *n)])
            for positive, negatives in pairs:
                noise = len(negatives) / size
                p, q = np.exp(positive) / self.z[direction], np.exp(negatives) / self.z[direction]
                total -= np.log(p / (p + noise)) + np.log(noise / (q + noise)).sum()
            taken[direction] = anchors
        for direction, side in enumerate(self.sides):
            old = side.copy()
            for i, row in enumerate(rows):
                mixed = (old[self.place[row]] + taken[1 - direction][i]) / 2
                side[self.place[row]] = mixed / np.linalg.norm(mixed)
        return total / len(rows)


def crd(**settings: Any) -> Crd:
    return bound(Crd(**{"memory": 6, "sampled": 4, "width": 3, **settings}))


def test_crd_equals_numpy_over_epochs() -> None:
    """Five places, all of a class of their own: each row's negatives are the other four, drawn without return."""
    objective = crd(memory=5)
    memory = Memory(objective)
    known = vectors(3, 5)
    for step, rows in enumerate([[0, 1], [4, 2], [3], [1, 0, 4], [2, 3], [0, 1, 2, 3, 4]]):
        student, labels = vectors(10 + step, len(rows), WIDTH), [10 + row for row in rows]
        sides = []
        for x, project in ((student, objective.student_projection), (known[rows], objective.teacher_projection)):
            y = project(x).detach().double().numpy()
            sides.append(y / np.linalg.norm(y, axis=1, keepdims=True))
        found = value(objective, student, known[rows], rows, labels)
        assert found.item() == pytest.approx(memory(*sides, rows, labels), rel=1e-4)
        assert objective.normalisers.tolist() == pytest.approx(memory.z, rel=1e-4)
        for kept, expected in (
            (objective.teacher_memory, memory.sides[0]),
            (objective.student_memory, memory.sides[1]),
        ):
            np.testing.assert_allclose(kept.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_crd_draws_from_other_classes_only() -> None:
    objective = crd(sampled=500)
    value(objective, vectors(1, 6, WIDTH), vectors(2, 6), labels=[0, 0, 1, 1, 2, UNLABELLED])
    rows = batch([0, 5], [0, UNLABELLED])
    seen: list[Tensor] = []
    draw = objective._draw
    objective._draw = lambda allowed: seen.append(draw(allowed)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    objective(Outputs(pooled=vectors(1, 2, WIDTH)), Outputs(pooled=vectors(2, 2)), rows)
    assert [set(objective.rows[each].tolist()) for each in seen[0]] == [{2, 3, 4, 5}, {0, 1, 2, 3, 4}]


def test_crd_trains_both_projections_and_is_restored() -> None:
    objective = crd()
    student, known = vectors(1, 3, WIDTH).requires_grad_(), vectors(2, 3).requires_grad_()
    value(objective, student, known.detach()).backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters())
    assert student.grad.abs().sum() > 0
    other = crd()
    other.load_state_dict(objective.state_dict())
    torch.manual_seed(5)
    expected = value(objective, student, known, [2, 4, 5])
    torch.manual_seed(5)
    assert torch.equal(value(other, student, known, [2, 4, 5]), expected)


def test_crd_refuses_more_rows_than_places() -> None:
    objective = crd(memory=3)
    value(objective, vectors(1, 3, WIDTH), vectors(2, 3), [7, 8, 9])
    value(objective, vectors(1, 3, WIDTH), vectors(2, 3), [9, 9, 7])
    with pytest.raises(UserError, match=r"memory=3 has a place .* number of training rows"):
        value(objective, vectors(1, 1, WIDTH), vectors(2, 1), [1])
    with pytest.raises(UserError, match="holds no row that another could be told from"):
        value(crd(memory=1), vectors(1, 1, WIDTH), vectors(2, 1), [1])


@pytest.mark.parametrize(
    "settings", [{"memory": 0}, {"sampled": 0}, {"width": 1.5}, {"momentum": 1.0}, {"temperature": 0.0}]
)
def test_bad_settings_of_crd_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Crd(**{"memory": 4, **settings})


def replica(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = [[0, 1, 2], [3]][rank]
    queue, memory = contrastive(queue=8), crd()
    for objective in (queue, memory):
        value(objective, vectors(rank, len(rows), WIDTH), vectors(2, 4)[rows], rows)
    gathered = gather(torch.tensor(rows))
    torch.save((queue.state_dict(), memory.state_dict(), gathered), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_queue_and_memory_hold_the_rows_of_all_replicas(tmp_path: Any) -> None:
    multiprocessing.start_processes(replica, (str(tmp_path),), nprocs=2, start_method="fork")
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for queue, memory, gathered in states:
        assert gathered.tolist() == [0, 1, 2, 3]
        assert queue["rows"].tolist() == [0, 1, 2, 3, 0, 0, 0, 0] and int(queue["filled"]) == 4
        assert torch.equal(queue["queue"][:4], vectors(2, 4))
        assert sorted(memory["rows"].tolist()) == [-1, -1, 0, 1, 2, 3]
    for one, other in zip(states[0][:2], states[1][:2], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one if name != "normalisers")
