"""Which pseudo-samples are kept: readable, new, no copy of a held-out row, within the teacher's bounds.

The filters of the text come first, the cheapest first, so that the teacher is paid for what is left.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from scipy.special import entr

from kdresearch.errors import UserError

OF_TEXT = ("length", "repetition", "training_copy", "duplicate", "leakage")
"""The filters that read the text alone, in the order in which they are applied."""

OF_TEACHER = ("confidence", "entropy")
"""The filters that read the teacher's probabilities."""

ACCEPTED = "kept"
REPEATED_NGRAM = 4
RULES = 2  # short rows are found with a word changed
SHORTEST = 3  # words of a text of which two are a copy of most of it
_APOSTROPHES = re.compile("['’]")
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text, with case, punctuation, white space and Unicode's twins taken away."""
    return _WORD.findall(_APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold()))


def identity(words: Sequence[str]) -> bytes:
    """64 bits by which two texts are one: their words written without a gap, so that ``well-made`` is ``wellmade``."""
    return hashlib.blake2b("".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def repetition(words: Sequence[str], n: int = REPEATED_NGRAM) -> float:
    """The share of a text's n-grams that are repeated ones, 1 - distinct / all (seq-rep-n, Welleck et al. 2020).

    0 for a text that is shorter than n words.
    """
    ngrams = list(zip(*(words[first:] for first in range(n)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def longest_run(words: Iterable[str]) -> int:
    """How many times a word follows itself at most; 1 where none does."""
    return max((sum(1 for _ in run) for _, run in groupby(words)), default=0)


class HeldOut:
    """Texts that nothing may be trained on, by the hashes of their word n-grams.

    Short rows are beyond n-grams: of fewer than 2n words, one changed in the middle leaves none of them whole. They are
    known by what is left of them without a word as well.

    Args:
        texts: R rows.
        ngram: n.
        passage: a row longer than this many words counts as one of this length; see ``overlap``.
    """

    def __init__(self, texts: Iterable[str], ngram: int, passage: int) -> None:
        self.ngram, self.passage = ngram, passage
        self._ids: dict[str, int] = {}  # of every word that occurs; any other word makes an n-gram that does not
        self._equal: set[bytes] = set()
        self._shortened: set[bytes] = set()  # short rows, without each of their words
        lengths, hashes = [], []
        for text in texts:
            read = words(text)
            self._equal.add(identity(read))
            if SHORTEST <= len(read) <= 2 * ngram:
                self._shortened |= _without(read)
            ids = np.fromiter((self._ids.setdefault(word, len(self._ids)) for word in read), np.int64, len(read))
            lengths.append(len(ids))
            hashes.append(np.unique(self._hashes(ids)))
        self._lengths = np.array(lengths, np.int64)
        all_hashes = np.concatenate([np.empty(0, np.uint64), *hashes])
        order = np.argsort(all_hashes, kind="stable")
        self._sorted = all_hashes[order]  # [G] n-grams, one for each row that has it
        self._row = np.repeat(np.arange(len(hashes), dtype=np.int32), [len(row_hashes) for row_hashes in hashes])[
            order
        ]  # [G]

    def overlap(self, read: Sequence[str]) -> float:
        """How much of a text is in one held-out row, at most: 1 for a copy, 0 for nothing in common.

        The words of the text that lie in an n-gram which the row also has, as a share of the text's words, or, of a
        text that is shorter than the row, of the row's (but no more than ``passage``): a common phrase that occurs in
        a long review is not a copy of it, half a review is. A text of fewer than 2n words has all but one word in
        common with a row that differs from it by one word (another, moved, one more, one less), and else nothing.

        Args:
            read: ``words`` of the text, W of them.
        """
        if identity(read) in self._equal:
            return 1.0
        if len(read) < 2 * self.ngram:
            return self._edited(read) if len(read) >= SHORTEST else 0.0
        ids = np.fromiter((self._ids.get(word, -1) for word in read), np.int64, len(read))
        hashes = self._hashes(ids)
        first, last = (np.searchsorted(self._sorted, hashes, side) for side in ("left", "right"))
        count = last - first
        if not count.sum():
            return 0.0
        # Every meeting of an n-gram of the text, at its place, with a row that has it.
        place = np.repeat(np.arange(len(hashes)), count)
        row = self._row[np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count)]
        denominators = np.maximum(np.minimum(self._lengths, self.passage), len(read))
        # What each row can cover at most, n words at each meeting: only few rows are worth an exact look.
        bound = np.bincount(row, minlength=len(denominators)) * self.ngram / denominators
        best = 0.0
        while bound[candidate := bound.argmax()] > best:
            covered = np.unique(place[row == candidate, None] + np.arange(self.ngram)).size
            best, bound[candidate] = max(best, covered / denominators[candidate]), 0.0
        return float(best)

    def _edited(self, read: Sequence[str]) -> float:
        """What a short text shares with a row that it differs from by one word."""
        if identity(read) in self._shortened:
            return len(read) / (len(read) + 1)
        shortened = _without(read)
        same = not (shortened.isdisjoint(self._shortened) and shortened.isdisjoint(self._equal))
        return (len(read) - 1) / len(read) if same else 0.0

    def _hashes(self, ids: np.ndarray) -> np.ndarray:
        """A hash for each n-gram of the word ids [W]: [max(0, W - n + 1)] uint64."""
        mixed = _mixed(ids.astype(np.uint64))
        size = max(0, len(ids) - self.ngram + 1)
        hashes = np.zeros(size, np.uint64)
        for offset in range(self.ngram):
            hashes = _mixed(hashes + mixed[offset : offset + size])
        return hashes


def _without(read: Sequence[str]) -> set[bytes]:
    """What is left of a text without the word at each place."""
    return {identity([*read[:place], *read[place + 1 :]]) for place in range(len(read))}


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that leaves no pattern (splitmix64, Steele et al. 2014)."""
    mixed: np.ndarray = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@dataclass(frozen=True)
class Filters:
    """The bounds of a pseudo-sample; each filter throws away what lies outside its bounds.

    Args:
        min_words, max_words: length in words; None for no upper bound.
        max_repetition: share of the 4-grams that are repeated ones.
        max_run: times that a word may stand in a row.
        leakage_ngram, leakage_share: a sample leaks if at least this share of its words lies in n-grams of this many
            words that one held-out row has as well; see ``HeldOut.overlap``. A copy with every fifth word changed
            still shares 4-grams, and no 5-gram.
        leakage_passage: words up to which a shorter sample must cover a held-out row to be a copy of it.
        min_confidence, max_confidence: of the teacher, the probability of its class.
        min_entropy, max_entropy: of the teacher's distribution, as a share of log C: 1 where all classes are alike.

    Raises:
        UserError: bounds that nothing can satisfy, or out of their range.
    """

    min_words: int = 1
    max_words: int | None = None
    max_repetition: float = 0.3
    max_run: int = 5
    leakage_ngram: int = 4
    leakage_share: float = 0.5
    leakage_passage: int = 32
    min_confidence: float = 0.0
    max_confidence: float = 1.0
    min_entropy: float = 0.0
    max_entropy: float = 1.0

    def __post_init__(self) -> None:
        for name in ("min_words", "max_run", "leakage_ngram", "leakage_passage"):
            if getattr(self, name) < 1:
                raise UserError(f"generator.filters.{name} must be at least 1, not {getattr(self, name)}")
        bands = (f"{end}_{name}" for name in OF_TEACHER for end in ("min", "max"))
        for name in ("max_repetition", "leakage_share", *bands):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"generator.filters.{name} must be from 0 to 1, not {getattr(self, name)}")
        if not self.leakage_share:
            raise UserError("generator.filters.leakage_share must be above 0, at which every text is a leak")
        for name in ("words", *OF_TEACHER):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if most is not None and least > most:
                raise UserError(
                    f"generator.filters.min_{name}={least} is above generator.filters.max_{name}={most}: nothing could "
                    "be kept"
                )

    def key(self) -> dict[str, Any]:
        """The settings of the filters of the text, which are those that a pool depends on, and the rules' version."""
        settings = {name: value for name, value in asdict(self).items() if not name.endswith(OF_TEACHER)}
        return {"rules": RULES, **settings}

    @property
    def ask_teacher(self) -> bool:
        """Whether a filter of the teacher's could throw anything away."""
        return any(
            getattr(self, f"{end}_{name}") != bound for name in OF_TEACHER for end, bound in (("min", 0), ("max", 1))
        )

    def by_teacher(self, probabilities: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
        """The texts that pass the teacher's filters: a mask [N] bool, and how many each threw away.

        See ``teacher_verdicts``.
        """
        verdicts = self.teacher_verdicts(probabilities)
        return verdicts == ACCEPTED, count_verdicts(verdicts, OF_TEACHER)

    def teacher_verdicts(self, probabilities: np.ndarray) -> np.ndarray:
        """The first filter, of ``OF_TEACHER``, that throws a text away, or ``kept``: [N] strings.

        Args:
            probabilities: [N, C], rows that sum to 1, of the texts that the others have left.
        """
        table = probabilities.ndim == 2 and probabilities.shape[1] > 1
        if not table or (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
            raise ValueError(f"rows of probabilities [N, C] are needed, not an array {list(probabilities.shape)}")
        # Rounding must not put a certain or an undecided teacher beyond 1.
        confidence = np.minimum(probabilities.max(1), 1)
        share = np.minimum(entr(probabilities.astype(np.float64)).sum(1) / np.log(probabilities.shape[1]), 1)
        unsure = (confidence < self.min_confidence) | (confidence > self.max_confidence)
        outside = (share < self.min_entropy) | (share > self.max_entropy)
        return np.select([unsure, outside], OF_TEACHER, ACCEPTED)


class TextFilter:
    """The filters of the text, applied to sample after sample: it remembers those that passed.

    Args:
        training: texts whose copies are no new samples.
        held_out: validation and test texts.
    """

    def __init__(self, filters: Filters, training: Iterable[str], held_out: Iterable[str]) -> None:
        self.filters = filters
        self._training = {identity(words(text)) for text in training}
        self._passed: set[bytes] = set()
        self._held_out = HeldOut(held_out, filters.leakage_ngram, filters.leakage_passage)

    def verdict(self, text: str) -> str:
        """The first filter, of ``OF_TEXT``, that throws the text away, or ``kept``."""
        bounds, read = self.filters, words(text)
        if len(read) < bounds.min_words or (bounds.max_words is not None and len(read) > bounds.max_words):
            return "length"
        if repetition(read) > bounds.max_repetition or longest_run(read) > bounds.max_run:
            return "repetition"
        name = identity(read)
        if name in self._training:
            return "training_copy"
        if name in self._passed:
            return "duplicate"
        self._passed.add(name)
        return "leakage" if self._held_out.overlap(read) >= bounds.leakage_share else ACCEPTED


def count_verdicts(verdicts: Sequence[str] | np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """How many samples each filter threw away, in their order, and how many are ``kept``."""
    counts = Counter(map(str, verdicts))
    return {name: counts[name] for name in (*names, ACCEPTED)}
