"""Rows of token ids as flat arrays: cutting them, and finding the word that each token comes from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from kdresearch.errors import UserError, choices

TRUNCATIONS = ("head", "tail", "head_tail")
# Scripts whose lines may end between any two letters or wherever a dictionary says, since no space ends a word (UAX 14,
# classes ID and SA, and two of AK). Not Tibetan, whose tsheg ends every syllable, nor Hangul, which has spaces.
UNSPACED = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Nushu", "Tangut", "Khitan_Small_Script"),
    *("Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom"),
    *("Balinese", "Javanese"),
)
# Kana's marks of length and repetition belong to no one script.
_LETTERS = "".join(rf"\p{{{script}}}" for script in UNSPACED) + "〆〱-〵〼ーｰ"
_LETTER = rf"[[{_LETTERS}]&&[\p{{L}}\p{{Nl}}]]"
_CHARACTER = rf"{_LETTER}[\p{{M}}ﾞﾟ]*"
_SPACED = rf"(?:(?!{_LETTER})\w)"  # \w within brackets is another in Oniguruma: without ² and ½
_SPACED_WORD = rf"{_SPACED}+(?:['’]{_SPACED}+)*"
WORDS = rf"{_SPACED_WORD}|{_CHARACTER}|[^\w\s]"
RUNS = rf"{_SPACED_WORD}|(?:{_CHARACTER})+|[^\w\s]"  # of which subwords are learnt
UNKNOWN = 1  # id of a word outside the vocabulary, where it is fitted here
NO_WORD = -1  # of a token that belongs to no word
Encoded = tuple[np.ndarray, np.ndarray]
EncodedWords = tuple[np.ndarray, np.ndarray, np.ndarray]


def cut(ids: np.ndarray, lengths: np.ndarray, max_length: int | None, truncation: str) -> Encoded:
    """Shorten rows of flat ids to ``max_length``: their head, their tail, or half of each.

    Args:
        ids: [sum of lengths]; lengths: [N].
    """
    if max_length is None or not len(lengths) or lengths.max() <= max_length:
        return ids, lengths
    head = {"head": max_length, "tail": 0, "head_tail": (max_length + 1) // 2}[truncation]
    row_ends = np.cumsum(lengths)
    place = np.arange(len(ids)) - np.repeat(row_ends - lengths, lengths)  # position within the row
    from_end = np.repeat(lengths, lengths) - place
    long = np.repeat(lengths > max_length, lengths)
    keep = ~long | (place < head) | (from_end <= max_length - head)
    return ids[keep], np.minimum(lengths, max_length)


def check_lengths(max_length: int | None, truncation: str) -> None:
    if truncation not in TRUNCATIONS:
        raise UserError(f"truncation: {choices(truncation, TRUNCATIONS)}")
    if max_length is not None and max_length < 1:
        raise UserError(f"max_length must be at least 1, not {max_length}")


def flat(rows: Sequence[Sequence[int]]) -> Encoded:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def by_words(pattern: str = WORDS) -> Any:
    """What splits a text into its words (Rust, whose ``\\w`` holds combining marks, unlike that of Python's ``re``)."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)


def words_of(texts: list[str], spans: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """The word of each token [sum of lengths] int32, by the characters of its text that each comes from.

    Args:
        spans: per text, the first character of each token and the one after its last; equal where it has none.
    """
    split = by_words()
    # All texts end to end, so that a place names its text, too.
    long = np.fromiter(map(len, texts), np.int64, len(texts))
    base = np.cumsum(long) - long
    words, counts = _places([[span for _, span in split.pre_tokenize_str(text)] for text in texts], base)
    tokens, lengths = _places(spans, base)
    first = np.searchsorted(words[:, 1], tokens[:, 0], side="right")  # the first word that ends after a token's start
    within = (first < len(words)) & (tokens[:, 0] < tokens[:, 1])
    within[within] = words[first[within], 0] < tokens[within, 1]
    earlier = np.repeat(np.cumsum(counts) - counts, lengths)
    return np.where(within, first - earlier, NO_WORD).astype(np.int32)


def _places(spans: Sequence[Sequence[tuple[int, int]]], base: np.ndarray) -> Encoded:
    """Spans of each text, shifted by its base [N]: starts and ends [sum of counts, 2], and counts [N]."""
    counts = np.fromiter(map(len, spans), np.int64, len(spans))
    flat = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int64, 2 * int(counts.sum()))
    return flat.reshape(-1, 2) + np.repeat(base, counts)[:, None], counts
