"""The settings that a plan is known by: everything that can change a result, by content; see ``identity``."""

from __future__ import annotations

import inspect
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdresearch import __version__, package
from kdresearch.artifacts import digest, file_sha256
from kdresearch.bench import identity
from kdresearch.bench.components import imported
from kdresearch.bench.context import Context
from kdresearch.bench.plan import Folder, HubModel, Plan, Samples, Source, TeacherPlan
from kdresearch.data.corpus import load
from kdresearch.strategies.distiller import Distiller

_WIRING = frozenset(inspect.signature(Distiller).parameters) - {"schedules"}  # what a run gives every strategy
# How a teacher answers, as far as that changes what it says; mode, keep, batch_size and jobs are how it runs.
_ANSWERS = ("temperature", "class_map", "average", "weights", "folds")


def resolve_settings(plan: Plan, context: Context) -> dict[str, Any]:
    """The settings that a run is known by, its teacher's among them.

    Raises:
        UserError: data or a teacher that are not there.
    """
    sections: dict[str, Any] = {
        "student": {"model": plan.student.model.as_data, "tokenizer": plan.student.tokenizer.as_data},
        "strategy": plan.strategy.as_data,
        "generator": _samples(plan.samples),
        "optimizer": plan.optimizer.as_data,
        "scheduler": None if plan.scheduler is None else plan.scheduler.as_data,
        "trainer": dict(plan.trainer),
        "selection": asdict(plan.selection),
        "start": {"from": plan.start.source, "layers": plan.start.layers},
        "seeds": asdict(plan.seeds),
    }
    sections["student"]["training"] = dict(plan.student.training)
    if plan.student.solver is not None:
        sections["student"]["solver"] = plan.student.solver.as_data
    described = {name: _by_content(_with_defaults(node)) for name, node in sections.items()}
    data = {**plan.data.carving, "transfer_share": plan.data.transfer_share}
    content = load(plan.data.source.build("data"), context.store, context.say).fingerprint
    teacher = None if plan.teacher is None else _teacher(plan.teacher, context)
    return identity.settings({**described, "data": data}, content=content, teacher=teacher)


def recipe_key(plan: Plan, context: Context, teacher: Path | None) -> dict[str, Any]:
    """What a trained recipe is filed under.

    Args:
        teacher: the package that it learns from, where its plan has a teacher; known only when that is trained.
    """
    settings = resolve_settings(replace(plan, teacher=None), context)
    if teacher is not None:
        assert plan.teacher is not None
        answers = {name: getattr(plan.teacher, name) for name in ("class_map", "precision", "temperature")}
        settings["teacher"] = identity.normalised({"package": package.fingerprint(teacher), **answers})
    return {"version": __version__, "training": settings}


def content_of(path: Path) -> str:
    """The digest of a file, or of a folder's files."""
    if path.is_file():
        return file_sha256(path)[:24]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest({str(file.relative_to(path)): file_sha256(file) for file in files})


def _samples(samples: Samples | None) -> dict[str, Any]:
    if samples is None:
        return {}
    settings = {name: value for name, value in vars(samples).items() if name not in ("generator", "filters", "name")}
    return {**samples.generator.as_data, "filters": samples.filters.as_data, **settings}


def _teacher(teacher: TeacherPlan, context: Context) -> dict[str, Any]:
    answers = {name: getattr(teacher, name) for name in _ANSWERS} | {"precision": str(teacher.precision)}
    if teacher.keep == "int8":  # bf16 is as near to the live teacher as another batch is
        answers |= {"keep": teacher.keep}
    sources = [_source(source, context) for source in teacher.members]
    if teacher.chain:
        chain = [{"recipe": resolve_settings(replace(link.plan, teacher=None), context)} for link in teacher.chain]
        return answers | {"chain": sources + chain}
    return answers | ({"members": sources} if teacher.ensemble else sources[0])


def _source(source: Source, context: Context) -> dict[str, Any]:
    if isinstance(source, Folder):
        return {"package": package.fingerprint(package.located(source.path)), **source.reads}
    if isinstance(source, HubModel):
        folder = Path(source.id).expanduser()
        return {"id": f"content {content_of(folder)}" if folder.is_dir() else source.id, **source.reads}
    return {"recipe": resolve_settings(source.plan, context)}


def _by_content(node: Any, name: str = "") -> Any:
    """A copy of plain values in which files and folders are what they hold, wherever they lie."""
    if isinstance(node, dict):
        return {key: _by_content(item, str(key)) for key, item in node.items()}
    if isinstance(node, list | tuple):
        return [_by_content(item) for item in node]
    if isinstance(node, str) and (name == "path" or "/" in node) and (path := Path(node).expanduser()).exists():
        return f"content {content_of(path)}"
    return node


def _with_defaults(node: Any) -> Any:
    """A copy of plain values in which our constructors' defaults stand where an option leaves them out."""
    if isinstance(node, list | tuple):
        return [_with_defaults(item) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {key: _with_defaults(item) for key, item in node.items()}
    target = str(copy.get("_target_", ""))
    if target.startswith("kdresearch."):
        for name, parameter in inspect.signature(imported(target)).parameters.items():
            if name not in copy and name not in _WIRING and isinstance(parameter.default, str | int | float):
                copy[name] = parameter.default
    return copy
