"""What Lightning's automatic optimization does, for strategies that take their steps by themselves."""

from __future__ import annotations

import warnings

from lightning.pytorch import LightningModule


def step_by_hand(module: LightningModule, stage: str) -> None:
    """To be called by ``setup`` of a strategy with several optimizers."""
    # Lightning refuses a Trainer that clips or accumulates beside manual optimization, and looks before this hook;
    # both are done by hand.
    module.automatic_optimization = stage != "fit"
    # What a checkpoint between two validations holds is, as it should be, the state after the update.
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")


def ends_accumulation(module: LightningModule, batch_idx: int) -> bool:
    """Whether an update follows this batch."""
    trainer, batches = module.trainer, batch_idx + 1
    complete = batches % trainer.accumulate_grad_batches == 0
    return complete or trainer.is_last_batch or batches == trainer.num_training_batches
