"""Means of what training steps compute, gathered on the device without waiting for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def _as_it_is(sums: Tensor) -> Tensor:
    return sums


class Means:
    """Weighted means of named scalars; that of a name is over the steps which had it.

    Attributes:
        sums: for each set of names that were added together, Σ weight · value [K] and Σ weight.
    """

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], tuple[Tensor, Tensor | float]] = {}

    def add(self, values: Mapping[str, Tensor], weight: Tensor | float) -> None:
        """Count scalars of one step, all by the same weight."""
        names = tuple(values)
        self._add(names, torch.stack(tuple(values.values())).detach().float() * weight, weight)

    def merge(self, means: Means) -> None:
        """Add the sums of other means to these."""
        for names, (value, weight) in means.sums.items():
            self._add(names, value, weight)

    def _add(self, names: tuple[str, ...], value: Tensor, weight: Tensor | float) -> None:
        if names in self.sums:
            before, weighed = self.sums[names]
            value, weight = before + value.to(before.device), weighed + weight
        self.sums[names] = value, weight

    def compute(self, reduce: Callable[[Tensor], Tensor] = _as_it_is) -> dict[str, float]:
        """The means so far, by name; one that was counted with no weight at all is left out.

        Args:
            reduce: makes the sum over all replicas of a tensor.
        """
        totals: dict[str, tuple[float, float]] = {}
        for names, (value, weight) in self.sums.items():
            weights = torch.as_tensor(weight, dtype=value.dtype, device=value.device).expand_as(value)
            for name, total, weighed in zip(names, *reduce(torch.stack([value, weights])).tolist(), strict=True):
                before = totals.get(name, (0.0, 0.0))
                totals[name] = before[0] + total, before[1] + weighed
        return {name: value / weight for name, (value, weight) in totals.items() if weight}
