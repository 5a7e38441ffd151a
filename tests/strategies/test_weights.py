from __future__ import annotations

import math
from typing import Any

import pytest

from kdresearch.errors import UserError
from kdresearch.strategies.weights import KINDS, WeightSchedule


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]),  # over all updates
        ({"steps": 4}, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
        ({"steps": 0.5}, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
        ({"steps": 4, "start": 1.0, "end": 0.0}, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]),
        ({"steps": 2, "start": 3, "end": 2}, [3.0, 2.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        ({"kind": "cosine", "steps": 4}, [0.0, 0.1464466, 0.5, 0.8535534, 1.0, 1.0, 1.0, 1.0]),
        ({"kind": "cosine", "steps": 0.5, "start": 2, "end": 1}, [2.0, 1.8535534, 1.5, 1.1464466, 1.0, 1.0, 1.0, 1.0]),
        ({"kind": "switch", "steps": 3}, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"kind": "switch", "steps": 0.25, "start": 1, "end": 0}, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ({"kind": "switch", "steps": 0.3}, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]),  # of 8: at 2.4, so from 3 on
        ({"steps": 1}, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),  # one update, where 1.0 is all of them
        ({"steps": 1.0}, [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]),
        ({"steps": 0}, [1.0] * 8),
        ({"steps": 0.0}, [1.0] * 8),
        ({"steps": 2.0}, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),  # a number: no share is above 1
    ],
)
def test_factors_by_hand(settings: dict[str, Any], factors: list[float]) -> None:
    schedule = WeightSchedule(**settings)
    assert [schedule.factor(step, 8) for step in range(8)] == pytest.approx(factors, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 0.05])
def test_it_arrives_and_stays(kind: str, steps: float) -> None:
    schedule = WeightSchedule(kind, steps, 0.2, 0.7)
    assert schedule.factor(0, 100) == pytest.approx(0.2)
    assert [schedule.factor(step, 100) for step in (5, 6, 100, 1000)] == pytest.approx([0.7] * 4)


def test_a_number_of_updates_needs_no_end_and_a_share_does() -> None:
    assert WeightSchedule(steps=4).factor(1, math.inf) == 0.25
    with pytest.raises(UserError, match=r"steps=0\.1 is a share .* no end: .*trainer\.max_steps.* a number of updates"):
        WeightSchedule(steps=0.1).factor(1, math.inf)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lineer"}, r"schedule: 'lineer' \(did you mean 'linear'\?\); one of: linear, cosine, switch"),
        ({"steps": -1}, "schedule: steps must be a number of at least 0, not -1"),
        ({"steps": math.inf}, "schedule: steps .* not inf"),
        ({"start": math.nan}, "schedule: start .* not nan"),
        ({"end": -0.5}, "schedule: end .* not -0.5"),
        ({"end": "1"}, "schedule: end .* not 1"),
        ({"steps": True}, "schedule: steps .* not True"),
        ({"steps": None}, "schedule: steps .* not None"),
    ],
)
def test_no_schedule(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WeightSchedule(**settings)
