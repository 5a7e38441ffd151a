"""Recipes: whole configurations that train teachers, from labels or one from another."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from kdresearch import __version__, package
from kdresearch.apps.config import build, plain
from kdresearch.apps.record import Chosen, needs_teacher
from kdresearch.apps.say import say
from kdresearch.apps.settings import resolved
from kdresearch.artifacts import Store
from kdresearch.data.corpus import load
from kdresearch.data.split import split
from kdresearch.errors import UserError
from kdresearch.strategies.assistant import check_assistants
from kdresearch.strategies.self import check_generations
from kdresearch.structures import Model

CARVING = ("validation", "folds", "fold", "limit", "transfer", "transfer_limit", "leave_out", "conflicts")
"""The settings of ``split`` that a configuration's data have; ``leave_out`` only those of a cross-fitted teacher."""

_HEARD = ("class_map", "precision", "temperature")  # what else than its package decides what a teacher says
_LABELS_ALONE = {"transfer": "none", "transfer_limit": None}
Train = Callable[[DictConfig, Path, Chosen], Any]


@dataclass(frozen=True)
class Recipe:
    """A model to be trained: its name, and the whole configuration; ``teacher.path`` is given when it is known."""

    name: str
    cfg: DictConfig
    chosen: Chosen

    def outline(self) -> tuple[Model, Any]:
        """A model of its shape, and its tokenizer, not fitted; UserError where they cannot be made."""
        student = self.cfg.student
        model: Model = build(student.model, f"{self.cfg.name}: student.model", vocabulary=2, classes=2)
        return model, build(student.tokenizer, f"{self.cfg.name}: student.tokenizer")


def overrides_of(teacher: DictConfig) -> list[str]:
    """The overrides that make a recipe, its short forms among them."""
    short = {"selection.stop_after": teacher.epochs, "strategy.label_smoothing": teacher.label_smoothing}
    return [*map(str, teacher.recipe), *(f"{name}={value}" for name, value in short.items() if value is not None)]


def name_of(overrides: Sequence[str]) -> str:
    """``student (what else differs)``."""
    parts = [part.partition("=")[::2] for part in overrides]
    student = next((value for name, value in parts if name == "student"), "recipe")
    rest = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in parts if name != "student" and name[-4:] != "path"]
    return f"{student} ({', '.join(rest)})" if rest else student


def recipe(cfg: DictConfig, teacher: DictConfig, chosen: Chosen, fold: int | None = None) -> Recipe:
    """The configuration that trains a teacher on the labels of this run's data.

    Args:
        fold: of ``teacher.folds``, which it is not trained on.

    Raises:
        UserError: more epochs than the recipe has.
    """
    overrides = overrides_of(teacher)
    data = _LABELS_ALONE | plain(teacher.data or {})
    found = _composed(cfg, chosen, name_of(overrides), [*overrides, "teacher=none"], data, cfg.seeds.teacher)
    if 0 < (epochs := found.cfg.trainer.max_epochs or 0) < (teacher.epochs or 0):
        raise UserError(f"teacher.epochs={teacher.epochs}: the recipe has {epochs}")
    if fold is None:
        return found
    with open_dict(found.cfg):
        found.cfg.data.leave_out = [fold, teacher.folds]
        found.cfg.name = f"{found.cfg.name}, fold {fold + 1} of {teacher.folds}"
    return found


def links(cfg: DictConfig, chosen: Chosen) -> list[Recipe]:
    """The chain that leads to this run's teacher, each link the teacher of the next; empty where there is none.

    The first is trained on labels, unless it is an assistant of the configured teacher.

    Raises:
        UserError: a link that learns from nothing, or from labels alone in the middle of the chain.
    """
    if "generations" in cfg.strategy:
        check_generations(cfg.strategy.generations)
        return [_generation(cfg, chosen, number) for number in range(cfg.strategy.generations)]
    lists = {"teacher.chain": plain(cfg.teacher.chain)}
    if "assistants" in cfg.strategy:
        lists["strategy.assistants"] = plain(cfg.strategy.assistants)
        check_assistants(lists["strategy.assistants"])
    found: list[Recipe] = []
    for where, each in lists.items():
        if each is None:
            continue
        if not isinstance(each, list) or not each or not all(isinstance(part, list) for part in each):
            raise UserError(
                f"{where}: a list of recipes, each a list of overrides, e.g. [['student=bilstm']], not {each}"
            )
        for number, part in enumerate(each, 1):
            taught = where == "strategy.assistants" or number > 1
            found.append(_link(cfg, chosen, [*map(str, part)], taught, f"{where}, link {number}"))
    return found


def _link(cfg: DictConfig, chosen: Chosen, overrides: list[str], taught: bool, where: str) -> Recipe:
    if any(part.startswith("teacher=") for part in overrides):
        raise UserError(f"{where}: its teacher is the link before it: leave teacher=... out")
    inherits = taught and where.startswith("strategy") and not any(part.startswith("strategy") for part in overrides)
    options = ["strategy=soft_label", "teacher=checkpoint"] if taught else ["teacher=none"]
    data = plain(cfg.teacher.data or {})
    data = data if taught else _LABELS_ALONE | data
    found = _composed(cfg, chosen, name_of(overrides), [*options, *overrides], data, cfg.seeds.teacher)
    if inherits:
        _teach_alike(found.cfg, cfg)
    if needs_teacher(found.cfg) != taught:
        has = "learns from labels alone, and not from the link before it" if taught else "has no teacher to learn from"
        raise UserError(f"{where} ({found.name}) {has}: {'leave out' if taught else 'change'} its strategy=...")
    return found


def _generation(cfg: DictConfig, chosen: Chosen, number: int) -> Recipe:
    """An earlier generation of the student itself: of other initial weights than its own, and than each other's."""
    options = ["strategy=soft_label", "teacher=checkpoint"] if number else ["strategy=supervised", "teacher=none"]
    name = f"{chosen.options['student']} generation {number}"
    found = _composed(
        cfg, chosen, name, options, {} if number else _LABELS_ALONE, cfg.seeds.teacher + 1000 * (number + 1)
    )
    own = ("student", "optimizer", "scheduler", "trainer")
    found.chosen.options.update({group: chosen.options[group] for group in own})
    with open_dict(found.cfg):
        for node in (*own, "selection"):
            found.cfg[node] = plain(cfg[node])
        if number:
            _teach_alike(found.cfg, cfg)
        else:
            found.cfg.strategy.label_smoothing = cfg.strategy.label_smoothing
    return found


def _teach_alike(link: DictConfig, cfg: DictConfig) -> None:
    """The link learns from its teacher as the run's student does from its own."""
    for name in ("temperature", "label_smoothing", "schedules", "weights"):
        link.strategy[name] = plain(cfg.strategy[name])


def _composed(
    cfg: DictConfig, chosen: Chosen, name: str, overrides: list[str], data: dict[str, Any], seed: int
) -> Recipe:
    """Overrides as a whole configuration on this run's data, its split and its machine."""
    made = compose("train", [*overrides, "logger=none"], return_hydra_config=True)
    own = Chosen(dict(made.hydra.runtime.choices) | {"data": chosen.options["data"]}, overrides)
    with open_dict(made):
        del made["hydra"]
        made.data = OmegaConf.create(_resolved_in(cfg, OmegaConf.merge(cfg.data, data)))
        made.seed = seed
        made.seeds = {"init": seed, "order": seed, "split": cfg.seeds.split, "teacher": 0}
        for where in ("accelerator", "devices"):
            made.trainer[where] = cfg.trainer[where]
        made.name = f"teacher {name}"
        made.evaluation.efficiency = False
    for part in ("model", "tokenizer"):  # named by whoever gave the command
        package.trust(str(made.student[part].get("_target_")))
    return Recipe(name, made, own)


def trained(recipe: Recipe, store: Store, train: Train, taught_by: Path | None = None) -> Path:
    """What ``kdresearch train`` leaves of a recipe, trained once and kept.

    Args:
        train: runs a whole configuration in a folder.
        taught_by: the package of its teacher, where it has one.
    """
    cfg, teacher = recipe.cfg, None
    if taught_by is not None:
        cfg.teacher.path = str(taught_by)
        teacher = {"package": package.fingerprint(taught_by)} | {name: plain(cfg.teacher[name]) for name in _HEARD}
    key = {"version": __version__, "training": resolved(cfg, store, teacher)}

    def fill(folder: Path) -> None:
        say(f"training the {cfg.name}")
        train(cfg, folder, recipe.chosen)

    return store.build("teacher", key, fill, waiting=say)


def all_trained(recipes: Sequence[Recipe], store: Store, train: Train, jobs: int) -> list[Path]:
    """``trained`` for recipes that do not depend on each other, ``jobs`` at a time, each in a process of its own."""
    one = partial(trained, store=store, train=train)
    if jobs == 1:
        return [one(recipe) for recipe in recipes]
    for recipe in recipes:
        recipe.cfg.threads = recipe.cfg.threads or max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        return list(pool.map(one, recipes))


def trained_texts(recipe: Recipe, store: Store) -> np.ndarray:
    """Digests of the texts that a recipe is trained on."""
    cfg = recipe.cfg
    corpus = load(build(cfg.data.source, "data"), store, say)
    carved = split(
        corpus, seed=cfg.seeds.split, **{name: plain(cfg.data[name]) for name in CARVING if name in cfg.data}
    )
    return corpus.digests(carved.trained)


def _resolved_in(cfg: DictConfig, data: Any) -> Any:
    """A data node as plain values, its interpolations resolved where they stand in the whole configuration."""
    whole = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    with open_dict(whole):
        whole.data = data
    return OmegaConf.to_container(whole.data, resolve=True)
