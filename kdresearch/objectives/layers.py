"""Layer maps: which layer of the student learns from which of the teacher."""

from __future__ import annotations

from collections.abc import Sequence

from kdresearch.errors import UserError, choices

LAYER_MAPS = ("uniform", "last", "first", "skip", "final")
LayerMap = str | Sequence[Sequence[int]]


def layer_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs (layer of the student, layer of the teacher); layers count from 1, and 0 is the embeddings.

    Args:
        layers: ``uniform``: i with ⌈i·T/S⌉, the last with the last (TinyBERT, Jiao et al. 2020, §3.1); ``last``: the
            last S layers of the teacher; ``first``: the first S; ``final``: the last with the last alone; ``skip``:
            uniform without the last layer, which the class scores teach already (PKD, Sun et al. 2019, §3); or the
            pairs themselves.
        student, teacher: their depths S and T.

    Raises:
        UserError: an unknown name, a map that the depths do not allow, a layer that a side does not have.
    """
    if isinstance(layers, str):
        if layers not in LAYER_MAPS:
            raise UserError(f"layers: {choices(layers, LAYER_MAPS)}, or a list of pairs [[student, teacher], ...]")
        if layers in ("last", "first") and student > teacher:
            raise UserError(
                f"layers={layers} gives each of the student's {student} layers one of its own among the teacher's "
                f"{teacher}: use layers=uniform or a list of pairs"
            )
        offset = teacher - student
        pairs = {
            "uniform": [(i, -(-i * teacher // student)) for i in range(1, student + 1)],
            "last": [(i, i + offset) for i in range(1, student + 1)],
            "first": [(i, i) for i in range(1, student + 1)],
            "final": [(student, teacher)],
            "skip": [(i, -(-i * teacher // student)) for i in range(1, student)],
        }[layers]
        if not pairs:
            raise UserError(
                f"layers={layers} leaves no layer of a student of {student}: use layers=uniform or a list of pairs"
            )
        return pairs
    if not isinstance(layers, Sequence) or not layers or not all(map(_is_pair, layers)):
        raise UserError(f"layers must be pairs [[student, teacher], ...], not {layers}")
    pairs = [(int(pair[0]), int(pair[1])) for pair in layers]
    for of_student, of_teacher in pairs:
        for side, layer, depth in (("student", of_student, student), ("teacher", of_teacher, teacher)):
            if not 0 <= layer <= depth:
                raise UserError(f"layers: the {side} has layers 0 (embeddings) to {depth}, and {layer} is none of them")
    return pairs


def _is_pair(pair: object) -> bool:
    return isinstance(pair, Sequence) and [type(layer) for layer in pair] == [int, int]
