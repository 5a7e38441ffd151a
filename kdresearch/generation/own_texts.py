"""Texts that the user has: from another generator, another corpus, another year."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdresearch.artifacts import file_sha256
from kdresearch.data.columns import clean_columns
from kdresearch.data.files import FORMATS, SUFFIXES, decode_file, read_columns
from kdresearch.errors import UserError, choices
from kdresearch.generation.generator import Preparation

LINES = "lines"


class OwnTexts:
    """A file's texts, in the order of the file.

    Args:
        path: one text per line, or CSV, TSV, JSON Lines or Parquet; ``~`` is expanded.
        text: the column of the texts, except in lines.
        format: ``lines``, or one of ``data.files.FORMATS``; None goes by the suffix, and any that is unknown is lines.
        quoted: False where quotation marks are ordinary characters; not of lines.

    Raises:
        UserError: a path that is not a file, an unknown format, a setting of columns for lines; from
            ``prepare``, a file that does not hold texts.
    """

    def __init__(self, path: str | Path, *, text: str = "text", format: str | None = None, quoted: bool = True) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(f"generator.path: {self.path} is not a file")
        if format not in (None, LINES, *FORMATS):
            raise UserError(f"generator.format: {choices(format, (LINES, *FORMATS))}")
        suffix = self.path.with_suffix("").suffix if self.path.suffix.lower() == ".gz" else self.path.suffix
        self.text, self.format, self.quoted = text, format or SUFFIXES.get(suffix.lower(), LINES), quoted
        if self.format == LINES and (text != "text" or not quoted):
            ignored = "text" if text != "text" else "quoted"
            raise UserError(
                f"generator.{ignored} is of columns, and {self.path} is read as lines: generator.format=..."
            )

    def key(self) -> dict[str, Any]:
        """Settings and the digest of the file."""
        settings = {"text": self.text, "format": self.format, "quoted": self.quoted}
        return {"generator": "own_texts", "file": file_sha256(self.path), **settings}

    def preparation_key(self) -> None:
        """None: nothing is left in a folder."""

    def prepare(self, preparation: Preparation) -> None:
        """Read the file."""
        origin = f"generator.path: {self.path}"
        column: list[object]
        if self.format == LINES:
            column = [line for line in decode_file(origin, self.path).splitlines() if line.strip()]
        else:
            (column,) = read_columns(origin, self.path, self.format, [self.text], self.quoted)
        self._texts = clean_columns(origin, "texts", column).texts

    def generate(self, number: int, seed: int, start: int) -> list[str]:
        """The next texts of the file from ``start`` on."""
        return self._texts[start : start + number]
