"""Models of the Hugging Face hub: a local folder is used as it is, without a network the refusal is quick, and what a
repository brings in code is never run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdresearch.errors import UserError


def hub_name(name: str | Path, file: str = "config.json") -> str:
    """What ``from_pretrained`` should be given for a folder or a hub id.

    Args:
        name: a local folder, or an id such as ``org/model``.
        file: a file that the repository surely has, looked for in the local hub cache.

    Raises:
        UserError: no such folder; no possible id; or an id that is not in the cache while the hub is out of reach.
    """
    text = str(name)
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return str(folder)
    if not text or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or folder.exists():
        raise UserError(f"{text!r} is no folder (a hub id looks like 'org/model')")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(text, file), str)
    except HFValidationError as error:
        raise UserError(f"{text!r} is neither a folder nor a possible hub id: {error}") from error
    if not cached and not hub_reachable():
        raise UserError(
            f"{text!r} is no local folder, and the Hugging Face hub is out of reach: give a folder, or a network"
        )
    return text


def from_pretrained(kind: Any, name: str, **settings: Any) -> Any:
    """What ``kind.from_pretrained`` makes of a folder or hub id, by the code of transformers alone.

    A repository with code beside an architecture that transformers knows is read as that architecture.

    Raises:
        UserError: it cannot be read without code of its own.
    """
    from transformers import AutoTokenizer, PretrainedConfig

    if kind is not AutoTokenizer:
        refuse_kernels(PretrainedConfig.get_config_dict(name)[0], name)
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **settings)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{name} has code of its own, which is never run: give a model that transformers knows"
        ) from error


def refuse_kernels(configuration: Mapping[str, Any], name: str) -> None:
    """Refuse a configuration that names an implementation to be fetched from the hub: compiled code of a repository.

    Raises:
        UserError: it does.
    """
    for key, value in configuration.items():
        if isinstance(value, Mapping):
            refuse_kernels(value, name)
        elif key.lstrip("_").endswith("_implementation") and "/" in str(value):
            raise UserError(f"{name} has code of its own, which is never run: its {key} is {value!r}")


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the hub answers within ``timeout`` seconds; False at once where HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    return reachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout)


def reachable(endpoint: str, timeout: float = 3.0) -> bool:
    """Whether a server answers at all, within so many seconds.

    A thread of its own, because looking up a name has no timeout, and the client of the Hub, because it uses the
    user's proxies.
    """
    from huggingface_hub import get_session

    answered = threading.Event()

    def connect() -> None:
        with suppress(Exception):
            get_session().head(endpoint, timeout=timeout)
            answered.set()

    connection = threading.Thread(target=connect, daemon=True)
    connection.start()
    connection.join(timeout)
    return answered.is_set()
