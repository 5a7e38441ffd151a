"""A trained classifier in a folder: weights, configuration, tokenizer, class names.

It is what a run leaves as ``student/``, what ``predict`` reads and what a teacher is loaded from; it needs nothing of
the configuration that it was trained with.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdresearch.artifacts import file_sha256
from kdresearch.errors import UserError

if TYPE_CHECKING:  # torch only where it is needed: a path is checked without it
    from torch import nn

    from kdresearch.structures import Model

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"


@dataclass(frozen=True)
class Package:
    """A classifier that can be called: ``model(tokens)`` on what ``tokenizer.encode`` gives."""

    model: Model
    tokenizer: Any
    classes: tuple[str, ...]
    fingerprint: str
    about: dict[str, Any]


def save(
    folder: Path, model: nn.Module, tokenizer: Any, classes: tuple[str, ...], about: dict[str, Any] | None = None
) -> None:
    """Write a package.

    Args:
        about: where it comes from (free, JSON-able); not part of its fingerprint.
    """
    from safetensors.torch import save_file

    (folder / TOKENIZER).mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, str(folder / WEIGHTS))
    tokenizer.save(folder / TOKENIZER)
    description = {
        "model": {"class": _name(model), "config": model.config},
        "tokenizer": {"class": _name(tokenizer), "config": tokenizer.settings},
        "classes": list(classes),
        "about": about or {},
    }
    (folder / CONFIG).write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")


def change_tokenizer(folder: Path, settings: dict[str, Any]) -> None:
    """Give the tokenizer of a package other settings.

    Raises:
        UserError: the tokenizer does not take them; the package is unchanged then.
    """
    description = _description(folder)
    saved = description["tokenizer"]
    saved["config"] |= settings
    _tokenizer(folder, saved)
    (folder / CONFIG).write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")


def located(path: str | Path) -> Path:
    """The package folder of a path: itself, or the ``student/`` of a run directory.

    Raises:
        UserError: neither is there.
    """
    folder = Path(path).expanduser()
    for candidate in (folder, folder / "student"):
        files = (candidate / WEIGHTS).is_file() and (candidate / CONFIG).is_file()
        if files and "classes" in _description(candidate):  # a model folder of another kind has no class names
            return candidate
    what = "holds no finished run and no package" if folder.exists() else "does not exist"
    raise UserError(f"{folder} {what} (looked for {CONFIG} and {WEIGHTS} in it and in its student/)")


def load(path: str | Path) -> Package:
    """Open a package, or the one of a run directory, in eval mode on the CPU.

    Raises:
        UserError: there is none; a file of it is missing or damaged; its classes cannot be imported here.
    """
    folder = located(path)
    description = _description(folder)
    try:
        model = _model(folder, description["model"])
        tokenizer = _tokenizer(folder, description["tokenizer"])
        return Package(model, tokenizer, tuple(description["classes"]), fingerprint(folder), description["about"])
    except KeyError as error:
        raise UserError(f"{folder / CONFIG} is damaged: it lacks {error}") from error


def outline(path: str | Path) -> tuple[Model, Any]:
    """The model without its weights (on the meta device: shapes only) and the tokenizer of a package.

    Raises:
        UserError: as ``load``.
    """
    import torch

    folder = located(path)
    description = _description(folder)
    try:
        with torch.device("meta"):
            model: Model = _made(folder, description["model"])
        return model, _tokenizer(folder, description["tokenizer"])
    except KeyError as error:
        raise UserError(f"{folder / CONFIG} is damaged: it lacks {error}") from error


def _model(folder: Path, saved: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = _made(folder, saved)
    try:
        model.load_state_dict(load_file(str(folder / WEIGHTS)))
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged: {error}") from error
    except RuntimeError as error:
        raise UserError(f"{folder} does not fit the {saved['class']} of this installation: {error}") from error
    return model.eval()


def _made(folder: Path, saved: dict[str, Any]) -> Any:
    from torch import nn

    # What a package names is called, so it may only name a module: a folder from elsewhere runs nothing by loading.
    kind = _class(saved["class"], folder, lambda found: issubclass(found, nn.Module))
    try:
        return kind(**saved["config"])
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{folder} does not fit the {saved['class']} of this installation: {error}") from error


def _tokenizer(folder: Path, saved: dict[str, Any]) -> Any:
    name, settings, files = saved["class"], saved["config"], folder / TOKENIZER
    kind = _class(name, folder, lambda found: all(hasattr(found, needed) for needed in ("encode", "save", "load")))
    try:
        if name.endswith(".PretrainedTokenizer"):
            return kind(path=files, **settings)
        tokenizer = kind(**settings)
        tokenizer.load(files)
    except UserError:
        raise
    except TypeError as error:
        raise UserError(f"{folder} does not fit the {name} of this installation: {error}") from error
    except Exception as error:  # the Rust tokenizers raise nothing more particular
        raise UserError(f"{files} is damaged: {error}") from error
    return tokenizer


def fingerprint(folder: Path) -> str:
    """The identity of what the package computes: weights, configuration, tokenizer."""
    description = _description(folder)
    description.pop("about", None)
    whole = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for file in [folder / WEIGHTS, *sorted(path for path in (folder / TOKENIZER).rglob("*") if path.is_file())]:
        whole.update(file_sha256(file).encode())
    return whole.hexdigest()[:24]


def classes(folder: Path) -> tuple[str, ...]:
    """The class names of a package, without loading its model."""
    return tuple(_description(folder)["classes"])


def _description(folder: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is damaged: {error}") from error
    return description


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _class(name: str, folder: Path, fits: Callable[[type], bool]) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{folder} was saved with {name}, which cannot be imported here") from error
    if not (isinstance(found, type) and fits(found)):
        raise UserError(f"{folder / CONFIG} names {name}, which is no model or tokenizer")
    return found
