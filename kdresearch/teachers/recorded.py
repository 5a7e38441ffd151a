"""A teacher's outputs, written once and joined by text.

Knowledge is keyed by what it is a function of: the teacher's package (weights, tokenizer, length, truncation), the
precision and the exact text. It is written in pieces, each an artifact, so that a killed recording goes on where it
stopped, and rows that any earlier run has paid for are never computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kdresearch.artifacts import Store, digest
from kdresearch.data.corpus import Corpus
from kdresearch.data.encoding import pad
from kdresearch.package import Package
from kdresearch.structures import LOGITS, Batch, Outputs, Signature, Teacher, index_of
from kdresearch.teachers.live import LiveTeacher

FORMAT = 1
PIECE = 4096  # rows of an artifact


def record(
    fingerprint: str,
    open_package: Callable[[], Package],
    corpus: Corpus,
    index: np.ndarray,
    store: Store,
    *,
    precision: str = "32",
    batch_size: int = 64,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Make sure that the teacher's logits and pooled vectors of some rows are in the store.

    Args:
        fingerprint: of the teacher's package, which ``open_package`` loads only if a row is missing.
        index: corpus-wide indices [N].

    Returns:
        The folders of all pieces of this teacher.
    """
    key = {"format": FORMAT, "teacher": fingerprint, "precision": precision}
    wanted = corpus.digests(index)
    if not np.isin(wanted, _known(pieces := _pieces(store, key))).all():
        with store.locked(store.root / "knowledge" / digest(key), "recording this teacher", say):
            missing = index[~np.isin(wanted, _known(_pieces(store, key)))]
            missing = np.sort(missing[np.unique(corpus.digests(missing), return_index=True)[1]])
            if len(missing):
                teacher = LiveTeacher(package := open_package(), precision)
                teacher.to(device)
                _record_missing(teacher, package, corpus, missing, store, key, batch_size, say)
        pieces = _pieces(store, key)
    return pieces


def _record_missing(
    teacher: LiveTeacher,
    package: Package,
    corpus: Corpus,
    missing: np.ndarray,
    store: Store,
    key: dict[str, object],
    batch_size: int,
    say: Callable[[str], None],
) -> None:
    needs = LOGITS | (teacher.signature.fields & {"pooled"})
    started, done = time.perf_counter(), 0
    for first in range(0, len(missing), PIECE):
        rows = missing[first : first + PIECE]
        digests = corpus.digests(rows)

        def build(folder: Path, rows: np.ndarray = rows, digests: np.ndarray = digests) -> None:
            texts = corpus.all_texts(rows)
            ids, lengths = package.tokenizer.encode(texts)
            tokens = np.split(ids, np.cumsum(lengths)[:-1])
            logits = np.empty((len(rows), len(package.classes)), np.float32)
            pooled = np.empty((len(rows), teacher.signature.width), np.float16) if "pooled" in needs else None
            order, longest = np.argsort(lengths, kind="stable"), int(lengths.max())
            for place in range(0, len(order), batch_size):
                chosen = order[place : place + batch_size]
                answer = teacher.read(pad([tokens[row] for row in chosen], package.tokenizer.pad_id, longest), needs)
                assert answer.logits is not None
                logits[chosen] = answer.logits.cpu().numpy()
                if pooled is not None:
                    assert answer.pooled is not None
                    pooled[chosen] = answer.pooled.cpu().numpy()
            np.save(folder / "digests.npy", digests)
            np.save(folder / "logits.npy", logits)
            if pooled is not None:
                np.save(folder / "pooled.npy", pooled)

        store.build("knowledge", {**key, "rows": digest([int(value) for value in digests])}, build)
        done += len(rows)
        rate = done / (time.perf_counter() - started)
        say(f"teacher outputs: {done:,} of {len(missing):,} rows, {rate:,.0f} rows/s")


def _pieces(store: Store, key: dict[str, object]) -> list[Path]:
    return [
        artifact.path
        for artifact in store.artifacts("knowledge")
        if all(artifact.key.get(name) == value for name, value in key.items()) and store.find("knowledge", artifact.key)
    ]


def _known(pieces: list[Path]) -> np.ndarray:
    found = [np.load(piece / "digests.npy") for piece in pieces]
    return np.concatenate(found) if found else np.empty(0, np.uint64)


class RecordedTeacher:
    """What ``record`` wrote, for the rows of a corpus.

    Args:
        pieces: folders from ``record``.
        index: corpus-wide indices [N] of the rows that it will be asked about.
        classes: the teacher's class names.

    Raises:
        KeyError: asked about a row that was not recorded.
    """

    def __init__(self, pieces: list[Path], corpus: Corpus, index: np.ndarray, classes: tuple[str, ...]) -> None:
        digests = [np.load(piece / "digests.npy") for piece in pieces]
        known = np.concatenate([np.empty(0, np.uint64), *digests])
        wanted = corpus.digests(index)
        absent = ~np.isin(wanted, known)
        if absent.any():
            raise KeyError(f"{int(absent.sum())} of {len(index)} rows were not recorded")
        order = np.argsort(known, kind="stable")
        place = order[np.searchsorted(known, wanted, sorter=order)]
        starts = np.cumsum([0, *map(len, digests)])
        self._row = np.full(len(corpus), -1, np.int64)  # corpus-wide index -> row of all pieces in a line
        self._row[index] = place
        self._starts = starts
        self._logits = np.concatenate([np.load(piece / "logits.npy") for piece in pieces])
        self._pooled = [
            np.load(piece / "pooled.npy", mmap_mode="r") for piece in pieces if (piece / "pooled.npy").exists()
        ]
        self.signature = Signature(
            LOGITS | ({"pooled"} if self._pooled else set()),
            width=int(self._pooled[0].shape[1]) if self._pooled else 0,
            classes=tuple(classes),
            name="the recorded teacher",
            recorded=True,
        )

    def to(self, device: torch.device | str) -> Teacher:
        return self

    def arrays(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits [N, C] float32 and, where they were recorded, sentence vectors [N, D] of corpus-wide rows [N]."""
        rows = self._row[index]
        return self._logits[rows], self._gather(rows) if self._pooled else None

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        index = index_of(batch, "a recorded teacher")
        device = index.device
        rows = self._row[index.cpu().numpy()]
        if (rows < 0).any():
            raise KeyError(f"row {int(index[int(np.argmin(rows))])} was not recorded")
        logits = torch.from_numpy(self._logits[rows]).to(device) if "logits" in needs else None
        pooled = torch.from_numpy(self._gather(rows)).to(device) if "pooled" in needs else None
        return Outputs(logits=logits, pooled=pooled)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        """Pooled vectors [N, D] float32 of rows."""
        found = np.empty((len(rows), self.signature.width), np.float32)
        piece = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(piece):
            here = piece == number
            found[here] = self._pooled[number][rows[here] - self._starts[number]]
        return found
