"""Finding, training and recording the teacher that a run names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from kdresearch import __version__, package
from kdresearch.apps.config import build, plain
from kdresearch.apps.record import Chosen
from kdresearch.apps.say import say
from kdresearch.artifacts import Store, file_sha256
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.tokenizers import gives_words
from kdresearch.errors import UserError, choices
from kdresearch.evaluation.efficiency import directory_bytes, parameters
from kdresearch.evaluation.metrics import better_than_chance, task_metrics
from kdresearch.hub import hub_name
from kdresearch.structures import FIELDS, LOGITS, RECORDED, UNLABELLED, Batch, Model, Reading, Teacher, Tokens
from kdresearch.teachers.ensemble import EnsembleTeacher, MappedTeacher
from kdresearch.teachers.live import PRECISIONS, LiveTeacher
from kdresearch.teachers.recorded import RecordedTeacher, record

SOURCES = ("recipe", "path", "id", "members")
MODES = ("auto", "recorded", "live")
_TRAINING = ("data", "student", "strategy", "optimizer", "scheduler", "trainer", "seeds", "selection", "start")
_OF_A_MEMBER = ("recipe", "path", "id", "data", "max_length", "truncation")
BY_ACCURACY = "accuracy"
Train = Callable[[DictConfig, Path, Chosen], Any]


@dataclass
class Found:
    """The packages of a teacher, and how to speak of it."""

    name: str
    folders: list[Path]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """A teacher at work."""

    training: Teacher  # asked about training batches
    evaluation: Teacher  # asked about validation and test rows; always recorded
    reading: Reading  # how its tokens correspond to the student's


def find(cfg: DictConfig, chosen: Chosen, store: Store, train: Train) -> Found:
    """The packages that the teacher consists of; a recipe whose result the store lacks is trained.

    Args:
        train: runs a whole configuration in a folder.

    Raises:
        UserError: options that contradict each other or name nothing; told before anything is trained.
    """
    _check_options(cfg)
    members = _members(cfg)
    folders = [_package_folder(cfg, member, chosen, store, train) for member in members]
    name = " + ".join(_name(member) for member in members)
    sizes = [parameters(package.outline(folder)[0]) for folder in folders]  # type: ignore[arg-type]
    facts = {
        "name": name,
        "fingerprint": fingerprint(cfg, folders),
        "parameters": sum(size["total"] for size in sizes),
        "parameters_without_embeddings": sum(size["without_embeddings"] for size in sizes),
        "bytes": sum(directory_bytes(folder) for folder in folders),
        "packages": [str(folder) for folder in folders],
        "precision": cfg.teacher.precision,
    }
    return Found(name, folders, facts)


def _check_options(cfg: DictConfig) -> None:
    teacher = cfg.teacher
    if teacher.mode not in MODES:
        raise UserError(f"teacher.mode: {choices(teacher.mode, MODES)}")
    if str(teacher.precision) not in PRECISIONS:
        raise UserError(f"teacher.precision: {choices(teacher.precision, PRECISIONS)}")
    if teacher.members is None:
        return
    given = [source for source in SOURCES if teacher[source] is not None]
    if len(given) > 1:
        raise UserError(f"teacher: exactly one of {', '.join(SOURCES)} must be given, not {' and '.join(given)}")
    if teacher.mode == "live" and len(teacher.members) > 1:
        raise UserError("teacher.mode=live runs one teacher: an ensemble is recorded")
    if isinstance(teacher.weights, str) and teacher.weights != BY_ACCURACY:
        raise UserError(f"teacher.weights: numbers, or {BY_ACCURACY}, not {teacher.weights!r}")
    weights = None if teacher.weights == BY_ACCURACY else plain(teacher.weights)
    EnsembleTeacher([Promised(()) for _ in teacher.members], teacher.average, weights)


def promise(cfg: DictConfig, chosen: Chosen, store: Store, data: TextDataModule) -> tuple[Teacher, Reading]:
    """The teacher's shape and how it reads, before it is trained or asked: enough to refuse what cannot be.

    Raises:
        UserError: options that contradict each other or name nothing.
    """
    _check_options(cfg)
    promised, readings = [], []
    for member in _members(cfg):
        model, tokenizer = _outline(cfg, member, chosen, store)
        sensitive = frozenset({"sensitivity"}) if "embeddings" in model.provides else frozenset[str]()
        recorded = cfg.teacher.mode == "recorded" or cfg.teacher.members is not None
        promised.append(
            Promised(
                data.classes,
                model.provides & RECORDED if recorded else model.provides | sensitive,
                model.width,
                model.depth,
                model.heads,
                model.embedding_width,
                type(model).__name__,
                recorded,
            )
        )
        readings.append(_reading(data.tokenizer, tokenizer))
    if cfg.teacher.members is None:
        return promised[0], readings[0]
    weights = None if cfg.teacher.weights == BY_ACCURACY else plain(cfg.teacher.weights)
    return EnsembleTeacher(promised, cfg.teacher.average, weights), Reading("apart", "an ensemble is recorded")


def _reading(own: Any, other: Any) -> Reading:
    """How two tokenizers' tokens correspond, as far as their settings tell."""
    if own.key() == other.key():
        return Reading("same")
    without = [each.key()["tokenizer"] for each in (own, other) if not gives_words(each)]
    if without:
        return Reading("apart", f"the {' and the '.join(without)} tokenizer gives no character offsets")
    return Reading("words")


def _outline(cfg: DictConfig, teacher: DictConfig, chosen: Chosen, store: Store) -> tuple[Model, Any]:
    """A model of the teacher's shape, and its tokenizer, fitted or not."""
    if _source(teacher, chosen) != "recipe":
        return package.outline(_package_folder(cfg, teacher, chosen, store, None))
    recipe, _ = _recipe(cfg, teacher, chosen)
    model: Model = build(recipe.student.model, "teacher.recipe: student.model", vocabulary=2, classes=2)
    return model, build(recipe.student.tokenizer, "teacher.recipe: student.tokenizer")


def fingerprint(cfg: DictConfig, folders: list[Path]) -> str:
    own = [package.fingerprint(folder) for folder in folders]
    if len(own) == 1:
        return own[0]
    how = json.dumps([own, cfg.teacher.average, plain(cfg.teacher.weights)])
    return hashlib.sha256(how.encode()).hexdigest()[:24]


def answer(
    cfg: DictConfig, found: Found, data: TextDataModule, store: Store, device: str, *, live: bool, token_level: bool
) -> Answers:
    """The teacher as it answers this run, in the data's classes.

    What is recorded is recorded here; a live teacher answers training batches only, and is recorded for the
    validation and test rows.

    Args:
        live: whether it runs beside the student.
        token_level: whether its tokens are compared with the student's.

    Raises:
        UserError: class names that do not match, or a teacher no better than chance on the validation rows.
    """
    class_map = plain(cfg.teacher.class_map)
    for folder in found.folders:  # names first: nothing is computed for a teacher that cannot fit
        MappedTeacher(Promised(package.classes(folder)), data.classes, class_map)
    # The validation rows first: a useless teacher is refused before the rest is paid for.
    _check(found, _recorded(cfg, found, data, store, data.split.validation, class_map, device), data)
    evaluated = np.concatenate([data.split.validation, data.split.test])
    recorded = _recorded(cfg, found, data, store, evaluated if live else data.used, class_map, device)
    found.facts["mode"] = "live" if live else "recorded"
    if not live:
        return Answers(recorded, recorded, Reading("apart", "the teacher is recorded"))
    opened = package.load(found.folders[0])
    data.read_teacher(opened.tokenizer, opened.fingerprint, token_level=token_level)
    reading = Reading(data.reading)
    if reading.kind == "apart":
        reading = _reading(data.tokenizer, opened.tokenizer)
    teacher = MappedTeacher(LiveTeacher(opened, str(cfg.teacher.precision)), data.classes, class_map)
    return Answers(teacher, recorded, reading)


def _recorded(
    cfg: DictConfig, found: Found, data: TextDataModule, store: Store, index: np.ndarray, class_map: Any, device: str
) -> Teacher:
    members: list[Teacher] = []
    for folder in found.folders:
        pieces = record(
            package.fingerprint(folder),
            lambda folder=folder: package.load(folder),  # type: ignore[misc]
            data.corpus,
            index,
            store,
            precision=str(cfg.teacher.precision),
            batch_size=cfg.teacher.batch_size,
            device=device,
            say=say,
        )
        recorded = RecordedTeacher(pieces, data.corpus, index, package.classes(folder))
        members.append(MappedTeacher(recorded, data.classes, class_map))
    if cfg.teacher.members is None:
        return members[0]
    weights = plain(cfg.teacher.weights)
    if weights == BY_ACCURACY:
        label = torch.from_numpy(data.labels[data.split.validation])
        answers = [logits_of(member, data, data.split.validation) for member in members]
        weights = [task_metrics(logits, label)["accuracy"] for logits in answers]
    return EnsembleTeacher(members, cfg.teacher.average, weights)


def logits_of(teacher: Teacher, data: TextDataModule, index: np.ndarray) -> torch.Tensor:
    """A recorded teacher's logits [N, C] on rows, on the CPU."""
    found = torch.empty(len(index), len(data.classes))
    for first in range(0, len(index), 256):
        rows = torch.from_numpy(index[first : first + 256])
        empty = Tokens(torch.zeros(len(rows), 1, dtype=torch.long), torch.zeros(len(rows), 1, dtype=torch.bool))
        logits = teacher(Batch(rows, torch.full((len(rows),), UNLABELLED), empty), LOGITS).logits
        assert logits is not None
        found[first : first + 256] = logits.float().cpu()
    return found


def member_accuracies(teacher: Teacher, data: TextDataModule, index: np.ndarray) -> list[float]:
    """Accuracy of each member of an ensemble on rows; empty for a single teacher."""
    label = torch.from_numpy(data.labels[index])
    members = teacher.members if isinstance(teacher, EnsembleTeacher) else []
    return [task_metrics(logits_of(member, data, index), label)["accuracy"] for member in members]


def _check(found: Found, teacher: Teacher, data: TextDataModule) -> None:
    index = data.split.validation
    label = torch.from_numpy(data.labels[index])
    accuracy = task_metrics(logits_of(teacher, data, index), label)["accuracy"]
    found.facts |= {"validation_accuracy": accuracy, "classes": list(teacher.classes)}
    say(f"teacher {found.name}: validation accuracy {accuracy:.4f} on {len(index):,} rows")
    found.facts["members_validation_accuracy"] = member_accuracies(teacher, data, index)
    if not better_than_chance(accuracy, label):
        raise UserError(
            f"the teacher {found.name} is no better than chance on the validation rows (accuracy {accuracy:.4f}): "
            "was it fine-tuned for these classes, and are their names in the right order (teacher.class_map)?"
        )


@dataclass(frozen=True)
class Promised:
    """A teacher that is not there yet: its shape, to check what is asked of it before it is paid for."""

    classes: tuple[str, ...]
    provides: frozenset[str] = FIELDS
    width: int = 0
    depth: int = 0
    heads: int = 0
    embedding_width: int = 0
    name: str = "the teacher"
    recorded: bool = False

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Any:
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Teacher:
        return self


def _members(cfg: DictConfig) -> list[DictConfig]:
    if cfg.teacher.members is None:
        return [cfg.teacher]
    return [_member(cfg.teacher, each) for each in cfg.teacher.members]


def _member(teacher: DictConfig, member: Any) -> DictConfig:
    merged = OmegaConf.create(OmegaConf.to_container(teacher, resolve=True))
    with open_dict(merged):
        merged.merge_with({"members": None, "recipe": None, "path": None, "id": None})
        for key in member:
            if key not in _OF_A_MEMBER:
                raise UserError(f"teacher.members: {choices(key, _OF_A_MEMBER)}")
        merged.merge_with(member)
    assert isinstance(merged, DictConfig)
    return merged


def _name(teacher: DictConfig) -> str:
    if teacher.recipe is not None:
        student = next(
            (part.removeprefix("student=") for part in teacher.recipe if part.startswith("student=")), "recipe"
        )
        rest = [
            part.rsplit(".", 1)[-1]
            for part in teacher.recipe
            if not part.startswith("student=") and "path=" not in part
        ]
        return f"{student} ({', '.join(rest)})" if rest else str(student)
    return Path(str(teacher.path or teacher.id)).name


def _source(teacher: DictConfig, chosen: Chosen) -> str:
    """Which of recipe, path and id names the teacher; UserError unless exactly one does."""
    given = [source for source in SOURCES[:3] if teacher[source] is not None]
    if not given:
        raise UserError(
            f"strategy={chosen.options['strategy']} needs a teacher, and teacher={chosen.options['teacher']} names "
            f"none: choose one with teacher=NAME, or give {' or '.join(f'teacher.{source}=...' for source in SOURCES)}"
        )
    if len(given) > 1:
        raise UserError(f"teacher: exactly one of {', '.join(SOURCES)} must be given, not {' and '.join(given)}")
    return given[0]


def _package_folder(cfg: DictConfig, teacher: DictConfig, chosen: Chosen, store: Store, train: Train | None) -> Path:
    source = _source(teacher, chosen)
    if source == "path":
        return package.located(teacher.path)
    if source == "id":
        return _from_hub(teacher, store)
    assert train is not None
    return _trained(cfg, teacher, chosen, store, train)


def _from_hub(teacher: DictConfig, store: Store) -> Path:
    from kdresearch.data.tokenizers import PretrainedTokenizer
    from kdresearch.models.transformer import HubClassifier

    name = hub_name(teacher.id)
    content: Any = name
    if Path(name).is_dir():
        content = {file.name: file_sha256(file) for file in sorted(Path(name).iterdir()) if file.is_file()}
    key = {"hub": content, "max_length": teacher.max_length, "truncation": teacher.truncation}

    def fetch(folder: Path) -> None:
        tokenizer = PretrainedTokenizer(path=name, max_length=teacher.max_length, truncation=teacher.truncation)
        model = HubClassifier(path=name)
        package.save(folder, model, tokenizer, model.classes, {"hub": teacher.id})

    return store.build("teacher", key, fetch, waiting=say)


def _recipe(cfg: DictConfig, teacher: DictConfig, chosen: Chosen) -> tuple[DictConfig, Chosen]:
    """The whole configuration that trains a recipe's teacher on this run's data."""
    overrides = [str(part) for part in teacher.recipe]
    recipe = compose("train", [*overrides, "teacher=none", "logger=none"], return_hydra_config=True)
    of_recipe = Chosen(dict(recipe.hydra.runtime.choices) | {"data": chosen.options["data"]}, overrides)
    with open_dict(recipe):
        del recipe["hydra"]
        data = OmegaConf.merge(cfg.data, {"transfer": "none", "transfer_limit": None}, teacher.data or {})
        recipe.data = OmegaConf.create(_resolved_in(cfg, data))
        recipe.seed = cfg.seeds.teacher
        recipe.seeds = {"init": cfg.seeds.teacher, "order": cfg.seeds.teacher, "split": cfg.seeds.split, "teacher": 0}
        for where in ("accelerator", "devices"):
            recipe.trainer[where] = cfg.trainer[where]
        recipe.name = f"teacher {_name(teacher)}"
        recipe.evaluation.efficiency = False
    return recipe, of_recipe


def _trained(cfg: DictConfig, teacher: DictConfig, chosen: Chosen, store: Store, train: Train) -> Path:
    """The package of a recipe: what ``kdresearch train`` with its overrides leaves, trained once and kept."""
    recipe, of_recipe = _recipe(cfg, teacher, chosen)
    training = {key: plain(recipe[key]) for key in _TRAINING}
    for where in ("accelerator", "devices"):
        training["trainer"].pop(where)
    key = {"version": __version__, "training": _without_paths(training, recipe)}

    def build(folder: Path) -> None:
        say(f"training the teacher {_name(teacher)}")
        train(recipe, folder, of_recipe)

    return package.located(store.build("teacher", key, build, waiting=say))


def _resolved_in(cfg: DictConfig, data: Any) -> Any:
    """A data node as plain values, its interpolations resolved where they stand in the whole configuration."""
    whole = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    with open_dict(whole):
        whole.data = data
    return OmegaConf.to_container(whole.data, resolve=True)


def _without_paths(training: dict[str, Any], recipe: DictConfig) -> dict[str, Any]:
    """Where the data lie is no part of a recipe's identity: what they are is."""
    source = build(recipe.data.source, "data")
    training["data"] = {
        key: value for key, value in training["data"].items() if key not in ("path", "source") and not _is_file(value)
    } | {"content": source.key()}
    return training


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and Path(value).expanduser().exists()
