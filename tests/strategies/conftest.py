"""A student and a teacher of three classes that read six words, and a batch with and without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from kdresearch.bench.components import Component
from kdresearch.models.ngram import NgramLinear
from kdresearch.package import Package
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import Batch, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")


def linear(seed: int) -> NgramLinear:
    made = NgramLinear(12, 3, weighting="none")
    made.weight.weight.data = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.fixture
def rows() -> Batch:
    """Five rows, 2 and 4 without a label."""
    ids = torch.randint(1, 12, (5, 6), generator=torch.Generator().manual_seed(1))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(torch.arange(5), torch.tensor([0, 2, -1, 1, -1]), tokens, tokens)


@pytest.fixture
def scores(rows: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's and the teacher's class scores of these rows, [5, 3] each."""
    student, teacher = (linear(seed)(rows.student).logits for seed in (1, 2))
    assert student is not None and teacher is not None
    return student, teacher


@pytest.fixture
def distiller() -> Callable[..., Distiller]:
    """``distiller(kind, **settings)``: a strategy of this student from this teacher, live."""

    def make(kind: Any, **settings: Any) -> Distiller:
        module: Distiller = kind(
            linear(1), classes=CLASSES, teacher=LiveTeacher(Package(linear(2), None, CLASSES, "", {})), **settings
        )
        module.log_dict = module.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        return module

    return make


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """``build(node, name, **arguments)``: what the command makes of a node of the configuration."""

    def make(node: Any, name: str, **arguments: Any) -> Any:
        component = Component.of(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
        if name in ("optimizer", "scheduler"):
            return component.partial(name)
        return component.build(name, **arguments)

    return make
