"""The Large Movie Review Dataset (Maas et al. 2011), official split.

Published layout: ``aclImdb/{train,test}/{pos,neg}/ID_STARS.txt`` and ``aclImdb/train/unsup/ID_0.txt``.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from kdresearch.artifacts import file_sha256
from kdresearch.data.corpus import Row
from kdresearch.errors import UserError, choices

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
_MEMBER = re.compile(r"(?:^|/)(train|test)/(pos|neg|unsup)/(\d+)_(\d+)\.txt$")
_BREAK = re.compile(r"\s*<br\s*/?>\s*")
_LONGEST = 1 << 17  # bytes of a review: the longest of the published ones has 14,282
_MAX_INFLATED = 2 << 30  # bytes of an archive once it is inflated: the published one has 208,923,136
# By their first bytes. Unlike tarfile's own they inflate no more than is read: 45 bytes of bz2 can be 200 MB.
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_STARS = ("1", "2", "3", "4", "7", "8", "9", "10")


class Imdb:
    """IMDB reviews from an archive, an extracted folder, or a verified download.

    Args:
        path: the archive (``aclImdb_v1.tar.gz``) or the extracted folder; None downloads the published archive.
        labels: ``polarity`` (negative, positive) or ``stars`` (the eight ratings of the file names).
        cache: where a download is kept.

    Raises:
        UserError: a path that does not exist, an archive that is truncated or of another layout, that holds a review
            twice, or that inflates to far more than the published one does.
    """

    name = "imdb"
    synthetic = False

    def __init__(
        self, path: str | Path | None = None, *, labels: str = "polarity", cache: str | Path | None = None
    ) -> None:
        if labels not in ("polarity", "stars"):
            raise UserError(f"data.labels: {choices(labels, ('polarity', 'stars'))}")
        self.labels = labels
        self.classes = ("negative", "positive") if labels == "polarity" else _STARS
        self.cache = Path(cache) if cache else None
        self.path = Path(path).expanduser() if path else None
        if self.path is not None and not self.path.exists():
            raise UserError(f"data.path: {self.path} does not exist; give the IMDB archive or the extracted folder")
        self._content: str | None = None

    def key(self) -> dict[str, object]:
        """The labels and the digest of the content; of a folder, of names, sizes and times."""
        return {"labels": self.labels, "content": self._fingerprint(), "clean": 1}

    def _locate(self) -> Path:
        if self.path is None:
            from kdresearch.data.download import fetch

            self.path = fetch(URL, SHA256, self.cache)
        return self.path

    def _fingerprint(self) -> str:
        if self._content is None:
            path = self._locate()
            self._content = _folder_fingerprint(path) if path.is_dir() else file_sha256(path)
        return self._content

    def rows(self) -> Iterator[Row]:
        """Every review, in the order of the archive or of the sorted file names."""
        path = self._locate()
        files = _folder(path) if path.is_dir() else _archive(path)
        review_ids: set[str] = set()
        for name, content in files:
            match = _MEMBER.search(name)
            if match is None:
                continue
            split, sentiment, number, stars = match.groups()
            text = _BREAK.sub("\n", content.decode("utf-8", "replace")).strip()
            if (review_id := f"{split}/{sentiment}/{number}") in review_ids:
                raise UserError(f"{path} holds the review {review_id} twice (the second time as {name})")
            review_ids.add(review_id)
            part = "unlabelled" if sentiment == "unsup" else split
            yield Row(part, review_id, text, self._label(sentiment, stars))
        if not review_ids:
            raise UserError(f"{path} holds no reviews in the published layout (aclImdb/train/pos/0_9.txt, ...)")

    def _label(self, sentiment: str, stars: str) -> str | None:
        if sentiment == "unsup":
            return None
        return stars if self.labels == "stars" else {"neg": "negative", "pos": "positive"}[sentiment]


class _Member(tarfile.TarInfo):
    """A member whose headers do not fill the memory: tarfile reads a long name whole."""

    @classmethod
    def frombuf(cls, *header: Any) -> Self:
        """As in ``TarInfo``; ReadError for a header of more bytes than a review may have."""
        member = super().frombuf(*header)
        if not member.isreg() and member.size > _LONGEST:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with _inflate(path) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                # The place of the next header, known before anything of the member is inflated.
                if archive.offset > _MAX_INFLATED:
                    raise UserError(
                        f"{path} inflates to more than {_MAX_INFLATED:,} bytes: it is not the published archive"
                    )
                _check_size(path, member.name, member.size)
                file = archive.extractfile(member) if member.isfile() and _MEMBER.search(member.name) else None
                if file is not None:
                    yield member.name, file.read()
            # tarfile takes a header that is cut short for the end of the archive; a whole one ends in a block of zeros.
            if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it has no end")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is truncated or is no tar archive ({error}): fetch it again") from error


def _inflate(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    opener: Any = next((reader for magic, reader in _COMPRESSED.items() if start.startswith(magic)), open)
    stream: IO[bytes] = opener(path, "rb")
    return stream


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in _review_files(path):
        name = file.relative_to(path.parent).as_posix()
        _check_size(path, name, file.stat().st_size)
        yield name, file.read_bytes()


def _check_size(path: Path, name: str, size: int) -> None:
    if size > _LONGEST and _MEMBER.search(name):
        raise UserError(f"{path}: {name} has {size:,} bytes; a review has at most {_LONGEST:,}")


def _review_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*.txt") if _MEMBER.search(file.as_posix()) and file.is_file())


def _folder_fingerprint(path: Path) -> str:
    listing = hashlib.sha256()
    for file in _review_files(path):
        status = os.stat(file)
        listing.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return listing.hexdigest()
