"""A corpus: the rows of a source, stored once as memory-mapped columns.

Sources yield rows; ``load`` writes them as one Arrow file per part together with a digest of each text, so that
duplicates across splits, leakage and the join with a teacher's knowledge are integer comparisons afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from kdresearch.artifacts import Store
from kdresearch.errors import UserError, choices
from kdresearch.structures import UNLABELLED

PART_NAMES = ("train", "validation", "test", "unlabelled")
FORMAT = 1
_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("label", pa.int32()), ("digest", pa.uint64())])
_CHUNK = 4096


class Row(NamedTuple):
    """One example of a source."""

    part: str  # one of PART_NAMES
    id: str
    text: str
    label: str | None  # a class name; None in the unlabelled part


class Source(Protocol):
    """Where rows come from."""

    name: str
    synthetic: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""

    def key(self) -> dict[str, object]:
        """Everything that the rows depend on, JSON-able."""

    def rows(self) -> Iterator[Row]:
        """Every row, in an order that depends on ``key`` alone."""


def text_digest(text: str) -> int:
    """64 bits of a text's identity (white space at the ends and in runs does not count)."""
    normal = " ".join(text.split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Part:
    """One part of a corpus, memory-mapped; ``start`` is the corpus-wide index of its first row."""

    name: str
    start: int
    ids: pa.ChunkedArray
    texts: pa.ChunkedArray
    labels: np.ndarray  # [N] int64, UNLABELLED where there is none
    digests: np.ndarray  # [N] uint64

    def __len__(self) -> int:
        return len(self.labels)

    def take_texts(self, rows: Sequence[int] | np.ndarray) -> Iterator[list[str]]:
        """The texts of the named rows in order, a chunk at a time."""
        for first in range(0, len(rows), _CHUNK):
            yield self.texts.take(pa.array(rows[first : first + _CHUNK])).to_pylist()

    def take_ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of the named rows in order."""
        ids: list[str] = self.ids.take(pa.array(rows)).to_pylist()
        return ids


@dataclass(frozen=True)
class Corpus:
    """The parts of a corpus, the names of its classes, and the fingerprint of its content."""

    name: str
    synthetic: bool
    classes: tuple[str, ...]
    parts_by_name: dict[str, Part]
    fingerprint: str

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts_by_name.values())

    def rows(self, part: str) -> np.ndarray:
        """Corpus-wide indices [N] of a part's rows."""
        columns = self.parts_by_name[part]
        return np.arange(columns.start, columns.start + len(columns))

    def locate(self, index: np.ndarray) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
        """Split corpus-wide indices by part: (part, rows within it, positions within ``index``)."""
        for part in self.parts_by_name.values():
            positions = np.flatnonzero((index >= part.start) & (index < part.start + len(part)))
            if len(positions):
                yield part, index[positions] - part.start, positions

    def digests(self, index: np.ndarray) -> np.ndarray:
        """Text digests [N] uint64 of corpus-wide indices [N]."""
        digests = np.empty(len(index), np.uint64)
        for part, rows, positions in self.locate(index):
            digests[positions] = part.digests[rows]
        return digests

    def ids(self, index: np.ndarray) -> list[str]:
        """The ids of corpus-wide indices [N] in order."""
        ids = np.empty(len(index), object)
        for part, rows, positions in self.locate(index):
            ids[positions] = part.take_ids(rows)
        return list(ids)

    def texts(self, index: np.ndarray) -> Iterator[list[str]]:
        """The texts of corpus-wide indices in order, a chunk at a time."""
        for first in range(0, len(index), _CHUNK):
            chunk = index[first : first + _CHUNK]
            ordered = np.empty(len(chunk), object)
            for part, rows, positions in self.locate(chunk):
                ordered[positions] = [text for texts in part.take_texts(rows) for text in texts]
            yield list(ordered)

    def all_texts(self, index: np.ndarray) -> list[str]:
        """The texts of corpus-wide indices in order, at once."""
        return [text for chunk in self.texts(index) for text in chunk]


def extend(corpus: Corpus, name: str, texts: list[str], fingerprint: str) -> Corpus:
    """The corpus with a further part of rows without labels, in memory; their ids are ``name/0`` and so on.

    Args:
        fingerprint: of the texts in this order; encodings of the part are kept by it.
    """
    part = Part(
        name=f"{name} {fingerprint}",
        start=len(corpus),
        ids=pa.chunked_array([[f"{name}/{row}" for row in range(len(texts))]], pa.string()),
        texts=pa.chunked_array([texts], pa.large_string()),
        labels=np.full(len(texts), UNLABELLED, np.int64),
        digests=np.fromiter(map(text_digest, texts), np.uint64, len(texts)),
    )
    return replace(corpus, parts_by_name={**corpus.parts_by_name, name: part})


def text_corpus(texts: Sequence[str]) -> Corpus:
    """Texts without labels as a corpus in memory, by their content."""
    content = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return extend(Corpus("texts", False, (), {}, content), "texts", list(texts), content)


def load(source: Source, store: Store, say: Callable[[str], None] = lambda _: None) -> Corpus:
    """Read a source into the store, or open what was read before.

    Raises:
        UserError: no training or test rows, an empty text, a label that is not a class, fewer than two classes.
    """
    classes = tuple(source.classes)
    key = {"format": FORMAT, "source": source.name, **source.key()}
    if getattr(source, "label_changes", None):  # what earlier versions stored of these rows had one class more
        key["labels"] = "normalised"

    def build(folder: Path) -> None:
        say(f"reading {source.name}")
        _write(folder, source, classes)

    return _open(store.build("corpus", key, build, waiting=say), source, classes)


def _write(folder: Path, source: Source, classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        raise UserError(f"{source.name}: a classifier needs at least two classes, these rows have {list(classes)}")
    number = {name: position for position, name in enumerate(classes)}
    writers: dict[str, pa.ipc.RecordBatchFileWriter] = {}
    counts = dict.fromkeys(PART_NAMES, 0)
    present = np.zeros(len(classes), bool)
    rows = iter(source.rows())
    try:
        while chunk := list(islice(rows, _CHUNK)):
            for part in {row.part for row in chunk}:
                if part not in PART_NAMES:
                    raise UserError(f"{source.name}: part {choices(part, PART_NAMES)}")
                part_rows = [row for row in chunk if row.part == part]
                batch = _record_batch(part_rows, number, source.name)
                if part == "train":
                    present[np.unique(batch.column("label").to_numpy(zero_copy_only=False))] = True
                if part not in writers:
                    writers[part] = pa.ipc.new_file(str(folder / f"{part}.arrow"), _SCHEMA)
                writers[part].write_batch(batch)
                counts[part] += len(part_rows)
    finally:
        for writer in writers.values():
            writer.close()
    for part in ("train", "test"):
        if not counts[part]:
            raise UserError(f"{source.name}: there are no {part} rows")
    if present.sum() < 2:
        raise UserError(f"{source.name}: the training rows have one class only: {classes[int(present.argmax())]!r}")
    (folder / "corpus.json").write_text(json.dumps({"classes": classes, "rows": counts}, indent=1, ensure_ascii=False))


def _record_batch(rows: Iterable[Row], number: dict[str, int], name: str) -> pa.RecordBatch:
    ids, texts, labels, digests = [], [], [], []
    for row in rows:
        if not row.text or not row.text.strip():
            raise UserError(f"{name}: the text of row {row.id!r} is empty")
        if row.label is None:
            if row.part != "unlabelled":
                raise UserError(f"{name}: row {row.id!r} of the {row.part} part has no label")
            labels.append(UNLABELLED)
        elif row.label in number:
            labels.append(number[row.label])
        else:
            raise UserError(f"{name}: the label of row {row.id!r}, {choices(row.label, number)}")
        ids.append(row.id)
        texts.append(row.text)
        digests.append(text_digest(row.text))
    columns = [
        pa.array(ids),
        pa.array(texts, pa.large_string()),
        pa.array(labels, pa.int32()),
        pa.array(digests, pa.uint64()),
    ]
    return pa.record_batch(columns, schema=_SCHEMA)


def _open(folder: Path, source: Source, classes: tuple[str, ...]) -> Corpus:
    parts_by_name, start = {}, 0
    for name in PART_NAMES:
        file = folder / f"{name}.arrow"
        if not file.exists():
            continue
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        parts_by_name[name] = Part(
            name=name,
            start=start,
            ids=table.column("id"),
            texts=table.column("text"),
            labels=table.column("label").to_numpy().astype(np.int64),
            digests=table.column("digest").to_numpy(),
        )
        start += table.num_rows
    return Corpus(source.name, source.synthetic, classes, parts_by_name, fingerprint=folder.name)
