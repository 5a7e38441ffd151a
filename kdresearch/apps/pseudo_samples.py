"""Pseudo-samples in a run: made, added to its data, judged by its teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from kdresearch.apps import teacher as teachers
from kdresearch.apps.config import build, plain
from kdresearch.apps.say import say
from kdresearch.artifacts import Store
from kdresearch.data.datamodule import TextDataModule
from kdresearch.errors import UserError
from kdresearch.generation.filters import KEPT, Filters
from kdresearch.generation.generator import Generator
from kdresearch.generation.own_texts import OwnTexts
from kdresearch.generation.pool import Pool, pool
from kdresearch.structures import Teacher

SETTINGS = frozenset({"number", "ratio", "seed", "fresh_every", "learn_from_unlabelled", "chunk", "filters"})
"""What ``generator`` holds beside the generator's own settings; see conf/generator/options.yaml."""


def asked(cfg: DictConfig) -> bool:
    """Whether a generator is chosen."""
    return "_target_" in cfg.generator


def without(cfg: DictConfig) -> DictConfig:
    """The configuration as a teacher is trained by it: how a student's rows are mixed is no part of that."""
    asked = OmegaConf.merge(cfg, {"data": {"transfer_share": None}})
    assert isinstance(asked, DictConfig)
    return asked


def made_of(cfg: DictConfig) -> tuple[Generator, Filters]:
    """The generator and its filters; UserError for settings that make no sense."""
    settings = cfg.generator
    own = OmegaConf.create({key: value for key, value in plain(settings).items() if key not in SETTINGS})
    generator: Generator = build(own, "generator")
    filters: Filters = build(settings.filters, "generator.filters")
    if settings.number is None and settings.ratio is None and not isinstance(generator, OwnTexts):
        raise UserError("generator.number and generator.ratio are both null, and this generator has no end: give one")
    if settings.ratio is not None and settings.ratio <= 0:
        raise UserError(f"generator.ratio must be above 0, not {settings.ratio}")
    _slices(cfg)
    return generator, filters


def _slices(cfg: DictConfig) -> int:
    """How many times other samples are trained on."""
    every, epochs = cfg.generator.fresh_every, cfg.trainer.max_epochs
    if every is None:
        return 1
    if every < 1:
        raise UserError(f"generator.fresh_every must be a number of epochs of at least 1, not {every}")
    if epochs is None or epochs < 0:
        raise UserError(
            f"generator.fresh_every={every} needs to know the number of epochs: set student.training.epochs or "
            "trainer.max_epochs"
        )
    return max(1, -(-int(epochs) // int(every)))


def generate(cfg: DictConfig, data: TextDataModule, store: Store, device: str) -> tuple[Pool, dict[str, Any]]:
    """The pool that the configuration names, made where the store has none, and the facts of a run's record."""
    generator, filters = made_of(cfg)
    settings, split = cfg.generator, data.split
    number = settings.number
    if number is None and settings.ratio is not None:
        number = max(1, round(settings.ratio * len(split.train)))
    rows = split.trained if settings.learn_from_unlabelled else split.train
    found = pool(
        generator,
        filters,
        store=store,
        texts=data.corpus.all_texts(rows),
        labels=data.labels[rows],
        classes=data.classes,
        held_out=data.corpus.all_texts(np.concatenate([split.validation, split.test])),
        number=None if number is None else number * _slices(cfg),
        seed=settings.seed,
        chunk=settings.chunk,
        device=device,
        say=say,
    )
    facts = {
        "generator": generator.key(),
        "pool": found.fingerprint,
        "made": found.made,
        "seconds": found.seconds,
        "samples_per_second": found.made / found.seconds if found.seconds else None,
        "counts": found.counts,
    }
    return found, facts


def add(cfg: DictConfig, data: TextDataModule, store: Store, device: str) -> dict[str, Any]:
    """Make pseudo-samples a part of what is trained on; returns the facts of a run's record."""
    found, facts = generate(cfg, data, store, device)
    say(f"pseudo-samples: {told(facts['counts'])}")
    data.extend(found.texts, found.fingerprint, slices=_slices(cfg), fresh_every=cfg.generator.fresh_every or 1)
    return facts


def probabilities(teacher: Teacher, data: TextDataModule) -> np.ndarray:
    """What a recorded teacher says of the pseudo-samples: [N, C]."""
    found: np.ndarray = teachers.logits_of(teacher, data, data.split.generated).double().softmax(1).numpy()
    return found


def judge(cfg: DictConfig, data: TextDataModule, teacher: Teacher, facts: dict[str, Any]) -> None:
    """Train on those pseudo-samples alone that the teacher's filters keep; ``facts`` counts what they throw away."""
    _, filters = made_of(cfg)
    kept, counts = filters.by_teacher(probabilities(teacher, data))
    facts["counts"] = {name: number for name, number in facts["counts"].items() if name != KEPT} | counts
    say(f"pseudo-samples, by the teacher: {told(counts)}")
    if not kept.any():
        raise UserError(f"the teacher's filters (generator.filters) leave no pseudo-sample: {told(counts)}")
    data.split = replace(data.split, generated=data.split.generated[kept])
    data.mixture(0)  # refuses


def told(counts: dict[str, int]) -> str:
    """Counts of filters in words."""
    gone = {name: number for name, number in counts.items() if name != KEPT}
    thrown = ", ".join(f"{name} {number:,}" for name, number in gone.items())
    return f"{counts[KEPT]:,} kept of {sum(counts.values()):,}; thrown away: {thrown}"
