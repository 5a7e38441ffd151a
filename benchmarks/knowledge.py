"""Recording a teacher against a plain loop over the same rows, and what its inside takes on disk by form.

python benchmarks/knowledge.py ARCHIVE TEACHER [--rows 512] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.encoding import WordRows
from kdresearch.data.imdb import Imdb
from kdresearch.data.tokenizers import WordTokenizer
from kdresearch.package import Package
from kdresearch.structures import LOGITS, Extract
from kdresearch.teachers.leaves import leaves_of
from kdresearch.teachers.recorded import Inside, RecordedTeacher, record

LENGTH, BATCH = 128, 64


def forms(depth: int) -> dict[str, dict[str, Extract]]:
    """What strategies read of an encoder, beside class scores."""
    last, every = frozenset({depth}), frozenset({depth - 1})
    return {
        "hidden states, all layers": {"hidden": Extract()},
        "hidden states, last layer": {"hidden": Extract(last)},
        "hidden states, last layer, by word": {"hidden": Extract(last, words=True)},
        "hidden states, last layer, first token": {"hidden": Extract(last, first=True)},
        "attention, all layers": {"attention": Extract()},
        "attention, last layer": {"attention": Extract(every)},
        "attention, last layer, mean over heads, by word": {"attention": Extract(every, average=True, words=True)},
        "attention, last layer, of the first token, by word": {"attention": Extract(every, True, True, True)},
    }


class Bench:
    """IMDB rows as an encoder reads them."""

    def __init__(self, archive: Path, teacher: Path, rows: int) -> None:
        self.teacher: Package = package.load(teacher)
        self.teacher.tokenizer.max_length = self.teacher.tokenizer.settings["max_length"] = LENGTH
        self.data = TextDataModule(Imdb(path=str(archive)), WordTokenizer(max_length=LENGTH), limit=rows).prepare()
        self.data.teacher_rows = self.data.read_by(self.teacher.tokenizer, f"{LENGTH} tokens", words=True)
        self.index = self.data.split.train
        self.signature = self.teacher.model.signature

    def plain(self) -> None:
        """Class scores by a loop that anybody would write, in float32 and in order of length."""
        assert self.data.teacher_rows is not None
        order = self.index[np.argsort(self.data.teacher_rows.lengths(self.index))]
        with torch.inference_mode():
            for first in range(0, len(order), BATCH):
                self.teacher.model(self.data.teacher_rows.tokens(order[first : first + BATCH]), LOGITS)

    def record(self, extracts: dict[str, Extract], store: Store, numbers: str, precision: str) -> RecordedTeacher:
        """A teacher recorded afresh."""
        rows = self.data.teacher_rows
        assert rows is not None
        leaves = leaves_of(extracts, self.signature, numbers, words=True)
        units = WordRows(rows.encoded_parts, rows.pad_id) if any(leaf.words for leaf in leaves) else rows
        pieces = record(
            self.teacher.fingerprint, lambda: self.teacher, self.data.corpus, self.index, store,
            inside=Inside(leaves, rows, units), precision=precision, batch_size=BATCH,
        )  # fmt: skip
        return RecordedTeacher(pieces, self.data.corpus, self.index, self.teacher.classes, leaves, self.signature)

    def rate(self, work: Callable[[], object]) -> float:
        """Rows per second."""
        started = time.perf_counter()
        work()
        return len(self.index) / (time.perf_counter() - started)


def recorded_in_fresh_store(bench: Bench, extracts: dict[str, Extract], numbers: str, precision: str) -> int:
    """Bytes of what a recording writes."""
    with tempfile.TemporaryDirectory() as folder:
        bench.record(extracts, Store(folder), numbers, precision)
        return sum(artifact.bytes for artifact in Store(folder).artifacts())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.archive, arguments.teacher, arguments.rows)
    inside = forms(bench.signature.depth)
    last = inside["hidden states, last layer, by word"]
    ways: dict[str, Callable[[], object]] = {
        "a plain loop in float32": bench.plain,
        "class scores, float32": lambda: recorded_in_fresh_store(bench, {}, "bf16", "32"),
        "class scores, bf16": lambda: recorded_in_fresh_store(bench, {}, "bf16", "bf16"),
        "last layer by word, bf16": lambda: recorded_in_fresh_store(bench, last, "bf16", "bf16"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, work in ways.items():
            rates[name].append(bench.rate(work))
    speeds = {name: statistics.median(values) for name, values in rates.items()}
    plain = speeds["a plain loop in float32"]
    for name, speed in speeds.items():
        print(f"{name}: {speed:.1f} rows/s, {speed / plain:.2f} times the plain loop")
    sizes = {
        f"{name}, {numbers}": recorded_in_fresh_store(bench, extracts, numbers, "bf16") / len(bench.index)
        for name, extracts in inside.items()
        for numbers in ("bf16", "int8")
    }
    for name, size in sizes.items():
        print(f"{name}: {size:,.0f} bytes a row")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"rows_per_second": speeds, "bytes_per_row": sizes}, indent=1))


if __name__ == "__main__":
    main()
