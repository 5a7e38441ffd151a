"""What the numbers of a plan may be: told by name before anything is read or computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdresearch.bench.plan import Plan
from kdresearch.errors import UserError

_MOST_SEED = 2**32 - 1  # of numpy's
_MOST_THREADS = 1024


def check_bounds(plan: Plan) -> None:
    """Raise UserError for a number of another type, or out of bounds; and for a training that would be none."""
    for name, value, least, most, optional in _whole_numbers(plan):
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            bounds = f"from {least} to {most}" if most < _MOST_SEED or "seeds" in name else f"of at least {least}"
            raise UserError(f"{name}: a whole number {bounds}{', or null' if optional else ''}, not {value!r}")
    for name, value in _numbers(plan):
        rate = name.endswith("learning_rate")  # 0 leaves a student where it starts
        fits = isinstance(value, int | float) and not isinstance(value, bool) and (value >= 0 if rate else value > 0)
        if not fits:
            raise UserError(f"{name}: a number {'of at least' if rate else 'above'} 0, not {value!r}")
    _check_length(plan)


def _whole_numbers(plan: Plan) -> Iterator[tuple[str, Any, int, int, bool]]:
    """Name, value, least, most, and whether null stands for none."""
    huge = 2**62
    for name, value in vars(plan.seeds).items():
        yield f"seeds.{name}", value, 0, _MOST_SEED, False
    yield "threads", plan.threads, 1, _MOST_THREADS, True
    yield "checkpoint_every", plan.checkpoint_every, 1, huge, True
    yield "telemetry_every", plan.telemetry_every, 1, huge, True
    yield "evaluation.rows", plan.evaluation.rows, 1, huge, False
    for name in ("patience", "validations", "stop_after"):
        yield f"selection.{name}", getattr(plan.selection, name), int(name != "patience"), huge, True
    training, trainer = plan.student.training, plan.trainer
    yield "student.training.batch_size", training.get("batch_size", 1), 1, huge, False
    for name in ("epochs", "updates", "min_epochs"):
        yield f"student.training.{name}", training.get(name), 1, huge, True
    yield "trainer.max_epochs", trainer.get("max_epochs"), -1, huge, True
    yield "trainer.max_steps", trainer.get("max_steps", -1), -1, huge, False
    yield "trainer.accumulate_grad_batches", trainer.get("accumulate_grad_batches", 1), 1, huge, False
    for name, least in (("folds", 2), ("fold", 0), ("limit", 1), ("transfer_limit", 0)):
        yield f"data.{name}", plan.data.carving.get(name), least, huge, True


def _numbers(plan: Plan) -> Iterator[tuple[str, Any]]:
    yield "data.validation", plan.data.carving.get("validation", 0.1)
    if plan.data.transfer_share is not None:
        yield "data.transfer_share", plan.data.transfer_share
    for name in ("learning_rate", "head_lr_scale"):
        yield f"student.training.{name}", plan.student.training.get(name, 1.0)


def _check_length(plan: Plan) -> None:
    """Refuse what would leave the finished record of a student that was not trained."""
    trainer = plan.trainer
    for name in ("max_epochs", "max_steps"):
        if trainer.get(name) == 0:
            raise UserError(f"trainer.{name}=0 trains nothing: give at least 1")
    if trainer.get("fast_dev_run"):
        raise UserError("trainer.fast_dev_run leaves no result: use student.training.updates=1 for a trial")
    if trainer.get("limit_train_batches", 1.0) == 0:
        raise UserError("trainer.limit_train_batches=0 trains nothing: leave it out")
