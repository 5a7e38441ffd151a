"""The configuration groups: every option composes, and names things that exist and take what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

from kdresearch.commands.compose import SAMPLES
from kdresearch.conf_path import config_dir
from kdresearch.strategies.distiller import Distiller

CONF = Path(config_dir())
PARTS = {"teacher/options", "data/carving", "generator/options"}  # what options are made from
OPTIONS = sorted(
    str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*.yaml") if path.parent != CONF
)  # fmt: skip
CHOICES = [option for option in OPTIONS if option not in PARTS and not option.startswith("tune/")]
GIVEN = {
    "data/files": ["data.train=a.csv", "data.test=b.csv"],
    "data/hub": ["data.id=org/data"],
    "generator/causal_lm": ["generator.path=folder"],
    "generator/infill": ["generator.path=folder"],
    "generator/texts": ["generator.path=a.txt"],
    "student/pretrained": ["student.path=folder"],
    "student/tokenizer/pretrained": ["+student.path=folder"],
    "teacher/chain": ["teacher.chain=[['student=bilstm']]"],
    "teacher/checkpoint": ["teacher.path=runs/1"],
    "teacher/ensemble": ["teacher.members=[{path: runs/1}]"],
    "teacher/hub": ["teacher.id=org/model"],
    "teacher/pretrained": ["teacher.encoder=folder"],
}
# Arguments that the code gives and no YAML does.
SUPPLIED = {
    "student": {"vocabulary", "classes"},
    "strategy": {"student", "classes", "teacher", "optimizer", "scheduler", "head_lr_scale"},
    "optimizer": {"params"},
    "scheduler": {"optimizer", "total"},
}


def composed(option: str) -> DictConfig:
    group, name = option.rsplit("/", 1)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"{group}={name}", *GIVEN.get(option, [])], return_hydra_config=True)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that names a constructor, and where it stands."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, each in node.items():
            yield from targets(each, f"{path}.{key}" if path else str(key))


def test_options_are_found() -> None:
    assert {"strategy/soft_label", "student/bilstm", "student/tokenizer/word", "data/imdb"} <= set(CHOICES)
    assert set(OPTIONS) >= PARTS
    assert set(GIVEN) <= set(CHOICES)


def test_every_file_is_yaml_by_its_name() -> None:
    assert [str(path) for path in CONF.rglob("*") if path.is_file() and path.suffix != ".yaml"] == []


@pytest.mark.parametrize("option", CHOICES)
def test_every_option_composes_and_resolves(option: str) -> None:
    cfg = composed(option)
    group = option.rsplit("/", 1)[0]
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    assert OmegaConf.is_dict(OmegaConf.select(cfg, group.replace("/", "."))) or group.startswith(
        ("experiment", "hydra/")
    )


@pytest.mark.parametrize("option", CHOICES)
def test_every_target_takes_what_it_is_given(option: str) -> None:
    plain = OmegaConf.to_container(composed(option), resolve=True)
    found = list(targets(plain))
    assert {path.split(".")[0] for path, _ in found} >= {"data", "student", "strategy", "optimizer", "scheduler"}
    for path, node in found:
        made = get_object(node["_target_"])
        beside = SAMPLES if path == "generator" else frozenset()  # what its node holds for the pool
        given = {key: None for key in node if not str(key).startswith("_") and key not in beside}
        supplied = SUPPLIED.get(path.split(".")[0], set()) if node.get("_partial_") else set()
        parameters = inspect.signature(made).parameters
        named = {name for name, each in parameters.items() if each.kind is not inspect.Parameter.VAR_KEYWORD}
        wiring = {name for name in supplied if name not in named}  # what a strategy hands on to the Distiller
        inspect.signature(made).bind(**given, **dict.fromkeys(supplied - wiring)), path
        # **wiring takes anything: a key of the YAML must be named in the signature all the same
        handed_on = set(inspect.signature(Distiller).parameters) if path == "strategy" else set()
        assert set(given) <= named | handed_on, f"{node['_target_']} at {path} has no {set(given) - named - handed_on}"
        assert not wiring or path == "strategy"


@pytest.mark.parametrize(
    "option", [option for option in CHOICES if option.startswith("student/") and option.count("/") == 1]
)
def test_students_say_how_they_are_trained(option: str) -> None:
    training = composed(option).student.training
    least = {"min_epochs", "min_updates", "updates"}  # of networks; see kdresearch.bench.budget
    assert set(training) - least == {
        "learning_rate", "weight_decay", "head_lr_scale", "epochs", "batch_size", "class_weights"
    }  # fmt: skip
    assert set(training) & least == least or training.epochs is not None


@pytest.mark.parametrize("option", [option for option in CHOICES if option.startswith("teacher/")])
def test_teachers_come_from_one_place(option: str) -> None:
    teacher = composed(option).teacher
    given = [source for source in ("recipe", "path", "id", "members", "chain") if teacher[source] is not None]
    assert len(given) == (0 if option == "teacher/none" else 1)


def test_recipes_compose() -> None:
    for option in CHOICES:
        recipe = composed(option).teacher.recipe if option.startswith("teacher/") else None
        if recipe is not None:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("train", [*recipe, "teacher=none", "logger=none"])
            assert cfg.strategy._target_.endswith("SupervisedDistiller")


@pytest.mark.parametrize("option", [option for option in CHOICES if option.startswith("strategy/")])
def test_weights_name_what_is_learned_from(option: str) -> None:
    strategy = composed(option).strategy
    name = option.split("/")[1]
    assert strategy._partial_ is True
    if "stages" in strategy:
        assert {part for stage in strategy.stages for part in stage.weights} == set(strategy.objectives)
    elif "objectives" in strategy:
        assert set(strategy.weights) == set(strategy.objectives) >= {"label", "soft_label"}
    else:
        learned = {"self": "soft_label", "assistant": "soft_label"}.get(name, name)  # they change who teaches
        alone = {"label"} if name == "supervised" else {"label", learned}
        assert set(strategy.weights) == alone or len(strategy.weights) > 2


@pytest.mark.parametrize("option", [option for option in CHOICES if option.startswith("generator/")])
def test_generators_name_every_setting_with_its_default(option: str) -> None:
    node = OmegaConf.to_container(composed(option).generator, resolve=True)
    assert isinstance(node, dict) and set(node) >= SAMPLES
    made = {"generator": node} | {"filters": node["filters"]}
    if option == "generator/none":
        del made["generator"]
    for name, settings in made.items():
        parameters = inspect.signature(get_object(settings["_target_"])).parameters
        assert set(parameters) == set(settings) - {"_target_"} - (SAMPLES if name == "generator" else set())
        for key, each in parameters.items():
            default = {"names": {}}.get(key, each.default)
            assert settings[key] == default or each.default is inspect.Parameter.empty, (name, key)


def test_the_default_is_a_run_without_a_teacher() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train")
    assert cfg.strategy._target_ == "kdresearch.strategies.supervised.SupervisedDistiller"
    assert OmegaConf.missing_keys(cfg) == set()
    assert (cfg.seeds.init, cfg.seeds.order, cfg.seeds.split, cfg.seeds.teacher) == (0, 0, 0, 0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["seed=5"])
    assert (cfg.seeds.init, cfg.seeds.order, cfg.seeds.split, cfg.seeds.teacher) == (5, 5, 0, 0)
