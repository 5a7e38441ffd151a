from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from kdresearch.errors import UserError
from kdresearch.generation.generator import Preparation
from kdresearch.generation.resample import Resample

TEXT = "The film -- it's  fine,\nreally!"


def prepared(generator: Any, texts: Sequence[str]) -> Any:
    generator.prepare(Preparation(texts, np.full(len(texts), -1), ("no", "yes"), Path("unused")))
    return generator


class Scripted:
    """Randomness that is written down."""

    def __init__(self, draws: list[float], ngram: float, integers: list[int]) -> None:
        self.draws, self.ngram, self.given, self.asked = draws, ngram, list(integers), []

    def random(self, size: int | None = None) -> Any:
        assert size in (None, len(self.draws))
        return self.ngram if size is None else np.array(self.draws)

    def integers(self, *bounds: int) -> int:
        self.asked.append(bounds)
        return self.given.pop(0)


@pytest.mark.parametrize(
    ("draws", "ngram", "integers", "expected", "asked"),
    [
        # X < 0.2 masks, 0.2 <= X < 0.5 replaces, else the word stays; what is between the words stays in any case
        ([0.1, 0.9, 0.2, 0.5, 0.19], 0.25, [6], "[MASK] film -- A  fine,\n[MASK]!", [(18,)]),
        ([0.49, 0.5, 0.6, 0.7, 0.8], 0.9, [7], "now film -- it's  fine,\nreally!", [(18,)]),
        # after the sweep, with probability 0.25, an n-gram: n from 1 to 5, then where it starts
        ([0.9, 0.1, 0.9, 0.9, 0.9], 0.24, [3, 1], "[MASK] -- it's  fine", [(1, 6), (3,)]),
        ([0.9, 0.9, 0.9, 0.9, 0.9], 0.0, [1, 4], "really", [(1, 6), (5,)]),
    ],
)
def test_the_published_procedure_by_hand(
    draws: list[float], ngram: float, integers: list[int], expected: str, asked: list[tuple[int, ...]]
) -> None:
    # 18 words, in a line by their counts: The film it's fine really A A now x x x x x y y y y y
    corpus = ["The film it's fine, really: A A now", *["x y"] * 5]
    generator = prepared(Resample(p_mask=0.2, p_replace=0.3, p_ng=0.25), corpus)
    random = Scripted(draws, ngram, integers)
    assert generator._sample(TEXT, random) == expected
    assert random.asked == asked


def test_no_probability_gives_the_texts_themselves() -> None:
    texts = [TEXT, "  A dull film.\n", "?!", "wörd"]
    made = prepared(Resample(p_mask=0, p_replace=0, p_ng=0, n_iter=3), texts).generate(50, seed=4, start=0)
    assert Counter(made) == dict.fromkeys(texts, 3)


def test_each_example_n_iter_times_in_any_chunks() -> None:
    texts = [f"w{number}" for number in range(10)]
    generator = prepared(Resample(p_mask=0, p_replace=0, n_iter=4), texts)
    chunks = [generator.generate(7, seed, start) for seed, start in enumerate(range(0, 42, 7))]
    assert [len(chunk) for chunk in chunks] == [7, 7, 7, 7, 7, 5]
    made = [text for chunk in chunks for text in chunk]
    for first in range(0, 40, 10):
        assert sorted(made[first : first + 10]) == texts
    assert made[:10] not in (texts, made[10:20])  # a corpus that is sorted by class does not come sorted
    assert generator.generate(7, 0, 40) == []


def test_a_chunk_is_a_function_of_its_seed() -> None:
    texts = ["a fine film with a fine plot and no end", "the acting is dull but the music saves it"]
    one, other = (prepared(Resample(), texts) for _ in range(2))
    assert one.generate(20, 3, 0) == other.generate(20, 3, 0)
    assert one.generate(20, 3, 0) != one.generate(20, 4, 0)
    assert one.key() == other.key() != Resample(p_mask=0.2).key()


def test_masks_and_replacements_are_as_frequent_as_asked() -> None:
    text = " ".join(f"w{number}" for number in range(50))
    generator = prepared(Resample(p_mask=0.3, p_replace=0.2, p_ng=0, n_iter=400), [text])
    made = [sample.split() for sample in generator.generate(400, 1, 0)]
    masked = sum(sample.count("[MASK]") for sample in made)
    moved = sum(now not in (was, "[MASK]") for sample in made for was, now in zip(text.split(), sample, strict=True))
    total = 400 * 50
    kept_by_chance = 1 / 50  # a word may be replaced by itself
    expected = [0.3 * total, 0.2 * (1 - kept_by_chance) * total]
    assert chisquare([masked, moved, total - masked - moved], [*expected, total - sum(expected)]).pvalue > 1e-3


def test_replacements_follow_the_corpus() -> None:
    counts = {"the": 50, "film": 20, "dull": 8, "it's": 2}
    texts = [" ".join(word for word, times in counts.items() for _ in range(times))]
    made = prepared(Resample(p_mask=0, p_replace=1, p_ng=0, n_iter=50), texts).generate(50, 2, 0)
    found = Counter(word for text in made for word in text.split())
    assert set(found) == set(counts)
    shares = np.array(list(counts.values())) / sum(counts.values())
    assert chisquare([found[word] for word in counts], shares * found.total()).pvalue > 1e-3


def test_ngrams_are_spans_of_every_length_and_place() -> None:
    text = "one, two  three-four five six; seven"
    words = re.findall(r"\w+", text)
    made = prepared(Resample(p_mask=0, p_replace=0, p_ng=1, n_iter=3000), [text]).generate(3000, 5, 0)
    assert all(span in text for span in made)
    found = Counter(tuple(re.findall(r"\w+", span)) for span in made)
    spans = {tuple(words[first : first + n]): n for n in range(1, 6) for first in range(len(words) - n + 1)}
    assert set(found) == set(spans)
    expected = [3000 / 5 / (len(words) - n + 1) for n in spans.values()]
    assert chisquare([found[span] for span in spans], expected).pvalue > 1e-3
    assert set(prepared(Resample(p_mask=0, p_replace=0, p_ng=1), ["so"]).generate(20, 0, 0)) == {"so"}  # shorter than n


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p_mask": -0.1}, "generator.p_mask must be a probability, from 0 to 1, not -0.1"),
        ({"p_ng": 1.5}, "generator.p_ng must be a probability"),
        ({"p_mask": 0.6, "p_replace": 0.5}, r"must not exceed 1: 0.6 \+ 0.5"),
        ({"n_iter": 0}, "generator.n_iter must be at least 1, not 0"),
        ({"max_ngram": 0}, "generator.max_ngram must be at least 1, not 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Resample(**settings)
