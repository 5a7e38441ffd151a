"""The strategies that compare class scores: each is its labels' term and its own loss, weighted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.nn import functional as F

from kdresearch import losses
from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError
from kdresearch.models.ngram import NgramBag
from kdresearch.strategies.correlation import CorrelationDistiller
from kdresearch.strategies.decoupled import DecoupledDistiller
from kdresearch.strategies.standardised import StandardisedDistiller
from kdresearch.strategies.weighted_soft_label import WeightedSoftLabelDistiller
from kdresearch.structures import LOGITS, Batch, Outputs, Signature, Tokens

LABEL = torch.tensor([0, 3, -1, 2, 1, -1])


class Said:
    """A teacher that has said it all before."""

    signature = Signature(LOGITS, classes=tuple("abcd"), name="Said")
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)) * 3

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        return Outputs(logits=self.logits[batch.index])

    def to(self, device: object) -> Said:
        return self


def batch() -> Batch:
    ids = torch.randint(1, 20, (6, 5), generator=torch.Generator().manual_seed(0))
    return Batch(torch.arange(6), LABEL, Tokens(ids, torch.ones(6, 5, dtype=torch.bool)))


CASES: list[tuple[Any, str, dict[str, Any], bool]] = [
    (DecoupledDistiller, "decoupled", {"temperature": 3.0, "target_weight": 2.0, "nontarget_weight": 0.5}, True),
    (CorrelationDistiller, "correlation", {"temperature": 2.0, "inter_weight": 0.3, "intra_weight": 1.5}, False),
    (StandardisedDistiller, "standardised", {"temperature": 3.0, "convention": "published"}, False),
    (WeightedSoftLabelDistiller, "weighted_soft_label", {"temperature": 3.0, "convention": "published"}, True),
]


@pytest.mark.parametrize(("strategy", "name", "settings", "labelled"), CASES, ids=[case[1] for case in CASES])
def test_the_loss_is_the_weighted_sum(strategy: Any, name: str, settings: dict[str, Any], labelled: bool) -> None:
    torch.manual_seed(0)
    student = NgramBag(20, 4, embedding_dim=8, dropout=0.0)
    weights = {"label": 0.7, name: 1.3}
    module = strategy(student, classes=tuple("abcd"), teacher=Said(), weights=weights, **settings)
    terms = module.terms(batch())
    logits = student(batch().student).logits
    label = F.cross_entropy(logits[LABEL >= 0], LABEL[LABEL >= 0])
    extra = {"label": LABEL} if labelled else {}
    own = getattr(losses, name)(logits, Said.logits, **settings, **extra)
    assert terms["label"].item() == pytest.approx(label.item(), abs=1e-6)
    assert terms[name].item() == pytest.approx(own.item(), abs=1e-6)
    assert own > 1e-3
    total = sum(module.weights[key] * value for key, value in terms.items())
    assert total.item() == pytest.approx(0.7 * label.item() + 1.3 * own.item(), abs=1e-5)


def test_decoupled_is_warmed_up_beside_whole_labels(build: Callable[..., Any]) -> None:
    """1·CE + warm-up · DKD over a twelfth, as Zhao et al. 2022."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        node = compose("train", ["strategy=decoupled", "teacher=none"]).strategy
    student = NgramBag(20, 4, embedding_dim=8, dropout=0.0)
    module = build(node, "strategy", student=student, classes=tuple("abcd"), teacher=Said())
    assert module.weights == {"label": 1.0, "decoupled": 1.0}
    schedule = module.schedules["decoupled"]
    assert [schedule.factor(step, 240) for step in (0, 10, 20, 240)] == pytest.approx([0, 0.5, 1, 1], abs=1e-3)
    settings = module.objectives["decoupled"].settings
    assert settings == {"temperature": 4.0, "target_weight": 1.0, "nontarget_weight": 1.0}


@pytest.mark.parametrize("strategy", [DecoupledDistiller, CorrelationDistiller, StandardisedDistiller])
def test_what_is_dead_on_two_classes_is_refused(strategy: Any) -> None:
    name = strategy.__name__.removesuffix("Distiller").lower()
    with pytest.raises(UserError, match=rf"{name} is dead on 2 classes: it needs at least 3"):
        strategy(NgramBag(20, 2), classes=("a", "b"), teacher=NgramBag(20, 2), weights={"label": 1, name: 1})


def test_a_zero_weight_lifts_the_refusal() -> None:
    module = CorrelationDistiller(NgramBag(20, 2), classes=("a", "b"), weights={"label": 1, "correlation": 0})
    assert isinstance(module.objectives, nn.ModuleDict)
    assert list(module.objectives) == ["label"]


@pytest.mark.parametrize(("strategy", "name", "settings", "labelled"), CASES, ids=[case[1] for case in CASES])
def test_a_bad_temperature_is_refused_at_once(
    strategy: Any, name: str, settings: dict[str, Any], labelled: bool
) -> None:
    weights = {"label": 1, name: 1}
    with pytest.raises(ValueError, match="temperature must be positive"):
        strategy(
            NgramBag(20, 4), classes=tuple("abcd"), teacher=Said(), weights=weights, **{**settings, "temperature": 0}
        )
