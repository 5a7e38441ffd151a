"""A live teacher whose answers to training rows are kept: every epoch and every later run reads them from disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdresearch.artifacts import Store, digest
from kdresearch.data.corpus import Corpus
from kdresearch.data.encoding import EncodedRows
from kdresearch.structures import LOGITS, Batch, Outputs, Teacher, index_of
from kdresearch.teachers.live import LiveTeacher

FORMAT = 1
PIECE = 256  # rows of an artifact
_TOKENS = "T"


class KeptTeacher:
    """What a live teacher says of training rows, written once in half precision, field by field.

    Token-level knowledge is large: hidden states take (layers + 1)·T·D·2 bytes a row, attention maps layers·H·T²·2.
    What is written is said. A killed recording goes on at the next piece.

    Args:
        live: the teacher.
        fingerprint: of its package.
        rows: the corpus as it reads it.
        index: corpus-wide indices [N] of the rows that it will be asked about.
        needs: fields of ``Outputs`` that it will be asked for.
    """

    def __init__(
        self,
        live: LiveTeacher,
        fingerprint: str,
        corpus: Corpus,
        rows: EncodedRows,
        index: np.ndarray,
        needs: frozenset[str],
        store: Store,
        *,
        batch_size: int = 32,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.signature = replace(live.signature, fields=needs)
        index = np.sort(index)
        self._row = np.full(len(corpus), -1, np.int64)
        self._row[index] = np.arange(len(index))
        key = {"format": FORMAT, "teacher": fingerprint, "precision": live.precision}
        self._pieces: dict[str, list[_Piece]] = {field: [] for field in sorted(needs)}
        written = 0
        for field, pieces in self._pieces.items():
            for first in range(0, len(index), PIECE):
                chosen = index[first : first + PIECE]
                names = {**key, "field": field, "rows": digest([int(each) for each in corpus.digests(chosen)])}
                if store.find("answers", names) is None:
                    say(f"teacher {field}: {first:,} of {len(index):,} rows, {written / 1e9:.1f} GB written")

                def build(folder: Path, chosen: np.ndarray = chosen, field: str = field) -> None:
                    nonlocal written
                    written += _write(folder, live, rows, chosen, field, batch_size)

                pieces.append(_Piece(store.build("answers", names, build, waiting=say)))

    def to(self, device: torch.device | str) -> Teacher:
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        assert batch.teacher is not None
        index = index_of(batch, "a teacher whose outputs are kept")
        places = self._row[index.cpu().numpy()]
        if (places < 0).any():
            raise KeyError(f"row {int(index[int(np.argmin(places))])} was not recorded")
        device, width = index.device, batch.teacher.ids.shape[1]
        fields = {field: self._field(field, places, width, device) for field in needs}
        return Outputs(**fields, mask=batch.teacher.mask)

    def _field(self, field: str, places: np.ndarray, width: int, device: torch.device) -> Any:
        pieces = self._pieces[field]
        parts = [
            torch.stack([pieces[place // PIECE].leaf(leaf, place % PIECE, width) for place in places])
            .to(device)
            .float()
            for leaf in range(len(pieces[0].shapes))
        ]
        return _nested(field, parts)


class _Piece:
    """One field of some rows: for each of its tensors the rows one after the other."""

    def __init__(self, folder: Path) -> None:
        described = json.loads((folder / "field.json").read_text())
        self.shapes: list[list[Any]] = described["shapes"]
        self.lengths: list[int] = described["lengths"]
        self._starts = [np.cumsum([0, *(_size(shape, length) for length in self.lengths)]) for shape in self.shapes]
        self._data = [np.memmap(folder / f"{leaf}.bin", np.float16, "r") for leaf in range(len(self.shapes))]

    def leaf(self, leaf: int, row: int, width: int) -> Tensor:
        """A row's tensor, its T tokens padded with zeros to ``width``."""
        start, end = self._starts[leaf][row : row + 2]
        shape, length = self.shapes[leaf], self.lengths[row]
        values = np.array(self._data[leaf][start:end]).reshape([length if dim == _TOKENS else dim for dim in shape])
        padding = [(0, width - length if dim == _TOKENS else 0) for dim in shape]
        return torch.from_numpy(np.pad(values, padding))


def _write(folder: Path, live: LiveTeacher, rows: EncodedRows, index: np.ndarray, field: str, batch_size: int) -> int:
    """Ask the teacher about rows and write one field; returns the bytes written."""
    lengths = rows.lengths(index)
    leaves: list[list[Tensor]] = []
    shapes: list[list[Any]] = []
    answers: dict[int, list[Tensor]] = {}
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        tokens = rows.tokens(index[chosen])
        found = _flat(getattr(live.read(tokens, frozenset({field})), field))
        shapes = [_shape(field, leaf, live) for leaf in found]
        for place, row in enumerate(chosen):
            answers[int(row)] = [
                leaf[place][_cut(shape, int(lengths[row]))].half().cpu()
                for leaf, shape in zip(found, shapes, strict=True)
            ]
    leaves = [[answers[row][leaf] for row in range(len(index))] for leaf in range(len(shapes))]
    written = 0
    for number, leaf in enumerate(leaves):
        with (folder / f"{number}.bin").open("wb") as file:
            for each in leaf:
                values = each.contiguous().numpy()
                values.tofile(file)
                written += values.nbytes
    (folder / "field.json").write_text(json.dumps({"shapes": shapes, "lengths": lengths.tolist()}))
    return written


def _flat(field: Any) -> list[Tensor]:
    if isinstance(field, Tensor):
        return [field]
    return [leaf for part in field for leaf in _flat(part)]


def _nested(field: str, leaves: list[Tensor]) -> Any:
    if field in ("hidden", "attention"):
        return tuple(leaves)
    if field == "qkv":
        return tuple(tuple(leaves[first : first + 3]) for first in range(0, len(leaves), 3))
    return leaves[0]


def _shape(field: str, leaf: Tensor, live: LiveTeacher) -> list[Any]:
    """The shape of a row's tensor, with T where the tokens are."""
    shape: list[Any] = list(leaf.shape[1:])
    if field in ("hidden", "qkv", "sensitivity", "embeddings"):
        shape[0] = _TOKENS
    if field == "attention":
        pools = (
            live.signature.heads == 1 and "qkv" not in live.signature.fields
        )  # one query, whatever the number of tokens
        shape[1:] = [1 if pools else _TOKENS, _TOKENS]
    return shape


def _cut(shape: list[Any], length: int) -> tuple[slice, ...]:
    return tuple(slice(length) if dim == _TOKENS else slice(None) for dim in shape)


def _size(shape: list[Any], length: int) -> int:
    return int(np.prod([length if dim == _TOKENS else dim for dim in shape]))
