"""The options that the package ships, for plans that are made by hand: their defaults are the command's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kdresearch.bench.components import Component
from kdresearch.bench.plan import Data, Plan, Seeds, Student, TeacherPlan
from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError

_REFERENCE = re.compile(r"^\$\{student\.training\.(\w+)\}$")


def student_plan(
    model: Component | Callable[..., Any], tokenizer: Component | Callable[..., Any] | None = None, **training: Any
) -> Student:
    """A student with the settings of the option that ships for its model's class, and what is set here.

    Args:
        model: a model's class, or a ``functools.partial`` of it.
        tokenizer: likewise; None takes the option's.
        training: learning_rate, batch_size, ...

    Raises:
        UserError: a training setting that students do not have; a model without an option and without a tokenizer.
    """
    component = Component.of(model)
    name, option = _option_of(component.target)
    settings = {**option["model"], **component.settings}
    settings = {key: value for key, value in settings.items() if not key.startswith("_") and not _refers(value)}
    if tokenizer is None:
        path = component.settings.get("path")
        tokenizer = Component.of({key: path if _refers(value) else value for key, value in option["tokenizer"].items()})
    for key in training:
        if key not in option["training"]:
            raise UserError(f"training has no {key!r}; it has {', '.join(option['training'])}")
    solver = Component.of(option["solver"]) if "solver" in option else None
    return Student(
        Component(component.target, settings), Component.of(tokenizer), option["training"] | training, solver, name
    )


def plan_by_hand(
    source: Component,
    student: Student,
    strategy: Component,
    *,
    teacher: TeacherPlan | None = None,
    seed: int = 0,
    transfer: str = "none",
    name: str = "texts",
) -> Plan:
    """The plan of a run as ``kdresearch train`` would make it of these parts, everything else at its defaults."""
    training = student.training
    strategy_name = strategy.target.rpartition(".")[2]
    return Plan(
        data=Data(source, {**_node("data/carving", ("transfer_share",)), "transfer": transfer}, None, name),
        student=student,
        strategy=strategy,
        optimizer=Component.of(_resolved(_read("optimizer/adamw"), training)),
        scheduler=Component.of(_read("scheduler/linear")),
        teacher=teacher,
        trainer=_resolved(_read("trainer/auto"), training),
        seeds=Seeds(init=seed, order=seed),
        options={"strategy": _option_name("strategy", strategy.target) or strategy_name},
    )


def _node(path: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {key: value for key, value in _read(path).items() if key not in (*without, "defaults")}


@cache
def _read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((Path(config_dir()) / f"{path}.yaml").read_text(encoding="utf-8"), _Loader)
    return content


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with numbers as Hydra reads them: 1e-3 is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _option_of(target: str) -> tuple[str, dict[str, Any]]:
    """The name of a model's option, and its content with its tokenizer's."""
    for file in sorted((Path(config_dir()) / "student").glob("*.yaml")):
        option = _read(f"student/{file.stem}")
        if option["model"]["_target_"] == target and not _refers(option["model"].get("path")):
            reader = next(item["tokenizer"] for item in option["defaults"] if isinstance(item, dict))
            return file.stem, {
                **option,
                "tokenizer": _node(f"student/tokenizer/{reader}") | option.get("tokenizer", {}),
            }
    raise UserError(f"there is no option for students of {target}: make a Student of your own (bench.plan.Student)")


def _option_name(group: str, target: str) -> str | None:
    for file in sorted((Path(config_dir()) / group).glob("*.yaml")):
        if _read(f"{group}/{file.stem}").get("_target_") == target:
            return file.stem
    return None


def _refers(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${")


def _resolved(node: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """A node whose references to the student's training are their values."""

    def value_of(value: Any) -> Any:
        match = _REFERENCE.match(value) if isinstance(value, str) else None
        return training[match.group(1)] if match else value

    return {key: value_of(value) for key, value in node.items() if not key.startswith("_") or key == "_target_"}
