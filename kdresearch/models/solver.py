"""The path of optima of a linear model, over weightings and strengths of regularisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from kdresearch.errors import UserError, choices
from kdresearch.models.convex import Features, ScoreLoss, Solution, Vector, minimise, norm_at_zero, zero
from kdresearch.models.ngram import UNIT, NgramLinear

METHODS = ("auto", "lbfgs", "none")
_NEAR = 3e-3  # of the gradient at 0, where the next strength is tried
_ITERATIONS = 1000
_DOUBLE = 1 << 18  # scores up to which they are computed in double precision


class Step(NamedTuple):
    """An optimum on the path."""

    weighting: str
    strength: float
    solution: Solution
    logits: np.ndarray  # [N, C] of the validation rows


class Solver:
    """How the optimum of a linear model is found, by L-BFGS (``models.convex``).

    The penalty is mean_n ‖x_n‖² / (2 · strength · N) · ‖W‖², the biases free: scikit-learn's C is
    strength / mean ‖x‖². Each optimum is where the next strength starts from.

    Args:
        method: ``lbfgs``, which refuses a strategy without a convex loss; ``auto``, which trains by updates then;
            ``none``, which always does.
        strengths: tried from the weakest penalised feature weights up, ascending.
        calibrate: whether weights and biases are divided by the temperature that the validation rows ask for.
        tolerance: the gradient's norm, as a share of that at 0, to which the kept optimum is solved.

    Raises:
        UserError: an unknown method, strengths that do not ascend from above 0, a tolerance outside (0, 1).
    """

    def __init__(
        self,
        *,
        method: str = "auto",
        strengths: Sequence[float] = (3, 10, 30, 100, 300),
        calibrate: bool = True,
        tolerance: float = 1e-3,
    ) -> None:
        if method not in METHODS:
            raise UserError(f"student.solver.method: {choices(method, METHODS)}")
        ascending = list(strengths) == sorted(set(strengths)) and len(strengths)
        if not ascending or not all(strength > 0 for strength in strengths):
            raise UserError(f"student.solver.strengths must be numbers above 0 that ascend, not {list(strengths)}")
        if not 0 < tolerance < 1:
            raise UserError(f"student.solver.tolerance must lie between 0 and 1, not {tolerance}")
        self.method, self.strengths, self.calibrate, self.tolerance = method, strengths, calibrate, tolerance


class Optima:
    """The optima of a model on some rows.

    Args:
        rows: [N, V] features of the training rows; label: [N].
        held: [M, V] features of the rows that each optimum is scored on.
        loss: of the training rows' logits [N, C].
        lengths: [V] words of each feature, where it is known.
    """

    def __init__(
        self,
        solver: Solver,
        model: NgramLinear,
        rows: sparse.csr_matrix,
        label: np.ndarray,
        held: sparse.csr_matrix,
        loss: ScoreLoss,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.solver, self.model, self.rows, self.label, self.held = solver, model, rows, label, held
        self.loss, self.lengths = loss, lengths
        self.dtype = np.float64 if rows.shape[0] * model.columns <= _DOUBLE else np.float32

    def __iter__(self) -> Iterator[Step]:
        for weighting in self.model.candidates():
            features, held, _ = self._design(weighting)
            point = zero(self.rows.shape[0], self.model.columns, self.dtype)
            near = _NEAR * norm_at_zero(features, self._score_loss, point)
            for strength in self.solver.strengths:
                solution = self._solved(features, strength, point, near)
                point = solution.point
                yield Step(
                    weighting, strength, solution, self._logits(features.scores(point.coefficients, held), point)
                )

    def finish(self, step: Step) -> Step:
        """Solve a step to the end, and give its weights to the model."""
        features, held, ratio = self._design(step.weighting)
        start = step.solution.point
        least = self.solver.tolerance * norm_at_zero(features, self._score_loss, start)
        solution = self._solved(features, step.strength, start, least)
        point = solution.point
        self.model.place(step.weighting, ratio, features.weights(point.coefficients), point.bias)
        logits = self._logits(features.scores(point.coefficients, held), point)
        return Step(step.weighting, step.strength, solution, logits)

    def _solved(self, features: Features, strength: float, start: Vector, tolerance: float) -> Solution:
        penalty = features.mean_square / (strength * self.rows.shape[0])
        return minimise(features, self._score_loss, start, penalty=penalty, tolerance=tolerance, iterations=_ITERATIONS)

    def _design(self, weighting: str) -> tuple[Features, sparse.csr_matrix, np.ndarray | None]:
        """The training rows and the held ones as a weighting reads them, and its ratios."""
        ratio = self.model.ratios(self.rows, self.label, weighting, self.lengths)
        if weighting not in UNIT or ratio is None:
            return Features(self.rows.astype(self.dtype), ratio), self.held.astype(self.dtype), ratio
        rows, held = (
            _unit_rows(each @ sparse.diags(ratio[:, 0])).astype(self.dtype) for each in (self.rows, self.held)
        )
        return Features(rows), held, ratio

    def _score_loss(self, scores: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss by the columns of the model; two classes have one."""
        if self.model.classes != 2:
            return self.loss(scores)
        value, slope = self.loss(np.concatenate([-scores / 2, scores / 2], axis=1))
        return value, (slope[:, 1:] - slope[:, :1]) / 2

    def _logits(self, scores: np.ndarray, point: Vector) -> np.ndarray:
        scores = scores + point.bias
        return scores if self.model.classes != 2 else np.concatenate([-scores / 2, scores / 2], axis=1)


def _unit_rows(rows: sparse.spmatrix) -> sparse.csr_matrix:
    rows = sparse.csr_matrix(rows)
    rows.eliminate_zeros()
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    return sparse.diags(1 / np.where(length > 0, length, 1)) @ rows
