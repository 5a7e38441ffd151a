"""Training on several devices: processes that Lightning starts from this one, which alone prepares, judges and records.

Lightning's own choice, ``ddp``, runs the command once more for each device; that would read the data, train the teacher
and write the record several times over. ``ddp_spawn`` computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from kdresearch.bench.context import prepare_process
from kdresearch.bench.plan import Plan
from kdresearch.errors import Diverged, UserError, choices

_SPAWNED = {
    "auto": "ddp_spawn",
    "ddp": "ddp_spawn",
    "ddp_find_unused_parameters_true": "ddp_spawn_find_unused_parameters_true",
    "ddp_find_unused_parameters_false": "ddp_spawn_find_unused_parameters_false",
}


def make_trainer(**settings: Any) -> pl.Trainer:
    """A Trainer whose processes are started from this one.

    Raises:
        UserError: a strategy that can only start the command once more.
    """
    trainer = pl.Trainer(**settings)
    if not isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        return trainer
    strategy = settings.get("strategy", "auto")
    if strategy not in _SPAWNED:
        names = [*_SPAWNED, "ddp_spawn", "ddp_fork"]
        raise UserError(f"trainer.strategy: {choices(strategy, names)}: a run starts its processes itself")
    return pl.Trainer(**(settings | {"strategy": _SPAWNED[strategy]}))


class PrepareProcess(Callback):
    """Threads and precision of matrix products are those of the plan in each process of a training."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        prepare_process(self.plan)


@contextmanager
def process_errors() -> Iterator[None]:
    """What a process of the training raised, or died of, as this one's.

    Raises:
        UserError: it raised one, or was killed.
    """
    try:
        yield
    except ProcessRaisedException as error:
        *_, last = str(error).strip().splitlines()
        raised = re.match(r"kdresearch\.errors\.(Diverged|UserError): (.*)", last)
        if raised is None:
            raise
        raise (Diverged if raised[1] == "Diverged" else UserError)(raised[2]) from error
    except ProcessExitedException as error:
        raise UserError(f"a process of the training was killed ({error}): the same command goes on") from error
