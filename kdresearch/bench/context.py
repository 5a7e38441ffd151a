"""Where a run's phases find the store, whom they tell what they do, and the devices beside the trainer's."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lightning.pytorch import Callback

from kdresearch.artifacts import Store
from kdresearch.bench.plan import Plan

_NOISE = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*You're resuming from a checkpoint that ended.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*custom batch sampler.*",
)
_LOUD = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "torchtext.vocab")


def silent(message: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Context:
    """The store, what is called with a line of text about every step that takes time, and how a training is shown."""

    store: Store = field(default_factory=Store)
    say: Callable[[str], None] = silent
    progress: Callable[[], Callback] = Callback  # makes what shows a training while it runs
    store_limit: int | str | None = None  # bytes that the store may hold, or words as 20GB; see ``room``


def prepare_process(plan: Plan) -> None:
    """Set the threads of this process, the precision of its matrix products, and silence what is no news."""
    if plan.threads is not None:
        torch.set_num_threads(int(plan.threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    torch.set_float32_matmul_precision("high")
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)


def teacher_device(plan: Plan) -> str:
    """Where teachers and generators run when the trainer does not."""
    return "cuda" if plan.trainer.get("accelerator") != "cpu" and torch.cuda.is_available() else "cpu"
