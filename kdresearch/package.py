"""A trained classifier in a folder: weights, configuration, tokenizer, class names.

It is what a run leaves as ``student/``, what ``predict`` reads and what a teacher is loaded from; it needs nothing of
the configuration that it was trained with. Opening one from elsewhere runs no code of it: its classes are imported only
where they are kdresearch's own, or where the user trusts their module. Its files are compared with their checksums.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdresearch.artifacts import file_sha256, with_sum, without_sum
from kdresearch.errors import UserError

if TYPE_CHECKING:  # torch only where it is needed: a path is checked without it
    import numpy as np
    from torch import nn

    from kdresearch.structures import Model

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
TRUST = "KDRESEARCH_TRUST"  # environment: prefixes of modules, comma separated
COMPONENTS = "kdresearch.components"  # the entry points of installed packages that name modules or classes
_ROOMS = ("kdresearch.models", "kdresearch.data.tokenizers")
_FIELDS = {"model": dict, "tokenizer": dict, "classes": list, "about": dict}
_ELSEWHERE = ("path", "vectors")  # settings that name other files: what is saved has none
_trusted: set[str] = set()


@dataclass(frozen=True)
class Package:
    """A classifier that can be called: ``model(tokens)`` on what ``tokenizer.encode`` gives."""

    model: Model
    tokenizer: Any
    classes: tuple[str, ...]
    fingerprint: str
    provenance: dict[str, Any]

    def probabilities(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Class probabilities [N, C] of N texts, in their order; texts of about one length are read together.

        Raises:
            UserError: the model answers with NaN or an infinite number.
        """
        import numpy as np
        import torch

        from kdresearch.data.encoding import pad

        ids, lengths = self.tokenizer.encode(list(texts))
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        order = np.argsort(lengths, kind="stable")
        answers = np.empty((len(texts), len(self.classes)), np.float32)
        with torch.inference_mode():
            for first in range(0, len(order), batch_size):
                batch = order[first : first + batch_size]
                logits = self.model(pad([rows[row] for row in batch], self.tokenizer.pad_id)).logits
                assert logits is not None
                answers[batch] = logits.float().softmax(1).numpy()
        if not np.isfinite(answers).all():
            raise UserError("the student answers with NaN: its training diverged")
        return answers

    def predict(self, texts: Sequence[str], batch_size: int = 64) -> list[str]:
        """The most probable class of each text; UserError as ``probabilities``."""
        return [self.classes[place] for place in self.probabilities(texts, batch_size).argmax(1)]


def save(
    folder: Path, model: nn.Module, tokenizer: Any, classes: tuple[str, ...], provenance: dict[str, Any] | None = None
) -> None:
    """Write a package.

    Args:
        provenance: where it comes from (free, JSON-able); not part of its fingerprint.
    """
    from safetensors.torch import save_file

    (folder / TOKENIZER).mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, str(folder / WEIGHTS))
    tokenizer.save(folder / TOKENIZER)
    described = {
        "model": {"class": _name(model), "config": model.config},
        "tokenizer": {"class": _name(tokenizer), "config": tokenizer.settings},
        "classes": list(classes),
        "about": provenance or {},
        "files": {file.relative_to(folder).as_posix(): file_sha256(file) for file in _files(folder)},
    }
    _write(folder, described)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read, whatever the umask


def trust(*names: str) -> None:
    """Let packages be of these classes, or of classes below these modules, in this process."""
    _trusted.update(names)


def change_tokenizer(folder: Path, settings: dict[str, Any]) -> None:
    """Give the tokenizer of a package other settings.

    Raises:
        UserError: the tokenizer does not take them; the package is unchanged then.
    """
    description = _description(folder)
    saved = description["tokenizer"]
    saved["config"] |= settings
    _tokenizer(folder, saved)
    _write(folder, description)


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
    fault = "holds no finished run and no package" if folder.exists() else "does not exist"
    raise UserError(f"{folder} {fault} (looked for {CONFIG} and {WEIGHTS} in it and in its student/)")


def load(path: str | Path) -> Package:
    """Open a package, or the one of a run directory, in eval mode on the CPU.

    Raises:
        UserError: there is none; a file of it is missing or damaged; its classes are not trusted, or cannot be
            imported here.
    """
    folder = located(path)
    identity = fingerprint(folder)
    description = _description(folder)
    tokenizer = _tokenizer(folder, description["tokenizer"])
    model = _model(folder, description["model"])
    return Package(model, tokenizer, tuple(description["classes"]), identity, description["about"])


def outline(path: str | Path) -> tuple[Model, Any]:
    """The model without its weights (on the meta device: shapes only) and the tokenizer of a package.

    Raises:
        UserError: as ``load``.
    """
    import torch

    folder = located(path)
    description = _description(folder)
    with torch.device("meta"):
        model: Model = _build_model(folder, description["model"])
    return model, _tokenizer(folder, description["tokenizer"])


def _model(folder: Path, saved: dict[str, Any]) -> Any:
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(str(folder / WEIGHTS), "pt") as weights:
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        with torch.device("meta"):  # a configuration may ask for more memory than its weights do: none is taken yet
            skeleton = _build_model(folder, saved)
            with suppress(RuntimeError):  # a buffer may take the file's shape; any other difference raises below
                skeleton.load_state_dict({name: torch.empty(shape) for name, shape in shapes.items()})
        expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
        if shapes != expected:
            name = next(name for name in [*expected, *shapes] if expected.get(name) != shapes.get(name))
            raise RuntimeError(f"{name} is {shapes.get(name, 'absent')} and not {expected.get(name, 'expected')}")
        model = _build_model(folder, saved)
        model.load_state_dict(load_file(str(folder / WEIGHTS)))
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged: {error}") from error
    except RuntimeError as error:
        raise UserError(f"{folder} does not fit the {saved['class']} of this installation: {error}") from error
    return model.eval()


def _build_model(folder: Path, saved: dict[str, Any]) -> Any:
    from torch import nn

    kind = _class(saved, folder, lambda candidate: issubclass(candidate, nn.Module))
    try:
        return kind(**saved["config"])
    except UserError:
        raise
    except Exception as error:  # its configuration may hold anything
        raise UserError(f"{folder} does not fit the {saved['class']} of this installation: {error}") from error


def _is_tokenizer(kind: type) -> bool:
    return all(hasattr(kind, method) for method in ("encode", "save", "load"))


def _tokenizer(folder: Path, saved: dict[str, Any]) -> Any:
    name, settings, files = saved["class"], saved["config"], folder / TOKENIZER
    kind = _class(saved, folder, _is_tokenizer)
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
    """The identity of what the package computes: weights, configuration, tokenizer.

    Raises:
        UserError: a file is missing or damaged.
    """
    description = _description(folder)
    sums = {file.relative_to(folder).as_posix(): file_sha256(file) for file in _files(folder)}
    recorded = description.pop("files", sums)  # packages of earlier versions have no checksums
    for name in {**recorded, **sums}:
        if recorded.get(name) != sums.get(name):
            fault = "is missing" if name not in sums else "is damaged: it is not the file that was saved"
            raise UserError(f"{folder / name} {fault} ({CONFIG} has its checksum)")
    description.pop("about")
    content = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for checksum in sums.values():
        content.update(checksum.encode())
    return content.hexdigest()[:24]


def classes(folder: Path) -> tuple[str, ...]:
    """The class names of a package, without loading its model."""
    return tuple(_description(folder)["classes"])


def _files(folder: Path) -> Iterator[Path]:
    """The weights and what the tokenizer saved, in a fixed order."""
    yield folder / WEIGHTS
    for path in sorted((folder / TOKENIZER).rglob("*")):
        if not path.is_dir():
            if not path.is_file():  # a pipe or a device has no end
                raise UserError(f"{path} is damaged: it is no file")
            yield path


def _write(folder: Path, description: dict[str, Any]) -> None:
    text = json.dumps(with_sum(description), indent=1, ensure_ascii=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _description(folder: Path) -> dict[str, Any]:
    """The description of a package; UserError unless it is what was written, with the fields and types it must have."""
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(description, dict):
            raise ValueError("it is no JSON object")
        if "classes" not in description:  # a model folder of another kind
            return description
        description = without_sum(description)
        if lost := [name for name in _FIELDS if name not in description]:
            raise ValueError(f"it lacks {lost[0]!r}")
        if unknown := description.keys() - _FIELDS.keys() - {"files"}:
            raise ValueError(f"it has an unknown entry {min(unknown)!r}")
        for name, kind in {**_FIELDS, "files": dict}.items():
            if not isinstance(description.get(name, {}), kind):
                raise ValueError(f"{name!r} is no JSON {'array' if kind is list else 'object'}")
        for name in ("model", "tokenizer"):
            entry = description[name]
            if not (isinstance(entry.get("class"), str) and isinstance(entry.get("config"), dict)):
                raise ValueError(f"{name!r} has no class and config")
        if not all(isinstance(name, str) for name in description["classes"]):
            raise ValueError("a class name is no string")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} is damaged: {error}") from error
    return description


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _class(saved: dict[str, Any], folder: Path, fits: Callable[[type], bool]) -> Callable[..., Any]:
    """The class of a model or tokenizer; nothing is imported of a module that is not trusted."""
    name: str = saved["class"]
    module, _, attribute = name.rpartition(".")
    if module.split(".")[0] != "kdresearch" and not _is_trusted(name):
        first = name.split(".")[0]
        raise UserError(
            f"{folder / CONFIG} names the class {name}, which is not kdresearch's: nothing of it is imported. "
            f"If you trust that module, say so in the environment: {TRUST}={first}"
        )
    try:
        if not _is_trusted(name):
            raise TypeError
        resolved = getattr(importlib.import_module(module), attribute)
        if not (isinstance(resolved, type) and _is_trusted(_qualified(resolved)) and fits(resolved)):
            raise TypeError
    except TypeError:
        raise UserError(f"{folder / CONFIG} names the class {name}, which is no model or tokenizer") from None
    except Exception as error:
        raise UserError(f"{folder} was saved with {name}, which cannot be imported here ({error})") from error
    if elsewhere := [setting for setting in _ELSEWHERE if module.startswith(_ROOMS) and setting in saved["config"]]:
        raise UserError(f"{folder / CONFIG} sets {elsewhere[0]!r} of {name}: a package names no files but its own")
    return resolved


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_trusted(name: str) -> bool:
    """Whether a class may be imported: it is, or lies below, what is trusted."""
    if not re.fullmatch(r"\w+(\.\w+)+", name):
        return False
    named = [prefix.strip() for prefix in os.environ.get(TRUST, "").split(",")]
    if any(f"{name}.".startswith(f"{prefix}.") for prefix in (*_ROOMS, *_trusted, *named) if prefix):
        return True
    installed = (point.value.replace(":", ".") for point in entry_points(group=COMPONENTS))  # looks at every package
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in installed)
