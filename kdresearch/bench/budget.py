"""How long a training is, in updates, and which of its epochs are validated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kdresearch.bench.plan import Plan
from kdresearch.errors import UserError


def check_budget(plan: Plan) -> None:
    """Refuse lengths of a training that contradict each other, or none at all, and a selection that cannot be meant.

    Raises UserError.
    """
    lengths = _lengths(plan)
    for name, value in lengths.items():
        least = 0 if name == "student.training.min_updates" else 1
        if value is not None and name.startswith("student.") and (int(value) != value or value < least):
            raise UserError(f"{name} must be a whole number of at least {least}, not {value}")
    exact = {name: lengths[name] for name in ("student.training.updates", *_EXACT) if lengths[name] is not None}
    if len(exact) > 1 and "student.training.updates" in exact:
        raise UserError(
            f"{' and '.join(f'{name}={value}' for name, value in list(exact.items())[:2])} are two lengths of one "
            "training: give one of them"
        )
    if all(value is None for value in lengths.values()):
        raise UserError(
            "the training has no length: give student.training.epochs or updates, or min_epochs and min_updates"
        )
    selection = plan.selection
    if selection.stop_after is not None and selection.patience is not None:
        raise UserError(
            f"selection.stop_after={selection.stop_after} keeps that epoch whatever the others were, and "
            f"selection.patience={selection.patience} stops by what they were: give one of them"
        )
    for name, value, least in (("patience", selection.patience, 0), ("validations", selection.validations, 1)):
        if value is not None and value < least:
            raise UserError(f"selection.{name} must be at least {least}, or null, not {value}")


_EXACT = ("student.training.epochs", "trainer.max_epochs", "trainer.max_steps")


def _lengths(plan: Plan) -> dict[str, int | None]:
    training = plan.student.training
    names = ("epochs", "updates", "min_epochs", "min_updates")
    steps = plan.trainer.get("max_steps", -1)
    return {f"student.training.{name}": training.get(name) for name in names} | {
        "trainer.max_epochs": plan.trainer.get("max_epochs"),
        "trainer.max_steps": None if steps == -1 else steps,
    }


def limits(plan: Plan) -> dict[str, int]:
    """What the Trainer is told beside its own settings; ``Budget`` counts the epochs once it knows the batches."""
    updates = plan.student.training.get("updates")
    if updates is not None:
        return {"max_epochs": -1, "max_steps": int(updates)}
    return {"max_epochs": 1} if plan.trainer.get("max_epochs") is None else {}


class Budget(Callback):
    """Give a training its epochs, validate the last one and few of many, and say how long it is.

    Epochs are counted at the start of the fit, on the batches that there are, and before the schedules ask for the
    number of updates. A training that ends within an epoch is validated there.

    Args:
        min_epochs, min_updates: the training has as many epochs as both take; None for both where the Trainer knows
            its length already.
        validations: at most so many epochs are validated, at equal distances, the last one among them; None validates
            each.
        stop_after: the epoch after which the training stops, which is validated too.
        unlabelled: share of an epoch's rows that have no label, to be told.
        say: is called with a line about the length.

    Raises:
        UserError: stop_after lies beyond the last epoch.
    """

    def __init__(
        self,
        *,
        min_epochs: int | None = None,
        min_updates: int | None = None,
        validations: int | None = None,
        stop_after: int | None = None,
        unlabelled: float = 0.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.say = say
        self.min_epochs, self.min_updates = min_epochs, min_updates
        self.validations, self.stop_after, self.unlabelled = validations, stop_after, unlabelled
        self._epochs = self._per_epoch = 0
        self._thins = False

    @classmethod
    def of(cls, plan: Plan, unlabelled: float, say: Callable[[str], None]) -> Budget:
        """The budget of a plan whose epochs have this share of rows without labels."""
        training = plan.student.training
        least = plan.trainer.get("max_epochs") is None and training.get("updates") is None
        return cls(
            min_epochs=training.get("min_epochs") if least else None,
            min_updates=training.get("min_updates") if least else None,
            validations=plan.selection.validations,
            stop_after=plan.selection.stop_after,
            unlabelled=unlabelled,
            say=say,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        loop, limit = trainer.fit_loop, trainer.max_steps
        if limit == -1 and trainer.max_epochs == -1:
            return  # endless: schedules refuse it
        self._per_epoch = _updates_of_an_epoch(trainer)
        if self.min_epochs is not None or self.min_updates is not None:
            loop.max_epochs = max(self.min_epochs or 1, math.ceil((self.min_updates or 0) / self._per_epoch))
        reached = math.inf if limit == -1 else max(1, math.ceil(limit / self._per_epoch))
        self._epochs = int(min(reached, math.inf if loop.max_epochs == -1 else loop.max_epochs or 1))
        if self.stop_after is not None and self.stop_after > self._epochs:
            raise UserError(f"selection.stop_after={self.stop_after}: the schedule has {self._epochs} epochs")
        many = self.validations is not None and self._epochs > self.validations
        self._thins = many and trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0

    def validates(self, epoch: int) -> bool:
        """Whether the rows for validation are read at the end of an epoch, counted from 1."""
        every = math.ceil(self._epochs / self.validations) if self._thins and self.validations else 1
        return epoch % every == 0 or epoch in (self._epochs, self.stop_after)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._epochs:
            return
        self._choose(trainer)  # a run that goes on within an epoch does not begin it
        total = int(trainer.estimated_stepping_batches)
        message = f"training: {self._epochs:,} epochs of {self._per_epoch:,} updates, {total:,} in all"
        if self.unlabelled:
            message += (
                f"; {self.unlabelled:.0%} of the rows of an epoch have no label: a control without them gets as many "
                f"updates by student.training.updates={total}"
            )
        if trainer.is_global_zero:
            self.say(message)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._choose(trainer)

    def _choose(self, trainer: Trainer) -> None:
        if self._thins:
            epoch = trainer.current_epoch + 1
            trainer.check_val_every_n_epoch = 1 if self.validates(epoch) else epoch + 1  # which does not divide it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # else an end within an epoch is not validated


def _updates_of_an_epoch(trainer: Trainer) -> int:
    """Counted on a loader of its own: the Trainer's is made after a checkpoint said how far the data were read."""
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches  # type: ignore[attr-defined]
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return max(1, math.ceil(batches / trainer.accumulate_grad_batches))
