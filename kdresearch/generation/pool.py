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
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdresearch.artifacts import MANIFEST, Store
from kdresearch.errors import UserError
from kdresearch.generation.filters import ACCEPTED, OF_TEXT, Filters, TextFilter, count_verdicts
from kdresearch.generation.generator import Generator, Preparation

FORMAT = 2
LEAST = 0.05  # of the texts of the last PATIENCE chunks that must be kept
PATIENCE = 20  # chunks
_FILE = "texts.parquet"


@dataclass(frozen=True)
class Pool:
    """Pseudo-samples that passed the filters of the text."""

    texts: list[str]
    counts: dict[str, int]  # filter -> texts thrown away, in the order of the filters, and "kept"
    generated: int  # texts, those beyond the last one that was needed among them
    seconds: float  # that their generation took, whenever it was; without what the generator was prepared in
    path: Path  # of the artifact

    @property
    def fingerprint(self) -> str:
        """The name of the artifact."""
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

    Of a source that is exhausted before, all texts that pass are in the pool, and a message says so.

    Args:
        texts: N training and unlabelled texts, which the generator may learn from; their copies are no samples.
        labels: [N] int64 into ``classes``, UNLABELLED (-1) where there is none.
        held_out: validation and test texts, which no sample may resemble.
        number: None for all texts of a finite source.
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
    preparation = Preparation(texts, labels, classes, None, device, say)
    prepare = partial(_prepare, generator, store, source, preparation)

    def build(folder: Path) -> None:
        pieces = _pieces(generator, prepare, store, samples, say)
        accepted, facts = _gather(pieces, TextFilter(filters, texts, held_out), number, chunk, say)
        _write(folder, accepted)
        (folder / "pool.json").write_text(json.dumps(facts, indent=1))

    path = store.build("pool", key, build, waiting=say)
    facts = json.loads((path / "pool.json").read_text())
    return Pool(_read(path), facts["counts"], facts["made"], facts["seconds"], path)


def _prepare(generator: Generator, store: Store, source: dict[str, Any], preparation: Preparation) -> None:
    """Prepare the generator in the folder of an artifact, where it leaves anything there.

    Args:
        source: what identifies the rows that it may learn from.
    """
    settings = generator.preparation_key()
    if settings is None:
        generator.prepare(preparation)
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
            generator.prepare(replace(preparation, folder=work))
        except UserError:  # the same settings and rows will raise it again
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.copytree(work, folder, dirs_exist_ok=True)
        new = True

    folder = store.build("generator", artifact, build, waiting=preparation.say)
    shutil.rmtree(work, ignore_errors=True)
    if not new:
        generator.prepare(replace(preparation, folder=folder))


def _pieces(
    generator: Generator, prepare: Callable[[], None], store: Store, key: dict[str, Any], say: Callable[[str], None]
) -> Iterator[tuple[list[str], float]]:
    """The texts of one chunk after the other, generated where they are not in the store, and the seconds it took."""
    prepared, seed, chunk = False, key["seed"], key["chunk"]
    for piece in count():

        def build(folder: Path, piece: int = piece) -> None:
            chunk_seed = int(np.random.SeedSequence([seed, piece]).generate_state(1)[0])
            _write(folder, generator.generate(chunk, chunk_seed, piece * chunk))

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
    """What the filters keep, up to ``number`` texts, and the other facts of a ``Pool``."""
    accepted: list[str] = []
    verdicts: list[str] = []
    gains: deque[int] = deque(maxlen=PATIENCE)
    generated, seconds = 0, 0.0
    for texts, took in pieces:
        before, generated, seconds = len(accepted), generated + len(texts), seconds + took
        for text in texts:
            verdicts.append(judge.verdict(text))
            if verdicts[-1] == ACCEPTED:
                accepted.append(text)
            if len(accepted) == number:
                break
        say(f"pseudo-samples: {len(accepted):,}" + (f" of {number:,}" if number is not None else ""))
        gains.append(len(accepted) - before)
        if len(accepted) == number or len(texts) < chunk:
            break
        if len(gains) == PATIENCE and sum(gains) < LEAST * PATIENCE * chunk:
            raise UserError(f"the last {PATIENCE * chunk:,} texts gave {sum(gains):,} samples: {_describe(verdicts)}")
    if not accepted:
        raise UserError(f"the generator is exhausted, and no text passed the filters: {_describe(verdicts)}")
    if number is not None and len(accepted) < number:
        say(f"the generator is exhausted: {len(accepted):,} pseudo-samples, not {number:,}: {_describe(verdicts)}")
    return accepted, {"counts": count_verdicts(verdicts, OF_TEXT), "made": generated, "seconds": round(seconds, 3)}


def _describe(verdicts: list[str]) -> str:
    counts = ", ".join(f"{name} {times:,}" for name, times in count_verdicts(verdicts, OF_TEXT).items())
    return f"{counts} of {len(verdicts):,}"


def _digest(texts: Iterable[str]) -> str:
    """The identity of texts in this order."""
    content = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        content.update(len(encoded).to_bytes(8, "little") + encoded)
    return content.hexdigest()[:24]


def _write(folder: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), folder / _FILE)


def _read(folder: Path) -> list[str]:
    texts: list[str] = pq.read_table(folder / _FILE).column("text").to_pylist()
    return texts
