"""Learning-rate schedules over a known number of updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from kdresearch.errors import UserError


def _warmup_steps(warmup: float | int, total: int) -> int:
    if warmup < 0:
        raise UserError(f"scheduler.warmup must be a share or a number of updates of at least 0, not {warmup}")
    return round(warmup * total) if isinstance(warmup, float) and warmup < 1 else int(warmup)


def linear(optimizer: Optimizer, total: int, *, warmup: float | int = 0.06) -> LambdaLR:
    """Up over ``warmup`` (a share of all updates, or a number of them), then down to 0 on a line."""
    steps = _warmup_steps(warmup, total)
    return LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, steps), max(0, total - step) / max(1, total - steps))
    )


def cosine(optimizer: Optimizer, total: int, *, warmup: float | int = 0.06) -> LambdaLR:
    """Up over ``warmup``, then down to 0 on half a cosine (Loshchilov & Hutter 2017, eq. 5, no restart)."""
    steps = _warmup_steps(warmup, total)

    def _scale(step: int) -> float:
        if step < steps:
            return (step + 1) / steps
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - steps) / max(1, total - steps))))

    return LambdaLR(optimizer, _scale)


def constant(optimizer: Optimizer, total: int, *, warmup: float | int = 0) -> LambdaLR:
    """Up over ``warmup``, then as configured."""
    steps = _warmup_steps(warmup, total)
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, steps)))


def in_phases(
    make: Callable[[Optimizer, int], LRScheduler] | None,
    optimizer: Optimizer,
    lengths: Sequence[int],
    factors: Sequence[float],
) -> LambdaLR:
    """A schedule that begins anew in each phase.

    Args:
        make: the schedule of one phase, from its optimizer and its updates; None is constant.
        lengths: updates of each phase.
        factors: what the rate is multiplied by in each.
    """
    scales: list[float] = []
    for length, factor in zip(lengths, factors, strict=True):
        scales += [factor * scale for scale in _scales(make, length)]
    return LambdaLR(optimizer, lambda step: scales[min(step, len(scales) - 1)])


def _scales(make: Callable[[Optimizer, int], LRScheduler] | None, updates: int) -> list[float]:
    """What a schedule of so many updates multiplies the rate by at each."""
    if make is None:
        return [1.0] * updates
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer, updates)
    scales = []
    for _ in range(updates):
        scales.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return scales
