"""The settings of a run record; for records without them, as far as the files beside them hold them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdresearch.bench import identity

if TYPE_CHECKING:
    from kdresearch.reporting.records import Record

RECORDED, CONFIGURED, TYPED = "recorded", "configured", "typed"
_EXECUTION = (
    "mode",
    "keep",
    "batch_size",
    "jobs",
    "class_map",
    "data",
)  # options that change no class score
_THIS_RUN = (
    "seed=", "seeds.", "name=", "study=", "tags=", "threads=", "resume=", "logger", "data=", "student=", "strategy=",
    "teacher=", "generator=", "experiment=", "evaluation.", "checkpoint_every=", "telemetry_every=",
)  # fmt: skip
_SOURCES = ("recipe", "chain", "members")
_REFERENCE = re.compile(r"\$\{([^${}]+)\}")


def settings_of(record: Record) -> tuple[dict[str, Any], str]:
    """The settings, and where they come from: the record itself, ``.hydra/config.yaml``, or the words of its cell."""
    if isinstance(recorded := record.info.get("settings"), Mapping):
        return dict(recorded), RECORDED
    config = _configuration(record)
    if config is not None:
        teacher = _teacher(record, config) if record.teacher else None
        return identity.settings(config, content=_content(record), teacher=teacher), CONFIGURED
    return _typed(record), TYPED


def _content(record: Record) -> str:
    return record.fingerprint if record.info.get("data") else ""


def _configuration(record: Record) -> dict[str, Any] | None:
    """The resolved configuration beside the record; None where there is none that is whole."""
    try:
        config = _resolved(_yaml(record.path / ".hydra" / "config.yaml"))
    except (OSError, ValueError, LookupError, RecursionError):
        return None
    if not isinstance(config, dict) or not {"data", "student", "strategy", "trainer"} <= config.keys():
        return None
    return {str(key): value for key, value in config.items()}


def _teacher(record: Record, config: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher by recipe as the recipe and the data that it was trained on, any other by its package."""
    options = {key: value for key, value in (config.get("teacher") or {}).items() if key not in _EXECUTION}
    entry = record.teacher or {}
    if any(options.get(source) is not None for source in _SOURCES) or "generations" in config["strategy"]:
        data = identity.settings(config, content=_content(record))["data"]
        data = {key: value for key, value in data.items() if key not in identity.TRANSFER}
        return options | {"name": entry.get("name"), "recipe_data": data | ((config["teacher"].get("data")) or {})}
    options = {key: value for key, value in options.items() if key not in ("path", "id", "encoder")}
    return options | {"package": entry.get("fingerprint")}


def _typed(record: Record) -> dict[str, Any]:
    """What the words of a cell say; a setting that nobody typed is not among them."""
    cell = record.cell
    config: dict[str, Any] = {
        "data": {"transfer": cell.get("transfer"), "labels": cell.get("labels")},
        "student": {"option": cell["student"], "training": {}},
        "strategy": {"option": cell["strategy"]},
        "teacher": {"name": (record.teacher or {}).get("name"), "labels": cell.get("labels")},
    }
    if cell.get("generator"):
        config["generator"] = {"_target_": cell["generator"]}
    for override in cell.get("overrides") or ():
        key, _, value = str(override).lstrip("+~").partition("=")
        if key == "trainer":  # a machine
            continue
        path = re.split(r"[./]", key)
        if len(path) == 1:
            path.append("option")
        if path[0] == "teacher" and path[1] in (*_EXECUTION, *_SOURCES):  # a recipe's content is in its name
            continue
        node = config
        for part in path[:-1]:
            node = inner if isinstance(inner := node.setdefault(part, {}), dict) else {}
        node[path[-1]] = _value(value)
    if "limit" in config["data"]:
        config["teacher"].setdefault("limit", config["data"]["limit"])
    teacher = config["teacher"] if record.teacher else None
    return identity.settings(config, content=_content(record), teacher=teacher)


def typed_overrides(record: Record) -> list[str]:
    """What was typed for a run, for a command that runs something like it; without what only this run is called."""
    try:
        words = [str(word) for word in _list(record.path / ".hydra" / "overrides.yaml")]
    except (OSError, ValueError):
        words = [str(word) for word in record.cell.get("overrides") or ()]
    return [word for word in words if not word.lstrip("+~").startswith(_THIS_RUN)]


def _list(path: Path) -> list[Any]:
    content = _yaml(path)
    return content if isinstance(content, list) else []


def _yaml(path: Path) -> Any:
    """What a file of Hydra's holds; ValueError where it is no YAML."""
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), _loader())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML") from error


@functools.cache
def _loader() -> Any:
    """A safe loader that reads 1e-3 as a number, as Hydra does."""
    import yaml

    class _Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    number = re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*|\.[\d_]+|\d[\d_]*)([eE][-+]?\d+)|[-+]?\d[\d_]*\.[\d_]*|[-+]?\.\d[\d_]*"
    )
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^({number.pattern})$"), list("-+0123456789."))
    return _Loader


def _resolved(content: Any) -> Any:
    """The content with every ``${dotted.key}`` replaced by the value there; LookupError where there is none."""

    def _resolve(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: _resolve(value) for key, value in node.items()}
        if isinstance(node, list):
            return [_resolve(item) for item in node]
        if not isinstance(node, str):
            return node
        if reference := _REFERENCE.fullmatch(node):
            return _resolve(_at(content, reference[1]))
        return _REFERENCE.sub(lambda reference: str(_resolve(_at(content, reference[1]))), node)

    return _resolve(content)


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content[int(part) if isinstance(content, list) else part]
    return content


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None if text == "null" else text
