"""A teacher for a data module, and what a teacher says of texts, outside any run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.bench.context import Context
from kdresearch.bench.distil import teacher_source
from kdresearch.bench.teacher import locate_package
from kdresearch.data.corpus import Corpus, text_corpus
from kdresearch.data.datamodule import TextDataModule
from kdresearch.errors import UserError, choices
from kdresearch.structures import RECORDED, Teacher
from kdresearch.teachers.ensemble import MappedTeacher, check_classes
from kdresearch.teachers.live import LiveTeacher
from kdresearch.teachers.recorded import RecordedTeacher
from kdresearch.teachers.recorded import record as record_rows


def load_teacher(
    source: str | Path,
    data: TextDataModule,
    *,
    live: bool = False,
    precision: str = "32",
    batch_size: int = 64,
    class_map: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Teacher:
    """A trained classifier as the teacher of a data module's rows, in the data's classes.

    Its class scores and sentence vectors of all rows that the module uses are recorded once, in the store; a live one
    runs beside the student and gives whatever its model does.

    Args:
        source: a run directory, a package, or a Hugging Face classifier (folder or hub id).
        class_map: the data's class for each of the teacher's, where the names differ.

    Raises:
        UserError: no such teacher, or classes that do not match.
    """
    context = Context(data.store, data.say)
    folder = locate_package(teacher_source(source), context)
    data.prepare()
    check_classes(package.classes(folder), data.classes, class_map)
    if live:
        teacher_package = package.load(folder)
        data.read_teacher(teacher_package.tokenizer, teacher_package.fingerprint, token_level=True)
        return MappedTeacher(LiveTeacher(teacher_package, precision), data.classes, class_map)
    pieces = record_rows(
        package.fingerprint(folder),
        partial(package.load, folder),
        data.corpus,
        data.used,
        data.store,
        precision=precision,
        batch_size=batch_size,
        device=device,
        say=data.say,
    )
    recorded = RecordedTeacher(pieces, data.corpus, data.used, package.classes(folder))
    return MappedTeacher(recorded, data.classes, class_map)


@dataclass(frozen=True)
class RecordedTexts:
    """What a teacher says of texts, in their order."""

    classes: tuple[str, ...]
    logits: np.ndarray  # [N, C] float32, in the order of ``classes``
    pooled: np.ndarray | None  # [N, D] float16: the vectors that its classifier reads

    @property
    def probabilities(self) -> np.ndarray:
        """Class probabilities [N, C]."""
        exponents = np.exp(self.logits - self.logits.max(1, keepdims=True))
        shares: np.ndarray = exponents / exponents.sum(1, keepdims=True)
        return shares


def record(
    source: str | Path,
    texts: Sequence[str],
    *,
    fields: Collection[str] = ("logits",),
    precision: str = "32",
    batch_size: int = 64,
    store: Store | None = None,
    device: str = "cpu",
) -> RecordedTexts:
    """What a trained classifier says of texts: computed once for each text, and kept in the store.

    Args:
        source: a run directory, a package, or a Hugging Face classifier (folder or hub id).
        fields: of ``Outputs``: logits, pooled.

    Raises:
        UserError: no such classifier; fields that are not recorded, or that it does not give.
    """
    for field in fields:
        if field not in RECORDED:
            raise UserError(f"fields: {choices(field, sorted(RECORDED))}")
    context = Context(store or Store())
    folder = locate_package(teacher_source(source), context)
    corpus: Corpus = text_corpus(texts)
    index = np.arange(len(corpus))
    pieces = record_rows(
        package.fingerprint(folder),
        partial(package.load, folder),
        corpus,
        index,
        context.store,
        precision=precision,
        batch_size=batch_size,
        device=device,
    )
    recorded = RecordedTeacher(pieces, corpus, index, package.classes(folder))
    if "pooled" in fields and "pooled" not in recorded.signature.fields:
        raise UserError(f"fields: {source} gives no pooled")
    logits, pooled = recorded.arrays(index)
    return RecordedTexts(package.classes(folder), logits, pooled if "pooled" in fields else None)
