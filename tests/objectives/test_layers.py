from __future__ import annotations

from typing import Any

import pytest

from kdresearch.errors import UserError
from kdresearch.objectives.layers import LAYER_MAPS, layer_pairs


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "pairs"),
    [
        ("uniform", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        ("uniform", 4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]),
        ("uniform", 3, 2, [(1, 1), (2, 2), (3, 2)]),  # a deeper student
        ("uniform", 2, 2, [(1, 1), (2, 2)]),
        ("last", 3, 12, [(1, 10), (2, 11), (3, 12)]),
        ("first", 3, 12, [(1, 1), (2, 2), (3, 3)]),
        ("last", 3, 3, [(1, 1), (2, 2), (3, 3)]),
        ("first", 3, 3, [(1, 1), (2, 2), (3, 3)]),
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),  # PKD's skip: 2, 4, 6, 8, 10
        ("skip", 2, 5, [(1, 3)]),
        ("final", 6, 12, [(6, 12)]),
        ("final", 3, 2, [(3, 2)]),
        ([[1, 12], [0, 0], [1, 3]], 2, 12, [(1, 12), (0, 0), (1, 3)]),
        (((2, 1),), 2, 12, [(2, 1)]),
    ],
)
def test_maps_by_hand(layers: Any, student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    assert layer_pairs(layers, student, teacher) == pairs


@pytest.mark.parametrize("student", range(1, 13))
@pytest.mark.parametrize("teacher", [1, 2, 6, 7, 12])
def test_every_named_map_stays_within_both_sides(student: int, teacher: int) -> None:
    for name in LAYER_MAPS:
        if (name == "skip" and student == 1) or (name in ("last", "first") and student > teacher):
            continue
        pairs = layer_pairs(name, student, teacher)
        assert all(1 <= own <= student and 1 <= other <= teacher for own, other in pairs)
        assert pairs == sorted(pairs) and len({own for own, _ in pairs}) == len(pairs)
        ends = name in ("uniform", "last", "final") or (name == "first" and student == teacher)
        assert ((student, teacher) in pairs) == ends


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("unifrom", r"layers: 'unifrom' \(did you mean 'uniform'\?\); one of: uniform, .*list of pairs"),
        ("last", "layers=last gives each of the student's 4 layers .* teacher's 3: use layers=uniform"),
        ("first", "layers=first gives each of the student's 4 layers .* teacher's 3"),
        ([[5, 3]], r"the student has layers 0 \(embeddings\) to 4, and 5 is none"),
        ([[4, 3], [1, 4]], r"the teacher has layers 0 \(embeddings\) to 3, and 4 is none"),
        ([[-1, 3]], "the student has layers .* and -1 is none"),
        ([], r"layers must be pairs \[\[student, teacher\], ...\], not \[\]"),
        ([1, 2], r"layers must be pairs .* not \[1, 2\]"),
        ([[1, 2], [1, 2, 3]], "layers must be pairs"),
        (["12"], "layers must be pairs"),
        ([[1.5, 2]], "layers must be pairs"),
        (2, "layers must be pairs .* not 2"),
        (None, "layers must be pairs .* not None"),
    ],
)
def test_what_is_no_map_is_refused(layers: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layer_pairs(layers, 4, 3)


def test_a_map_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="layers=skip leaves no layer of a student of 1"):
        layer_pairs("skip", 1, 12)
