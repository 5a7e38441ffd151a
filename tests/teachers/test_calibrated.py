from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdresearch.errors import UserError
from kdresearch.structures import LOGITS, UNLABELLED, Batch, Outputs, Signature, Teacher, Tokens
from kdresearch.teachers.calibrated import CalibratedTeacher, fitted_temperature
from kdresearch.teachers.ensemble import EnsembleTeacher

NAMES = ("a", "b", "c")


def sample(rows: int = 4000, temperature: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are too certain by a known temperature: labels are drawn from softmax(logits / T)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(rows, 3, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_fit_finds_the_temperature_that_labels_were_drawn_at(temperature: float) -> None:
    assert fitted_temperature(*sample(temperature=temperature)) == pytest.approx(temperature, rel=0.08)


def test_the_fit_is_where_the_slope_vanishes() -> None:
    """dNLL/d(1/T) = mean of E_p[z] - z_y, an independent formulation of the optimum (its gradient by hand)."""
    logits, label = sample(300)
    found = fitted_temperature(logits, label)
    p = (logits.double() / found).softmax(1)
    slope = ((p * logits).sum(1) - logits.gather(1, label[:, None])[:, 0]).mean()
    assert abs(float(slope)) < 1e-4
    losses = [float(F.cross_entropy(logits.double() / t, label)) for t in (0.9 * found, found, 1.1 * found)]
    assert losses[1] < min(losses[0], losses[2])


def test_the_fit_scales_with_the_logits_and_ignores_their_offset_and_rows_without_label() -> None:
    logits, label = sample(300)
    found = fitted_temperature(logits, label)
    assert fitted_temperature(2.5 * logits + 7.0, label) == pytest.approx(2.5 * found, rel=1e-4)
    more = torch.cat([logits, torch.randn(50, 3)]), torch.cat([label, torch.full((50,), UNLABELLED)])
    assert fitted_temperature(*more) == pytest.approx(found, rel=1e-6)


def test_the_fit_is_bounded() -> None:
    logits, _ = sample(50)
    assert fitted_temperature(logits, logits.argmax(1)) == pytest.approx(0.05, rel=1e-3)  # always right
    assert fitted_temperature(logits, logits.argmin(1)) == pytest.approx(20.0, rel=1e-3)  # always wrong
    with pytest.raises(UserError, match=r"teacher\.temperature=fit: no validation row is labelled"):
        fitted_temperature(logits, torch.full((50,), UNLABELLED))


class Said:
    """A teacher of everything."""

    signature = Signature(
        frozenset({"logits", "pooled", "sensitivity"}), width=4, depth=2, heads=1, embedding_width=3, classes=NAMES
    )
    device = "cpu"

    def to(self, device: str) -> Teacher:
        self.device = device
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        torch.manual_seed(0)
        logits, pooled, sensitivity = torch.randn(5, 3), torch.randn(5, 4), torch.randn(5, 1, 3)
        given = {"logits": logits, "pooled": pooled, "sensitivity": sensitivity}
        return Outputs(**{name: each[batch.index] for name, each in given.items() if name in needs})


def rows() -> Batch:
    empty = Tokens(torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool))
    return Batch(torch.tensor([4, 0, 2]), torch.zeros(3, dtype=torch.long), empty)


def test_logits_and_their_slopes_are_divided_and_nothing_else() -> None:
    own = Said()
    teacher = CalibratedTeacher(own, 2.5)
    assert teacher.signature == own.signature
    fields = own.signature.fields
    plain, answer = own(rows(), fields), teacher(rows(), fields)
    torch.testing.assert_close(answer.logits, plain.logits / 2.5)
    torch.testing.assert_close(answer.sensitivity, plain.sensitivity / 2.5)
    assert torch.equal(answer.pooled, plain.pooled)
    assert torch.equal(answer.logits.argmax(1), plain.logits.argmax(1))
    assert teacher(rows(), frozenset({"pooled"})).logits is None
    assert teacher.signature.members is None
    teacher.to("meta")
    assert own.device == "meta"


def test_the_members_of_an_ensemble_stay_as_they_are() -> None:
    ensemble = EnsembleTeacher([Said(), Said()])
    teacher = CalibratedTeacher(ensemble, 2.0)
    assert teacher.signature.members == ensemble.signature.members
    answer = teacher(rows())
    torch.testing.assert_close(answer.logits, ensemble(rows()).logits / 2)
    torch.testing.assert_close(answer.members[1].logits, Said()(rows()).logits)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=r"teacher\.temperature must be above 0"):
        CalibratedTeacher(Said(), temperature)
