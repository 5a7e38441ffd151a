"""Words by a regular expression, the word-level vocabulary that n-grams stand on, and what subwords share with them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdresearch.data.tokenizers.protocol import WithoutVectors
from kdresearch.data.tokenizers.rows import UNKNOWN, Encoded, EncodedWords, by_words, check_lengths, cut, flat, words_of


def word_level(lowercase: bool) -> Any:
    """An untrained word-level tokenizer (Rust)."""
    from tokenizers import models

    return assemble(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"), lowercase, by_words())


def assemble(model: Any, lowercase: bool, pre_tokenizer: Any) -> Any:
    """A tokenizer (Rust) of canonically composed characters."""
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer(model)
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.encode_special_tokens = True  # a text that says "<pad>" holds no padding
    return tokenizer


def load_words(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "words.json"))
    tokenizer.encode_special_tokens = True  # not part of the file
    return tokenizer


def train_words(tokenizer: Any, texts: Iterable[list[str]], size: int, min_count: int) -> None:
    from tokenizers import trainers

    trainer = trainers.WordLevelTrainer(
        vocab_size=size, min_frequency=min_count, special_tokens=["<pad>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)


class FittedTokenizer(WithoutVectors):
    """A tokenizer in Rust that is fitted on training rows: id 0 is padding, 1 whatever it does not know.

    Args:
        settings: the constructor's arguments.
        words: the tokenizer, not yet trained.
    """

    pad_id = 0

    def __init__(self, settings: dict[str, Any], words: Any) -> None:
        self.settings = settings
        self.max_length, self.truncation = settings["max_length"], settings["truncation"]
        check_lengths(self.max_length, self.truncation)
        self.words = words

    @property
    def size(self) -> int:
        return int(self.words.get_vocab_size())

    def encode(self, texts: list[str]) -> Encoded:
        return cut(*self._ids_of(self.words.encode_batch_fast(texts)), self.max_length, self.truncation)

    def encode_with_words(self, texts: list[str]) -> EncodedWords:
        rows = self.words.encode_batch(texts)  # the fast one gives no offsets
        ids, lengths = self._ids_of(rows)
        words = words_of(texts, [row.offsets or [(0, 0)] for row in rows])
        words, _ = cut(words, lengths, self.max_length, self.truncation)
        return *cut(ids, lengths, self.max_length, self.truncation), words

    @staticmethod
    def _ids_of(rows: list[Any]) -> Encoded:
        return flat([row.ids or [UNKNOWN] for row in rows])

    def save(self, folder: Path) -> None:
        self.words.save(str(folder / "words.json"))

    def load(self, folder: Path) -> None:
        self.words = load_words(folder)


class WordTokenizer(FittedTokenizer):
    """Words and punctuation marks by a regular expression, the most frequent kept.

    A word of a script without spaces (Han, Kana, Thai...) is one character with its combining marks.

    Args:
        size: vocabulary entries, padding and unknown included.
        min_count: occurrences in the training rows below which a word is unknown.
        max_length: tokens kept of a text; None keeps all.
        truncation: which of them: ``head``, ``tail`` or ``head_tail`` (half from each end).
    """

    def __init__(
        self,
        *,
        size: int = 30000,
        min_count: int = 2,
        lowercase: bool = True,
        max_length: int | None = 256,
        truncation: str = "head_tail",
    ) -> None:
        settings: dict[str, Any] = {
            "size": size,
            "min_count": min_count,
            "lowercase": lowercase,
            "max_length": max_length,
            "truncation": truncation,
        }
        super().__init__(settings, word_level(lowercase))

    def key(self) -> dict[str, Any]:
        # One saved under another definition of a word still reads by that one.
        pattern = json.loads(self.words.pre_tokenizer.__getstate__())["pattern"]["Regex"]
        return {"tokenizer": "word", "words": pattern, **self.settings}

    def fit(self, texts: Iterable[list[str]]) -> None:
        train_words(self.words, texts, self.settings["size"], self.settings["min_count"])
