from __future__ import annotations

import math
import os
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdresearch.data.imdb import Imdb
from kdresearch.errors import UserError
from kdresearch.generation.filters import (
    OF_TEXT,
    Filters,
    HeldOut,
    TextFilter,
    count_verdicts,
    identity,
    longest_run,
    repetition,
    words,
)

NOTHING = Filters(max_repetition=1.0, max_run=10**6)  # of length and repetition


def verdicts(filters: Filters, texts: list[str], training: Any = (), held_out: Any = ()) -> list[str]:
    judge = TextFilter(filters, training, held_out)
    return [judge.verdict(text) for text in texts]


def vocabulary(size: int) -> list[str]:
    return [f"{'bcdfgklmnp'[number % 10]}{number}" for number in range(size)]


def article(length: int, seed: int, vocabulary: list[str]) -> str:
    return " ".join(random.Random(seed).choices(vocabulary, k=length))


def changed(text: str, places: Any, seed: int = 0) -> str:
    """The text with other words at the places."""
    written, other = text.split(), random.Random(seed)
    for place in places:
        written[place] = f"other{other.randrange(1000)}"
    return " ".join(written)


def test_words_are_what_two_writers_would_agree_on() -> None:
    assert words("It's  well-made,\tÉTÉ_2: “don’t”…") == ["its", "well", "made", "été", "2", "dont"]
    assert words("ﬁne e\u0301t\u00e9 Straße") == ["fine", "été", "strasse"]
    assert words("?! …") == []
    assert identity(words("A well-made film!")) == identity(words("a wellmade  FILM")) != identity(words("a film"))


@pytest.mark.parametrize(("times", "verdict"), [(2, "length"), (3, "kept"), (5, "kept"), (6, "length")])
def test_length_keeps_its_bounds(times: int, verdict: str) -> None:
    filters = Filters(min_words=3, max_words=5)
    assert verdicts(filters, [" ".join(vocabulary(times))]) == [verdict]


def test_no_words_are_no_sample() -> None:
    assert verdicts(Filters(), ["", " !!! ", "one"]) == ["length", "length", "kept"]


def test_repetition_by_hand() -> None:
    assert repetition(["a", "b", "c", "d", "e", "f"]) == 0
    assert repetition(["a", "b", "a", "b", "a", "b", "a"]) == 1 - 2 / 4  # abab, baba, abab, baba
    assert repetition(["a"] * 10) == 1 - 1 / 7
    assert repetition(["a", "a", "a"]) == 0  # too short for a 4-gram
    assert repetition(["a", "b", "a", "b"], n=2) == pytest.approx(1 / 3)
    assert [longest_run(text.split()) for text in ("", "a", "a b a", "a b b b a a")] == [0, 1, 1, 3]


def test_repetition_keeps_its_bounds() -> None:
    half = "so it was so it was so it was so"  # 7 4-grams, 3 different ones
    share = 4 / 7
    assert repetition(words(half)) == pytest.approx(share)
    assert verdicts(Filters(max_repetition=share), [half]) == ["kept"]
    assert verdicts(Filters(max_repetition=share - 1e-9), [half]) == ["repetition"]
    assert verdicts(Filters(max_run=3), ["very Very, very good", "very very very very good"]) == ["kept", "repetition"]


def test_copies_of_training_rows_and_of_each_other() -> None:
    texts = ["A dull film.", "a  DULL film", "a good film", "A good -- film!", "a good, good film", "a good film"]
    found = verdicts(Filters(), texts, training=["a dull film"])
    assert found == ["training_copy", "training_copy", "kept", "duplicate", "kept", "duplicate"]
    assert count_verdicts(found, OF_TEXT) == {
        "length": 0,
        "repetition": 0,
        "training_copy": 2,
        "duplicate": 2,
        "leakage": 0,
        "kept": 2,
    }


def edited(text: list[str], row: list[str], n: int) -> float:
    """What a text shares with a row of about its length that it differs from by one word."""
    if len(text) < 3 or text == row:
        return 0.0
    less = [[*row[:place], *row[place + 1 :]] for place in range(len(row))] if 3 <= len(row) <= 2 * n else []
    if text in less:
        return len(text) / len(row)
    own = [[*text[:place], *text[place + 1 :]] for place in range(len(text))]
    return (len(text) - 1) / len(text) if row in own or any(each in less for each in own) else 0.0


def by_hand(text: list[str], rows: list[list[str]], n: int, passage: int) -> float:
    """The overlap, said in sets and for each row by itself."""
    best = 0.0
    for row in rows:
        ngrams = {tuple(row[first : first + n]) for first in range(len(row) - n + 1)}
        covered = {
            first + offset
            for first in range(len(text) - n + 1)
            if tuple(text[first : first + n]) in ngrams
            for offset in range(n)
        }
        share = len(covered) / max(len(text), min(len(row), passage)) if len(text) >= 2 * n else edited(text, row, n)
        best = max(best, share, float(text == row))
    return best


@pytest.mark.parametrize("n", [1, 2, 4])
def test_overlap_is_what_sets_say(n: int) -> None:
    few, other = vocabulary(6), random.Random(n)
    rows = [article(other.randrange(0, 25), 100 + row, few).split() for row in range(30)]
    held_out = HeldOut(map(" ".join, rows), n, passage=12)
    found = []
    for seed in range(200):
        text = article(other.randrange(1, 30), seed, [*few, "unheard"]).split()
        found.append(held_out.overlap(text))
        assert found[-1] == pytest.approx(by_hand(text, rows, n, 12))
    assert len({round(value, 3) for value in found}) > 5


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    many = vocabulary(2000)
    return [article(length, seed, many) for seed, length in enumerate([230] * 40 + [12] * 20 + [5] * 5)]


def test_planted_copies_are_caught(held_out: list[str]) -> None:
    long = held_out[7]
    size = len(long.split())
    planted = {
        "exact": long,
        "case and punctuation": long.upper().replace(" ", ", ", 40) + "!",
        "a fifth at random": changed(long, random.Random(1).sample(range(size), size // 5)),
        "every fifth": changed(long, range(0, size, 5)),
        "the middle half": " ".join(long.split()[60:175]),
        "within another text": article(100, 99, vocabulary(50)) + " " + long,
        "short and equal": held_out[62].title(),
        "short, one word changed": changed(held_out[45], [11]),
    }
    for name, text in planted.items():
        assert verdicts(Filters(), [text], held_out=held_out) == ["leakage"], name


def test_what_is_no_copy_is_kept(held_out: list[str]) -> None:
    long, short = held_out[7].split(), held_out[45].split()
    innocent = {
        "a phrase of a long row": " ".join(long[20:30]),
        "a phrase of a long row in another text": article(60, 98, vocabulary(2000)) + " " + " ".join(long[20:40]),
        "a short text with a word more": "well " + held_out[62].split()[0],
        "half the words of a short row": changed(" ".join(short), range(0, 12, 2)),
        "the same words, shuffled": " ".join(random.Random(3).sample(long, len(long))),
        "words from many rows": " ".join(word for row in held_out[:40] for word in row.split()[10:15]),
    }
    assert verdicts(NOTHING, list(innocent.values()), held_out=held_out) == ["kept"] * len(innocent)


def test_the_share_that_leaks() -> None:
    row, rest = vocabulary(60)[:20], [f"rest{number}" for number in range(20)]
    half = " ".join(row[:10] + rest[:10])
    assert HeldOut([" ".join(row)], 4, 32).overlap(words(half)) == 0.5
    assert verdicts(Filters(), [half], held_out=[" ".join(row)]) == ["leakage"]
    assert verdicts(Filters(leakage_share=0.501), [half], held_out=[" ".join(row)]) == ["kept"]
    assert verdicts(Filters(leakage_ngram=11), [half], held_out=[" ".join(row)]) == ["kept"]
    # a short text covers a long row by its passage: 10 of 32 words, 10 of 20
    long = " ".join(row + rest + ["end"] * 10)
    assert HeldOut([long], 4, 32).overlap(row[:10]) == 10 / 32
    assert HeldOut([long], 4, 20).overlap(row[:10]) == 0.5


QUESTIONS = ["Who discovered radium ?", "What is an atom ?", "When was the telephone invented ?", "Define thallium"]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("who discovered radium", "leakage"),  # of three words, fewer than an n-gram has
        ("who discovered helium ?", "leakage"),
        ("Who first discovered radium ?", "leakage"),
        ("when was the telegraph invented ?", "leakage"),  # no 4-gram is left of it
        ("When was telephone invented ?", "leakage"),
        ("was the telephone invented when ?", "leakage"),
        ("define thallium", "leakage"),
        ("define helium", "kept"),  # half of two words is no copy
        ("who painted guernica ?", "kept"),
        ("when was the first car built ?", "kept"),
        ("what was an apple ?", "kept"),
    ],
)
def test_short_rows_are_known_with_a_word_changed(text: str, verdict: str) -> None:
    assert verdicts(NOTHING, [text], held_out=QUESTIONS) == [verdict]


def test_a_short_text_shares_all_but_one_word() -> None:
    held_out = HeldOut(QUESTIONS, 4, 32)
    assert held_out.overlap(words("when was the telegraph invented")) == 4 / 5
    assert held_out.overlap(words("when was telephone invented")) == 4 / 5
    assert held_out.overlap(words("when was the telephone not invented")) == 5 / 6
    changed = "when was the telegraph invented"
    assert verdicts(Filters(leakage_share=0.81), [changed], held_out=QUESTIONS) == ["kept"]


def test_nothing_held_out_leaks_nothing() -> None:
    assert verdicts(Filters(), ["a fine film with a plot"]) == ["kept"]
    assert HeldOut(["", "!"], 4, 32).overlap(["film"] * 9) == 0


def test_a_leak_stays_one_whatever_its_rank() -> None:
    row = article(30, 0, vocabulary(500))
    assert verdicts(Filters(), [row, row, row + " end"], held_out=[row]) == ["leakage", "duplicate", "leakage"]


ARCHIVE = Path(os.environ.get("KDRESEARCH_DATA", "no folder")) / "aclImdb_v1.tar.gz"


@pytest.mark.imdb
@pytest.mark.skipif(not ARCHIVE.is_file(), reason="KDRESEARCH_DATA names no folder with aclImdb_v1.tar.gz")
def test_real_reviews() -> None:
    """Test reviews planted among other reviews of the same films: the archive numbers a film's reviews in a row."""
    rows = [row.text for row in islice(Imdb(path=ARCHIVE).rows(), 2400)]
    held, rest = rows[0::2], rows[1::2]  # neighbours are mostly of one film
    judge = TextFilter(Filters(), [], held)
    other = random.Random(0)
    vocabulary = [word for text in rest[:50] for word in text.split()]
    for text in other.sample(held, 60):
        written = text.split()
        fifth = written.copy()
        for place in other.sample(range(len(written)), len(written) // 5):
            fifth[place] = other.choice(vocabulary)
        every = [other.choice(vocabulary) if place % 5 == 0 else word for place, word in enumerate(written)]
        for copy in (" ".join(fifth), " ".join(every), text.upper().replace(".", " ... ")):
            assert judge.verdict(copy) == "leakage"
    found = count_verdicts([judge.verdict(text) for text in rest], OF_TEXT)
    assert found["leakage"] <= 0.005 * len(rest)  # some reviews were posted twice
    assert found["kept"] >= 0.98 * len(rest)


def test_the_teachers_bands() -> None:
    probabilities = np.array([[0.5, 0.5], [0.6, 0.4], [0.75, 0.25], [0.9, 0.1], [1.0, 0.0]])
    keep, counts = Filters(min_confidence=0.6, max_confidence=0.9).by_teacher(probabilities)
    assert keep.tolist() == [False, True, True, True, False]
    assert counts == {"confidence": 2, "entropy": 0, "kept": 3}
    bits = 0.25 * 2 + 0.75 * math.log2(4 / 3)  # of the third row, which for two classes is its share
    keep, counts = Filters(min_entropy=bits - 1e-9, max_entropy=bits + 1e-9).by_teacher(probabilities)
    assert keep.tolist() == [False, False, True, False, False]
    keep, counts = Filters(min_confidence=0.6, max_entropy=bits).by_teacher(probabilities)
    assert keep.tolist() == [False, False, True, True, True]
    assert list(counts.items()) == [("confidence", 1), ("entropy", 1), ("kept", 3)]  # each under the first


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_default_the_teacher_keeps_everything(classes: int, dtype: type) -> None:
    logits = np.random.default_rng(classes).normal(0, 40, (500, classes))
    logits[:50] = 0
    powers = np.exp((logits - logits.max(1, keepdims=True)).astype(dtype))
    keep, counts = Filters().by_teacher(powers / powers.sum(1, keepdims=True))
    assert keep.all() and counts == {"confidence": 0, "entropy": 0, "kept": 500}
    uniform = np.full((1, classes), 1 / classes, dtype)
    assert Filters(min_entropy=1 - 1e-6).by_teacher(uniform)[0].all()
    assert Filters().by_teacher(np.empty((0, classes)))[1]["kept"] == 0


def test_logits_are_no_probabilities() -> None:
    for wrong in (np.array([[2.0, -1.0]]), np.array([0.5, 0.5]), np.array([[1.0]])):
        with pytest.raises(ValueError, match="rows of probabilities"):
            Filters().by_teacher(wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_words": 0}, "filters.min_words must be at least 1, not 0"),
        ({"leakage_ngram": 0}, "filters.leakage_ngram must be at least 1"),
        ({"leakage_share": 0}, "filters.leakage_share must be above 0"),
        ({"max_repetition": 3}, "filters.max_repetition must be from 0 to 1, not 3"),
        ({"max_entropy": 1.2}, "filters.max_entropy must be from 0 to 1, not 1.2"),
        ({"min_words": 9, "max_words": 8}, "filters.min_words=9 is above generator.filters.max_words=8: nothing could"),
        ({"min_confidence": 0.9, "max_confidence": 0.6}, "filters.min_confidence=0.9 is above"),
        ({"min_entropy": 0.2, "max_entropy": 0.1}, "filters.min_entropy=0.2 is above"),
    ],
)
def test_bands_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Filters(**settings)


def test_the_teachers_bands_are_not_of_the_pool() -> None:
    assert Filters(min_confidence=0.7, max_entropy=0.9).key() == Filters().key() != Filters(min_words=2).key()


def test_whether_the_teacher_is_asked_at_all() -> None:
    assert not Filters(min_words=3, max_repetition=0.1).ask_teacher
    for bound in ({"min_confidence": 0.6}, {"max_confidence": 0.9}, {"min_entropy": 0.1}, {"max_entropy": 0.9}):
        assert Filters(**bound).ask_teacher


def test_the_teachers_verdicts_one_by_one() -> None:
    filters = Filters(min_confidence=0.6, max_confidence=0.95, max_entropy=0.9)
    rows = np.array([[0.8, 0.2], [0.5, 0.5], [0.99, 0.01], [0.35, 0.65]])
    assert filters.teacher_verdicts(rows).tolist() == ["kept", "confidence", "confidence", "entropy"]
    kept, counts = filters.by_teacher(rows)
    assert kept.tolist() == [True, False, False, False] and counts == {"confidence": 2, "entropy": 1, "kept": 1}
