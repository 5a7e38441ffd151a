"""Columns as a source read them, checked and cleaned: texts that are not empty, labels that are names."""

from __future__ import annotations

import math
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from kdresearch.data.corpus import Row
from kdresearch.errors import UserError, choices

_INTEGER = re.compile(r"[+-]?\d{1,1000}")  # of more digits Python makes no number


class Texts(NamedTuple):
    """The rows of one part, checked: no empty text, no missing label."""

    texts: list[str]
    labels: list[str] | None  # None in the unlabelled part
    changes: int = 0  # labels that were written otherwise


def clean_columns(origin: str, part: str, texts: Sequence[object], labels: Sequence[object] | None = None) -> Texts:
    """Check the two columns of a part as they were read; labels become strings without white space around them, in NFC.

    Raises:
        UserError: no rows, a text that is missing, empty, or no string, a label that is missing or no scalar.
    """
    if not len(texts):
        raise UserError(f"{origin} has no rows")
    empty = [row for row, text in enumerate(texts) if text is None or (isinstance(text, str) and not text.strip())]
    _refuse(origin, part, empty, "empty or missing text")
    _refuse(
        origin, part, [row for row, text in enumerate(texts) if not _is_text(text)], "a text that is no valid string"
    )
    if labels is None:
        return Texts([str(text) for text in texts], None)
    _refuse(
        origin,
        part,
        [row for row, label in enumerate(labels) if _is_missing(label)],
        "no label (hidden test labels belong to data.unlabelled)",
    )
    odd = [row for row, label in enumerate(labels) if not (_is_text(label) or isinstance(label, int | float))]
    _refuse(origin, part, odd, "a label that is neither a string nor a number")
    names = [unicodedata.normalize("NFC", str(label).strip()) for label in labels]
    written = sum(name != str(label) for name, label in zip(names, labels, strict=True))
    return Texts([str(text) for text in texts], names, written)


def class_names(
    origins: Mapping[str, str], texts_by_part: Mapping[str, Texts], declared: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The classes of the training part: in ``declared`` order, else sorted (by number where all are integers).

    Raises:
        UserError: a training part of one class, or a label elsewhere that the training part does not have.
    """
    training_labels = set(texts_by_part["train"].labels or ())
    if declared is not None:
        normal = (unicodedata.normalize("NFC", name.strip()) for name in declared)
        names = tuple(name for name in dict.fromkeys(normal) if name in training_labels)
    elif all(_INTEGER.fullmatch(name) for name in training_labels):
        names = tuple(sorted(training_labels, key=lambda name: (int(name), name)))
    else:
        names = tuple(sorted(training_labels))
    if len(names) == 1:
        raise UserError(f"{origins['train']} has one class only, {names[0]!r}: there is nothing to classify")
    for part, content in texts_by_part.items():
        for row, label in enumerate(content.labels or ()):
            if label not in training_labels:
                raise UserError(
                    f"{origins[part]}: the label of row {part}/{row} is not in train, {list_choices(label, names)}"
                )
    return names


class ColumnSource(ABC):
    """A source of one table for each part, of which a column holds the texts and another the labels."""

    synthetic = False

    @abstractmethod
    def _read(self) -> tuple[dict[str, Texts], tuple[str, ...]]:
        """The checked columns of each part, and the classes."""

    @cached_property
    def _content(self) -> tuple[dict[str, Texts], tuple[str, ...]]:
        return self._read()

    @property
    def label_changes(self) -> dict[str, int]:
        """How many rows of a part had a label with white space around it or of other composition; parts with none are
        left out.
        """
        return {part: content.changes for part, content in self._content[0].items() if content.changes}

    @property
    def classes(self) -> tuple[str, ...]:
        """The label names of the training part; see ``class_names``."""
        return self._content[1]

    def rows(self) -> Iterator[Row]:
        """Every row, part by part, in the order of the tables; its part and number are its id."""
        for part, (texts, labels, _) in self._content[0].items():
            for row, text in enumerate(texts):
                yield Row(part, f"{part}/{row}", text, None if labels is None else labels[row])


def require_parts(settings: Mapping[str, object], noun: str) -> None:
    """Raise UserError where the setting of the training or the test part, a ``noun``, is None."""
    for part in ("train", "test"):
        if settings[part] is None:
            raise UserError(f"data.{part}: a {noun} is required")


def refuse_same_column(text: str, label: str) -> None:
    """Raise UserError where texts and labels would be one column."""
    if text == label:
        raise UserError(f"data.text and data.label name the same column, {text!r}")


def refuse_twins(origins: Mapping[str, str]) -> None:
    """Raise UserError where two parts have one origin: what is tested on would be trained or selected on."""
    first: dict[str, str] = {}
    for part, origin in origins.items():
        if origin in first:
            raise UserError(f"data.{first[origin]} and data.{part} are the same rows, {origin}")
        first[origin] = part


def list_choices(offending: str, allowed: Sequence[str], most: int = 12) -> str:
    """``choices``, with at most ``most`` of the allowed names written out."""
    if len(allowed) <= most:
        return choices(offending, allowed)
    return f"{offending!r}; one of {len(allowed)}: {', '.join(name[:30] for name in allowed[:most])}, ..."


def _is_missing(label: object) -> bool:
    return label is None or (isinstance(label, float) and math.isnan(label)) or not str(label).strip()


def _is_text(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        text.encode()  # half of a surrogate pair, as JSON may escape it, is no text that a file could hold
    except UnicodeEncodeError:
        return False
    return True


def _refuse(origin: str, part: str, rows: Sequence[int], fault: str, most: int = 5) -> None:
    if rows:
        first = ", ".join(f"{part}/{row}" for row in rows[:most]) + (", ..." if len(rows) > most else "")
        raise UserError(f"{origin}: {len(rows)} row{'s' * (len(rows) > 1)} (counted from 0) with {fault}: {first}")
