"""A corpus from the user's own files: CSV, TSV, JSON Lines or Parquet."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from kdresearch.artifacts import file_sha256
from kdresearch.data.columns import (
    ColumnSource,
    Texts,
    class_names,
    clean_columns,
    list_choices,
    refuse_same_column,
    refuse_twins,
    require_parts,
)
from kdresearch.errors import UserError, choices

FORMATS = ("csv", "tsv", "jsonl", "parquet")
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}


class Files(ColumnSource):
    """Rows from files, one file per part; text and label are columns that the user names.

    Label names are kept as the file writes them, but for white space around them and the composition of characters
    (Unicode's NFC): ``pos`` and ``pos `` are one class, ``01`` and ``1.0`` are not ``1``, and a text ``NA`` is a text.
    A row's id is its part and its number in the file, counted from 0 without the header: ``train/17``.

    Args:
        train, test, validation, unlabelled: paths; ``~`` is expanded, relative ones start at the current folder.
            Text formats may be compressed (``.csv.gz``).
        text, label: the names of the columns; the label column is not read from ``unlabelled``.
        format: one of ``FORMATS``; None goes by each file's suffix.
        quoted: False where quotation marks are ordinary characters, as in many TSV files.

    Raises:
        UserError: from the constructor for a path that is not a file, an unknown format, or one file for two parts;
            from ``classes`` and ``rows`` for anything within the files that does not make labelled texts.
    """

    def __init__(
        self,
        *,
        train: str | Path,
        test: str | Path,
        validation: str | Path | None = None,
        unlabelled: str | Path | None = None,
        text: str = "text",
        label: str = "label",
        format: str | None = None,
        quoted: bool = True,
    ) -> None:
        if format is not None and format not in FORMATS:
            raise UserError(f"data.format: {choices(format, FORMATS)}")
        refuse_same_column(text, label)
        paths = {"train": train, "validation": validation, "test": test, "unlabelled": unlabelled}
        require_parts(paths, "file")
        self.paths = {part: _file(part, path) for part, path in paths.items() if path is not None}
        refuse_twins({part: str(path.resolve()) for part, path in self.paths.items()})
        self.formats = {part: format or _format(part, path) for part, path in self.paths.items()}
        self.text, self.label, self.quoted = text, label, quoted
        self.name = self.paths["train"].resolve().parent.name or "files"

    def key(self) -> dict[str, object]:
        """The digest and the format of each file, and the options that say how to read them."""
        files = {part: [self.formats[part], file_sha256(path)] for part, path in self.paths.items()}
        return {"files": files, "text": self.text, "label": self.label, "quoted": self.quoted}

    def _read(self) -> tuple[dict[str, Texts], tuple[str, ...]]:
        texts_by_part = {part: self._read_part(part) for part in self.paths}
        return texts_by_part, class_names({part: self._origin(part) for part in self.paths}, texts_by_part)

    def _read_part(self, part: str) -> Texts:
        origin, names = self._origin(part), [self.text] if part == "unlabelled" else [self.text, self.label]
        return clean_columns(
            origin, part, *read_columns(origin, self.paths[part], self.formats[part], names, self.quoted)
        )

    def _origin(self, part: str) -> str:
        return f"data.{part}: {self.paths[part]}"


def read_columns(
    origin: str, path: Path, format: str, names: Sequence[str], quoted: bool = True
) -> tuple[list[object], ...]:
    """Columns of a file by name, as they stand there.

    Args:
        origin: what an error calls the file.
        names: of the columns.
        format: one of ``FORMATS``.

    Raises:
        UserError: a column that is not there, or a file that cannot be read as ``format``.
    """
    if format == "parquet":
        return _parquet(origin, path, names)
    content = decode_file(origin, path)
    if format == "jsonl":
        return _json_lines(origin, content, names)
    return _delimited(origin, content, names, _DELIMITERS[format], quoted)


def _file(part: str, location: str | Path) -> Path:
    path = Path(location).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"data.{part}: {path} is a folder, a file is needed; it holds {_listing(path, path.name)}")
    if not path.parent.is_dir():
        raise UserError(f"data.{part}: {path} does not exist, nor does the folder {path.parent.absolute()}")
    raise UserError(
        f"data.{part}: {path} does not exist; {path.parent.absolute()} holds {_listing(path.parent, path.name)}"
    )


def _listing(folder: Path, target: str, most: int = 8) -> str:
    """The files of a folder, those with names near to ``target`` first."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    near = difflib.get_close_matches(target, names, n=most, cutoff=0.5)
    names = near + [name for name in names if name not in near]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "no files"


def _format(part: str, path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    plain = suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes
    format = SUFFIXES.get(plain[-1]) if plain else None
    if format is None or (format == "parquet" and plain != suffixes):
        raise UserError(
            f"data.{part}: the suffix of {path} is of no known format ({', '.join(SUFFIXES)}; .gz after those of text)"
            f"; name it: data.format={'|'.join(FORMATS)}"
        )
    return format


def decode_file(origin: str, path: Path) -> str:
    """The content of a file of UTF-8, perhaps compressed; UserError names the first byte that is not."""
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{origin} is not a complete gzip file ({error})") from error
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{origin} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}, line {line}; "
            "convert it, say with iconv -f LATIN1 -t UTF-8"
        ) from error


def _delimited(
    origin: str, content: str, names: Sequence[str], delimiter: str, quoted: bool
) -> tuple[list[object], ...]:
    # The strict reader of the standard library, since pyarrow and pandas pass over a stray quotation mark and
    # silently take all rows up to the next one for a single text.
    csv.field_size_limit(2**31 - 1)
    lines = io.StringIO(content, newline="")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    places: list[int] = []
    columns: tuple[list[object], ...] = tuple([] for _ in names)
    line = 1  # where the row at hand starts
    try:
        for fields in reader:
            if not fields:
                pass  # a blank line
            elif header is None:
                _require(origin, names, fields)
                header, places = fields, [fields.index(name) for name in names]
            elif len(fields) != len(header):
                raise UserError(f"{origin}, line {line}: {len(fields)} fields, the header has {len(header)}")
            else:
                for column, place in zip(columns, places, strict=True):
                    column.append(fields[place])
            line = reader.line_num + 1
    except csv.Error as error:
        hint = "; if quotation marks are ordinary characters there: data.quoted=false" if quoted else ""
        raise UserError(f"{origin}: the row that starts at line {line} is malformed ({error}){hint}") from error
    return columns


def _json_lines(origin: str, content: str, names: Sequence[str]) -> tuple[list[object], ...]:
    # Not pyarrow: its reader takes strings that look like dates for timestamps, and names no line in an error.
    present: dict[str, None] = {}
    columns: tuple[list[object], ...] = tuple([] for _ in names)
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a depth of thousands of levels
            raise UserError(f"{origin}, line {number}: not one JSON object per line ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{origin}, line {number}: not one JSON object per line but a {type(record).__name__}")
        present.update(dict.fromkeys(record))
        for column, name in zip(columns, names, strict=True):
            column.append(record.get(name))
    if present:
        _require(origin, names, list(present))
    return columns


def _parquet(origin: str, path: Path, names: Sequence[str]) -> tuple[list[object], ...]:
    try:
        with pq.ParquetFile(path) as file:
            _require(origin, names, file.schema_arrow.names)
            table = file.read(columns=list(names))
        return tuple(table.column(name).to_pylist() for name in names)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # texts in no UTF-8, years after 9999
        raise UserError(f"{origin} is no readable Parquet file ({error})") from error


def _require(origin: str, names: Sequence[str], present: Sequence[str]) -> None:
    for name in names:
        if name not in present:
            raise UserError(
                f"{origin} has no column {list_choices(name, present)} (data.text and data.label name the columns)"
            )
        if present.count(name) > 1:
            raise UserError(f"{origin} has {present.count(name)} columns named {name!r}")
