"""A text as the set of its n-grams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdresearch.data.tokenizers.protocol import WithoutVectors
from kdresearch.data.tokenizers.rows import UNKNOWN, Encoded, check_lengths, cut, flat
from kdresearch.data.tokenizers.word import load_words, train_words, word_level
from kdresearch.errors import UserError

_CHARACTERS = np.uint64(0x6368617261637465)  # what names of character n-grams begin with, so that no word has the same


class NgramTokenizer(WithoutVectors):
    """The set of a text's word n-grams: ids of 1 to ``orders`` words in a row, each once, in no order.

    Exact n-grams keep the ``size`` that occur in most training rows; ``hashed`` ones fold every n-gram of known
    words into ``size`` buckets (Weinberger et al. 2009). With ``characters``, the character n-grams within words are
    features, too, in the same vocabulary: those of each stretch between white space with a space on either side, and
    the whole of a stretch that is shorter than the shortest (scikit-learn's ``char_wb``).

    Args:
        orders: the longest n-gram of words.
        characters: the shortest and the longest n-gram of characters; None takes none.
        size: features, the padding id 0 not included.
        min_count: training rows below which an exact n-gram is dropped.
        max_length: words of the text that are read; None reads all.
    """

    pad_id = 0
    _MERGE = 8_000_000  # n-grams held before they are folded into the running counts: bounds the memory of fit

    def __init__(
        self,
        *,
        orders: int = 3,
        size: int = 500_000,
        min_count: int = 2,
        hashed: bool = False,
        lowercase: bool = True,
        max_length: int | None = None,
        truncation: str = "head_tail",
        characters: Sequence[int] | None = None,
    ) -> None:
        check_lengths(max_length, truncation)
        if orders < 1:
            raise UserError(f"orders must be at least 1, not {orders}")
        if characters is not None:
            _check_characters(characters)
        self.settings: dict[str, Any] = {
            "orders": orders,
            "size": size,
            "min_count": min_count,
            "hashed": hashed,
            "lowercase": lowercase,
            "max_length": max_length,
            "truncation": truncation,
        }
        if characters is not None:  # what came later and is off makes no other tokenizer
            self.settings["characters"] = list(characters)
        self.characters = characters
        self.orders, self.buckets, self.hashed = orders, size, hashed
        self.max_length, self.truncation = max_length, truncation
        self.words = word_level(lowercase)
        self.keys = np.empty(0, np.uint64)  # sorted 64-bit names of the exact n-grams
        self.lengths: np.ndarray | None = None  # [size] words of each feature: see ``fit``

    @property
    def size(self) -> int:
        return 1 + (self.buckets if self.hashed else len(self.keys))

    def key(self) -> dict[str, Any]:
        return {"tokenizer": "ngram", "format": 2, **self.settings}

    def fit(self, texts: Iterable[list[str]]) -> None:
        """Learn the vocabulary; ``lengths`` then says how many words an exact feature has, 0 if it has characters."""
        chunks: list[list[str]] = []

        def remember() -> Iterator[list[str]]:
            for chunk in texts:
                chunks.append(chunk)
                yield chunk

        train_words(self.words, remember(), 1 << 31, 1)
        if self.hashed:
            return
        keys, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        fresh: list[np.ndarray] = []
        for chunk in chunks:
            fresh.append(self._names(chunk)[0])
            if sum(map(len, fresh)) > self._MERGE:
                keys, counts = _merge_counts(keys, counts, fresh)
                fresh = []
        keys, counts = _merge_counts(keys, counts, fresh)
        frequent = counts >= self.settings["min_count"]
        keys, counts = keys[frequent], counts[frequent]
        most = np.lexsort((keys, -counts))[: self.buckets]
        self.keys = np.sort(keys[most])
        self.lengths = np.zeros(self.size, np.int8)
        for chunk in chunks:
            for order, (names, _) in enumerate(self._ngrams(*self._read(chunk)), 1):
                self.lengths[self._features(names)] = order
        self.lengths[0] = 0

    def encode(self, texts: list[str]) -> Encoded:
        names, rows = self._names(texts)
        ids = self._features(names)
        ids, rows = ids[ids > 0], rows[ids > 0]
        flat = np.unique(rows * self.size + ids)  # each feature once per row, rows in order
        rows, ids = np.divmod(flat, self.size)
        return ids.astype(np.int32), np.bincount(rows, minlength=len(texts))

    def members(self, texts: Iterable[list[str]]) -> np.ndarray:
        """The words that each feature of words consists of, found again in the texts that it was fitted on.

        Returns:
            ids of ``words`` [size, orders] int32, 0 from where an n-gram ends; all 0 where no text holds the feature.
            Of n-grams that share a bucket, the first chunk's shortest.
        """
        members = np.zeros((self.size, self.orders), np.int32)
        for chunk in texts:
            ids, lengths = self._read(chunk)
            for order, (names, starts) in enumerate(self._ngrams(ids, lengths), 1):
                feature, first = np.unique(self._features(names), return_index=True)
                new = members[feature, 0] == 0
                new[feature == 0] = False
                feature, first = feature[new], starts[first[new]]
                members[feature, :order] = ids[first[:, None] + np.arange(order)]
        return members

    def _read(self, texts: list[str]) -> Encoded:
        """The ids of the words of each text, flat, and how many."""
        rows = self.words.encode_batch_fast(texts)
        return cut(*flat([row.ids for row in rows]), self.max_length, self.truncation)

    def _features(self, names: np.ndarray) -> np.ndarray:
        """The feature of each n-gram's name; 0 where there is none."""
        if self.hashed:
            return (names % np.uint64(self.buckets)).astype(np.int64) + 1
        place = np.searchsorted(self.keys, names)
        matches = place < len(self.keys)
        matches[matches] = self.keys[place[matches]] == names[matches]
        return np.where(matches, place + 1, 0)

    def _ngrams(self, ids: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """From order 1 on: the 64-bit names of the n-grams of known words, and where in ``ids`` each starts."""
        yield from _runs(ids.astype(np.uint64), ids != UNKNOWN, _count_remaining(lengths), self.orders, np.uint64(0))

    def _character_ngrams(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The names of the n-grams of characters, and the row of each."""
        assert self.characters is not None
        shortest, longest = self.characters
        symbols, lengths, row = self._read_characters(texts)
        remaining, begins = _count_remaining(lengths), np.zeros(len(symbols), bool)
        begins[np.cumsum(lengths) - lengths] = True
        runs = _runs(symbols, np.ones(len(symbols), bool), remaining, longest, _CHARACTERS)
        for order, (names, starts) in enumerate(runs, 1):
            if order < shortest:
                complete = begins[starts] & (remaining[starts] == order)
                names, starts = names[complete], starts[complete]
            yield names, row[starts]

    def _read_characters(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Code points of all words between spaces, flat; the length of each word; the row of each code point."""
        words = [self.words.normalizer.normalize_str(text).split() for text in texts]
        counts = np.fromiter(map(len, words), np.int64, len(words))
        every = [f" {word} " for row in words for word in row]
        places, counts = cut(np.arange(len(every)), counts, self.max_length, self.truncation)
        every = [every[place] for place in places]
        lengths = np.fromiter(map(len, every), np.int64, len(every))
        symbols = np.frombuffer("".join(every).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        return symbols, lengths, np.repeat(np.repeat(np.arange(len(texts)), counts), lengths)

    def _names(self, texts: list[str]) -> Encoded:
        """64-bit names of the distinct n-grams of known words (and of characters) of each text, and the row of each."""
        ids, lengths = self._read(texts)
        row = np.repeat(np.arange(len(texts)), lengths)
        ngrams = [(names, row[starts]) for names, starts in self._ngrams(ids, lengths)]
        if self.characters is not None:
            ngrams += self._character_ngrams(texts)
        all_names, all_rows = (np.concatenate(side) for side in zip(*ngrams, strict=True))
        order = np.lexsort((all_names, all_rows))
        all_names, all_rows = all_names[order], all_rows[order]
        first = np.ones(len(all_names), bool)
        first[1:] = (all_names[1:] != all_names[:-1]) | (all_rows[1:] != all_rows[:-1])
        return all_names[first], all_rows[first]

    def save(self, folder: Path) -> None:
        self.words.save(str(folder / "words.json"))
        np.save(folder / "ngrams.npy", self.keys)
        if self.lengths is not None:
            np.save(folder / "lengths.npy", self.lengths)

    def load(self, folder: Path) -> None:
        self.words = load_words(folder)
        self.keys = np.load(folder / "ngrams.npy")
        lengths_file = folder / "lengths.npy"
        self.lengths = np.load(lengths_file) if lengths_file.exists() else None


def _check_characters(characters: Sequence[int]) -> None:
    lengths = list(characters) if isinstance(characters, Sequence) and not isinstance(characters, str) else []
    integers = all(isinstance(length, int) and not isinstance(length, bool) for length in lengths)
    if len(lengths) != 2 or not integers or not 1 <= lengths[0] <= lengths[1]:
        raise UserError(
            f"characters: the shortest and the longest n-gram, e.g. [3, 5], or null for none, not {characters!r}"
        )


def _count_remaining(lengths: np.ndarray) -> np.ndarray:
    """How many symbols there are from each one to its sequence's end, itself included."""
    return np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum())


def _runs(
    symbols: np.ndarray, in_vocabulary: np.ndarray, remaining: np.ndarray, longest: int, seed: np.uint64
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """From order 1 on: the 64-bit names of the runs of known symbols within a sequence, and where each starts."""
    name, complete = np.full(len(symbols), seed), np.ones(len(symbols), bool)
    for order in range(1, longest + 1):
        # Of the run that starts at each position: its name, and whether all its symbols are known.
        name, complete = _mix(name[: len(symbols)] + symbols), complete[: len(symbols)] & in_vocabulary
        starts = np.flatnonzero(complete & (remaining[: len(symbols)] >= order))
        yield name[starts], starts
        symbols, in_vocabulary = symbols[1:], in_vocabulary[1:]
        if not len(symbols):
            break


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection that scatters 64-bit integers."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    return value


def _merge_counts(keys: np.ndarray, counts: np.ndarray, fresh: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Fold new occurrences into sorted distinct keys and their counts."""
    if not fresh:
        return keys, counts
    new, occurrences = np.unique(np.concatenate(fresh), return_counts=True)
    merged, inverse = np.unique(np.concatenate([keys, new]), return_inverse=True)
    total = np.bincount(inverse, weights=np.concatenate([counts, occurrences]), minlength=len(merged))
    return merged, total.astype(np.int64)
