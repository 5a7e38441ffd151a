"""Strategies that change who teaches: in what they minimise they are soft labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdresearch.errors import UserError
from kdresearch.models.ngram import NgramLinear
from kdresearch.package import Package
from kdresearch.strategies.assistant import AssistantDistiller
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.self import SelfDistiller
from kdresearch.strategies.soft_label import SoftLabelDistiller
from kdresearch.structures import Batch, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")
WEIGHTS = {"label": 0.3, "soft_label": 0.7}
OWN: list[tuple[type[Distiller], dict[str, Any]]] = [
    (SelfDistiller, {"generations": 3}),
    (AssistantDistiller, {"assistants": [["student=textcnn"], ["student=ngram"]]}),
]


def model(seed: int) -> NgramLinear:
    made = NgramLinear(12, 3, weighting="none")
    made.weight.weight.data = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))
    return made


def distiller(kind: type[Distiller], **settings: Any) -> Distiller:
    teacher = LiveTeacher(Package(model(2), None, CLASSES, "", {}))
    return kind(model(1), classes=CLASSES, teacher=teacher, **({"weights": WEIGHTS} | settings))


@pytest.mark.parametrize(("kind", "own"), OWN)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_of_soft_labels(kind: type[Distiller], own: dict[str, Any], temperature: float) -> None:
    ids = torch.randint(1, 12, (5, 6), generator=torch.Generator().manual_seed(1))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    rows = Batch(torch.arange(5), torch.tensor([0, 2, -1, 1, -1]), tokens, tokens)
    settings = {"temperature": temperature, "label_smoothing": 0.1}
    module, expected = distiller(kind, **own, **settings), distiller(SoftLabelDistiller, **settings)
    assert module.weights == expected.weights
    for name, value in expected.terms(rows).items():
        assert torch.equal(module.terms(rows)[name], value)
    assert (module.learns_from_unlabelled, module.teacher_needs) == (True, {"logits"})


@pytest.mark.parametrize(("kind", "own"), OWN)
def test_they_know_what_they_were_made_of(kind: type[Distiller], own: dict[str, Any]) -> None:
    ((name, value),) = own.items()
    assert getattr(distiller(kind, **own), name) == value


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SelfDistiller, {"generations": 0}, r"strategy\.generations must be at least 1 .* not 0"),
        (SelfDistiller, {"generations": 1.5}, r"strategy\.generations .* not 1\.5"),
        (SelfDistiller, {"generations": True}, r"strategy\.generations .* not True"),
        (SelfDistiller, {"generations": "two"}, r"strategy\.generations .* not 'two'"),
        (AssistantDistiller, {"assistants": []}, r"strategy\.assistants needs at least one recipe"),
        (AssistantDistiller, {"assistants": "student=ngram"}, r"strategy\.assistants needs at least one recipe"),
        (AssistantDistiller, {"assistants": ["student=ngram"]}, r"strategy\.assistants: each is a list of overrides"),
        (SelfDistiller, {"weights": {"label": 1.0, "self": 1.0}}, r"self"),
    ],
)
def test_refused(kind: type[Distiller], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(kind, **settings)
