"""From a composed configuration to the settings that a run is known by; see ``kdresearch.bench.identity``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from kdresearch.apps.config import build, plain
from kdresearch.apps.say import say
from kdresearch.artifacts import Store, digest, file_sha256
from kdresearch.bench import identity
from kdresearch.data.corpus import load
from kdresearch.strategies.distiller import Distiller

_WIRING = frozenset(inspect.signature(Distiller).parameters) - {"schedules"}  # what the command gives every strategy


def resolved(cfg: DictConfig, store: Store, teacher: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a configuration that can change its results.

    Args:
        teacher: what the run's teacher is; None where it has none.

    Raises:
        UserError: data that cannot be read.
    """
    sections = {name: plain(cfg[name]) for name in identity.SECTIONS if name != "teacher"}
    content = load(build(cfg.data.source, "data"), store, say).fingerprint
    described = {name: _by_content(_with_defaults(node)) for name, node in sections.items() if name != "data"}
    return identity.settings({**described, "data": sections["data"]}, content=content, teacher=teacher)


def content_of(path: Path) -> str:
    """The digest of a file, or of a folder's files."""
    if path.is_file():
        return file_sha256(path)[:24]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest({str(file.relative_to(path)): file_sha256(file) for file in files})


def _by_content(node: Any, name: str = "") -> Any:
    """A copy of plain values in which files and folders are what they hold, wherever they lie."""
    if isinstance(node, dict):
        return {key: _by_content(each, str(key)) for key, each in node.items()}
    if isinstance(node, list):
        return [_by_content(each) for each in node]
    if isinstance(node, str) and (name == "path" or "/" in node) and (path := Path(node).expanduser()).exists():
        return f"content {content_of(path)}"
    return node


def _with_defaults(node: Any) -> Any:
    """A copy of plain values in which our constructors' defaults stand where an option leaves them out."""
    if isinstance(node, list):
        return [_with_defaults(each) for each in node]
    if not isinstance(node, dict):
        return node
    copy = {key: _with_defaults(each) for key, each in node.items()}
    target = str(copy.get("_target_", ""))
    if target.startswith("kdresearch."):
        for name, parameter in inspect.signature(get_object(target)).parameters.items():
            if name not in copy and name not in _WIRING and _simple(parameter.default):
                copy[name] = parameter.default
    return copy


def _simple(value: Any) -> bool:
    return value is not inspect.Parameter.empty and isinstance(value, str | int | float)
