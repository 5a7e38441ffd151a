"""A pool of pseudo-samples: generated in pieces, filtered, kept.

What a generator makes costs the most and depends on no filter: each chunk is an artifact of its own, so that a killed
generation goes on at the next one, a larger pool pays for the difference alone, and other filters pay for nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdresearch.artifacts import MANIFEST, Store
from kdresearch.errors import UserError
from kdresearch.generation.filters import KEPT, OF_TEXT, Filters, TextFilter, counted
from kdresearch.generation.generator import Generator, Preparation

FORMAT = 2
LEAST = 0.05  # of the texts of the last PATIENCE chunks that must be kept
PATIENCE = 20  # chunks
_FILE = "texts.parquet"


@dataclass(frozen=True)
class Pool:
    """Pseudo-samples that passed the filters of the text."""

    texts: list[str]
    counts: dict[str, int]  # filter -> texts thrown away, in the order in which they are asked, and "kept"
    made: int  # texts generated, those beyond the last one that was needed among them
    seconds: float  # that their generation took, whenever it was; without what the generator was prepared in
    path: Path  # of the artifact

    @property
    def fingerprint(self) -> str:
        return self.path.name


def pool(
    generator: Generator,
    filters: Filters,
    *,
    store: Store,
    texts: Sequence[str],
    labels: np.ndarray,
    classes: tuple[str, ...],
    held_out: Sequence[str],
    number: int | None,
    seed: int,
    chunk: int = 512,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Pool:
    """Generate until ``number`` texts have passed the filters, or open what was generated before.

    A source that is exhausted before gives what it has, and says so.

    Args:
        texts: N training and unlabelled texts, which the generator may learn from; their copies are no samples.
        labels: [N] int64 into ``classes``, UNLABELLED (-1) where there is none.
        held_out: validation and test texts, which no sample may resemble.
        number: None for all that a source has which is exhausted some time.
        chunk: texts of a piece, which is the unit of what a kill can lose.

    Raises:
        UserError: hardly a text passes the filters, or none of a source that is exhausted.
    """
    for name, value, least in (("number", number, 1), ("chunk", chunk, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UserError(f"generator.{name} must be at least {least}, not {value}")
    source = {"format": FORMAT, "rows": _digest([*texts, *map(str, np.asarray(labels).tolist()), *classes])}
    samples = {**source, "generator": generator.key(), "seed": seed, "chunk": chunk}
    key = {**samples, "number": number, "filters": filters.key(), "held_out": _digest(held_out)}
    given = Preparation(texts, labels, classes, None, device, say)

    def prepare() -> None:
        settings = generator.preparation_key()
        if settings is None:
            generator.prepare(given)
            return
        new = False
        artifact = {**source, "generator": settings}
        # Outside the folder that the store gives, which goes with a process that dies. The store knows it, by its
        # name, for one that is half-written, but does not take it for one of an earlier build of the same artifact.
        work = (place := store.path("generator", artifact)).with_name(f"{place.name}.work.partial-0")

        def build(folder: Path) -> None:
            nonlocal new
            work.mkdir(exist_ok=True)
            try:
                generator.prepare(replace(given, folder=work))
            except UserError:  # what the same settings and rows will meet again
                shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.copytree(work, folder, dirs_exist_ok=True)
            new = True

        folder = store.build("generator", artifact, build, waiting=say)
        shutil.rmtree(work, ignore_errors=True)
        if not new:
            generator.prepare(replace(given, folder=folder))

    def build(folder: Path) -> None:
        pieces = _pieces(generator, prepare, store, samples, say)
        kept, facts = _gather(pieces, TextFilter(filters, texts, held_out), number, chunk, say)
        _write(folder, kept)
        (folder / "pool.json").write_text(json.dumps(facts, indent=1))

    path = store.build("pool", key, build, waiting=say)
    return Pool(_read(path), **json.loads((path / "pool.json").read_text()), path=path)


def _pieces(
    generator: Generator, prepare: Callable[[], None], store: Store, key: dict[str, Any], say: Callable[[str], None]
) -> Iterator[tuple[list[str], float]]:
    """The texts of one chunk after the other, generated where they are not in the store, and the seconds it took."""
    prepared, seed, chunk = False, key["seed"], key["chunk"]
    for piece in count():

        def build(folder: Path, piece: int = piece) -> None:
            own = int(np.random.SeedSequence([seed, piece]).generate_state(1)[0])
            _write(folder, generator.generate(chunk, own, piece * chunk))

        if not prepared and store.find("samples", {**key, "piece": piece}) is None:
            prepare()
            prepared = True
        folder = store.build("samples", {**key, "piece": piece}, build, waiting=say)
        yield _read(folder), json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["seconds"]


def _gather(
    pieces: Iterable[tuple[list[str], float]],
    judge: TextFilter,
    number: int | None,
    chunk: int,
    say: Callable[[str], None],
) -> tuple[list[str], dict[str, Any]]:
    """What the filters keep, up to ``number`` texts, and the facts that ``Pool`` tells of it."""
    kept: list[str] = []
    verdicts: list[str] = []
    gains: deque[int] = deque(maxlen=PATIENCE)
    made, seconds = 0, 0.0
    for texts, took in pieces:
        before, made, seconds = len(kept), made + len(texts), seconds + took
        for text in texts:
            verdicts.append(judge.verdict(text))
            if verdicts[-1] == KEPT:
                kept.append(text)
            if len(kept) == number:
                break
        say(f"pseudo-samples: {len(kept):,}" + (f" of {number:,}" if number is not None else ""))
        gains.append(len(kept) - before)
        if len(kept) == number or len(texts) < chunk:
            break
        if len(gains) == PATIENCE and sum(gains) < LEAST * PATIENCE * chunk:
            raise UserError(f"the last {PATIENCE * chunk:,} texts gave {sum(gains):,} samples: {_told(verdicts)}")
    if not kept:
        raise UserError(f"the generator is exhausted, and no text passed the filters: {_told(verdicts)}")
    if number is not None and len(kept) < number:
        say(f"the generator is exhausted: {len(kept):,} pseudo-samples, not {number:,}: {_told(verdicts)}")
    return kept, {"counts": counted(verdicts, OF_TEXT), "made": made, "seconds": round(seconds, 3)}


def _told(verdicts: list[str]) -> str:
    counts = ", ".join(f"{name} {times:,}" for name, times in counted(verdicts, OF_TEXT).items())
    return f"{counts} of {len(verdicts):,}"


def _digest(texts: Iterable[str]) -> str:
    """The identity of texts in this order."""
    whole = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        whole.update(len(encoded).to_bytes(8, "little") + encoded)
    return whole.hexdigest()[:24]


def _write(folder: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), folder / _FILE)


def _read(folder: Path) -> list[str]:
    texts: list[str] = pq.read_table(folder / _FILE).column("text").to_pylist()
    return texts
