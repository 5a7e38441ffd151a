"""Generators that are language models of Hugging Face: a folder or hub id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from kdresearch.artifacts import file_sha256
from kdresearch.errors import UserError, choices
from kdresearch.generation.generator import check_least
from kdresearch.hub import from_pretrained, hub_name

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class Pretrained:
    """Settings of every such generator, and the identity of its model.

    Args:
        path: a folder or hub id.
        batch_size: samples made side by side.
        dtype: of weights and activations: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        UserError: no such folder, or settings that make no sense.
    """

    NAME: ClassVar[str]

    path: str | Path
    batch_size: int = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_least(self, batch_size=1)
        if self.dtype not in DTYPES:
            raise UserError(f"generator.dtype: {choices(self.dtype, DTYPES)}")
        hub_name(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's files; see ``fingerprint``."""
        return fingerprint(self.path)

    def key(self) -> dict[str, Any]:
        """Settings, with the model's fingerprint instead of its path."""
        settings = {setting.name: getattr(self, setting.name) for setting in fields(self) if setting.name != "path"}
        return {"generator": self.NAME, "model": self.fingerprint, **settings}

    def preparation_key(self) -> None:
        """None: nothing is left in a folder."""


def load(path: str | Path, kind: str, dtype: str, device: str) -> tuple[Any, Any]:
    """A pretrained language model, in evaluation mode, and its tokenizer.

    Args:
        kind: the class of transformers that reads it, such as ``AutoModelForCausalLM``.

    Raises:
        UserError: no such model, one of another kind, or one without trained weights for all of its parts.
    """
    import logging as levels

    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    name = hub_name(path)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(levels.CRITICAL)  # it prints a table of missing weights, and goes on
    try:
        tokenizer = from_pretrained(transformers.AutoTokenizer, name)
        model, report = from_pretrained(
            getattr(transformers, kind), name, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"generator.path: {path} cannot be read as {kind}: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"generator.path: {path} holds no trained language model for {kind}: its weights lack "
            f"{', '.join(missing[:3])}{', ...' if missing[3:] else ''}"
        )
    return model.to(device).eval(), tokenizer


def fingerprint(path: str | Path) -> str:
    """The identity of a model's files: their digest in a folder, the commit of a hub id."""
    name = hub_name(path)
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(name, "config.json")).parent.name  # snapshots/COMMIT/config.json
        except (OSError, ValueError) as error:
            raise UserError(f"generator.path: {name}: {str(error).splitlines()[0]}") from error
    content = hashlib.sha256()
    for file in sorted(Path(name).iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".md":
            content.update(f"{file.name} {file_sha256(file)}\n".encode())
    return content.hexdigest()[:24]
