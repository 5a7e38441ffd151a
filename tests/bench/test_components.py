from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from kdresearch.bench.components import Component, imported
from kdresearch.data.reviews import Reviews
from kdresearch.errors import UserError

REVIEWS = {"_target_": "kdresearch.data.reviews.Reviews", "train": 3}
SOFT = {"_target_": "kdresearch.objectives.logits.SoftLabel", "_partial_": True, "temperature": 2.0}


def node(content: dict[str, Any], **changes: Any) -> Component:
    return Component.of({**content, **changes})


def test_a_component_builds_what_it_names() -> None:
    assert node(REVIEWS, test=3).build("data").sizes == {"train": 3, "test": 3, "unlabelled": 9000}


def test_a_component_is_completed_or_left_open() -> None:
    assert node(SOFT, divergence="jsd").build("strategy", beta=0.25).settings["beta"] == 0.25
    make = node({"_target_": "torch.optim.SGD", "lr": 0.5}).partial("optimizer")
    assert make([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.5
    inside = node({"_target_": "builtins.dict", "maker": SOFT, "source": REVIEWS, "each": [REVIEWS]}).build("x")
    assert isinstance(inside["maker"], partial) and inside["maker"].keywords == {"temperature": 2.0}
    assert isinstance(inside["source"], Reviews) and isinstance(inside["each"][0], Reviews)


def test_constructors_get_plain_values() -> None:
    built = node({"_target_": "builtins.dict", "weights": {"label": 1.0}, "sizes": [3, 4]}).build("x")
    assert type(built["weights"]) is dict
    assert type(built["sizes"]) is list


@pytest.mark.parametrize(
    ("component", "extra", "message"),
    [
        (node(REVIEWS, tests=3), {}, r"^data: Reviews has no option 'tests'; one of: train$"),
        (
            node(SOFT, temprature=3),
            {"divergence": "jsd"},
            r"^data: SoftLabel has no option 'temprature' \(did you mean 'temp",
        ),
        (node(REVIEWS, labels="sign"), {}, r"^data\.labels: 'sign'"),  # told by the constructor itself
        (node(REVIEWS, train=-1), {}, r"^data\.train: -1 rows"),
        (node(SOFT, temperature=-3), {"divergence": "jsd"}, r"^data: .*temperature.*-3"),
        (node(REVIEWS, _target_="kdresearch.data.reviews.Gone"), {}, r"kdresearch\.data\.reviews .*Gone"),
        (node(REVIEWS, _target_="no.where.Gone"), {}, r"no\.where\.Gone cannot be imported: there is no module 'no'"),
        (node({"_target_": "builtins.dict", "inner": {**REVIEWS, "tests": 3}}), {}, r"^data\.inner: Reviews has no"),
    ],
)
def test_mistakes_are_told_in_words(component: Component, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        component.build("data", **extra)
    assert "\n" not in str(refused.value)


def test_a_mistake_of_ours_is_not_the_users() -> None:
    with pytest.raises(RuntimeError, match=r"must match"):
        node({"_target_": "torch.add"}).build("x", input=torch.ones(2), other=torch.ones(3))


def test_a_component_is_made_of_a_mapping_a_class_or_a_partial() -> None:
    target = "kdresearch.data.reviews.Reviews"
    by_mapping, by_class, by_partial = map(Component.of, (REVIEWS, Reviews, partial(Reviews, train=3)))
    assert by_mapping == by_partial == Component(target, {"train": 3}) == Component.of(by_mapping)
    assert by_class == Component(target)
    assert by_mapping.as_data == REVIEWS and by_class.constructor is imported(target) is Reviews
    with pytest.raises(UserError, match="cannot be imported by its name: define it at the top level"):
        Component.of(lambda: None)
