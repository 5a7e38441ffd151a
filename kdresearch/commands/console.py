"""What a command tells a person while it works, and how it shows a long training."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.markup import escape

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line on standard error, with the time."""
    _console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim]", escape(message))


class PlainProgress(Callback):
    """A line per epoch, and one every ``seconds`` within it, where there is no terminal to draw a bar in."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self.last = self.started = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if now - self.last >= self.seconds and trainer.is_global_zero:
            self.last = now
            remaining = (now - self.started) / (batch_idx + 1) * (trainer.num_training_batches - batch_idx - 1)
            say(
                f"epoch {trainer.current_epoch + 1}: {batch_idx + 1} of {trainer.num_training_batches} batches, "
                f"{remaining:.0f} s left, {_numbers(_train_means(pl_module))}"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            seconds = time.perf_counter() - self.started
            rest = {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if not name.startswith(("lr-", "train/"))  # those of a stage that is over would still be there
            }
            say(f"epoch {trainer.current_epoch + 1} ({seconds:.1f} s): {_numbers(_train_means(pl_module) | rest)}")


def _train_means(module: LightningModule) -> dict[str, float]:
    """Means of ``train/NAME`` over the epoch so far, as of the last row of the curves."""
    means: dict[str, float] = getattr(module, "epoch_means", {})
    return means


def _numbers(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


class LiveProgress(RichProgressBar):
    """A bar per epoch with the mean loss so far, the validation accuracy and the time left."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, leave=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


def progress() -> Callback:
    """A live bar in a terminal, plain lines elsewhere."""
    return LiveProgress() if _console.is_terminal else PlainProgress()
