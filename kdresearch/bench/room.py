"""Whether the store has room for what a recording writes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdresearch.bench.context import Context
from kdresearch.data.encoding import EncodedRows
from kdresearch.errors import UserError
from kdresearch.structures import Signature
from kdresearch.teachers.leaves import Leaf


def check_room(
    context: Context, signature: Signature, units: EncodedRows, leaves: Sequence[Leaf], rows: np.ndarray, needed: int
) -> None:
    """Say what recording leaves of rows takes.

    Args:
        units: the rows by the lines that leaves have.
        rows: corpus-wide indices [N].
        needed: bytes.

    Raises:
        UserError: the disk or ``store.limit`` does not hold it; it names what would take less.
    """
    names = ", ".join(leaf.name for leaf in leaves)
    recording = f"recording {names or 'class scores'} of {len(rows):,} rows takes {_in_words(needed)}"
    room, bound = _room(context)
    if needed <= room:
        context.say(recording)
        return
    lengths = units.lengths(rows)

    def size(*smaller: Leaf) -> str:
        return _in_words(sum(int(leaf.bytes(signature, lengths).sum()) for leaf in smaller))

    alternatives = [f"data.limit={len(rows) * room // needed} fits"]
    if any(leaf.numbers != "int8" for leaf in leaves):
        alternatives.append(f"teacher.keep=int8 takes {size(*(replace(leaf, numbers='int8') for leaf in leaves))}")
    if len(leaves) > 1:
        alternatives.append(f"{leaves[-1].name} alone takes {size(leaves[-1])}")
    alternatives.append("teacher.keep=false takes nothing: the teacher then runs beside the student in every epoch")
    raise UserError(f"teacher.keep: {recording}, and {bound} {_in_words(room)}: {'; '.join(alternatives)}")


def bytes_of(size: int | str | None) -> int | None:
    """A number of bytes, from words such as ``500MB``; None is no limit. UserError for anything else."""
    if size is None:
        return None
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) *([kMGT]?)B?", str(size))
    if matched is None:
        raise UserError(f"store.limit: a number of bytes, as 20GB or 500MB, not {size!r}")
    return int(float(matched[1]) * 1000 ** " kMGT".index(matched[2] or " "))


def _room(context: Context) -> tuple[int, str]:
    """The bytes that may still be written, and what bounds them, in words."""
    store = context.store
    free = shutil.disk_usage(next(place for place in (store.root, *store.root.parents) if place.exists())).free
    limit = bytes_of(context.store_limit)
    if limit is not None:
        remaining = max(0, limit - sum(artifact.bytes for artifact in store.artifacts()))
        if remaining < free:
            return remaining, f"store.limit={context.store_limit} leaves"
    return free, f"the disk of {store.root} has"


def _in_words(size: int) -> str:
    """Bytes in a unit of their size."""
    power = min(3, max(1, (len(str(size)) - 1) // 3))
    return f"{size / 1000**power:.3g} {('kB', 'MB', 'GB')[power - 1]}"
