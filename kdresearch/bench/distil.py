"""A whole recorded comparison from texts and labels at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdresearch import package
from kdresearch.bench import identity
from kdresearch.bench.components import Component
from kdresearch.bench.context import Context
from kdresearch.bench.options import plan_by_hand, student_plan
from kdresearch.bench.plan import Folder, HubModel, Plan, TeacherPlan
from kdresearch.bench.record import Record
from kdresearch.bench.run import run
from kdresearch.bench.schema import METRICS, RUN, read_json
from kdresearch.bench.settings import resolve_settings
from kdresearch.data.texts import Texts
from kdresearch.errors import UserError
from kdresearch.strategies.supervised import SupervisedDistiller


@dataclass(frozen=True)
class Distillation:
    """The runs of one method over its seeds.

    Attributes:
        folders: of the runs, one a seed, as ``kdresearch report`` reads them.
        metrics: of each run; see metrics.json.
    """

    folders: tuple[Path, ...]
    metrics: tuple[dict[str, float], ...]

    @property
    def student(self) -> package.Package:
        """The student of the first seed: ``predict(texts)``, ``probabilities(texts)``."""
        return package.load(self.folders[0])

    def mean(self, metric: str = "test/accuracy") -> float:
        """A metric's mean over the seeds."""
        return float(np.mean([entry[metric] for entry in self.metrics]))


def distil(
    student: Component | Callable[..., Any],
    texts: Sequence[str],
    labels: Sequence[object],
    *,
    teacher: str | Path | TeacherPlan | None = None,
    strategy: Component | Callable[..., Any] | None = None,
    seeds: int | Sequence[int] = 3,
    tokenizer: Component | Callable[..., Any] | None = None,
    test: tuple[Sequence[str], Sequence[object]] | None = None,
    validation: tuple[Sequence[str], Sequence[object]] | None = None,
    unlabelled: Sequence[str] = (),
    name: str = "texts",
    folder: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **training: Any,
) -> Distillation:
    """Train a student on texts and labels, alone or from a teacher, over several seeds, and record every run.

    What was run before is not run again: runs lie in the store, or below ``folder``, by their identity.

    Args:
        student: a model's class, or a ``functools.partial`` of it.
        texts, labels: N of each; a fifth is tested on, by a digest of each text, unless ``test`` is given.
        teacher: a run directory, a package, a Hugging Face classifier (folder or hub id), or a plan of one.
        strategy: a strategy's class or a partial of it; by default soft labels with a teacher, labels alone without.
        seeds: how many (from 0), or which.
        test, validation: (texts, labels).
        unlabelled: texts that train by the teacher alone; without a teacher they are part of the data and not used, so
            that both stand in one table.
        training: settings of the student's option: learning_rate, batch_size, epochs, ...

    Raises:
        UserError: whatever cannot be, before compute is spent where that can be known.
    """
    source = Component(f"{Texts.__module__}.{Texts.__qualname__}", {
        "texts": list(texts), "labels": [str(label) for label in labels], "test": test, "validation": validation,
        "unlabelled": list(unlabelled), "name": name,
    })  # fmt: skip
    context = Context() if say is None else Context(say=say)
    plan = plan_by_hand(
        source,
        student_plan(student, tokenizer, **training),
        _strategy(strategy, teacher),
        teacher=_teacher(teacher),
        transfer="unlabelled" if len(unlabelled) and teacher is not None else "none",
        name=name,
    )
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    if not len(numbers):
        raise UserError("seeds: at least one is needed")
    folders = tuple(
        _run_once(replace(plan, seeds=replace(plan.seeds, init=seed, order=seed)), context, folder) for seed in numbers
    )
    return Distillation(folders, tuple(read_json(entry / METRICS) for entry in folders))


def _strategy(strategy: Component | Callable[..., Any] | None, teacher: object) -> Component:
    if strategy is not None:
        return Component.of(strategy)
    if teacher is None:
        return Component.of(SupervisedDistiller)
    from kdresearch.strategies.soft_label import SoftLabelDistiller

    return Component.of(SoftLabelDistiller)


def _teacher(teacher: str | Path | TeacherPlan | None) -> TeacherPlan | None:
    if teacher is None or isinstance(teacher, TeacherPlan):
        return teacher
    return TeacherPlan(members=(teacher_source(teacher),), name=Path(teacher).name)


def teacher_source(teacher: str | Path) -> Folder | HubModel:
    """A run directory or package where the path holds one, else a Hugging Face classifier."""
    try:
        package.located(teacher)
    except UserError:
        if isinstance(teacher, Path) and not teacher.exists():
            raise
        return HubModel(str(teacher))
    return Folder(Path(teacher).expanduser())


def _run_once(plan: Plan, context: Context, folder: str | Path | None) -> Path:
    """The folder of the plan's finished run, which is made if it is not there."""
    place = Path(folder).expanduser() if folder is not None else context.store.root / "runs"
    name = identity.identity(resolve_settings(plan, context))
    path = place / f"{plan.student.name}-{plan.options['strategy']}-{name[:12]}"
    if read_json(path / RUN).get("status") != "finished":
        record: Record = run(plan, path, context)
        assert record.facts["identity"] == name
    return path
