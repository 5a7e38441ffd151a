"""Pseudo-samples in a run: made, added to its data, filtered by its teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kdresearch.bench.context import Context, teacher_device
from kdresearch.bench.plan import Plan, Samples
from kdresearch.data.datamodule import TextDataModule
from kdresearch.errors import UserError
from kdresearch.generation.filters import ACCEPTED, Filters
from kdresearch.generation.generator import Generator
from kdresearch.generation.own_texts import OwnTexts
from kdresearch.generation.pool import Pool, pool
from kdresearch.structures import Teacher
from kdresearch.teachers.ask import logits_of


def build_generator(plan: Plan, samples: Samples) -> tuple[Generator, Filters]:
    """The generator and its filters; UserError for settings that make no sense."""
    generator: Generator = samples.generator.build("generator")
    filters: Filters = samples.filters.build("generator.filters")
    if samples.number is None and samples.ratio is None and not isinstance(generator, OwnTexts):
        raise UserError("generator.number and generator.ratio are both null, and this generator has no end: give one")
    if samples.ratio is not None and samples.ratio <= 0:
        raise UserError(f"generator.ratio must be above 0, not {samples.ratio}")
    count_slices(plan, samples)
    return generator, filters


def count_slices(plan: Plan, samples: Samples) -> int:
    """How many times other samples are trained on."""
    every, epochs = samples.fresh_every, plan.trainer.get("max_epochs")
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


def make_pool(plan: Plan, samples: Samples, data: TextDataModule, context: Context) -> tuple[Pool, dict[str, Any]]:
    """The pool that a plan names, made where the store has none, and the facts of a run's record."""
    generator, filters = build_generator(plan, samples)
    split, number = data.split, samples.number
    if number is None and samples.ratio is not None:
        number = max(1, round(samples.ratio * len(split.train)))
    rows = split.trained if samples.learn_from_unlabelled else split.train
    samples_pool = pool(
        generator,
        filters,
        store=context.store,
        texts=data.corpus.all_texts(rows),
        labels=data.labels[rows],
        classes=data.classes,
        held_out=data.corpus.all_texts(np.concatenate([split.validation, split.test])),
        number=None if number is None else number * count_slices(plan, samples),
        seed=samples.seed,
        chunk=samples.chunk,
        device=teacher_device(plan),
        say=context.say,
    )
    facts = {
        "generator": generator.key(),
        "pool": samples_pool.fingerprint,
        "made": samples_pool.generated,
        "seconds": samples_pool.seconds,
        "samples_per_second": samples_pool.generated / samples_pool.seconds if samples_pool.seconds else None,
        "counts": samples_pool.counts,
    }
    return samples_pool, facts


def add_samples(plan: Plan, samples: Samples, data: TextDataModule, context: Context) -> dict[str, Any]:
    """Make pseudo-samples a part of what is trained on; returns the facts of a run's record."""
    samples_pool, facts = make_pool(plan, samples, data, context)
    context.say(f"pseudo-samples: {describe_counts(facts['counts'])}")
    data.extend(
        samples_pool.texts,
        samples_pool.fingerprint,
        slices=count_slices(plan, samples),
        fresh_every=samples.fresh_every or 1,
    )
    return facts


def teacher_probabilities(teacher: Teacher, data: TextDataModule) -> np.ndarray:
    """A recorded teacher's class probabilities of the pseudo-samples [N, C]."""
    probabilities: np.ndarray = logits_of(teacher, data, data.split.generated).double().softmax(1).numpy()
    return probabilities


def filter_by_teacher(
    samples: Samples, data: TextDataModule, teacher: Teacher, facts: dict[str, Any], context: Context
) -> None:
    """Keep those pseudo-samples alone that the teacher's filters let pass; ``facts`` counts what they throw away."""
    filters: Filters = samples.filters.build("generator.filters")
    passed, counts = filters.by_teacher(teacher_probabilities(teacher, data))
    facts["counts"] = {name: number for name, number in facts["counts"].items() if name != ACCEPTED} | counts
    context.say(f"pseudo-samples, by the teacher: {describe_counts(counts)}")
    if not passed.any():
        raise UserError(f"the teacher's filters (generator.filters) leave no pseudo-sample: {describe_counts(counts)}")
    data.split = replace(data.split, generated=data.split.generated[passed])
    data.mixture(0)  # refuses


def describe_counts(counts: dict[str, int]) -> str:
    """Counts of filters in words."""
    rejected = {name: number for name, number in counts.items() if name != ACCEPTED}
    thrown = ", ".join(f"{name} {number:,}" for name, number in rejected.items())
    return f"{counts[ACCEPTED]:,} kept of {sum(counts.values()):,}; thrown away: {thrown}"
