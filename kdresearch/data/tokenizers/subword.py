"""Pieces of words, learnt from the training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from kdresearch.data.tokenizers.rows import RUNS, by_words
from kdresearch.data.tokenizers.unigram import train_unigram
from kdresearch.data.tokenizers.word import FittedTokenizer, assemble
from kdresearch.errors import UserError, choices

MODELS = ("bpe", "unigram")
_SPECIALS = ["<pad>", "<unk>"]


class SubwordTokenizer(FittedTokenizer):
    """Pieces of words, and of whole clauses where a script has no spaces, none across a space or a mark.

    ``bpe`` merges the most frequent pair of pieces again and again (Sennrich et al. 2016); ``unigram`` drops the
    pieces that the likelihood of the rows misses least (Kudo 2018). The first piece of a word begins with "▁". A
    character that is no piece is unknown.

    Args:
        model: ``bpe`` or ``unigram``.
        size: vocabulary entries, padding and unknown included; single characters take at most half of them.
        min_count: occurrences in the training rows below which a character, or a merge, is left out.
        max_length, truncation: as of ``WordTokenizer``.
    """

    def __init__(
        self,
        *,
        model: str = "bpe",
        size: int = 8000,
        min_count: int = 2,
        lowercase: bool = True,
        max_length: int | None = 256,
        truncation: str = "head_tail",
    ) -> None:
        from tokenizers import models

        if model not in MODELS:
            raise UserError(f"student.tokenizer.model: {choices(model, MODELS)}")
        if size < 4:
            raise UserError(f"student.tokenizer.size must be at least 4, not {size}")
        settings: dict[str, Any] = {
            "model": model,
            "size": size,
            "min_count": min_count,
            "lowercase": lowercase,
            "max_length": max_length,
            "truncation": truncation,
        }
        super().__init__(settings, assemble(models.BPE(unk_token="<unk>"), lowercase, _by_runs()))

    def key(self) -> dict[str, Any]:
        return {"tokenizer": self.settings["model"], "words": RUNS, **self.settings}

    def fit(self, texts: Iterable[list[str]]) -> None:
        counts = self._count(texts)
        if self.settings["model"] == "bpe":
            self._fit_bpe(counts)
        else:
            self._fit_unigram(counts)

    def _count(self, texts: Iterable[list[str]]) -> Counter[str]:
        """Occurrences of the words of the texts, cut where a character is too rare to be a piece."""
        normalise, split = self.words.normalizer.normalize_str, self.words.pre_tokenizer.pre_tokenize_str
        words = Counter(word for chunk in texts for text in chunk for word, _ in split(normalise(text)))
        characters: Counter[str] = Counter()
        for word, count in words.items():
            for character in word:
                characters[character] += count
        frequent = sorted(characters, key=lambda character: (-characters[character], character))
        room, least = self.settings["size"] // 2 - 1, self.settings["min_count"]
        rare = {
            ord(letter): " " for place, letter in enumerate(frequent) if place >= room or characters[letter] < least
        }
        occurrences: Counter[str] = Counter()
        for word, count in sorted(words.items()):
            for part in word.translate(rare).split(" "):
                if part:
                    occurrences[part] += count
        return occurrences

    def _fit_bpe(self, counts: Counter[str]) -> None:
        from tokenizers import normalizers, pre_tokenizers, trainers

        trainer = trainers.BpeTrainer(
            vocab_size=self.settings["size"],
            min_frequency=self.settings["min_count"],
            special_tokens=_SPECIALS,
            show_progress=False,
        )
        reading = self.words.normalizer, self.words.pre_tokenizer
        # The words are cut already: as many of each as the rows have.
        self.words.normalizer = normalizers.Sequence([])
        self.words.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
        self.words.train_from_iterator(_repeated(counts), trainer)
        self.words.normalizer, self.words.pre_tokenizer = reading

    def _fit_unigram(self, counts: Counter[str]) -> None:
        from tokenizers import models

        pieces = train_unigram(counts, self.settings["size"] - len(_SPECIALS))
        vocabulary = [*((part, 0.0) for part in _SPECIALS), *pieces]
        self.words = assemble(models.Unigram(vocabulary, unk_id=1), self.settings["lowercase"], _by_runs())


def _by_runs() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [by_words(RUNS), pre_tokenizers.Metaspace(prepend_scheme="always", split=False)]
    )  # fmt: skip


def _repeated(counts: Counter[str], most: int = 10_000) -> Iterator[str]:
    """Each word as often as it was counted, between spaces, in texts of bounded length."""
    for word, count in counts.items():
        for first in range(0, count, most):
            yield " ".join([word] * min(most, count - first))
