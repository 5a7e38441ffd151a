"""Linear models that are solved: L-BFGS in the space of the training rows.

The optimum of L(X W + b) + λ/2·‖W‖² lies in the span of the rows, W = Xᵀ A (the representer theorem), and every
iterate of L-BFGS that starts there stays there. Vectors are kept as coefficients A [N, K] and as the scores
X W = X Xᵀ A [N, K] that they give, by which ⟨W, V⟩ = ⟨A_W, X V⟩: exactly L-BFGS in W [V, K], at the memory of N rows
instead of V features, with one product of X Xᵀ an iteration and a line search that needs none.

Shapes: N rows, V features, K columns of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse

ScoreLoss = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Scores [N, K] to a loss, a convex function of them, and its gradient [N, K]."""

HISTORY = 8  # pairs that the Hessian is estimated from, where the memory for them is
_HISTORY_BYTES = 2 << 30
_CHUNK = 1 << 26  # numbers of a product with Xᵀ that are held at a time
_TRIALS = 30  # of a line search
_DECREASE, _CURVATURE = 1e-4, 0.9  # the strong Wolfe conditions (Nocedal & Wright 2006, §3.1)
_ROUNDING = 1e-6  # share of the loss that is no rise: objectives are computed in single precision


class Features:
    """Rows of sparse features, each weighted, and what weights of theirs give.

    A feature of one row alone adds r²·x² to X Xᵀ at that row and nothing else; these, which most n-grams are, are
    summed once, and a product takes the others.

    Args:
        rows: X [N, V].
        ratio: r [V] or [V, K], by which column k reads feature i as r_ik·x_i; None reads x_i.
    """

    def __init__(self, rows: sparse.csr_matrix, ratio: np.ndarray | None = None) -> None:
        self.rows = rows
        self.square = None if ratio is None else np.square(ratio.reshape(len(ratio), -1)).astype(rows.dtype)
        squares, frequency = rows.multiply(rows).tocsr(), rows.getnnz(0)
        mean = 1.0 if self.square is None else self.square.mean(1, dtype=np.float64)
        self.mean_square = float((np.asarray(squares.sum(0)).ravel() * mean).sum() / max(1, rows.shape[0]))
        alone, self.several = np.flatnonzero(frequency == 1), np.flatnonzero(frequency > 1)
        factor = np.ones((len(alone), 1), rows.dtype) if self.square is None else self.square[alone]
        self.diagonal = np.asarray(squares[:, alone] @ factor)  # [N, 1 or K]
        self.shared = rows[:, self.several]
        self.shared_square = None if self.square is None else self.square[self.several]

    def weights(self, coefficients: np.ndarray) -> np.ndarray:
        """r² ∘ Xᵀ A [V, K]: the weights of the plain features that coefficients [N, K] stand for."""
        return _weights(self.rows, self.square, coefficients)

    def gram(self, coefficients: np.ndarray) -> np.ndarray:
        """The scores of those weights on these rows [N, K]."""
        shared = _scores(self.shared, self.shared, self.shared_square, coefficients)
        return np.asarray(shared + self.diagonal * coefficients)

    def scores(self, coefficients: np.ndarray, rows: sparse.csr_matrix) -> np.ndarray:
        """The scores of those weights on other rows [M, K]."""
        return _scores(rows, self.rows, self.square, coefficients)


def _weights(rows: sparse.csr_matrix, square: np.ndarray | None, coefficients: np.ndarray) -> np.ndarray:
    weights = np.asarray(rows.T @ coefficients)
    if square is not None:
        weights *= square
    return weights


def _scores(
    rows: sparse.csr_matrix, source: sparse.csr_matrix, square: np.ndarray | None, coefficients: np.ndarray
) -> np.ndarray:
    """What rows [M, V] score by the weights of others' [N, V] coefficients [N, K], some columns at a time."""
    width = max(1, _CHUNK // max(1, source.shape[1]))
    if coefficients.shape[1] <= width:
        return np.asarray(rows @ _weights(source, square, coefficients))
    outcome = np.empty((rows.shape[0], coefficients.shape[1]), coefficients.dtype)
    for first in range(0, coefficients.shape[1], width):
        part = slice(first, first + width)
        some = square if square is None or square.shape[1] == 1 else square[:, part]
        outcome[:, part] = rows @ _weights(source, some, np.ascontiguousarray(coefficients[:, part]))
    return outcome


class Vector(NamedTuple):
    """A point or direction in the space of weights and biases."""

    coefficients: np.ndarray  # A [N, K]
    scores: np.ndarray  # X Xᵀ A [N, K]
    bias: np.ndarray  # [K]

    def dot(self, vector: Vector) -> float:
        return float(np.vdot(self.coefficients, vector.scores) + np.vdot(self.bias, vector.bias))

    def plus(self, factor: float, vector: Vector) -> Vector:
        return Vector(*(mine + mine.dtype.type(factor) * their for mine, their in zip(self, vector, strict=True)))

    def add(self, factor: float, vector: Vector) -> None:
        for mine, their in zip(self, vector, strict=True):
            mine += mine.dtype.type(factor) * their

    def times(self, factor: float) -> Vector:
        return Vector(*(mine * mine.dtype.type(factor) for mine in self))


class Solution(NamedTuple):
    """Where a minimisation ended."""

    point: Vector
    loss: float  # with the penalty
    gradient: float  # its norm, over weights and biases
    iterations: int


def zero(rows: int, columns: int, dtype: type = np.float64) -> Vector:
    return Vector(np.zeros((rows, columns), dtype), np.zeros((rows, columns), dtype), np.zeros(columns, dtype))


def norm_at_zero(features: Features, loss: ScoreLoss, like: Vector) -> float:
    """The norm of the gradient where all weights and biases are 0."""
    _, slope = loss(np.zeros_like(like.scores))
    gradient = Vector(slope, features.gram(slope), slope.sum(0))
    return math.sqrt(max(0.0, gradient.dot(gradient)))


def minimise(
    features: Features, loss: ScoreLoss, start: Vector, *, penalty: float, tolerance: float, iterations: int
) -> Solution:
    """The weights and biases of the least loss(X W + b) + penalty/2·‖W‖²; the biases are free (Liu & Nocedal 1989).

    Args:
        tolerance: the norm of the gradient at which it has arrived.
        iterations: after which it stops short of that.
    """
    point, pairs = start, list[tuple[Vector, Vector, float]]()
    history = max(2, min(HISTORY, _HISTORY_BYTES // (4 * start.scores.nbytes)))
    value, slope = loss(point.scores + point.bias)
    gradient = _gradient(features, slope, point, penalty)
    completed = 0
    while (norm := math.sqrt(max(0.0, gradient.dot(gradient)))) > tolerance and completed < iterations:
        direction = _direction(gradient, pairs)
        if gradient.dot(direction) >= 0:  # what rounding left of the history leads nowhere
            pairs, direction = [], gradient.times(-1.0)
        step = 1.0 if pairs else 1.0 / max(1.0, norm)
        outcome = _search(loss, point, direction, value, slope, penalty, step)
        if outcome is None:
            if not pairs:
                break
            pairs = []
            continue
        step, value, slope = outcome
        move = direction.times(step)
        point = point.plus(1.0, move)
        before, gradient = gradient, _gradient(features, slope, point, penalty)
        change = gradient.plus(-1.0, before)
        if (curvature := change.dot(move)) > 0:
            pairs = [*pairs[1 - history :], (move, change, curvature)]
        completed += 1
    return Solution(point, value + penalty / 2 * float(np.vdot(point.coefficients, point.scores)), norm, completed)


def _gradient(features: Features, slope: np.ndarray, point: Vector, penalty: float) -> Vector:
    factor = slope.dtype.type(penalty)
    scores = features.gram(slope)
    return Vector(slope + factor * point.coefficients, scores + factor * point.scores, slope.sum(0))


def _direction(gradient: Vector, pairs: list[tuple[Vector, Vector, float]]) -> Vector:
    """−H·gradient, by the two loops (Nocedal & Wright 2006, alg. 7.4)."""
    outcome, shares = gradient.times(-1.0), []
    for move, change, curvature in reversed(pairs):
        shares.append(move.dot(outcome) / curvature)
        outcome.add(-shares[-1], change)
    if pairs:
        _, change, curvature = pairs[-1]
        outcome = outcome.times(curvature / change.dot(change))
    for move, change, curvature in pairs:
        outcome.add(shares.pop() - change.dot(outcome) / curvature, move)
    return outcome


def _search(
    loss: ScoreLoss, point: Vector, direction: Vector, value: float, slope: np.ndarray, penalty: float, step: float
) -> tuple[float, float, np.ndarray] | None:
    """A step that satisfies the strong Wolfe conditions, the loss there (without the penalty) and its gradient."""
    scores, along = point.scores + point.bias, direction.scores + direction.bias
    linear = penalty * float(np.vdot(point.coefficients, direction.scores))
    square = penalty * float(np.vdot(direction.coefficients, direction.scores))
    start = float(np.vdot(slope, along)) + linear
    low, high, low_slope = 0.0, math.inf, start
    for _ in range(_TRIALS):
        there, slope = loss(scores + scores.dtype.type(step) * along)
        rise = there - value + step * linear + step * step * square / 2
        steep = float(np.vdot(slope, along)) + linear + step * square
        if rise > _DECREASE * step * start + _ROUNDING * abs(value) or not math.isfinite(rise):
            high = step
            step = (low + high) / 2 if not math.isfinite(steep) else _between(low, low_slope, high, steep)
        elif abs(steep) <= -_CURVATURE * start:
            return step, there, slope
        elif steep > 0:
            high = step
            step = _between(low, low_slope, high, steep)
        else:
            low, low_slope = step, steep
            step = 2 * step if math.isinf(high) else (low + high) / 2
    return None


def _between(low: float, low_slope: float, high: float, high_slope: float) -> float:
    """Where the slope of a convex function would be 0 if it were a line, not too near to either end."""
    width = high - low
    share = -low_slope / (high_slope - low_slope) if high_slope > low_slope else 0.5
    return low + width * min(0.9, max(0.1, share))
