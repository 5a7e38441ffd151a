"""The files of a run: run.json, metrics.json, predictions.parquet; the one module that writes them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from kdresearch.artifacts import with_sum, without_sum

SCHEMA = 2
"""Of run.json: 1 (before it said so) had cells of typed words; 2 has resolved settings and their two digests."""

RUN, METRICS, PREDICTIONS = "run.json", "metrics.json", "predictions.parquet"


@dataclass(frozen=True)
class SplitPredictions:
    """The outputs for the rows of one split."""

    name: str
    ids: Sequence[str]
    label: Tensor  # [N] int64
    student: Tensor  # [N, C] logits
    teacher: Tensor | None  # [N, C] logits


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` when it is whole and on the disk, and goes when it fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Replace a file by JSON, whole or not at all; numbers that JSON lacks become null."""
    with replaced(path) as partial:
        partial.write_text(json.dumps(_finite(content), indent=1, ensure_ascii=False), encoding="utf-8")


def write_record(path: Path, content: Any) -> None:
    """``write_json`` of a mapping together with the digest of it, which ``read_json`` compares."""
    write_json(path, with_sum(_finite(content)))


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that a file holds; an empty one where there is none, or none that can be read as it was written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return without_sum(content) if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def write_predictions(path: Path, splits: Sequence[SplitPredictions]) -> None:
    """Write ``predictions.parquet``, with a checksum for each page: split, id, label, student and teacher logits."""
    table = pa.concat_tables([_table(split) for split in splits])
    with replaced(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def _table(split: SplitPredictions) -> pa.Table:
    missing = pa.nulls(len(split.ids), pa.list_(pa.float32()))
    columns = {
        "split": pa.array([split.name] * len(split.ids), pa.string()),
        "id": pa.array(split.ids, pa.string()),
        "label": pa.array(split.label.numpy(), pa.int64()),
        "student_logits": _rows(split.student),
        "teacher_logits": missing if split.teacher is None else _rows(split.teacher),
    }
    return pa.table(columns)


def _rows(logits: Tensor) -> pa.Array:
    values = pa.array(logits.float().contiguous().flatten().numpy(), pa.float32())
    offsets = pa.array(range(0, logits.numel() + 1, logits.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
