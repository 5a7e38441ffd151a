"""What a run took place in: commit, versions, machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import kdresearch

_PACKAGES = (
    "torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "wandb", "torchtext", "transformers", "tokenizers",
    "numpy", "pyarrow",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python and of the packages whose numbers could differ."""
    present = {"python": platform.python_version(), "kdresearch": kdresearch.__version__}
    for name in _PACKAGES:
        try:
            present[name] = version(name)
        except PackageNotFoundError:
            continue
    return present | {"torch": str(torch.__version__)}  # says which build it is, and the metadata may not


def hardware() -> dict[str, Any]:
    """Processor, threads, accelerators."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "platform": platform.platform(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def git() -> dict[str, Any] | None:
    """The commit of the checkout that the package runs from, and whether it was changed since; None elsewhere."""
    folder = Path(kdresearch.__file__).parent
    if shutil.which("git") is None:
        return None

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")) != folder.parent.resolve():
            return None
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except subprocess.CalledProcessError:
        return None
