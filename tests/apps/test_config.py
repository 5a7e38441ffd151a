from __future__ import annotations

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from kdresearch.apps.config import build, plain
from kdresearch.errors import UserError

REVIEWS = {"_target_": "kdresearch.data.reviews.Reviews", "train": 3}
SOFT = {"_target_": "kdresearch.objectives.logits.SoftLabel", "_partial_": True, "temperature": 2.0}


def node(content: dict[str, object], **changes: object) -> object:
    return OmegaConf.create({**content, **changes})


def test_a_node_becomes_what_it_names() -> None:
    made = build(node(REVIEWS, test="${train}"), "data")
    assert made.sizes == {"train": 3, "test": 3, "unlabelled": 9000}


def test_a_partial_node_is_completed_or_left_open() -> None:
    assert isinstance(build(node(SOFT), "strategy"), partial)
    assert build(node(SOFT), "strategy", divergence="jsd", beta=0.25).settings["beta"] == 0.25


def test_constructors_get_plain_values() -> None:
    made = build(node({"_target_": "builtins.dict", "weights": {"label": 1.0}, "sizes": [3, 4]}), "x")
    assert type(made["weights"]) is dict
    assert type(made["sizes"]) is list


@pytest.mark.parametrize(
    ("content", "extra", "message"),
    [
        (node(REVIEWS, tests=3), {}, r"^data: Reviews has no option 'tests'; one of: train$"),
        (node(SOFT, temprature=3), {"beta": 0.1}, r"^data: SoftLabel has no option 'temprature' \(did you mean 'temp"),
        (node(REVIEWS, labels="sign"), {}, r"^data\.labels: 'sign'"),  # told by the constructor itself
        (node(REVIEWS, train=-1), {}, r"^data\.train: -1 rows"),
        (node(SOFT, temperature=-3), {"beta": 0.1}, r"^data: .*temperature.*-3"),
        (node(REVIEWS, _target_="kdresearch.data.reviews.Gone"), {}, r"^data: .*Gone"),
        (node(REVIEWS, _target_="no.where.Gone"), {}, r"^data: .*no\.where\.Gone"),
    ],
)
def test_mistakes_are_told_in_words(content: object, extra: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        build(content, "data", **extra)
    assert "\n" not in str(refused.value)


def test_a_mistake_of_ours_is_not_the_users() -> None:
    with pytest.raises(RuntimeError, match=r"must match"):
        build(node({"_target_": "torch.add", "_partial_": True}), "x", input=torch.ones(2), other=torch.ones(3))


def test_plain_is_resolved_and_a_copy() -> None:
    content = OmegaConf.create({"a": 1, "b": {"c": "${a}"}})
    copy = plain(content)
    assert copy == {"a": 1, "b": {"c": 1}}
    copy["b"]["c"] = 5
    assert content.b.c == 1
    assert plain(7) == 7
