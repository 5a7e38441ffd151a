"""Teachers that are trained on demand: each by a plan of its own, once, and kept in the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from kdresearch.bench.components import Component
from kdresearch.bench.context import Context
from kdresearch.bench.plan import Folder, Plan, Recipe, TeacherPlan
from kdresearch.bench.settings import recipe_key
from kdresearch.data.corpus import load
from kdresearch.data.split import split
from kdresearch.errors import UserError
from kdresearch.structures import Model

Train = Callable[[Plan, Path, Context], Any]
"""What runs a whole plan in a folder: ``bench.run.run``."""

GENERATION_SEEDS = 1000  # between the initial weights of a student's generations


def outline(recipe: Recipe) -> tuple[Model, Any]:
    """A model of the recipe's shape and its tokenizer, not fitted; UserError where they cannot be made."""
    student, name = recipe.plan.student, recipe.plan.name
    model: Model = student.model.build(f"{name}: student.model", vocabulary=2, classes=2)
    return model, student.tokenizer.build(f"{name}: student.tokenizer")


def without_fold(recipe: Recipe, fold: int, folds: int) -> Recipe:
    """The recipe of one of a cross-fitted teacher's models: trained on all folds but this one."""
    plan = recipe.plan
    name = f"{plan.name}, fold {fold + 1} of {folds}"
    evaluation = replace(plan.evaluation, test=False)  # what it says of the test rows nobody reads
    data = plan.data.carved(leave_out=[fold, folds])
    return replace(recipe, plan=replace(plan, data=data, evaluation=evaluation, name=name))


def train_recipe(recipe: Recipe, context: Context, train: Train, teacher: Path | None = None) -> Path:
    """What a run leaves of a recipe: trained once, and kept.

    Args:
        train: runs a plan in a folder.
        teacher: the package that it learns from, where its plan has a teacher.
    """
    plan = recipe.plan
    if teacher is not None:
        plan = replace(plan, teacher=replace(plan.teacher or TeacherPlan(), members=(Folder(teacher),)))
    key = recipe_key(plan, context, teacher)

    def fill(folder: Path) -> None:
        context.say(f"training the {plan.name}")
        train(plan, folder, context)

    return context.store.build("teacher", key, fill, waiting=context.say)


def train_recipes(recipes: Sequence[Recipe], context: Context, train: Train, jobs: int) -> list[Path]:
    """``train_recipe`` for recipes that do not depend on each other, ``jobs`` at a time in processes of their own."""
    if jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        recipes = [replace(item, plan=replace(item.plan, threads=item.plan.threads or threads)) for item in recipes]
        with ProcessPoolExecutor(jobs, get_context("spawn")) as processes:
            return list(processes.map(partial(train_recipe, context=context, train=train), recipes))
    return [train_recipe(recipe, context, train) for recipe in recipes]


def trained_texts(recipe: Recipe, context: Context) -> np.ndarray:
    """Digests of the texts that a recipe is trained on."""
    data = recipe.plan.data
    corpus = load(data.source.build("data"), context.store, context.say)
    return corpus.digests(split(corpus, seed=recipe.plan.seeds.split, **data.carving).trained)


def earlier_generations(plan: Plan, number: int, first: Component, later: Component) -> tuple[Recipe, ...]:
    """A student's earlier generations (Furlanello et al. 2018): of other initial weights than its own and each other's.

    Args:
        number: how many come before the student of ``plan``.
        first, later: the strategies of generation 0, which learns from labels, and of the others.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"strategy.generations must be at least 1 (0 is strategy=supervised), not {number!r}")
    name = plan.student.name or plan.student.model.target.rpartition(".")[2]
    strategies = [first, *[later] * (number - 1)]
    return tuple(_generation(plan, *item, name) for item in enumerate(strategies))


def _generation(plan: Plan, place: int, strategy: Component, student: str) -> Recipe:
    name = f"{student} generation {place}"
    seed = plan.seeds.teacher + GENERATION_SEEDS * (place + 1)
    data = plan.data if place else labels_alone(plan).data
    generation = replace(
        plan,
        data=replace(data, transfer_share=None),
        strategy=strategy,
        teacher=TeacherPlan(name="checkpoint") if place else None,
        samples=None,
        seeds=replace(plan.seeds, init=seed, order=seed, teacher=0),
        name=f"teacher {name}",
        **AS_TEACHER,
    )
    return Recipe(name, generation)


AS_TEACHER: dict[str, Any] = {"tags": (), "resume": True, "telemetry_every": None, "checkpoint_every": None}
"""What a plan that trains a teacher does not have of the run that wants it."""


def labels_alone(plan: Plan) -> Plan:
    """The plan on its labelled rows alone."""
    return replace(plan, data=plan.data.carved(transfer="none", transfer_limit=None))
