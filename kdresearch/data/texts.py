"""Texts and labels that are at hand, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from kdresearch.data.corpus import Row
from kdresearch.errors import UserError


class Texts:
    """Rows from lists; its content alone decides what it is.

    Args:
        texts, labels: N texts and the name of each one's class; other values are converted to strings.
        test: (texts, labels) to test on; None takes a share of the rows, by a digest of each text.
        validation: (texts, labels) to choose the epoch by; None leaves the carving of them to the data module.
        unlabelled: texts that train by a teacher alone.
        test_share: of the rows that are tested on where no test rows are given.
        name: in tables.

    Raises:
        UserError: lists of different lengths, or a share outside (0, 1).
    """

    synthetic = False

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[object],
        *,
        test: tuple[Sequence[str], Sequence[object]] | None = None,
        validation: tuple[Sequence[str], Sequence[object]] | None = None,
        unlabelled: Sequence[str] = (),
        test_share: float = 0.2,
        name: str = "texts",
    ) -> None:
        if not 0 < test_share < 1:
            raise UserError(f"test_share must lie between 0 and 1, not {test_share}")
        self.name = name
        self._rows_by_part: dict[str, list[tuple[str, str | None]]] = {"train": _paired(texts, labels, "texts")}
        if test is not None:
            self._rows_by_part["test"] = _paired(*test, "test")
        else:
            is_test = [_share(text) < test_share for text, _ in self._rows_by_part["train"]]
            rows = self._rows_by_part["train"]
            self._rows_by_part["train"] = [row for row, out in zip(rows, is_test, strict=True) if not out]
            self._rows_by_part["test"] = [row for row, out in zip(rows, is_test, strict=True) if out]
        if validation is not None:
            self._rows_by_part["validation"] = _paired(*validation, "validation")
        if len(unlabelled):
            self._rows_by_part["unlabelled"] = [(text, None) for text in unlabelled]
        self.classes = tuple(sorted(set(_labels(self._rows_by_part))))

    def key(self) -> dict[str, object]:
        """The digest of parts, texts and labels."""
        content = hashlib.sha256()
        for part, rows in self._rows_by_part.items():
            for text, label in rows:
                for field in (part, text, "" if label is None else f"={label}"):
                    encoded = field.encode("utf-8", "surrogatepass")
                    content.update(len(encoded).to_bytes(8, "little") + encoded)
        return {"content": content.hexdigest()}

    def rows(self) -> Iterator[Row]:
        """Every row, part by part, in the order of the lists."""
        for part, rows in self._rows_by_part.items():
            for number, (text, label) in enumerate(rows):
                yield Row(part, f"{part}/{number}", text, label)


def _paired(texts: Sequence[str], labels: Sequence[object], name: str) -> list[tuple[str, str | None]]:
    if len(texts) != len(labels):
        raise UserError(f"{name}: {len(texts)} texts and {len(labels)} labels")
    return [(text, str(label)) for text, label in zip(texts, labels, strict=True)]


def _labels(rows_by_part: dict[str, list[tuple[str, str | None]]]) -> Iterator[str]:
    return (label for rows in rows_by_part.values() for _, label in rows if label is not None)


def _share(text: str) -> float:
    """A number from 0 to below 1 that is the same for the same text, on every machine."""
    normal = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(normal, digest_size=8).digest(), "little") / 2**64
