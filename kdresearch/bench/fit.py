"""Training a student: the Trainer, its checkpoints, and going on where a killed run stopped."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import Logger

from kdresearch.bench.budget import Budget, check_budget, limits
from kdresearch.bench.checkpoints import BEST, LAST, BestCheckpoint, CheckpointFiles, LastCheckpoint, tidy
from kdresearch.bench.components import Component
from kdresearch.bench.context import Context
from kdresearch.bench.plan import Plan
from kdresearch.bench.processes import PrepareProcess, make_trainer, process_errors
from kdresearch.bench.resume import RandomState, StopAfter, StopAtNonFinite
from kdresearch.data.datamodule import TextDataModule
from kdresearch.errors import UserError, choices
from kdresearch.evaluation.task import CLASSIFICATION
from kdresearch.strategies.distiller import Distiller

_FIXED = {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "enable_model_summary": False}


@dataclass(frozen=True)
class Fitted:
    """How long a training was, and which epoch is kept (from 1)."""

    updates: int
    best_epoch: int


def check_training(plan: Plan) -> None:
    """Raise UserError for trainer and selection settings that make no sense, before anything is paid for."""
    trainer, selection, monitors = plan.trainer, plan.selection, CLASSIFICATION.monitors
    if str(trainer.get("precision", "")).startswith("16") and trainer.get("accelerator") == "cpu":
        raise UserError("trainer.precision=16-mixed needs a GPU: on a CPU use 32-true or bf16-mixed")
    if selection.mode not in ("min", "max"):
        raise UserError(f"selection.mode: {choices(selection.mode, ('min', 'max'))}")
    if selection.monitor not in monitors:
        raise UserError(f"selection.monitor: {choices(selection.monitor, monitors)}")
    if selection.mode != (best := monitors[selection.monitor]):
        raise UserError(
            f"selection.mode={selection.mode} would keep the worst epoch: {selection.monitor} takes "
            f"selection.mode={best}"
        )
    check_budget(plan)
    _trainer(plan, logger=False, enable_checkpointing=False, enable_progress_bar=False)  # refuses what it cannot do


def fit(
    plan: Plan,
    module: Distiller,
    data: TextDataModule,
    folder: Path,
    loggers: Sequence[Logger],
    resumed: Path | None,
    context: Context,
) -> Fitted:
    """Train the module; it ends with the weights of the epoch that is kept.

    Args:
        folder: of the run; ``checkpoints/`` in it is this training's.
        resumed: the checkpoint to go on from; None starts anew.
    """
    checkpoints = folder / "checkpoints"
    best, last = _checkpoints(plan, checkpoints)
    unlabelled = float((data.mixture(0) >= len(data.split.train)).mean())
    callbacks = _callbacks(plan, context)
    trainer = _trainer(
        plan,
        callbacks=[
            PrepareProcess(plan),
            Budget.of(plan, unlabelled, context.say),
            StopAtNonFinite(),  # before what it would spoil is kept
            best,
            last,
            RandomState(),
            *callbacks,
        ],
        logger=list(loggers),
        default_root_dir=str(folder),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
    )
    if resumed is None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    else:
        context.say(f"going on from {resumed}")
    torch.manual_seed(plan.seeds.init)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not walk it at every step
    try:
        with process_errors():
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    finally:
        gc.unfreeze()  # else a sweep in one process would keep every job's models
    fitted = _load_best(module, checkpoints, trainer.global_step)
    tidy(checkpoints)
    return fitted


def _load_best(module: Distiller, checkpoints: Path, steps: int) -> Fitted:
    best = torch.load(checkpoints / BEST, map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"])
    last = torch.load(checkpoints / LAST, map_location="cpu", weights_only=True, mmap=True)
    # Under ddp_spawn and ddp_fork the updates were counted in other processes.
    return Fitted(max(steps, int(last["global_step"])), int(best["epoch"]) + 1)


def _checkpoints(plan: Plan, folder: Path) -> tuple[BestCheckpoint, LastCheckpoint]:
    """What keeps the best epoch, and what keeps the last one to go on from."""
    monitor, mode = plan.selection.monitor, plan.selection.mode
    if plan.selection.stop_after is not None:
        monitor, mode = "epoch", "max"  # the last one is the best
    settings: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    best = BestCheckpoint(filename=Path(BEST).stem, monitor=monitor, mode=mode, **settings)
    return best, LastCheckpoint(every_n_train_steps=plan.checkpoint_every, **settings)


def _callbacks(plan: Plan, context: Context) -> list[Callback]:
    selection = plan.selection
    callbacks = [context.progress(), LearningRateMonitor("step"), *_own_callbacks(plan)]
    if selection.stop_after is not None:
        callbacks.append(StopAfter(selection.stop_after))
    if selection.patience is not None:
        stops: dict[str, Any] = {"patience": selection.patience, "check_on_train_epoch_end": False}
        callbacks.append(EarlyStopping(selection.monitor, mode=selection.mode, **stops))
    return callbacks


def _own_callbacks(plan: Plan) -> list[Callback]:
    """Those that the plan's trainer names: components, in a list or by name."""
    named = plan.trainer.get("callbacks") or []
    nodes = named.values() if isinstance(named, dict) else named
    return [Component.of(node).build("trainer.callbacks") for node in nodes]


def _trainer(plan: Plan, **arguments: Any) -> pl.Trainer:
    settings = {name: value for name, value in plan.trainer.items() if name not in ("callbacks", "plugins")}
    plugins = plan.trainer.get("plugins") or []
    settings["plugins"] = [*(plugins if isinstance(plugins, list | tuple) else [plugins]), CheckpointFiles()]
    try:
        return make_trainer(**(_FIXED | settings | limits(plan) | arguments))
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {error}") from error
