"""Finding, training and recording the teacher that a run names."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from kdresearch import package
from kdresearch.apps.config import plain
from kdresearch.apps.recipes import (
    Recipe,
    Train,
    all_trained,
    links,
    name_of,
    overrides_of,
    recipe,
    trained,
    trained_texts,
)
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
from kdresearch.teachers.calibrated import CalibratedTeacher, fitted_temperature
from kdresearch.teachers.crossfit import CrossFittedTeacher
from kdresearch.teachers.ensemble import AVERAGES, EnsembleTeacher, MappedTeacher
from kdresearch.teachers.kept import KeptTeacher
from kdresearch.teachers.live import PRECISIONS, LiveTeacher
from kdresearch.teachers.recorded import RecordedTeacher, record

SOURCES = ("recipe", "path", "id", "members", "chain")
MODES = ("auto", "recorded", "live")
_OF_A_MEMBER = ("recipe", "path", "id", "data", "max_length", "truncation", "epochs", "label_smoothing")
_OF_A_RECIPE = ("folds", "epochs", "label_smoothing")
# What a Hugging Face teacher reads unless it is told otherwise.
_READS: dict[str, Any] = {"max_length": 256, "truncation": "head_tail"}
_CALIBRATION = ("accuracy", "nll", "ece", "brier")
BY_ACCURACY = "accuracy"
FIT = "fit"


@dataclass
class Found:
    """The packages of a teacher, and how to speak of it."""

    name: str
    folders: list[Path]
    facts: dict[str, Any] = field(default_factory=dict)
    class_map: dict[str, str] | None = None
    seen: list[np.ndarray] = field(default_factory=list)  # of a cross-fitted one: texts each was trained on (digests)


@dataclass(frozen=True)
class Answers:
    """A teacher at work."""

    training: Teacher  # asked about training batches
    evaluation: Teacher  # asked about validation and test rows; always recorded
    reading: Reading  # how its tokens correspond to the student's


def named(cfg: DictConfig) -> bool:
    """Whether the configuration says where a teacher comes from."""
    return any(cfg.teacher[source] is not None for source in SOURCES)


def find(cfg: DictConfig, chosen: Chosen, store: Store, train: Train) -> Found:
    """The packages that the teacher consists of; a recipe whose result the store lacks is trained.

    Args:
        train: runs a whole configuration in a folder.

    Raises:
        UserError: options that contradict each other or name nothing; told before anything is trained.
    """
    _check_options(cfg)
    chain, more = links(cfg, chosen), dict[str, Any]()
    seen: list[np.ndarray] = []
    if chain:
        folders, more["chain"] = _chained(cfg, chain, chosen, store, train)
        name = chain[-1].name
    elif cfg.teacher.folds is not None:
        recipes = [recipe(cfg, cfg.teacher, chosen, fold) for fold in range(cfg.teacher.folds)]
        folders = [package.located(path) for path in all_trained(recipes, store, train, cfg.teacher.jobs)]
        seen = [trained_texts(each, store) for each in recipes]
        name = f"{_name(cfg.teacher)} in {cfg.teacher.folds} folds"
    else:
        sources = members(cfg)
        folders = [_package_folder(cfg, source, chosen, store, train) for source in sources]
        name = " + ".join(map(_name, sources))
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
    class_map = None if chain else plain(cfg.teacher.class_map)  # whatever this run trained speaks of its classes
    return Found(name, folders, facts | more, class_map, seen)


def _chained(
    cfg: DictConfig, chain: Sequence[Recipe], chosen: Chosen, store: Store, train: Train
) -> tuple[list[Path], list[dict[str, Any]]]:
    """The last link's package, and what each link is; every link is kept before the next is begun."""
    told, before = [], None
    if headed(cfg):
        before = _package_folder(cfg, cfg.teacher, chosen, store, train)
        told.append({"name": _name(cfg.teacher), "fingerprint": package.fingerprint(before)})
        with open_dict(chain[0].cfg):
            chain[0].cfg.teacher.merge_with({name: cfg.teacher[name] for name in ("class_map", "precision")})
    for link in chain:
        folder = trained(link, store, train, before)
        metrics = json.loads((folder / "metrics.json").read_text())
        if told and "validation_accuracy" not in told[-1]:
            told[-1]["validation_accuracy"] = metrics["teacher/val_accuracy"]
        before = package.located(folder)
        about = {"fingerprint": package.fingerprint(before), "validation_accuracy": metrics["val/accuracy"]}
        told.append({"name": link.name, **about})
    say("teachers: " + " -> ".join(f"{link['name']} ({link['validation_accuracy']:.4f})" for link in told))
    assert before is not None
    return [before], told


def headed(cfg: DictConfig) -> bool:
    """Whether a chain begins with the configured teacher."""
    return "assistants" in cfg.strategy and cfg.teacher.chain is None


def _check_options(cfg: DictConfig) -> None:
    teacher = cfg.teacher
    if teacher.mode not in MODES:
        raise UserError(f"teacher.mode: {choices(teacher.mode, MODES)}")
    if str(teacher.precision) not in PRECISIONS:
        raise UserError(f"teacher.precision: {choices(teacher.precision, PRECISIONS)}")
    if teacher.average not in AVERAGES:
        raise UserError(f"teacher.average: {choices(teacher.average, AVERAGES)}")
    if teacher.temperature not in (None, FIT) and not _at_least(teacher.temperature, 0, above=True):
        raise UserError(f"teacher.temperature: a number above 0, or {FIT}, not {teacher.temperature!r}")
    if teacher.label_smoothing is not None and not (
        _at_least(teacher.label_smoothing, 0) and teacher.label_smoothing < 1
    ):
        raise UserError(f"teacher.label_smoothing: a number from 0 to below 1, not {teacher.label_smoothing!r}")
    for name, least in (("folds", 2), ("epochs", 1), ("jobs", 1)):
        if teacher[name] is not None and not (isinstance(teacher[name], int) and _at_least(teacher[name], least)):
            raise UserError(f"teacher.{name}: a whole number of at least {least}, not {teacher[name]!r}")
    for name in _OF_A_RECIPE:
        _check_recipe_of(cfg, name)
    for member in members(cfg):
        _check_reads(member)
    if teacher.folds is not None:
        if teacher.mode == "live":
            raise UserError("teacher.mode=live runs one model: a teacher in folds is recorded")
        if cfg.start["from"] is not None:
            raise UserError(f"start.from={cfg.start['from']} takes one model to start from: leave teacher.folds out")
    if "generations" in cfg.strategy or (teacher.members is None and teacher.chain is None):
        return
    given = [source for source in SOURCES if teacher[source] is not None]
    if len(given) > 1:
        raise UserError(f"teacher: exactly one of {', '.join(SOURCES)} must be given, not {' and '.join(given)}")
    if teacher.members is None:
        return
    if "assistants" in cfg.strategy:
        raise UserError("strategy=assistant begins with one teacher: give a recipe, path, id or chain, not members")
    if teacher.mode == "live" and len(teacher.members) > 1:
        raise UserError("teacher.mode=live runs one teacher: an ensemble is recorded")
    if isinstance(teacher.weights, str) and teacher.weights != BY_ACCURACY:
        raise UserError(f"teacher.weights: numbers, or {BY_ACCURACY}, not {teacher.weights!r}")
    weights = None if teacher.weights == BY_ACCURACY else plain(teacher.weights)
    EnsembleTeacher([Promised(()) for _ in teacher.members], teacher.average, weights)


def _at_least(value: Any, least: float, *, above: bool = False) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and (value > least if above else value >= least)
    )


def _check_recipe_of(cfg: DictConfig, option: str) -> None:
    """Refuse an option of how a recipe is trained where there is none."""
    teacher, by = cfg.teacher, None
    if "generations" in cfg.strategy:
        by = "strategy=self"
    elif option == "folds" and "assistants" in cfg.strategy:
        by = "strategy=assistant"
    elif teacher.chain is not None:
        by = "teacher.chain"
    elif option == "folds" and teacher.members is not None:
        by = "teacher.members"
    if teacher[option] is not None and by is not None:
        raise UserError(f"teacher.{option} is of a teacher by one recipe, and {by} is given")
    for member in members(cfg):
        source = next((name for name in ("path", "id") if member[name] is not None), None)
        if member[option] is not None and source is not None:
            raise UserError(f"teacher.{option} says how a recipe is trained: a teacher by {source} is trained already")


def _check_reads(teacher: DictConfig) -> None:
    for name in _READS:
        if teacher[name] is not None and teacher.path is None and teacher.id is None:
            raise UserError(
                f"teacher.{name} is of a teacher by path or id: in a recipe it is called student.tokenizer.{name}"
            )


def promise(cfg: DictConfig, chosen: Chosen, store: Store, data: TextDataModule) -> tuple[Teacher, Reading]:
    """The teacher's shape and how it reads, before it is trained or asked: enough to refuse what cannot be.

    Raises:
        UserError: options that contradict each other or name nothing.
    """
    _check_options(cfg)
    if "generations" in cfg.strategy and chosen.options["teacher"] not in ("default", "none"):
        say(f"strategy=self learns from its own earlier generations: teacher={chosen.options['teacher']} is not used")
    if chain := links(cfg, chosen):
        if headed(cfg):
            _outline(cfg, cfg.teacher, chosen, store)
        outlines = [link.outline() for link in chain][-1:]
    else:
        outlines = [_outline(cfg, member, chosen, store) for member in members(cfg)]
        if cfg.teacher.folds is not None:
            last = recipe(cfg, cfg.teacher, chosen, cfg.teacher.folds - 1)
            trained_texts(last, store)  # refuses more folds than there are rows
    several = cfg.teacher.members is not None and not chain
    folded = cfg.teacher.folds is not None
    recorded = cfg.teacher.mode == "recorded" or several or folded
    promised, readings = [], []
    for model, tokenizer in outlines:
        sensitive = frozenset({"sensitivity"}) if "embeddings" in model.provides else frozenset[str]()
        promised.append(
            Promised(
                data.classes,
                model.provides & (LOGITS if folded else RECORDED) if recorded else model.provides | sensitive,
                model.width,
                model.depth,
                model.heads,
                model.embedding_width,
                type(model).__name__,
                recorded,
            )
        )
        readings.append(_reading(data.tokenizer, tokenizer))
    if not several:
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
    return recipe(cfg, teacher, chosen).outline()


def fingerprint(cfg: DictConfig, folders: list[Path]) -> str:
    own = [package.fingerprint(folder) for folder in folders]
    if len(own) == 1:
        return own[0]
    how = [own, cfg.teacher.average, plain(cfg.teacher.weights)]
    how += [] if cfg.teacher.folds is None else [cfg.teacher.folds]
    return hashlib.sha256(json.dumps(how).encode()).hexdigest()[:24]


def answer(
    cfg: DictConfig,
    found: Found,
    data: TextDataModule,
    store: Store,
    device: str,
    *,
    live: bool,
    token_level: bool,
    needs: frozenset[str] = LOGITS,
) -> Answers:
    """The teacher as it answers this run, in the data's classes.

    What is recorded is recorded here; a live teacher answers training batches only, and is recorded for the
    validation and test rows.

    Args:
        live: whether it runs beside the student.
        token_level: whether its tokens are compared with the student's.
        needs: fields that training will ask a live one for.

    Raises:
        UserError: class names that do not match, or a teacher no better than chance on the validation rows.
    """
    for folder in found.folders:  # names first: nothing is computed for a teacher that cannot fit
        MappedTeacher(Promised(package.classes(folder)), data.classes, found.class_map)
    # The validation rows first: a useless teacher is refused before the rest is paid for.
    answers = _recorded(cfg, found, data, store, data.split.validation, device)
    _check(found, answers, data)
    temperature = _calibrate(cfg, found, answers, data)
    evaluated = np.concatenate([data.split.validation, data.split.test])
    recorded = _recorded(cfg, found, data, store, evaluated if live else data.used, device)
    if temperature is not None:
        recorded = CalibratedTeacher(recorded, temperature)
    found.facts["mode"] = "live" if live else "recorded"
    if not live:
        found.facts["calibration"]["training"] = heard = _calibration(recorded, data, data.split.train)
        say(f"teacher {found.name}: what the student hears of its {len(data.split.train):,} rows: {_told(heard)}")
        return Answers(recorded, recorded, Reading("apart", "the teacher is recorded"))
    opened = package.load(found.folders[0])
    data.read_teacher(opened.tokenizer, opened.fingerprint, token_level=token_level)
    reading = Reading(data.reading)
    if reading.kind == "apart":
        reading = _reading(data.tokenizer, opened.tokenizer)
    running: Teacher = LiveTeacher(opened, str(cfg.teacher.precision))
    if cfg.teacher.keep:
        assert isinstance(running, LiveTeacher) and data.teacher_rows is not None
        running.to(device)
        running = KeptTeacher(
            running,
            opened.fingerprint,
            data.corpus,
            data.teacher_rows,
            data.split.trained,
            needs,
            store,
            batch_size=cfg.teacher.batch_size,
            say=say,
        )
    teacher: Teacher = MappedTeacher(running, data.classes, found.class_map)
    return Answers(teacher if temperature is None else CalibratedTeacher(teacher, temperature), recorded, reading)


def _recorded(
    cfg: DictConfig, found: Found, data: TextDataModule, store: Store, index: np.ndarray, device: str
) -> Teacher:
    members: list[Teacher] = []
    for number, folder in enumerate(found.folders):
        # Of a cross-fitted teacher each model is asked only about what it has not seen.
        own = index[~np.isin(data.corpus.digests(index), found.seen[number])] if found.seen else index
        pieces = record(
            package.fingerprint(folder),
            lambda folder=folder: package.load(folder),  # type: ignore[misc]
            data.corpus,
            own,
            store,
            precision=str(cfg.teacher.precision),
            batch_size=cfg.teacher.batch_size,
            device=device,
            say=say,
        )
        recorded = RecordedTeacher(pieces, data.corpus, own, package.classes(folder))
        members.append(MappedTeacher(recorded, data.classes, found.class_map))
    if found.seen:
        digests = data.corpus.digests(np.arange(len(data.corpus)))
        seen = np.stack([np.isin(digests, texts) for texts in found.seen], axis=1)
        return CrossFittedTeacher(members, torch.from_numpy(seen), cfg.teacher.average)
    if len(found.folders) == 1 and (cfg.teacher.members is None or "chain" in found.facts):
        return members[0]
    weights = plain(cfg.teacher.weights)
    if weights == BY_ACCURACY:
        label = torch.from_numpy(data.labels[data.split.validation])
        answers = [logits_of(member, data, data.split.validation) for member in members]
        weights = [task_metrics(logits, label)["accuracy"] for logits in answers]
    return EnsembleTeacher(members, cfg.teacher.average, weights)


def _calibrate(cfg: DictConfig, found: Found, teacher: Teacher, data: TextDataModule) -> float | None:
    """The temperature that the teacher's logits are divided by, with its calibration before and after in the facts."""
    index, asked = data.split.validation, cfg.teacher.temperature
    temperature = None if asked in (None, FIT) else float(asked)
    if asked == FIT:
        label = torch.from_numpy(data.labels[index])
        temperature = fitted_temperature(logits_of(teacher, data, index), label)
    before = _calibration(teacher, data, index)
    after = before if temperature is None else _calibration(CalibratedTeacher(teacher, temperature), data, index)
    found.facts |= {"temperature": temperature or 1.0, "calibration": {"before": before, "after": after}}
    if temperature is not None:
        say(f"teacher {found.name}: temperature {temperature:.3f}: {_told(before)}; then {_told(after)}")
    return temperature


def _calibration(teacher: Teacher, data: TextDataModule, index: np.ndarray) -> dict[str, float]:
    scores = task_metrics(logits_of(teacher, data, index), torch.from_numpy(data.labels[index]))
    return {name: scores[name] for name in _CALIBRATION}


def _told(calibration: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in calibration.items())


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
    """Accuracy of each member of an ensemble, or model of a cross-fitted teacher, on rows; empty for a single one."""
    label = torch.from_numpy(data.labels[index])
    while isinstance(teacher, CalibratedTeacher):
        teacher = teacher.teacher
    members: Sequence[Teacher] = []
    if isinstance(teacher, EnsembleTeacher):
        members = teacher.members
    elif isinstance(teacher, CrossFittedTeacher):
        members = teacher.models
    return [task_metrics(logits_of(member, data, index), label)["accuracy"] for member in members]


def _check(found: Found, teacher: Teacher, data: TextDataModule) -> None:
    index = data.split.validation
    label = torch.from_numpy(data.labels[index])
    accuracy = task_metrics(logits_of(teacher, data, index), label)["accuracy"]
    found.facts |= {"validation_accuracy": accuracy, "classes": list(teacher.classes)}
    majority = float((label == label.mode().values).double().mean())
    found.facts["validation_majority"] = majority
    say(
        f"teacher {found.name}: validation accuracy {accuracy:.4f} on {len(index):,} rows "
        f"(of which {majority:.4f} are of the commonest class)"
    )
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


def members(cfg: DictConfig) -> list[DictConfig]:
    if cfg.teacher.members is None:
        return [cfg.teacher]
    return [_member(cfg.teacher, each) for each in cfg.teacher.members]


def _member(teacher: DictConfig, member: Any) -> DictConfig:
    merged = OmegaConf.create(OmegaConf.to_container(teacher, resolve=True))
    with open_dict(merged):
        merged.merge_with(dict.fromkeys(SOURCES))
        for key in member:
            if key not in _OF_A_MEMBER:
                raise UserError(f"teacher.members: {choices(key, _OF_A_MEMBER)}")
        merged.merge_with(member)
    assert isinstance(merged, DictConfig)
    return merged


def _name(teacher: DictConfig) -> str:
    if teacher.recipe is not None:
        return name_of(overrides_of(teacher))
    path = Path(str(teacher.path or teacher.id))
    return path.parent.name if teacher.path and path.name == "student" else path.name


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
    reads = {name: teacher[name] for name in _READS if teacher[name] is not None}
    if source == "path":
        folder = package.located(teacher.path)
        return _reading_otherwise(folder, reads, store) if reads else folder
    if source == "id":
        return _from_hub(teacher, _READS | reads, store)
    assert train is not None
    return package.located(trained(recipe(cfg, teacher, chosen), store, train))


def _reading_otherwise(folder: Path, reads: dict[str, Any], store: Store) -> Path:
    """A copy of a package whose tokenizer has other settings."""

    def copy(target: Path) -> None:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        package.change_tokenizer(target, reads)

    return store.build("teacher", {"package": package.fingerprint(folder), **reads}, copy, waiting=say)


def _from_hub(teacher: DictConfig, reads: dict[str, Any], store: Store) -> Path:
    from kdresearch.data.tokenizers import PretrainedTokenizer
    from kdresearch.models.transformer import HubClassifier

    name = hub_name(teacher.id)
    content: Any = name
    if Path(name).is_dir():
        content = {file.name: file_sha256(file) for file in sorted(Path(name).iterdir()) if file.is_file()}

    def fetch(folder: Path) -> None:
        tokenizer = PretrainedTokenizer(path=name, **reads)
        model = HubClassifier(path=name)
        package.save(folder, model, tokenizer, model.classes, {"hub": teacher.id})

    return store.build("teacher", {"hub": content, **reads}, fetch, waiting=say)
