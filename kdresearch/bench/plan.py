"""What a run is, as data: frozen dataclasses that a command makes of a configuration, and a notebook by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdresearch.bench.components import Component

FIT = "fit"  # of a teacher's temperature: fitted on the validation rows
BY_ACCURACY = "accuracy"  # of an ensemble's weights: each member's accuracy on the validation rows


@dataclass(frozen=True)
class Data:
    """A source of rows, and how they are carved.

    Args:
        carving: settings of ``data.split.split``: validation, folds, fold, limit, transfer, transfer_limit, ...
        transfer_share: see ``data.batches.Mixture``.
        name: the option, for labels.
    """

    source: Component
    carving: Mapping[str, Any] = field(default_factory=dict)
    transfer_share: float | None = None
    name: str = ""

    def carved(self, **settings: Any) -> Data:
        """The same rows carved by other settings as well."""
        return replace(self, carving={**self.carving, **settings})


@dataclass(frozen=True)
class Student:
    """A model, how it reads text, and the settings of its training (batch_size, updates, ...) by name.

    ``solver``: what solves it, where its strategy's loss is convex; see ``models.solver``.
    """

    model: Component
    tokenizer: Component
    training: Mapping[str, Any] = field(default_factory=dict)
    solver: Component | None = None
    name: str = ""


@dataclass(frozen=True)
class Recipe:
    """A classifier that is trained on demand by a plan of its own, once, and kept in the store."""

    name: str
    plan: Plan


@dataclass(frozen=True)
class Folder:
    """A classifier in a folder: a run directory or a package. ``reads``: max_length and truncation, where changed."""

    path: Path
    reads: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.parent.name if self.path.name == "student" else self.path.name


@dataclass(frozen=True)
class HubModel:
    """A Hugging Face sequence classifier, by id or local folder; ``reads`` as a ``Folder``'s."""

    id: str
    reads: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return Path(self.id).name


Source = Recipe | Folder | HubModel


@dataclass(frozen=True)
class TeacherPlan:
    """Where a teacher comes from, and how it answers.

    Args:
        members: one source, or those of an ensemble; none for a chain that begins with labels.
        ensemble: whether the members are averaged, be it one.
        chain: each is trained by the one before it, the first by the only member or, where there is none, by labels;
            the last is the teacher.
        folds: k: the recipe is trained k times, each time without one fold of the training rows.
        jobs: folds that are trained at a time.
        average, weights: of members or folds; see ``teachers.ensemble.EnsembleTeacher``. Weights may be ``accuracy``.
        temperature: what its logits are divided by: a number, ``fit``, or None.
        mode: ``recorded``, ``live``, or ``auto``: recorded where class scores and sentence vectors are all that is
            needed.
        keep: whether what is read of a live teacher is recorded for the training rows, and by what numbers: False,
            ``bf16`` (or True) or ``int8``.
        precision, batch_size: of its forward passes.
        class_map: the data's class for each of the teacher's, where the names differ.
        name: the option, for labels.
    """

    members: tuple[Source, ...] = ()
    ensemble: bool = False
    chain: tuple[Recipe, ...] = ()
    folds: int | None = None
    jobs: int = 1
    average: str = "probabilities"
    weights: tuple[float, ...] | str | None = None
    temperature: float | str | None = None
    mode: str = "auto"
    keep: bool | str = False
    precision: str = "32"
    batch_size: int = 64
    class_map: Mapping[str, str] | None = None
    name: str = ""

    @property
    def sources(self) -> tuple[Source, ...]:
        """What answers in the end: the last link of a chain, or the members."""
        return self.chain[-1:] or self.members


@dataclass(frozen=True)
class Samples:
    """Pseudo-samples: what makes them, how many, and which are kept; see conf/generator/options.yaml."""

    generator: Component
    filters: Component
    number: int | None = None
    ratio: float | None = 1.0
    seed: int = 0
    fresh_every: int | None = None
    learn_from_unlabelled: bool = True
    chunk: int = 512
    name: str = ""


@dataclass(frozen=True)
class Start:
    """What the student starts from: None (its own initialisation), layers, embeddings or vectors of the teacher."""

    source: str | None = None
    layers: Any = "uniform"


@dataclass(frozen=True)
class Selection:
    """Which epoch is kept, by the validation rows; ``stop_after`` n keeps epoch n of the schedule, the last run.

    ``validations``: at most so many epochs are validated; ``patience``: validations without improvement before the end.
    """

    monitor: str = "val/accuracy"
    mode: str = "max"
    validations: int | None = 40
    patience: int | None = None
    stop_after: int | None = None


@dataclass(frozen=True)
class Seeds:
    """Of weights and dropout, of the order of batches, of the carved rows, of teachers trained on demand."""

    init: int = 0
    order: int = 0
    split: int = 0
    teacher: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Whether the test rows are read, whether latency and rows per second are measured, and on how many rows."""

    test: bool = True
    efficiency: bool = True
    rows: int = 256


@dataclass(frozen=True)
class Plan:
    """Everything that a run is made of.

    Args:
        strategy: a ``Distiller``; it is given student, classes, teacher and wiring when it is built.
        optimizer, scheduler: built with ``params``, and with ``optimizer`` and ``total``.
        teacher: None where nothing names one.
        trainer: arguments of Lightning's Trainer.
        options: what the parts are called, by kind (data, student, strategy, teacher, generator, experiment): labels.
    """

    data: Data
    student: Student
    strategy: Component
    optimizer: Component
    scheduler: Component | None = None
    teacher: TeacherPlan | None = None
    samples: Samples | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    start: Start = Start()
    selection: Selection = Selection()
    seeds: Seeds = Seeds()
    evaluation: Evaluation = Evaluation()
    name: str | None = None
    study: str = "kdresearch"
    tags: tuple[str, ...] = ()
    threads: int | None = None
    resume: bool = True
    telemetry_every: int | None = None
    checkpoint_every: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
