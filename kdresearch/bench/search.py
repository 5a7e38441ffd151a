"""Points of a search space: quasi-random, the same for whoever shares a dimension."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdresearch.errors import UserError, choices

_OPTIONS = ("low", "high", "scale", "integer", "choices")
_SCALES = ("linear", "log")


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched: an interval, or a list of values.

    Raises:
        UserError: neither or both, an empty interval or list, a logarithm of what is not above 0.
    """

    key: str  # dotted
    low: float | None = None
    high: float | None = None
    scale: str = "linear"
    integer: bool = False
    choices: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        if self.scale not in _SCALES:
            raise UserError(f"tune: {self.key}.scale: {choices(self.scale, _SCALES)}")
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None:
                raise UserError(f"tune: {self.key}: choices is a list of values, without low and high")
            return
        if self.low is None or self.high is None or not self.low < self.high:
            raise UserError(f"tune: {self.key}: low must be below high, not {self.low} and {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise UserError(f"tune: {self.key}: scale=log needs a low above 0, not {self.low}")

    def value(self, share: float) -> Any:
        """The value at a share of the way from low to high, or through the choices; ``share`` in [0, 1)."""
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        assert self.low is not None and self.high is not None
        if self.integer:  # every whole number of the interval has its share
            return math.floor(self._between(self.low, self.high + 1, share))
        return float(f"{self._between(self.low, self.high, share):.4g}")

    def _between(self, low: float, high: float, share: float) -> float:
        if self.scale == "log":
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return low + share * (high - low)


def dimensions(space: Mapping[str, Any], prefix: str = "") -> Iterator[Dimension]:
    """The dimensions of nested settings, by dotted key in their order.

    Raises:
        UserError: a leaf that is no dimension.
    """
    for name, node in space.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if not isinstance(node, Mapping):
            raise UserError(f"tune: {key}: a dimension is {{low: A, high: B}} or {{choices: [...]}}, not {node!r}")
        if {"low", "high", "choices"} & node.keys():
            for option in node:
                if option not in _OPTIONS:
                    raise UserError(f"tune: {key}: {choices(option, _OPTIONS)}")
            values = node.get("choices")
            yield Dimension(key, **{**node, "choices": tuple(values) if values is not None else None})
        else:
            yield from dimensions(node, key)


def points(space: Sequence[Dimension], number: int, seed: int) -> list[dict[str, Any]]:
    """``number`` points of a scrambled Halton sequence (Owen 2017), each a value by dotted key.

    A subset of the keys of a point is a point of the subspace: a control and a method that are given the same
    sequence try the same values of what both have.
    """
    if not space or number < 1:
        return [{} for _ in range(max(0, number))]
    from scipy.stats import qmc

    shares = qmc.Halton(len(space), rng=seed).random(number)
    return [{item.key: item.value(float(share)) for item, share in zip(space, row, strict=True)} for row in shares]


def best(scores: Sequence[float | None], mode: str) -> int:
    """The position of the first best score; None is a trial that gave none.

    Raises:
        UserError: no score at all.
    """
    valid = [(score if mode == "min" else -score, number) for number, score in enumerate(scores) if score is not None]
    if not valid:
        raise UserError(f"none of {len(scores)} trials gave a score: every one diverged")
    return min(valid)[1]
