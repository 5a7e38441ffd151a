"""What a training logs of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from kdresearch.objectives.objective import Objective
from kdresearch.strategies.means import Means
from kdresearch.structures import Batch


class Curves(LightningModule):
    """A module whose curves are means.

    ``train/NAME`` of an objective and ``train/loss`` stand for all updates since the row before: there is one every
    ``log_every_n_steps`` updates and at the end of an epoch or stage. An objective's is over the rows that its value is
    a mean of (labelled ones, where it needs labels), the loss's over all rows of the batches, so that with unlabelled
    rows the loss need not be the weighted sum of the terms. What else is logged is that of the row's last update.

    Lightning's own means, of a metric logged at every step, cost small models a tenth of their speed.

    Attributes:
        epoch_means: ``train/NAME`` over the epoch so far, as of its last row.
        settings: weights, and what else is logged of the last update.
        milestones: updates from which on other objectives are computed than before; known while it is fitted.
    """

    milestones: tuple[int, ...] = ()
    objectives: nn.ModuleDict

    def __init__(self) -> None:
        super().__init__()
        self.since_row, self.of_epoch = Means(), Means()
        self.epoch_means: dict[str, float] = {}
        self.settings: dict[str, float] = {}
        self._epoch, self._updates_before = -1, 0

    def log_step(self, batch: Batch, values: Mapping[str, Tensor], settings: dict[str, float]) -> None:
        """Take a step into the means.

        Args:
            values: ``loss`` and the terms, by the names of their objectives, or with a peer's behind (``NAME/peer1``).
            settings: to be logged as they are.
        """
        if self._epoch != self.current_epoch:
            self._epoch, self.epoch_means = self.current_epoch, {}
            self.since_row, self.of_epoch = Means(), Means()
        self._updates_before, self.settings = self.global_step, settings
        alike, objectives = {}, dict(self.objectives.items())
        for name, value in values.items():
            term = objectives.get(name.partition("/")[0])
            rows = term.denominator(batch) if isinstance(term, Objective) else None
            if rows is None:
                alike[name] = value
            else:
                self.log_values({name: value}, rows)
        self.log_values(alike, len(batch.label))

    def log_values(self, values: Mapping[str, Tensor], rows: Tensor | float) -> None:
        """Log further values of this step, by rows."""
        self.since_row.add(values, rows)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Write a row of the curves where one ends."""
        if self._row_ends():
            self._write_row()
            for name, value in (self.epoch_means | self.settings).items():  # for bars and callbacks
                self.log(name, value, logger=False, prog_bar=name == "train/loss", batch_size=1)

    def _row_ends(self) -> bool:
        """Whether a row of the curves ends with this batch."""
        before, now = self._updates_before, self.global_step
        every = getattr(self.trainer, "log_every_n_steps", 0) or math.inf
        stage = any(before < end <= now for end in (*self.milestones, self.trainer.max_steps))
        return now // every > before // every or stage or bool(self.trainer.is_last_batch)

    def _write_row(self) -> None:
        if not self.since_row.sums:
            return
        reduce = partial(self.trainer.strategy.reduce, reduce_op="sum")
        row = _train(self.since_row.compute(reduce)) | self.settings
        for logger in self.loggers:
            logger.log_metrics(row | {"epoch": self.current_epoch}, step=self.global_step - 1)
            logger.save()
        self.of_epoch.merge(self.since_row)
        self.since_row = Means()
        self.epoch_means = _train(self.of_epoch.compute(reduce))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the means of the unfinished row and epoch."""
        if self._row_ends():  # callbacks save before this module has its turn
            self._write_row()
        checkpoint["means"] = {"epoch": self._epoch, "row": self.since_row.sums, "whole": self.of_epoch.sums}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the means of the unfinished row and epoch."""
        if "means" in checkpoint:
            self._epoch = checkpoint["means"]["epoch"]
            self.since_row.sums, self.of_epoch.sums = checkpoint["means"]["row"], checkpoint["means"]["whole"]


def _train(means: Mapping[str, float]) -> dict[str, float]:
    return {f"train/{name}": mean for name, mean in means.items()}
