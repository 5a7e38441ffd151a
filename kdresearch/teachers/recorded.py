"""A teacher's outputs, written once and joined by text.

Knowledge is keyed by what it is a function of: the teacher's package (weights, tokenizer, length, truncation), the
precision and the exact text. It is written in pieces, each an artifact, so that a killed recording goes on where it
stopped, and rows that any earlier run has paid for are never computed again. Every piece has class scores and sentence
vectors; what else it has of the teacher's inside are the tensors (``leaves``) that somebody has read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdresearch.artifacts import Store, digest
from kdresearch.data.corpus import Corpus
from kdresearch.data.encoding import EncodedPart, EncodedRows
from kdresearch.package import Package
from kdresearch.structures import LOGITS, Batch, Outputs, Signature, Teacher, index_of
from kdresearch.teachers.columns import LENGTHS, Columns
from kdresearch.teachers.leaves import Leaf, assembled, members_of
from kdresearch.teachers.live import LiveTeacher

FORMAT = 1
PIECE = 4096  # rows of an artifact, at most
PIECE_BYTES, PIECES = 64 << 20, 256  # an artifact is larger than this only where there would be more of them than that


@dataclass(frozen=True)
class Inside:
    """What is recorded of a teacher beside class scores and sentence vectors.

    Args:
        leaves: the tensors.
        rows: the corpus as the teacher reads it, with words where leaves are by word.
        units: the same by the lines that leaves have: ``rows``, or a ``WordRows`` of them.
    """

    leaves: Sequence[Leaf]
    rows: EncodedRows
    units: EncodedRows


def record(
    fingerprint: str,
    open_package: Callable[[], Package],
    corpus: Corpus,
    index: np.ndarray,
    store: Store,
    *,
    inside: Inside | None = None,
    precision: str = "32",
    batch_size: int = 64,
    device: str = "cpu",
    check_room: Callable[[Sequence[Leaf], np.ndarray, int], None] = lambda leaves, rows, needed: None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Make sure that the teacher's logits and pooled vectors of some rows, and its inside, are in the store.

    Args:
        fingerprint: of the teacher's package, which ``open_package`` loads only if a row is missing.
        index: corpus-wide indices [N].
        check_room: called with the leaves and rows that will be written and the bytes that they take, to refuse them.

    Returns:
        The folders of all pieces of this teacher.
    """
    key = {"format": FORMAT, "teacher": fingerprint, "precision": precision}
    leaves = [] if inside is None else list(inside.leaves)
    pieces = _pieces(store, key, leaves)
    if _missing(pieces, leaves, corpus, index)[0].any():
        with store.locked(store.root / "knowledge" / digest(key), "recording this teacher", say):
            absent, leaves = _missing(_pieces(store, key), leaves, corpus, index)
            missing = index[absent]
            missing = np.sort(missing[np.unique(corpus.digests(missing), return_index=True)[1]])
            if len(missing):
                teacher = LiveTeacher(package := open_package(), precision)
                teacher.to(device)
                if inside is not None:
                    inside = Inside(leaves, inside.rows, inside.units)
                recorder = _Recorder(teacher, package, corpus, inside, batch_size)
                check_room(leaves, missing, recorder.bytes(missing))
                recorder.record(missing, store, key, say)
        pieces = _pieces(store, key)
    return pieces


def _missing(
    pieces: list[Path], leaves: Sequence[Leaf], corpus: Corpus, index: np.ndarray
) -> tuple[np.ndarray, list[Leaf]]:
    """Which rows [N] lack class scores or one of the leaves, and the leaves that rows lack."""
    digests = corpus.digests(index)
    absent = ~np.isin(digests, _digests(pieces))
    lacking = []
    for leaf in leaves:
        without = ~np.isin(digests, _digests(_with(pieces, leaf)))
        if without.any():
            absent |= without
            lacking.append(leaf)
    return absent, lacking


class _Recorder:
    """Asks a teacher about rows and writes what it says, piece by piece."""

    def __init__(
        self, teacher: LiveTeacher, package: Package, corpus: Corpus, inside: Inside | None, batch_size: int
    ) -> None:
        self.teacher, self.package, self.corpus, self.inside = teacher, package, corpus, inside
        self.batch_size = batch_size
        self.leaves = () if inside is None else tuple(inside.leaves)
        self.signature = teacher.signature
        self.pooled = "pooled" in self.signature.fields
        self.needs = LOGITS | (self.signature.fields & {"pooled"}) | {leaf.field for leaf in self.leaves}

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Bytes of each of the rows [N]."""
        fixed = 8 + 4 * len(self.package.classes) + 2 * self.signature.width * self.pooled
        sizes = np.full(len(rows), fixed, np.int64)
        if self.leaves:
            assert self.inside is not None
            lengths = self.inside.units.lengths(rows)
            sizes += 4 + sum(leaf.bytes(self.signature, lengths) for leaf in self.leaves)
        return sizes

    def bytes(self, rows: np.ndarray) -> int:
        """What recording the rows [N] writes."""
        return int(self.sizes(rows).sum())

    def record(self, missing: np.ndarray, store: Store, key: dict[str, object], say: Callable[[str], None]) -> None:
        """Write the rows [N], sorted; those of about one length together where leaves are as long as the rows."""
        if self.leaves:
            assert self.inside is not None
            missing = missing[np.argsort(self.inside.rows.lengths(missing), kind="stable")]
        started, count = time.perf_counter(), 0
        for rows in cut(missing, self.sizes(missing)):
            digests = self.corpus.digests(rows)
            names: dict[str, object] = {"leaves": [leaf.name for leaf in self.leaves]} if self.leaves else {}
            piece = {**key, **names, "rows": digest([int(value) for value in digests])}
            store.build("knowledge", piece, lambda folder, rows=rows: self._write(folder, rows))  # type: ignore[misc]
            count += len(rows)
            rate = count / (time.perf_counter() - started)
            say(f"teacher outputs: {count:,} of {len(missing):,} rows, {rate:,.0f} rows/s")

    def _write(self, folder: Path, rows: np.ndarray) -> None:
        logits = np.empty((len(rows), len(self.package.classes)), np.float32)
        pooled = np.empty((len(rows), self.signature.width), np.float16) if self.pooled else None
        inside = [Columns(leaf, self.signature, self._lengths(rows)) for leaf in self.leaves]
        reading = self.inside.rows if self.leaves and self.inside is not None else self._read(rows)
        order = np.argsort(reading.lengths(rows), kind="stable")
        for first in range(0, len(order), self.batch_size):
            chunk = order[first : first + self.batch_size]
            tokens = reading.tokens(rows[chunk]).to(self.teacher.device)
            answer = self.teacher.read(tokens, self.needs)
            assert answer.logits is not None
            logits[chunk] = answer.logits.cpu().numpy()
            if pooled is not None:
                assert answer.pooled is not None
                pooled[chunk] = answer.pooled.cpu().numpy()
            members = members_of(tokens, self.leaves)
            for columns in inside:
                columns.put(chunk, columns.leaf.take(answer, members).cpu())
        np.save(folder / "digests.npy", self.corpus.digests(rows))
        np.save(folder / "logits.npy", logits)
        if pooled is not None:
            np.save(folder / "pooled.npy", pooled)
        if inside:
            np.save(folder / LENGTHS, inside[0].lengths.astype(np.int32))
        for columns in inside:
            columns.write(folder)

    def _lengths(self, rows: np.ndarray) -> np.ndarray:
        assert self.inside is not None
        return self.inside.units.lengths(rows)

    def _read(self, rows: np.ndarray) -> EncodedRows:
        """Rows, sorted, as the teacher reads them, in memory."""
        ids, lengths = self.package.tokenizer.encode(self.corpus.all_texts(rows))
        part = EncodedPart(0, rows, np.concatenate([[0], np.cumsum(lengths)]), ids)
        return EncodedRows([part], self.package.tokenizer.pad_id)


def cut(rows: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Rows [N] of some bytes each [N] in pieces, in their order."""
    at_most = max(PIECE_BYTES, int(sizes.sum()) // PIECES)
    first, filled = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > first and (filled + size > at_most or place - first == PIECE):
            yield rows[first:place]
            first, filled = place, 0
        filled += size
    yield rows[first:]


def _pieces(store: Store, key: dict[str, object], leaves: Sequence[Leaf] | None = None) -> list[Path]:
    """A teacher's pieces; with ``leaves``, not those of other leaves alone: to check a piece is to read it whole."""
    names = None if leaves is None else {leaf.name for leaf in leaves}

    def is_near(piece: dict[str, Any]) -> bool:
        return names is None or not piece.get("leaves") or not names.isdisjoint(piece["leaves"])

    return [
        artifact.path
        for artifact in store.artifacts("knowledge")
        if all(artifact.key.get(name) == value for name, value in key.items())
        and is_near(artifact.key)
        and store.find("knowledge", artifact.key)
    ]


def _with(pieces: list[Path], leaf: Leaf) -> list[Path]:
    return [piece for piece in pieces if (piece / f"{leaf.name}.bin").exists()]


def _digests(pieces: list[Path]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *(np.load(piece / "digests.npy") for piece in pieces)])


class _Places:
    """Where the rows of a corpus are in a line of pieces.

    Raises:
        KeyError: rows that no piece has.
    """

    def __init__(self, pieces: list[Path], corpus: Corpus, index: np.ndarray) -> None:
        digests = [np.load(piece / "digests.npy") for piece in pieces]
        recorded = np.concatenate([np.empty(0, np.uint64), *digests])
        texts = corpus.digests(index)
        absent = ~np.isin(texts, recorded)
        if absent.any():
            raise KeyError(f"{int(absent.sum())} of {len(index)} rows were not recorded")
        order = np.argsort(recorded, kind="stable")
        self._place = np.full(len(corpus), -1, np.int64)  # corpus-wide index -> row of all pieces in a line
        self._place[index] = order[np.searchsorted(recorded, texts, sorter=order)]
        self._starts = np.cumsum([0, *map(len, digests)])

    def __call__(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The piece of each row [N], and its place in it [N]; KeyError on a row that was not recorded."""
        place = self._place[index]
        if (place < 0).any():
            raise KeyError(f"row {int(index[int(np.argmin(place))])} was not recorded")
        piece = np.searchsorted(self._starts, place, side="right") - 1
        return piece, place - self._starts[piece]


class RecordedTeacher:
    """What ``record`` wrote, for the rows of a corpus.

    Args:
        pieces: folders from ``record``.
        index: corpus-wide indices [N] of the rows that it will be asked about.
        classes: the teacher's class names.
        leaves: what it gives of the teacher's inside, about the batches' ``teacher`` tokens.
        signature: the live teacher's, needed where there are leaves: all that it gives, of which these are recorded.

    Raises:
        KeyError: asked about a row that was not recorded.
    """

    def __init__(
        self,
        pieces: list[Path],
        corpus: Corpus,
        index: np.ndarray,
        classes: tuple[str, ...],
        leaves: Sequence[Leaf] = (),
        signature: Signature | None = None,
    ) -> None:
        self._places = _Places(pieces, corpus, index)
        self._logits = [np.load(piece / "logits.npy") for piece in pieces]
        self._pooled = [
            np.load(piece / "pooled.npy", mmap_mode="r") for piece in pieces if (piece / "pooled.npy").exists()
        ]
        self.signature = signature or Signature(
            LOGITS | ({"pooled"} if self._pooled else set()),
            width=int(self._pooled[0].shape[1]) if self._pooled else 0,
            classes=tuple(classes),
            name="the recorded teacher",
            recorded=True,
        )
        self._inside = {leaf: _Inside(leaf, _with(pieces, leaf), corpus, index, self.signature) for leaf in leaves}

    def to(self, device: torch.device | str) -> Teacher:
        """Nothing: its answers go where the batch is."""
        return self

    def arrays(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits [N, C] float32 and, where they were recorded, sentence vectors [N, D] of corpus-wide rows [N]."""
        rows = self._places(index)
        return _gathered(self._logits, *rows), _gathered(self._pooled, *rows) if self._pooled else None

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        index = index_of(batch, "a recorded teacher")
        device, numbers = index.device, index.cpu().numpy()
        rows = self._places(numbers)
        fields: dict[str, Any] = {}
        for field, pieces in (("logits", self._logits), ("pooled", self._pooled)):
            if field in needs:
                fields[field] = torch.from_numpy(_gathered(pieces, *rows)).to(device)
        for field in needs - fields.keys():
            width = batch.teacher.ids.shape[1]
            stored = {
                leaf.place: recorded.read(numbers, width).to(device)
                for leaf, recorded in self._inside.items()
                if leaf.field == field
            }
            if not stored:
                raise ValueError(f"{field} of {self.signature.name} was not recorded")
            fields[field] = assembled(field, self.signature, stored)
        return Outputs(**fields, mask=batch.teacher.mask if self._inside else None)


def _gathered(pieces: list[np.ndarray], piece: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Rows [N, D] float32 of pieces."""
    rows = np.empty((len(piece), pieces[0].shape[1]), np.float32)
    for number in np.unique(piece):
        here = piece == number
        rows[here] = pieces[number][place[here]]
    return rows


class _Inside:
    """A leaf, for the rows of a corpus, from disk."""

    def __init__(self, leaf: Leaf, pieces: list[Path], corpus: Corpus, index: np.ndarray, teacher: Signature) -> None:
        self.leaf, self.teacher = leaf, teacher
        self._places = _Places(pieces, corpus, index)
        self._pieces = [Columns(leaf, teacher, np.load(piece / LENGTHS), piece) for piece in pieces]

    def read(self, index: np.ndarray, width: int) -> Tensor:
        """Rows [B, ...] float32, zero beyond their end, of so many tokens (or words) each."""
        shape = (len(index), *self.leaf.shape(self.teacher, width))
        values = np.zeros(shape, self.leaf.dtype)
        scales = np.zeros((*shape[:-1], 1), np.float32) if self.leaf.numbers == "int8" else None
        for number, (piece, place) in enumerate(zip(*map(np.ndarray.tolist, self._places(index)), strict=True)):
            self._pieces[piece].get(place, values[number], None if scales is None else scales[number])
        return self.leaf.decode(values, scales)
