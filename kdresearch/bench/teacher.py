"""A teacher's way to a run: from its plan to the packages that it consists of, and to its signature before that."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdresearch import package
from kdresearch.artifacts import file_sha256
from kdresearch.bench.context import Context
from kdresearch.bench.plan import BY_ACCURACY, FIT, Folder, HubModel, Plan, Recipe, Source, TeacherPlan
from kdresearch.bench.recipes import Train, outline, train_recipe, train_recipes, trained_texts, without_fold
from kdresearch.data.tokenizers import TextTokenizer, gives_words
from kdresearch.errors import UserError, choices
from kdresearch.evaluation.efficiency import directory_bytes, parameters
from kdresearch.hub import hub_name
from kdresearch.models.frozen import PRECISIONS, teacher_signature
from kdresearch.structures import LOGITS, RECORDED, Model, Reading, Signature
from kdresearch.teachers.ensemble import AVERAGES, check_weights
from kdresearch.teachers.leaves import NUMBERS

MODES = ("auto", "recorded", "live")
KEEPS = (False, True, *NUMBERS)
HUB_READS: dict[str, Any] = {"max_length": 256, "truncation": "head_tail"}
"""What a Hugging Face teacher reads unless its plan says otherwise."""


@dataclass
class TeacherPackages:
    """The packages that a teacher consists of, and the facts of it that a record keeps."""

    name: str
    folders: list[Path]
    facts: dict[str, Any] = field(default_factory=dict)
    class_map: dict[str, str] | None = None
    trained_on: list[np.ndarray] = field(default_factory=list)  # of a cross-fitted one: digests of each model's texts


def check_teacher(plan: TeacherPlan) -> None:
    """Raise UserError for options that contradict each other or make no sense."""
    for name, value, allowed in (
        ("mode", plan.mode, MODES),
        ("precision", str(plan.precision), PRECISIONS),
        ("average", plan.average, AVERAGES),
        ("keep", plan.keep, KEEPS),
    ):
        if value not in allowed:
            raise UserError(f"teacher.{name}: {choices(value, allowed)}")
    if plan.temperature not in (None, FIT) and not (_is_number(plan.temperature) and plan.temperature > 0):  # type: ignore[operator]
        raise UserError(f"teacher.temperature: a number above 0, or {FIT}, not {plan.temperature!r}")
    for name, number, least in (("folds", plan.folds, 2), ("jobs", plan.jobs, 1)):
        if number is not None and not (isinstance(number, int) and _is_number(number) and number >= least):
            raise UserError(f"teacher.{name}: a whole number of at least {least}, not {number!r}")
    if plan.folds is not None and plan.mode == "live":
        raise UserError("teacher.mode=live runs one model: a teacher in folds is recorded")
    if plan.ensemble:
        _check_ensemble(plan)


def check_sources(plan: TeacherPlan) -> None:
    """Raise UserError for a folder that holds no classifier, or a name that cannot be one, before any data are read."""
    for source in plan.members:
        if isinstance(source, Folder):
            package.located(source.path)
        elif isinstance(source, HubModel):
            hub_name(source.id)


def _check_ensemble(plan: TeacherPlan) -> None:
    if plan.mode == "live" and len(plan.members) > 1:
        raise UserError("teacher.mode=live runs one teacher: an ensemble is recorded")
    if not plan.members:
        raise UserError("teacher.members: an ensemble needs at least one")
    if isinstance(plan.weights, str):
        if plan.weights != BY_ACCURACY:
            raise UserError(f"teacher.weights: numbers, or {BY_ACCURACY}, not {plan.weights!r}")
    else:
        check_weights(plan.weights, len(plan.members))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Before anything is trained


def promise_teacher(
    plan: Plan, tokenizer: TextTokenizer, classes: tuple[str, ...], context: Context
) -> tuple[Signature, Reading]:
    """The teacher's signature and how its tokens correspond to the student's, before it is trained or loaded.

    Args:
        tokenizer: the student's.
        classes: the data's, in which every teacher answers.

    Raises:
        UserError: a teacher that cannot be made; more folds than there are rows.
    """
    teacher = plan.teacher
    assert teacher is not None
    if teacher.chain and teacher.members:
        _outline(teacher.members[0], context)  # refuses
    outlines = [_outline(source, context) for source in teacher.sources]
    if teacher.folds is not None:
        recipe = teacher.members[0]
        assert isinstance(recipe, Recipe)
        trained_texts(without_fold(recipe, teacher.folds - 1, teacher.folds), context)  # refuses
    averaged = teacher.ensemble and not teacher.chain
    recorded = teacher.mode == "recorded" or averaged or teacher.folds is not None
    signatures = []
    for model, _ in outlines:
        signature = teacher_signature(model.signature, classes)
        if recorded:
            gives = LOGITS if teacher.folds is not None else RECORDED
            signature = replace(signature, fields=signature.fields & gives, recorded=True)
        signatures.append(signature)
    if not averaged:
        return signatures[0], compare_tokens(tokenizer, outlines[0][1])
    combined = Signature(LOGITS, classes=classes, name="the ensemble", recorded=True, members=tuple(signatures))
    return combined, Reading("apart", "an ensemble is recorded")


def compare_tokens(student: TextTokenizer, teacher: TextTokenizer) -> Reading:
    """How two tokenizers' tokens correspond, as far as their settings tell."""
    if student.key() == teacher.key():
        return Reading("same")
    without = [reader.key()["tokenizer"] for reader in (student, teacher) if not gives_words(reader)]
    if without:
        return Reading("apart", f"the {' and the '.join(without)} tokenizer gives no character offsets")
    return Reading("words")


def _outline(source: Source, context: Context) -> tuple[Model, Any]:
    """A model of the teacher's shape, and its tokenizer, fitted or not."""
    if isinstance(source, Recipe):
        return outline(source)
    return package.outline(locate_package(source, context))


# Its packages


def obtain_teacher(plan: TeacherPlan, context: Context, train: Train) -> TeacherPackages:
    """The packages that the teacher consists of; a recipe whose result the store lacks is trained.

    Args:
        train: runs a plan in a folder.

    Raises:
        UserError: a folder or hub id that holds no teacher.
    """
    facts, trained_on = dict[str, Any](), list[np.ndarray]()
    if plan.chain:
        folders, facts["chain"] = _train_chain(plan, context, train)
        name = plan.chain[-1].name
    elif plan.folds is not None:
        (recipe,) = plan.members
        assert isinstance(recipe, Recipe)
        recipes = [without_fold(recipe, fold, plan.folds) for fold in range(plan.folds)]
        folders = [package.located(path) for path in train_recipes(recipes, context, train, plan.jobs)]
        trained_on = [trained_texts(fold, context) for fold in recipes]
        name = f"{recipe.name} in {plan.folds} folds"
    else:
        folders = [locate_package(source, context, train) for source in plan.members]
        name = " + ".join(source.name for source in plan.members)
    sizes = [parameters(package.outline(folder)[0]) for folder in folders]  # type: ignore[arg-type]
    facts = {
        "name": name,
        "fingerprint": fingerprint(plan, folders),
        "parameters": sum(size["total"] for size in sizes),
        "parameters_without_embeddings": sum(size["without_embeddings"] for size in sizes),
        "bytes": sum(directory_bytes(folder) for folder in folders),
        "packages": [str(folder) for folder in folders],
        "precision": plan.precision,
    } | facts
    class_map = None if plan.chain or plan.class_map is None else dict(plan.class_map)  # links speak of the data's
    return TeacherPackages(name, folders, facts, class_map, trained_on)


def fingerprint(plan: TeacherPlan, folders: Sequence[Path]) -> str:
    """The identity of what the packages say together."""
    packages = [package.fingerprint(folder) for folder in folders]
    if len(packages) == 1:
        return packages[0]
    weights = list(plan.weights) if isinstance(plan.weights, tuple) else plan.weights
    together = [packages, plan.average, weights, *([] if plan.folds is None else [plan.folds])]
    return hashlib.sha256(json.dumps(together).encode()).hexdigest()[:24]


def _train_chain(plan: TeacherPlan, context: Context, train: Train) -> tuple[list[Path], list[dict[str, Any]]]:
    """The last link's package, and what each link is; every link is kept before the next is begun."""
    links: list[dict[str, Any]] = []
    before, chain = None, list(plan.chain)
    if plan.members:
        before = locate_package(plan.members[0], context, train)
        links.append({"name": plan.members[0].name, "fingerprint": package.fingerprint(before)})
        first = chain[0].plan.teacher or TeacherPlan()
        first = replace(first, class_map=plan.class_map, precision=plan.precision)
        chain[0] = replace(chain[0], plan=replace(chain[0].plan, teacher=first))
    for link in chain:
        folder = train_recipe(link, context, train, before)
        metrics = json.loads((folder / "metrics.json").read_text())
        if links and "validation_accuracy" not in links[-1]:
            links[-1]["validation_accuracy"] = metrics["teacher/val_accuracy"]
        before = package.located(folder)
        facts_of_link = {"fingerprint": package.fingerprint(before), "validation_accuracy": metrics["val/accuracy"]}
        links.append({"name": link.name, **facts_of_link})
    steps = " -> ".join(f"{link['name']} ({link['validation_accuracy']:.4f})" for link in links)
    context.say(f"teachers: {steps}")
    assert before is not None
    return [before], links


def locate_package(source: Source, context: Context, train: Train | None = None) -> Path:
    """The package folder of a teacher: found, fetched, or trained where it is a recipe."""
    if isinstance(source, Recipe):
        assert train is not None
        return package.located(train_recipe(source, context, train))
    if isinstance(source, HubModel):
        return _from_hub(source, context)
    folder = package.located(source.path)
    return _with_reads(folder, source, context) if source.reads else folder


def _with_reads(folder: Path, source: Folder, context: Context) -> Path:
    """A copy of a package whose tokenizer has other settings."""
    reads = dict(source.reads)

    def copy(target: Path) -> None:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        package.change_tokenizer(target, reads)

    key = {"package": package.fingerprint(folder), **reads}
    return context.store.build("teacher", key, copy, waiting=context.say)


def _from_hub(source: HubModel, context: Context) -> Path:
    from kdresearch.data.tokenizers import PretrainedTokenizer
    from kdresearch.models.transformer import HubClassifier

    name, reads = hub_name(source.id), HUB_READS | dict(source.reads)
    content: Any = name
    if Path(name).is_dir():
        content = {file.name: file_sha256(file) for file in sorted(Path(name).iterdir()) if file.is_file()}

    def fetch(folder: Path) -> None:
        tokenizer = PretrainedTokenizer(path=name, **reads)
        model = HubClassifier(path=name)
        package.save(folder, model, tokenizer, model.classes, {"hub": source.id})

    return context.store.build("teacher", {"hub": content, **reads}, fetch, waiting=context.say)
