"""Going on exactly where a killed run stopped, and stopping before the schedule does: after an epoch, or diverged."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kdresearch.errors import Diverged


class RandomState(Callback):
    """The state of torch's random numbers is part of a checkpoint: Lightning leaves it out."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._restored is not None:
            torch.set_rng_state(self._restored["cpu"].cpu())
            if "cuda" in self._restored and torch.cuda.is_available():
                torch.cuda.set_rng_state_all([state.cpu() for state in self._restored["cuda"]])
            self._restored = None


class StopAfter(Callback):
    """Stop after some epochs; the schedule stays that of all of them."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer, trainer.current_epoch)  # killed between its last epoch and its end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer, trainer.current_epoch + 1)

    def _stop(self, trainer: Trainer, epoch: int) -> None:
        trainer.should_stop = trainer.should_stop or epoch >= self.epochs


class StopAtNonFinite(Callback):
    """Stop a training at the first loss that is no finite number.

    On a GPU it is looked for every ``every`` batches, since a look makes the processor wait for the device.

    Raises:
        Diverged: there was one.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._seen: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, torch.Tensor):
            return
        bad = ~loss.detach().isfinite().all()
        self._seen = bad if self._seen is None else self._seen | bad
        if (loss.device.type == "cpu" or trainer.is_last_batch or batch_idx % self.every == 0) and bool(self._seen):
            raise Diverged(
                f"the student diverged: in epoch {trainer.current_epoch + 1}, at update {trainer.global_step}, its "
                "loss is no finite number; lower student.training.learning_rate"
            )
