"""Named strategies: signatures made of their terms', and every option of conf/strategy beside its constructor."""

from __future__ import annotations

from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from kdresearch import losses
from kdresearch.bench.components import imported
from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError
from kdresearch.models.ngram import NgramLinear
from kdresearch.objectives import logits, relation
from kdresearch.objectives.hidden import Feature
from kdresearch.objectives.logits import Correlation, SoftLabel
from kdresearch.strategies.combined import CombinedDistiller
from kdresearch.strategies.correlation import CorrelationDistiller
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.feature import FeatureDistiller
from kdresearch.strategies.generative import GenerativeDistiller
from kdresearch.strategies.mutual import MutualDistiller
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label
from kdresearch.strategies.self import SelfDistiller
from kdresearch.strategies.soft_label import SoftLabelDistiller

OPTIONS = {path.stem: yaml.safe_load(path.read_text()) for path in Path(config_dir(), "strategy").glob("*.yaml")}
NAMED = {name: node for name, node in OPTIONS.items() if "weights" in node and "defaults" not in node}
WIRING = frozenset(signature(Distiller).parameters) - {"weights", "objectives"}
WARM_UP = {"decoupled": {"decoupled": {"kind": "linear", "steps": 0.0833}}}  # an option's, not its constructor's


def settings_of(strategy: type[Distiller]) -> dict[str, Parameter]:
    """The arguments of a strategy that are not the run's to give."""
    parameters = signature(strategy).parameters
    return {
        name: each for name, each in parameters.items() if name not in WIRING and each.kind is not Parameter.VAR_KEYWORD
    }


@pytest.mark.parametrize("option", sorted(NAMED))
def test_an_option_has_the_settings_of_its_constructor_at_their_defaults(option: str) -> None:
    node, strategy = dict(NAMED[option]), imported(NAMED[option]["_target_"])
    schedules = node.pop("schedules", None)
    assert schedules == WARM_UP.get(option) and node.pop("_partial_") is True and node.pop("_target_")
    settings = settings_of(strategy)
    assert set(node) == set(settings)
    if strategy is CombinedDistiller:
        return
    assert issubclass(strategy, NamedDistiller)
    for name, value in node.items():
        without_default = settings[name].default is Parameter.empty or str(value).startswith("${")
        assert without_default or settings[name].default == value, name


@pytest.mark.parametrize("option", sorted(set(OPTIONS) - set(NAMED)))
def test_the_objectives_of_an_option_take_their_settings(option: str) -> None:
    for node in OPTIONS[option]["objectives"].values():
        settings = {name: value for name, value in node.items() if name != "_target_"}
        signature(imported(node["_target_"])).bind(**settings)


def test_a_setting_that_two_terms_share_has_one_default() -> None:
    for node in NAMED.values():
        for name in set(settings_of(imported(node["_target_"]))) - {"weights"}:
            terms = getattr(imported(node["_target_"]), "composition", {}).values()
            assert len({term.settings[name].default for term in terms if name in term.settings}) <= 1, name


def test_the_defaults_of_objectives_are_those_of_their_losses() -> None:
    """But for DKD and logit standardisation, whose published values are not the bench's; see docs/strategies.md."""
    pairs = [(losses.logit_mse, logits.LogitMse), (losses.correlation, logits.Correlation)]
    pairs += [(losses.weighted_soft_label, logits.WeightedSoftLabel), (losses.soft_label, logits.SoftLabel)]
    pairs += [(losses.rkd_distance, relation.RkdDistance), (losses.rkd_angle, relation.RkdAngle)]
    pairs += [(losses.pkt, relation.Pkt)]
    for loss, objective in pairs:
        for name, parameter in signature(objective).parameters.items():
            assert name == "member" or signature(loss).parameters[name].default == parameter.default, (objective, name)


def test_a_signature_is_that_of_the_terms() -> None:
    parameters = signature(SoftLabelDistiller).parameters
    of_term = signature(SoftLabel).parameters
    assert {"divergence", "beta", "convention", "label_smoothing"} < set(parameters)
    assert parameters["temperature"].default == 2.0 and of_term["temperature"].default == 1.0
    assert parameters["temperature"].annotation == of_term["temperature"].annotation == "float"
    assert parameters["weights"].default == {"label": 0.5, "soft_label": 0.5}
    assert next(iter(parameters)) == "student" and list(parameters)[-1] == "wiring"
    keyword_only = [each for name, each in parameters.items() if name not in ("student", "wiring")]
    assert all(each.kind is Parameter.KEYWORD_ONLY for each in keyword_only)
    assert signature(SelfDistiller).parameters["temperature"].default == 1.0
    assert signature(MutualDistiller).parameters["peers"].default is Parameter.empty
    assert "member" not in signature(FeatureDistiller).parameters and "member" in signature(Feature).parameters


def test_settings_reach_their_terms(distiller: Any) -> None:
    module = distiller(CorrelationDistiller, temperature=3.0, intra_weight=0.5, label_smoothing=0.2, head_lr_scale=4.0)
    settings = module.objectives["correlation"].settings
    assert settings == {"temperature": 3.0, "inter_weight": 1.0, "intra_weight": 0.5}
    assert module.objectives["label"].smoothing == 0.2 and module.head_lr_scale == 4.0
    assert module.weights == {"label": 1.0, "correlation": 1.0}
    shared = distiller(GenerativeDistiller, temperature=5.0).objectives
    assert shared["soft_label"].settings["temperature"] == shared["generative"].settings["temperature"] == 5.0


def test_what_no_term_takes_is_refused(distiller: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        distiller(SoftLabelDistiller, temprature=2.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'member'"):
        distiller(FeatureDistiller, member=1)
    with pytest.raises(UserError, match="no objective 'soft'"):
        distiller(SoftLabelDistiller, weights={"label": 1.0, "soft": 1.0})


class Sharper(CorrelationDistiller):
    """A subclass that names a setting of its own, and other defaults."""

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.0),
        "correlation": Term(partial(Correlation, temperature=0.5), 3.0),
    }

    def __init__(self, student: NgramLinear, *, sharpness: int = 2, **settings: Any) -> None:
        super().__init__(student, **settings)
        self.sharpness = sharpness


def test_a_strategy_is_extended_by_its_composition(distiller: Any) -> None:
    parameters = signature(Sharper).parameters
    assert (parameters["sharpness"].default, parameters["temperature"].default) == (2, 0.5)
    module = distiller(Sharper, sharpness=7)
    assert module.sharpness == 7 and list(module.objectives) == ["correlation"]
    assert module.objectives["correlation"].settings["temperature"] == 0.5
    assert Sharper.needs_teacher({}) and not Sharper.needs_teacher({"weights": {"label": 1.0, "correlation": 0.0}})
