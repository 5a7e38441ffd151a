from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from kdresearch.errors import UserError
from kdresearch.models import convex
from kdresearch.models.convex import Features, minimise, norm_at_zero, zero
from kdresearch.models.ngram import NgramLinear
from kdresearch.models.solver import Optima, Solver


def cross_entropy(target: np.ndarray):
    """The mean cross-entropy with probabilities [N, C] and its gradient, in double precision."""
    wanted = torch.from_numpy(target)

    def loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(logits).requires_grad_()
        value = torch.nn.functional.cross_entropy(leaf, wanted)
        return float(value.detach()), torch.autograd.grad(value, leaf)[0].numpy()

    return loss


def problem(classes: int, rows: int = 120, features: int = 60, seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Binary rows without the padding feature, and labels that depend on them."""
    random = np.random.default_rng(seed)
    dense = (random.random((rows, features)) < 0.15).astype(float)
    dense[:, 0] = 0
    scores = dense @ random.normal(size=(features, classes)) + random.gumbel(size=(rows, classes))
    return sparse.csr_matrix(dense), scores.argmax(1)


def solved(rows: sparse.csr_matrix, label: np.ndarray, target: np.ndarray, **options) -> tuple[NgramLinear, np.ndarray]:
    """The model at its one optimum, and its probabilities of the training rows."""
    settings = {"strengths": [4.0], "tolerance": 1e-7} | options
    weighting = settings.pop("weighting", "none")
    model = NgramLinear(rows.shape[1], target.shape[1], weighting=weighting)
    path = Optima(Solver(**settings), model, rows, label, rows, cross_entropy(target))
    step = path.finish(list(path)[-1])
    return model, torch.from_numpy(step.logits).softmax(1).numpy()


def strength_as_c(rows: sparse.csr_matrix, strength: float = 4.0) -> float:
    return strength * rows.shape[0] / rows.multiply(rows).sum()


@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_the_optimum_that_scikit_learn_finds(classes: int) -> None:
    rows, label = problem(classes)
    model, probability = solved(rows, label, np.eye(classes)[label])
    other = LogisticRegression(C=strength_as_c(rows), tol=1e-10, max_iter=10_000).fit(rows, label)
    np.testing.assert_allclose(probability, other.predict_proba(rows), atol=1e-4)
    if classes == 2:  # the same weights, too: one column
        np.testing.assert_allclose(model.weight.weight.detach().numpy().T, other.coef_, atol=1e-3)
    assert not model.weight.weight[0].any()


@pytest.mark.parametrize("classes", [2, 4])
def test_naive_bayes_weights_are_features_times_ratios_per_class(classes: int) -> None:
    rows, label = problem(classes, rows=60, features=25)
    model, probability = solved(rows, label, np.eye(classes)[label], weighting="nb")
    ratio = torch.from_numpy(NgramLinear(25, classes).ratios(rows, label, "nb"))
    dense, bias = torch.from_numpy(rows.toarray()), torch.zeros(model.columns, dtype=torch.double, requires_grad=True)
    weight = torch.zeros(25, model.columns, dtype=torch.double, requires_grad=True)
    penalty = float((dense.square() @ ratio.double().square().mean(1)).mean()) / (4 * len(label))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def logits() -> torch.Tensor:
        scores = dense @ (ratio * weight) + bias
        return torch.cat([-scores / 2, scores / 2], 1) if classes == 2 else scores

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits(), torch.from_numpy(label))
        value = value + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    np.testing.assert_allclose(probability, logits().softmax(1).detach().numpy(), atol=1e-4)


def test_soft_labels_are_rows_weighted_by_their_probabilities() -> None:
    rows, label = problem(3, rows=50)
    soft = np.random.default_rng(1).dirichlet(np.ones(3), 50)
    _, probability = solved(rows, label, soft)
    copies = sparse.vstack([rows] * 3)
    other = LogisticRegression(C=strength_as_c(rows), tol=1e-10, max_iter=10_000)
    other.fit(copies, np.repeat(np.arange(3), 50), sample_weight=soft.T.ravel())
    np.testing.assert_allclose(probability, other.predict_proba(rows), atol=1e-4)


def test_neither_the_start_nor_the_order_of_rows_matters() -> None:
    rows, label = problem(4)
    target, random = np.eye(4)[label], np.random.default_rng(0)
    features, order = Features(rows), random.permutation(len(label))
    start = zero(len(label), 4)
    start.coefficients[...] = random.normal(size=start.coefficients.shape)
    start.scores[...] = features.gram(start.coefficients)
    ends = []
    for these, wanted, begin in (
        (features, target, zero(len(label), 4)),
        (features, target, start),
        (Features(rows[order]), target[order], zero(len(label), 4)),
    ):
        found = minimise(these, cross_entropy(wanted), begin, penalty=1e-2, tolerance=1e-9, iterations=1000)
        assert found.gradient <= 1e-9
        ends.append(these.weights(found.point.coefficients))
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], atol=1e-6)


def test_the_gradient_is_that_of_the_weights() -> None:
    rows, label = problem(3)
    features, loss = Features(rows, np.random.default_rng(0).normal(size=(60, 3))), cross_entropy(np.eye(3)[label])
    slope = loss(np.zeros((len(label), 3)))[1]
    ratio = np.sqrt(features.square)
    plain = ratio * (rows.T @ slope)  # by the weights of r ∘ x
    assert norm_at_zero(features, loss, zero(len(label), 3)) == pytest.approx(
        np.sqrt(np.square(plain).sum() + np.square(slope.sum(0)).sum())
    )


def test_features_of_one_row_are_summed_once_and_change_nothing() -> None:
    random = np.random.default_rng(0)
    dense = np.concatenate([random.random((9, 12)) < 0.3, np.eye(9), np.zeros((9, 2))], axis=1) * random.random((9, 23))
    coefficients = random.normal(size=(9, 3))
    for ratio in (None, random.normal(size=23), random.normal(size=(23, 3))):
        features = Features(sparse.csr_matrix(dense), ratio)
        assert features.shared.shape[1] <= 12 and features.diagonal.all()
        square = 1 if ratio is None else np.square(ratio.reshape(23, -1))
        np.testing.assert_allclose(features.gram(coefficients), dense @ (square * (dense.T @ coefficients)))
        np.testing.assert_allclose(
            features.scores(coefficients, sparse.csr_matrix(dense[:4])), features.gram(coefficients)[:4]
        )


def test_columns_are_taken_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = problem(5)
    random = np.random.default_rng(0)
    for ratio in (None, random.normal(size=60), random.normal(size=(60, 5))):
        features, coefficients = Features(rows, ratio), random.normal(size=(120, 5))
        whole = features.gram(coefficients)
        with monkeypatch.context() as patched:
            patched.setattr(convex, "_CHUNK", 130)
            np.testing.assert_allclose(features.gram(coefficients), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newton"}, "student.solver.method: 'newton'.*auto, lbfgs, none"),
        ({"strengths": []}, "strengths must be numbers above 0 that ascend"),
        ({"strengths": [3, 1]}, "ascend"),
        ({"strengths": [0, 1]}, "above 0"),
        ({"tolerance": 0}, "tolerance must lie between 0 and 1, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Solver(**options)
