"""Encoding: a part's texts as flat, memory-mapped token ids, made once and kept in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdresearch.artifacts import Store, digest
from kdresearch.data.corpus import Corpus, Part
from kdresearch.data.tokenizers import NO_WORD, WORDS, TextTokenizer, gives_words
from kdresearch.errors import UserError
from kdresearch.structures import Tokens

FORMAT = 1


def fitted(
    tokenizer: TextTokenizer,
    corpus: Corpus,
    train: np.ndarray,
    store: Store,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Fit a tokenizer on the training rows, or load it as fitted before; returns its fingerprint.

    Args:
        train: corpus-wide indices [N] of the rows that are trained on.
    """
    settings = tokenizer.key()
    if settings["tokenizer"] == "pretrained":
        return digest(settings)
    # A vocabulary is one of words as they are defined now.
    key = {"format": FORMAT, "words": WORDS, **settings, "corpus": corpus.fingerprint, "rows": rows_digest(train)}

    def build(folder: Path) -> None:
        say(f"fitting the {settings['tokenizer']} tokenizer on {len(train):,} rows")
        tokenizer.fit(corpus.texts(np.sort(train)))
        if tokenizer.size < (size := settings.get("size", 0)):
            say(f"the {settings['tokenizer']} tokenizer has {tokenizer.size:,} entries: the rows give no {size:,}")
        tokenizer.save(folder)

    folder = store.build("tokenizer", key, build, waiting=say)
    tokenizer.load(folder)  # type: ignore[attr-defined]
    return folder.name


def rows_digest(rows: np.ndarray) -> str:
    """The identity of a set of rows [N]."""
    return hashlib.sha256(np.sort(rows).astype(np.int64).tobytes()).hexdigest()[:24]


@dataclass(frozen=True)
class EncodedPart:
    """Token ids of some rows of a part."""

    start: int
    rows: np.ndarray  # [N] sorted rows within the part
    offsets: np.ndarray  # [N + 1]
    ids: np.ndarray  # [offsets[-1]] int32, memory-mapped
    words: np.ndarray | None = None  # [offsets[-1]] int32, memory-mapped: the word of each token

    def same_ids(self, reference: EncodedPart) -> bool:
        """Whether the same rows were given the same ids."""
        return self.start == reference.start and all(
            np.array_equal(getattr(self, name), getattr(reference, name)) for name in ("rows", "offsets", "ids")
        )


class EncodedRows:
    """Token ids by corpus-wide index."""

    def __init__(self, encoded_parts: list[EncodedPart], pad_id: int) -> None:
        self.encoded_parts = encoded_parts
        self.pad_id = pad_id
        self._starts = np.array([part.start for part in encoded_parts])
        self._with_words = any(part.words is not None for part in encoded_parts)
        self._longest = max((int(np.diff(part.offsets).max(initial=1)) for part in encoded_parts), default=1)

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """Tokens of each row [N]."""
        lengths = np.empty(len(index), np.int64)
        for part, here, places in self._locate(index):
            lengths[here] = part.offsets[places + 1] - part.offsets[places]
        return lengths

    def tokens(self, index: np.ndarray) -> Tokens:
        """The rows padded to the longest of them, or up to 7 tokens more: ids, mask and, where read, words [B, T]."""
        rows, words = ([np.empty(0, np.int32)] * len(index) for _ in range(2))
        for part, here, places in self._locate(index):
            for number, place in zip(here, places, strict=True):
                row = slice(part.offsets[place], part.offsets[place + 1])
                rows[number] = part.ids[row]
                if part.words is not None:
                    words[number] = part.words[row]
        return pad(rows, self.pad_id, self._longest, words if self._with_words else None)

    def same_ids(self, reference: EncodedRows) -> bool:
        """Whether both hold the same rows, and all the same ids for them."""
        return len(self.encoded_parts) == len(reference.encoded_parts) and all(
            map(EncodedPart.same_ids, self.encoded_parts, reference.encoded_parts)
        )

    def _locate(self, index: np.ndarray) -> Iterator[tuple[EncodedPart, np.ndarray, np.ndarray]]:
        """Positions within ``index`` by part, and the places of their rows in it; KeyError on a row without tokens."""
        number = np.searchsorted(self._starts, index, side="right") - 1
        if (number < 0).any():
            raise KeyError(f"row {index[number < 0][0]} was not encoded")
        for at in np.unique(number):
            part, here = self.encoded_parts[at], np.flatnonzero(number == at)
            rows = index[here] - part.start
            places = np.minimum(np.searchsorted(part.rows, rows), len(part.rows) - 1)
            if (wrong := part.rows[places] != rows).any():
                raise KeyError(f"row {index[here][wrong][0]} was not encoded")
            yield part, here, places


class WordRows(EncodedRows):
    """Rows read with their words, of which each word is one token (of no id): what is said of them is said by word."""

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """Words of each row [N]."""
        return np.fromiter(map(len, self._words(index)), np.int64, len(index))

    def tokens(self, index: np.ndarray) -> Tokens:
        """The words of the rows in order, padded as tokens are."""
        words = self._words(index)
        return pad([np.full(len(row), self.pad_id, np.int32) for row in words], self.pad_id, self._longest, words)

    def _words(self, index: np.ndarray) -> list[np.ndarray]:
        words = [np.empty(0, np.int32)] * len(index)
        for part, here, places in self._locate(index):
            assert part.words is not None
            for number, place in zip(here, places, strict=True):
                row = np.unique(part.words[part.offsets[place] : part.offsets[place + 1]])
                words[number] = row[row != NO_WORD]
        return words


def pad(
    rows: list[np.ndarray], pad_id: int, at_most: int | None = None, words: list[np.ndarray] | None = None
) -> Tokens:
    """Rows of ids as one batch: ids [B, T] int64, mask [B, T] and, where given, words [B, T] int64, -1 on padding.

    Args:
        at_most: where given, T is rounded up to a multiple of 8 not beyond this: oneDNN keeps buffers for every
            shape that it has seen, and a memory that grows with the number of lengths is halved by it.
        words: of the tokens of each row, as long as the row.
    """
    longest = max((1, *(len(row) for row in rows)))
    if at_most is not None:
        longest = max(longest, min(-(-longest // 8) * 8, at_most))
    mask = np.arange(longest) < np.fromiter(map(len, rows), np.int64, len(rows))[:, None]

    def padded(values: list[np.ndarray], filling: int) -> torch.Tensor:
        table = np.full(mask.shape, filling, np.int64)
        for number, row in enumerate(values):
            table[number, : len(row)] = row
        return torch.from_numpy(table)

    return Tokens(padded(rows, pad_id), torch.from_numpy(mask), None if words is None else padded(words, NO_WORD))


def encoded(
    tokenizer: TextTokenizer,
    fingerprint: str,
    corpus: Corpus,
    index: np.ndarray,
    store: Store,
    say: Callable[[str], None] = lambda _: None,
    *,
    words: bool = False,
) -> EncodedRows:
    """Encode the rows named by corpus-wide indices [N], each part an artifact of its own.

    Args:
        fingerprint: of the fitted tokenizer, from ``fitted``.
        words: also read the word of each token, which is an artifact beside that of the ids.

    Raises:
        UserError: words asked of a tokenizer that does not give them.
    """
    encoded_parts = []
    for part, rows, _ in corpus.locate(index):
        rows = np.unique(rows)
        encoded_parts.append(_encoded_part(tokenizer, fingerprint, corpus, part, rows, store, say, words))
    return EncodedRows(encoded_parts, tokenizer.pad_id)


def _encoded_part(
    tokenizer: TextTokenizer,
    fingerprint: str,
    corpus: Corpus,
    part: Part,
    rows: np.ndarray,
    store: Store,
    say: Callable[[str], None],
    words: bool,
) -> EncodedPart:
    key = {
        "format": FORMAT,
        "tokenizer": fingerprint,
        "corpus": corpus.fingerprint,
        "part": part.name,
        "rows": "all" if len(rows) == len(part) else rows_digest(rows),
    }

    def build(folder: Path) -> None:
        say(f"encoding {len(rows):,} rows of {part.name}")
        lengths = []
        with (folder / "ids.bin").open("wb") as file:
            for texts in part.take_texts(rows):
                ids, chunk = tokenizer.encode(texts)
                ids.astype(np.int32).tofile(file)
                lengths.append(chunk)
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64))
        (folder / "encoded.json").write_text(json.dumps({"tokenizer": tokenizer.key(), "part": part.name}))

    folder = store.build("encoded", key, build, waiting=say)
    offsets = np.load(folder / "offsets.npy")
    encoded_part = EncodedPart(part.start, rows, offsets, _flat_file(folder / "ids.bin"))
    if not words:
        return encoded_part
    if not gives_words(tokenizer):
        raise UserError(f"the {tokenizer.key()['tokenizer']} tokenizer does not say which word a token belongs to")

    def build_words(folder: Path) -> None:
        say(f"finding the words of {len(rows):,} rows of {part.name}")
        with (folder / "words.bin").open("wb") as file:
            for texts in part.take_texts(rows):
                tokenizer.encode_with_words(texts)[2].tofile(file)

    folder = store.build("words", {**key, "words": WORDS}, build_words, waiting=say)
    return replace(encoded_part, words=_flat_file(folder / "words.bin"))


def _flat_file(path: Path) -> np.ndarray:
    """A file of int32, memory-mapped unless it is empty."""
    return np.memmap(path, np.int32, "r") if path.stat().st_size else np.empty(0, np.int32)
