from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kdresearch.errors import UserError
from kdresearch.structures import LOGITS, Batch, Outputs, Signature, Teacher, Tokens
from kdresearch.teachers.ensemble import EnsembleTeacher, MappedTeacher

NAMES = ("negative", "positive")


class Said:
    """A teacher that says what it was given, row by row."""

    def __init__(self, logits: Tensor, classes: Sequence[str] = NAMES) -> None:
        self.logits, self.device = logits, "cpu"
        self.signature = Signature(
            frozenset({"logits", "pooled", "sensitivity"}),
            width=4,
            depth=2,
            heads=1,
            embedding_width=3,
            classes=tuple(classes),
        )

    def to(self, device: str) -> Teacher:
        self.device = device
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        pooled = torch.ones(len(batch.index), 4) if "pooled" in needs else None
        sensitivity = torch.full((len(batch.index), 1, 3), 2.0) if "sensitivity" in needs else None
        logits = self.logits[batch.index] if "logits" in needs else None
        return Outputs(logits=logits, pooled=pooled, sensitivity=sensitivity)


def rows(index: Sequence[int]) -> Batch:
    empty = Tokens(torch.zeros(len(index), 1, dtype=torch.long), torch.ones(len(index), 1, dtype=torch.bool))
    return Batch(torch.tensor(index), torch.zeros(len(index), dtype=torch.long), empty)


def odds(*probabilities: Sequence[float], shift: float = 0.0) -> Tensor:
    return torch.tensor(probabilities).log() + shift  # logits are free up to a constant


FIRST = odds([0.9, 0.1], [0.5, 0.5], shift=3.0)
SECOND = odds([0.3, 0.7], [0.2, 0.8])


def test_mean_of_probabilities_by_hand() -> None:
    teacher = EnsembleTeacher([Said(FIRST), Said(SECOND)])
    answer = teacher(rows([0, 1]))
    assert torch.allclose(answer.logits.softmax(1), torch.tensor([[0.6, 0.4], [0.35, 0.65]]))
    assert torch.allclose(answer.logits.exp().sum(1), torch.ones(2))  # they are log-probabilities
    assert torch.allclose(teacher(rows([1, 0])).logits, answer.logits[[1, 0]])
    assert (teacher.signature.classes, teacher.signature.fields, teacher.signature.embedding_width) == (
        NAMES,
        {"logits"},
        0,
    )


def test_weights_are_relative() -> None:
    for weights in ([3, 1], [0.75, 0.25]):
        answer = EnsembleTeacher([Said(FIRST), Said(SECOND)], weights=weights)(rows([0, 1]))
        assert torch.allclose(answer.logits.softmax(1), torch.tensor([[0.75, 0.25], [0.425, 0.575]]))


def test_mean_of_logits_by_hand() -> None:
    answer = EnsembleTeacher([Said(FIRST), Said(SECOND)], "logits", weights=[1, 3])(rows([0, 1]))
    assert torch.allclose(answer.logits, 0.25 * FIRST + 0.75 * SECOND)


def test_one_member_says_what_it_says() -> None:
    assert torch.allclose(EnsembleTeacher([Said(FIRST)])(rows([0, 1])).logits.softmax(1), FIRST.softmax(1))
    assert torch.equal(EnsembleTeacher([Said(FIRST)], "logits")(rows([0, 1])).logits, FIRST)


def test_certain_members_do_not_give_nan() -> None:
    sure = torch.tensor([[200.0, -200.0]])
    answer = EnsembleTeacher([Said(sure), Said(sure)])(rows([0])).logits
    assert answer.isfinite().all()
    answer = EnsembleTeacher([Said(sure), Said(-sure)])(rows([0])).logits
    assert torch.allclose(answer.softmax(1), torch.tensor([[0.5, 0.5]]))


def test_it_moves_its_members() -> None:
    members = [Said(FIRST), Said(SECOND)]
    EnsembleTeacher([MappedTeacher(member, NAMES) for member in members]).to("meta")
    assert [member.device for member in members] == ["meta", "meta"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": []}, "at least one"),
        ({"members": [Said(FIRST), Said(SECOND, NAMES[::-1])]}, r"different classes: .*negative.*positive"),
        ({"average": "votes"}, r"teacher\.average: 'votes'.*probabilities, logits"),
        ({"weights": [1.0]}, r"teacher\.weights: .* each of 2 members, not \[1.0\]"),
        ({"weights": [1.0, 0.0]}, r"one positive number"),
        ({"weights": [1.0, -1.0]}, r"one positive number"),
    ],
)
def test_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EnsembleTeacher(**{"members": [Said(FIRST), Said(SECOND)]} | settings)


def test_classes_are_put_in_order_by_name() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    teacher = MappedTeacher(Said(logits, ("b", "c", "a")), ("a", "b", "c"))
    answer = teacher(rows([0]), frozenset({"logits", "pooled"}))
    assert answer.logits.tolist() == [[3.0, 1.0, 2.0]]  # as they are, not normalised
    assert torch.equal(answer.pooled, torch.ones(1, 4))
    assert teacher(rows([0]), frozenset({"pooled"})).logits is None
    assert (
        teacher.signature.width,
        teacher.signature.depth,
        teacher.signature.heads,
        teacher.signature.embedding_width,
    ) == (4, 2, 1, 3)
    assert teacher.signature.classes == ("a", "b", "c")


def test_renamed_one_to_one() -> None:
    teacher = MappedTeacher(Said(FIRST, ("LABEL_1", "LABEL_0")), NAMES, {"LABEL_0": "negative", "LABEL_1": "positive"})
    assert torch.equal(teacher(rows([0, 1])).logits, FIRST[:, [1, 0]])


def test_eight_stars_become_two_classes_by_the_sum_of_probabilities() -> None:
    stars = ("1", "2", "3", "4", "7", "8", "9", "10")
    probability = torch.tensor([[0.05, 0.1, 0.15, 0.1, 0.2, 0.2, 0.1, 0.1]])
    class_map = {star: NAMES[int(star) > 5] for star in stars}
    teacher = MappedTeacher(Said(probability.log() - 2.0, stars), NAMES, class_map)
    assert torch.allclose(teacher(rows([0])).logits.softmax(1), torch.tensor([[0.4, 0.6]]))
    assert torch.allclose(teacher(rows([0])).logits.exp().sum(), torch.tensor(1.0))


def test_sensitivity_passes_only_where_no_classes_are_merged() -> None:
    needs = frozenset({"logits", "sensitivity"})
    moved = MappedTeacher(Said(FIRST, NAMES[::-1]), NAMES)
    assert moved.signature.fields == {"logits", "pooled", "sensitivity"}
    assert torch.equal(moved(rows([0]), needs).sensitivity, torch.full((1, 1, 3), 2.0))
    merged = MappedTeacher(Said(FIRST, ("bad", "worse", "good")), ("bad", "good"), {"worse": "bad"})
    assert merged.signature.fields == {"logits", "pooled"}
    with pytest.raises(ValueError, match="does not provide sensitivity"):
        merged(rows([0]), needs)


@pytest.mark.parametrize(
    ("own", "class_map", "said"),
    [
        (("neg", "pos"), None, ["neg, pos", "negative, positive", "teacher.class_map", "'neg'"]),
        (("neg", "pos"), {"neg": "negative"}, ["neg, pos", "negative, positive", "'pos'"]),
        (("neg", "pos"), {"neg": "negative", "pos": "postive"}, ["neg, pos", "negative, positive", "'pos'"]),
        (("neg", "pos"), {"neg": "negative", "pos": "negative"}, ["no class of the teacher", "positive"]),
        (NAMES, {"neg": "negative"}, ["teacher.class_map", "'neg'", "negative, positive"]),
        (("negative", "neutral", "positive"), None, ["negative, neutral, positive", "'neutral'"]),
    ],
)
def test_names_that_do_not_match_are_refused(own: tuple[str, ...], class_map: dict[str, str], said: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        MappedTeacher(Said(FIRST, own), NAMES, class_map)
    assert all(part in str(refused.value) for part in said), refused.value
