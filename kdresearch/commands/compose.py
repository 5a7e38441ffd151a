"""From a composed configuration to the plan of a run: below this line nothing knows Hydra or OmegaConf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from kdresearch.bench.components import Component
from kdresearch.bench.plan import (
    Data,
    Evaluation,
    Plan,
    Samples,
    Seeds,
    Selection,
    Start,
    Student,
)
from kdresearch.errors import UserError

SOURCES = ("recipe", "path", "id", "members", "chain")
CARVING = ("validation", "folds", "fold", "limit", "transfer", "transfer_limit", "leave_out", "conflicts")
"""The settings of ``data.split.split`` that a configuration's data have."""
SAMPLES = frozenset({"number", "ratio", "seed", "fresh_every", "learn_from_unlabelled", "chunk", "filters"})
"""What ``generator`` holds beside the generator's own settings; see conf/generator/options.yaml."""


class Composition(NamedTuple):
    """A resolved configuration, and what it was composed from."""

    cfg: DictConfig
    options: dict[str, Any]  # the option of each group
    overrides: list[str]  # as typed


def compose_overrides(overrides: Sequence[str], search: Sequence[str] = ()) -> Composition:
    """The configuration that ``kdresearch train`` would compose of these overrides, where Hydra is initialised.

    Args:
        search: further overrides that say where options are looked for.
    """
    cfg = compose("train", [*search, *overrides], return_hydra_config=True)
    options = dict(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    return Composition(cfg, options, list(overrides))


def plan_of(composition: Composition, with_teacher: bool = False) -> Plan:
    """The plan of a run.

    Args:
        with_teacher: whether the teacher, where there is one, belongs to it though nothing in the run asks one.

    Raises:
        UserError: values that are still to be given, options of the teacher that contradict each other or name nothing.
    """
    cfg, options = composition.cfg, composition.options
    if missing := _missing(OmegaConf.to_container(cfg, resolve=False)):
        raise UserError("still to be given: " + ", ".join(f"{name}=..." for name in missing))
    content: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    plan = plan_without_teacher(content, options, composition.overrides)
    needed = needs_teacher(cfg)
    if not (needed or plan.start.source is not None or with_teacher):
        return plan  # what nobody asks is no part of the run
    from kdresearch.commands.teachers import Teachers

    teacher = Teachers(composition, plan).plan()
    if teacher is None and needed and not (with_teacher and options["teacher"] == "none"):
        raise UserError(
            f"strategy={options['strategy']} needs a teacher, and teacher={options['teacher']} names none: choose one "
            f"with teacher=NAME, or give {' or '.join(f'teacher.{source}=...' for source in SOURCES)}"
        )
    return replace(plan, teacher=teacher)


def needs_teacher(cfg: DictConfig) -> bool:
    """Whether the strategy of a configuration, with its settings, takes a teacher."""
    strategy = Component.of(OmegaConf.to_container(cfg.strategy, resolve=True))  # type: ignore[arg-type]
    return bool(strategy.constructor.needs_teacher(strategy.settings))


def plan_without_teacher(content: dict[str, Any], options: Mapping[str, Any], overrides: Sequence[str]) -> Plan:
    """The plan of a resolved configuration, its teacher left out."""
    data, student = content["data"], content["student"]
    return Plan(
        data=Data(
            Component.of(data["source"]),
            {name: data[name] for name in CARVING if name in data},
            data["transfer_share"],
            str(options["data"]),
        ),
        student=Student(
            Component.of(student["model"]),
            Component.of(student["tokenizer"]),
            student["training"],
            Component.of(student["solver"]) if student.get("solver") else None,
            str(options["student"]),
        ),
        strategy=Component.of(content["strategy"]),
        optimizer=Component.of(content["optimizer"]),
        scheduler=Component.of(content["scheduler"]),
        samples=_samples(content["generator"], str(options["generator"])),
        trainer=content["trainer"],
        start=Start(content["start"]["from"], content["start"]["layers"]),
        selection=Selection(**content["selection"]),
        seeds=Seeds(**content["seeds"]),
        evaluation=Evaluation(**content["evaluation"]),
        options={kind: str(option) for kind, option in options.items()},
        overrides=tuple(overrides),
        tags=tuple(content["tags"]),
        **{
            name: content[name]
            for name in ("name", "study", "threads", "resume", "telemetry_every", "checkpoint_every")
        },
    )


def _samples(generator: dict[str, Any], name: str) -> Samples | None:
    if "_target_" not in generator:
        return None
    settings = {key: value for key, value in generator.items() if key in SAMPLES and key != "filters"}
    maker = {key: value for key, value in generator.items() if key not in SAMPLES}
    return Samples(Component.of(maker), Component.of(generator["filters"]), name=name, **settings)


def _missing(node: Any, path: str = "") -> list[str]:
    """Paths of the values that are still ``???``."""
    if isinstance(node, dict):
        return [name for key, item in node.items() for name in _missing(item, f"{path}.{key}" if path else str(key))]
    return [path] if node == "???" else []
