"""Checkpoints that survive a kill, a full disk and a move of their folder; which of them a run goes on from.

Each is written beside its place, brought to the disk and renamed; the one before stays until then and beyond, and the
checksums of both are known before the rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kdresearch.artifacts import file_sha256
from kdresearch.bench.schema import read_json, replaced, write_json

BEST, LAST = "best.ckpt", "last.ckpt"
_SUMS, _BEFORE = "sums.json", "before-"


class CheckpointFiles(TorchCheckpointIO):
    """Puts a checkpoint in its place whole or not at all, and keeps the one that was there as ``before-NAME``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; OSError where there is no room, and what was there is there still."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as partial:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
            _remember(target, file_sha256(partial))
            if target.exists():
                _keep(target)


def _remember(target: Path, digest: str) -> None:
    """Add a checksum to those of a checkpoint's name; the two before it belong to files that are still there."""
    sums = read_json(target.parent / _SUMS)
    sums[target.name] = [digest, *sums.get(target.name, [])[:2]]
    write_json(target.parent / _SUMS, sums)


def _keep(target: Path) -> None:
    before = target.with_name(_BEFORE + target.name)
    with replaced(before) as link:
        link.unlink(missing_ok=True)
        try:
            os.link(target, link)
        except OSError:  # a file system without links
            shutil.copyfile(target, link)


def tidy(folder: Path) -> None:
    """Remove what only a run that goes on would read; a finished one has its checksums in run.json."""
    for path in (folder / _SUMS, *folder.glob(f"{_BEFORE}*"), *folder.glob(".*.partial")):
        path.unlink(missing_ok=True)


class BestCheckpoint(ModelCheckpoint):
    """The epoch that is kept; where its folder has moved, it is found in the new one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(_moved(state_dict, Path(self.dirpath or "")))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        _save_end(self, trainer)


class LastCheckpoint(ModelCheckpoint):
    """What a killed run goes on from: the end of each validated epoch and, if asked, every so many updates.

    One that falls on the last update of an epoch waits for the epoch's end: a run that goes on from before it would
    leave the validation out.
    """

    def __init__(self, *, every_n_train_steps: int | None = None, **settings: Any) -> None:
        super().__init__(filename=Path(LAST).stem, every_n_train_steps=every_n_train_steps, **settings)
        self._every_n_epochs = 1  # Lightning would have one of the two only

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(_moved(state_dict, Path(self.dirpath or "")))

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:
        if not (trainer.is_last_batch or trainer.should_stop):
            super().on_train_batch_end(trainer, *arguments, **named)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        _save_end(self, trainer)


def _save_end(callback: ModelCheckpoint, trainer: Trainer) -> None:
    """Where no validation came before the end of the training, the end is all there is."""
    if not callback.best_model_path:
        trainer.save_checkpoint(Path(callback.dirpath or "") / f"{callback.filename}.ckpt")


def _moved(state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The state of a ModelCheckpoint with its files in another folder: Lightning drops the best score otherwise."""

    def here(path: str) -> str:
        return str(folder / Path(path).name) if path else path

    paths = {name: here(state.get(name, "")) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    best = {here(path): score for path, score in state.get("best_k_models", {}).items()}
    return {**state, **paths, "best_k_models": best, "dirpath": str(folder)}


def checkpoint_to_resume(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a folder that can be gone on from, its best epoch in place; None starts anew.

    Args:
        say: is called with what is wrong with each that cannot.
    """
    for last in (folder / LAST, folder / f"{_BEFORE}{LAST}"):
        checkpoint = _opened(last, say)
        if checkpoint is None:
            continue
        if _place_best(folder, checkpoint, say):
            return last
        say(f"{last}: which epoch was the best before it is not known: it cannot be gone on from")
    if (folder / LAST).exists():
        say(f"{folder} has no checkpoint to go on from: the training starts anew")
    return None


def progress(folder: Path) -> tuple[int, int] | None:
    """The whole epochs and the updates that a run would go on from; None without a checkpoint."""
    checkpoint = _opened(folder / LAST, lambda line: None)
    if checkpoint is None:
        return None
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return int(epochs), int(checkpoint["global_step"])


def _opened(path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """A checkpoint whose checksum is known; None, and said, where it is none or not what was written."""
    if not path.exists():
        return None
    try:
        sums = read_json(path.parent / _SUMS).get(path.name.removeprefix(_BEFORE))
        if sums is not None and file_sha256(path) not in sums:
            raise ValueError("it is not what was written")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # it may hold anything
        say(f"{path} is damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return None
    return checkpoint


def _place_best(folder: Path, last: Mapping[str, Any], say: Callable[[str], None]) -> bool:
    """Have best.ckpt be the one that the last checkpoint knows of; whether that is so.

    A kill between the two writes of an epoch leaves a best one that is newer, and the one before it is taken.
    """
    expected = _best_state(last)
    if expected is None:
        return False
    if not expected["best_model_path"]:  # saved before the first validation
        return True
    for place in (folder / BEST, folder / f"{_BEFORE}{BEST}"):
        checkpoint = _opened(place, say)
        state = None if checkpoint is None else _best_state(checkpoint)
        if state is not None and state["best_model_score"] == expected["best_model_score"]:
            place.replace(folder / BEST)
            return True
    return False


def _best_state(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    states = checkpoint.get("callbacks", {})
    return next((state for key, state in states.items() if key.startswith(BestCheckpoint.__qualname__)), None)
