"""What a run's teacher is, by content: the package that a path holds, or the settings that a recipe is trained by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kdresearch import package
from kdresearch.apps.config import plain
from kdresearch.apps.pseudo_samples import without
from kdresearch.apps.recipes import links, recipe
from kdresearch.apps.record import Chosen, needs_teacher
from kdresearch.apps.settings import content_of, resolved
from kdresearch.apps.teacher import headed, members
from kdresearch.artifacts import Store

# How a teacher answers, as far as that changes what it says; mode, keep, batch_size and jobs are how it runs.
_ANSWERS = ("temperature", "class_map", "precision", "average", "weights", "folds", "max_length", "truncation")


def settings_of(cfg: DictConfig, chosen: Chosen, store: Store) -> dict[str, Any]:
    """The settings that a run is known by, its teacher's among them.

    Raises:
        UserError: data or a teacher that are not there.
    """
    taught = needs_teacher(cfg) or cfg.start["from"] is not None
    return resolved(cfg, store, _teacher(without(cfg), chosen, store) if taught else None)


def _teacher(cfg: DictConfig, chosen: Chosen, store: Store) -> dict[str, Any]:
    answers = {name: plain(cfg.teacher[name]) for name in _ANSWERS}
    answers["precision"] = str(answers["precision"])
    chain = [{"recipe": resolved(link.cfg, store)} for link in links(cfg, chosen)]
    if chain:
        first = [_source(cfg, cfg.teacher, chosen, store)] if headed(cfg) else []
        return answers | {"chain": first + chain}
    sources = [_source(cfg, member, chosen, store) for member in members(cfg)]
    return answers | (sources[0] if cfg.teacher.members is None else {"members": sources})


def _source(cfg: DictConfig, teacher: DictConfig, chosen: Chosen, store: Store) -> dict[str, Any]:
    if teacher.path is not None:
        return {"package": package.fingerprint(package.located(teacher.path))}
    if teacher.id is not None:
        folder = Path(str(teacher.id)).expanduser()
        return {"id": f"content {content_of(folder)}" if folder.is_dir() else str(teacher.id)}
    return {"recipe": resolved(recipe(cfg, teacher, chosen).cfg, store)}
