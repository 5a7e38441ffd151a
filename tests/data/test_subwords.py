"""Pieces of words that are learnt from the training rows, and what a word is in scripts without spaces."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from kdresearch.artifacts import Store
from kdresearch.data.corpus import load
from kdresearch.data.encoding import fitted
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import SubwordTokenizer, WordTokenizer
from kdresearch.data.tokenizers.rows import RUNS, UNSPACED, WORDS, by_words
from kdresearch.data.tokenizers.unigram import Lattice, train_unigram
from kdresearch.errors import UserError

BEFORE = r"\w+(?:['’]\w+)*|[^\w\s]"  # words before scripts without spaces were known
CHINESE = ["我在北京看电影，电影很好看。", "北京的电影不好看！", "这部电影很好", "我爱北京", "很好看，很好看"]
TEXTS = [
    "The film isn't bad, the film is good!",
    "no where is nowhere",
    *CHINESE,
    "東京タワーへ行った",
    "good 👍🏽 film 北京 ok",
]
MODELS = ["bpe", "unigram"]
shared = Path(os.environ.get("KDRESEARCH_DATA", "no folder"))


def words(text: str, pattern: str = WORDS) -> list[str]:
    return [word for word, _ in by_words(pattern).pre_tokenize_str(text)]


def fit(model: str, texts: list[str] = TEXTS, **options: Any) -> SubwordTokenizer:
    tokenizer = SubwordTokenizer(model=model, **{"size": 120, "min_count": 1} | options)
    tokenizer.fit([texts[:3], texts[3:]])
    return tokenizer


# words


@pytest.mark.parametrize("script", UNSPACED)
def test_every_script_is_one_that_the_expressions_know(script: str) -> None:
    Regex(rf"\p{{{script}}}")


BY_HAND = {
    "I love 北京 very much": "I love 北 京 very much",
    "iPhone手机2024年，真的!": "iPhone 手 机 2024 年 ， 真 的 !",
    "東京タワーへ。ｶﾞｽ 人々": "東 京 タ ワ ー へ 。 ｶﾞ ｽ 人 々",
    "ที่นี่ ๒๕๖๗ น้ำ": "ที่ นี่ ๒๕๖๗ น้ ำ",
    "ພາສາ ភាសា မြန်မာ": "ພ າ ສ າ ភា សា မြ န် မာ",
    "བོད་ཡིག 葛\U000e0100城 か\u3099": "བོད ་ ཡིག 葛\U000e0100 城 か\u3099",
    "한국어 좋다 isn't 👍🏽 ½": "한국어 좋다 isn't 👍 🏽 ½",
}


@pytest.mark.parametrize("text", BY_HAND)
def test_words_by_hand(text: str) -> None:
    assert words(text) == BY_HAND[text].split(" ")
    tokenizer = WordTokenizer(min_count=1)
    tokenizer.fit([[text]])
    _, _, numbers = tokenizer.encode_with_words([text])
    assert numbers.tolist() == list(range(len(BY_HAND[text].split(" "))))


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_a_piece_belongs_to_the_first_word_that_it_touches(model: str) -> None:
    tokenizer = fit(model)
    for text in ["the film 北京很好看 isn't", "電影，no"]:
        row = tokenizer.words.encode(text)
        spans = [span for _, span in by_words().pre_tokenize_str(text)]
        expected = [next(n for n, (a, b) in enumerate(spans) if a < end and start < b) for start, end in row.offsets]
        assert tokenizer.encode_with_words([text])[2].tolist() == expected


def same_as_before(texts: list[str]) -> bool:
    return bool(texts) and all(words(text) == words(text, BEFORE) == words(text, RUNS) for text in texts)


def test_spaced_text_has_the_words_that_it_had() -> None:
    assert same_as_before([row.text for row in Reviews(train=300, test=10, unlabelled=0).rows()])
    assert not same_as_before(["北京"])


def any_texts(count: int, last: int, seed: int = 0) -> list[str]:
    """Texts of characters of all kinds up to a code point, half of them letters and spaces that meet each other."""
    random = np.random.default_rng(seed)
    common = [ord(each) for each in "ab 'İé\u0301\t，." + ("" if last < 0x3000 else "北京のーｶﾞที่👍🏽\u200d")]
    points = np.where(
        random.random((count, 20)) < 0.5, random.choice(common, (count, 20)), random.integers(0, last, (count, 20))
    )
    points[(points >= 0xD800) & (points < 0xE000)] = ord("x")  # no text holds half a pair
    return [
        "".join(map(chr, row[:length]))
        for row, length in zip(points.tolist(), random.integers(0, 21, count), strict=True)
    ]


def test_any_text_of_scripts_with_spaces_has_the_words_that_it_had() -> None:
    assert same_as_before(any_texts(500, 0x0E00))


def test_words_and_runs_cover_the_same_characters() -> None:
    for text in any_texts(500, 0x32000):
        assert "".join(words(text)) == "".join(words(text, RUNS)) == "".join(words(text, BEFORE))


@pytest.mark.skipif(not shared.is_dir(), reason="KDRESEARCH_DATA names no folder")
@pytest.mark.parametrize("name", ["trec/train", "sst5/train"])
def test_published_english_has_the_words_that_it_had(name: str) -> None:
    with (shared / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        assert same_as_before([row["text"] for row in csv.DictReader(file)])


def old_words(texts: list[str]) -> Any:
    """As a package of before holds them."""
    tokenizer = WordTokenizer(min_count=1)
    tokenizer.words.pre_tokenizer = pre_tokenizers.Split(Regex(BEFORE), behavior="removed", invert=True)
    tokenizer.fit([texts])
    return tokenizer


def test_a_package_of_before_reads_as_it_did_and_its_vocabulary_is_not_used_again(tmp_path: Path) -> None:
    old = old_words(["北京 很好 film"])
    old.save(tmp_path)
    loaded = WordTokenizer(min_count=1)
    new = loaded.key()
    loaded.load(tmp_path)
    assert loaded.encode(["很好 film 北 北京"])[0].tolist() == old.encode(["很好 film 北 北京"])[0].tolist()
    assert loaded.encode(["北"])[0].tolist() == [1] and loaded.encode(["很好"])[0].item() > 1
    assert loaded.key() == old.key() != new
    assert {**loaded.key(), "words": WORDS} == new
    loaded.fit([["北京"]])
    assert WordTokenizer(**loaded.settings).key() == new


def test_the_key_of_a_fitted_vocabulary_says_what_a_word_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kdresearch.data.encoding as encoding

    store, rows = Store(tmp_path), np.arange(20)
    corpus = load(Reviews(train=20, test=8, unlabelled=0), store)
    names = [fitted(WordTokenizer(), corpus, rows, store)]
    names.append(fitted(old_words([]), corpus, rows, store))
    monkeypatch.setattr(encoding, "WORDS", BEFORE)
    names.append(fitted(SubwordTokenizer(), corpus, rows, store))
    assert len(set(names)) == 3


# pieces


@pytest.mark.parametrize("model", MODELS)
def test_two_fits_are_one_file_in_any_process(model: str, tmp_path: Path) -> None:
    fit(model).save(tmp_path)
    script = (
        "import json, sys; from kdresearch.data.tokenizers import SubwordTokenizer\n"
        "tokenizer = SubwordTokenizer(model=sys.argv[1], size=120, min_count=1)\n"
        "tokenizer.fit([json.loads(sys.argv[2])]); print(tokenizer.words.to_str(True))"
    )
    command = [sys.executable, "-c", script, model, json.dumps(TEXTS)]
    elsewhere = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert json.loads(elsewhere) == json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
    assert elsewhere.strip() == fit(model).words.to_str(True) == (tmp_path / "words.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", MODELS)
def test_ids_are_in_range_and_words_go_with_them(model: str) -> None:
    texts = any_texts(400, 0x32000, seed=1)
    tokenizer = fit(model)
    ids, lengths = tokenizer.encode(texts)
    again, same, found = tokenizer.encode_with_words(texts)
    assert np.array_equal(ids, again) and np.array_equal(lengths, same) and len(found) == len(ids)
    assert (lengths >= 1).all() and ids.min() >= 1 and ids.max() < tokenizer.size
    for text, row in zip(texts, np.split(found, np.cumsum(lengths)[:-1]), strict=True):
        assert set(row.tolist()) <= {-1, *range(len(words(text)))}
        assert (np.diff(row) >= 0).all()
        if len(row) < 256 and words(text):
            assert 0 in row  # the first word has a token


@pytest.mark.parametrize("model", MODELS)
def test_every_character_is_in_a_piece_or_unknown(model: str) -> None:
    tokenizer = fit(model, max_length=None)
    for text in [*TEXTS, "the zebra 北 <unk> <pad>", "龘🦓"]:
        row = tokenizer.words.encode(text)
        covered = {place for start, end in row.offsets for place in range(start, end)}
        assert covered == {place for place, character in enumerate(text) if not character.isspace()}
        for piece, number, (start, end) in zip(row.tokens, row.ids, row.offsets, strict=True):
            if number != 1:
                assert piece in ("▁", text[start:end].lower(), "▁" + text[start:end].lower())
    unknown = tokenizer.encode(["龘"])[0].tolist()
    assert unknown[-1] == 1 and 0 not in tokenizer.encode(["<pad> film"])[0]


@pytest.mark.parametrize("model", MODELS)
def test_pieces_grow_beyond_characters_and_know_where_a_word_begins(model: str) -> None:
    tokenizer = fit(model)
    vocabulary = tokenizer.words.get_vocab()
    assert (
        vocabulary["<pad>"] == 0
        and vocabulary["<unk>"] == 1
        and sorted(vocabulary.values()) == list(range(tokenizer.size))
    )
    assert {"电影", "北京"} <= {piece.strip("▁") for piece in vocabulary}
    assert not any("，" in piece.strip("▁")[1:] or " " in piece for piece in vocabulary)
    apart, together = (tokenizer.encode([text])[0].tolist() for text in ("no where", "nowhere"))
    assert apart != together
    assert tokenizer.encode(["", " \t"])[0].tolist() == [1, 1]


@pytest.mark.parametrize("model", MODELS)
def test_size_counts_all_entries_and_rare_characters_are_unknown(model: str) -> None:
    texts = ["ab ab ab ab abc abc"] * 4 + ["abz"]
    # bpe has no more merges: "▁a", "▁ab" and, where "c" has a place, "▁abc"
    assert [fit(model, texts, size=size).size for size in (8, 10)] == {"bpe": [7, 9], "unigram": [8, 10]}[model]
    common = fit(model, texts, size=12, min_count=2)
    assert 1 in common.encode(["z"])[0] and 1 not in common.encode(["abc"])[0]
    assert 1 not in fit(model, texts, size=12).encode(["z"])[0]
    crowded = fit(model, CHINESE, size=20)  # nine characters beside the two
    assert crowded.size == 20 and sum(len(piece) == 1 for piece in crowded.words.get_vocab()) == 9
    assert fit(model, [], size=8).encode(["ab"])[0].tolist()[-1] == 1


@pytest.mark.parametrize("model", MODELS)
def test_fewer_entries_than_asked_are_said(model: str, tmp_path: Path) -> None:
    store, said = Store(tmp_path), []
    corpus = load(Reviews(train=20, test=8, unlabelled=0), store)
    tokenizer = SubwordTokenizer(model=model, size=50_000)
    fitted(tokenizer, corpus, np.arange(20), store, said.append)
    assert said[-1] == f"the {model} tokenizer has {tokenizer.size:,} entries: the rows give no 50,000"


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match=r"'bpee' \(did you mean 'bpe'\?\)"):
        SubwordTokenizer(model="bpee")
    with pytest.raises(UserError, match="at least 4, not 3"):
        SubwordTokenizer(size=3)


# the unigram model

COUNTS = {"abab": 3, "abc": 2, "cab": 4, "b": 1}
PIECES = ["a", "b", "c", "ab", "ca", "abab", "abc", "cab"]


def segmentations(word: str) -> list[list[str]]:
    found = []
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        places = [0, *(place for place, here in enumerate(cuts, 1) if here), len(word)]
        parts = [word[a:b] for a, b in itertools.pairwise(places)]
        if set(parts) <= set(PIECES):
            found.append(parts)
    return found


def test_expected_counts_are_those_of_all_segmentations() -> None:
    scores = np.log(np.random.default_rng(0).dirichlet(np.ones(len(PIECES))))
    score = dict(zip(PIECES, scores.tolist(), strict=True))
    expected: Counter[str] = Counter()
    for word, times in COUNTS.items():
        ways = [(parts, math.exp(sum(score[part] for part in parts))) for parts in segmentations(word)]
        for parts, share in ways:
            for part in parts:
                expected[part] += times * share / sum(each for _, each in ways)  # type: ignore[assignment]
    found = Lattice.of(list(COUNTS), PIECES).expected(np.array(list(COUNTS.values()), float), scores)
    np.testing.assert_allclose(found, [expected[piece] for piece in PIECES])
    best = Lattice.of(PIECES, PIECES).best_parts(scores)
    for piece, parts in zip(PIECES, best, strict=True):
        ways = [sum(score[part] for part in each) for each in segmentations(piece) if len(each) > 1]
        assert parts == (pytest.approx(max(ways)) if ways else -np.inf)


def test_a_narrowed_lattice_is_that_of_the_pieces_that_stay() -> None:
    stay = [0, 1, 2, 4, 7]
    number = np.full(len(PIECES), -1)
    number[stay] = range(len(stay))
    pieces, scores = [PIECES[each] for each in stay], np.log(np.arange(1.0, 6) / 15)
    whole, own = Lattice.of(list(COUNTS), PIECES), Lattice.of(PIECES, PIECES)
    times = np.array(list(COUNTS.values()), float)
    np.testing.assert_allclose(
        whole.narrowed(number, np.arange(len(COUNTS))).expected(times, scores),
        Lattice.of(list(COUNTS), pieces).expected(times, scores),
    )
    assert np.array_equal(
        own.narrowed(number, number).best_parts(scores), Lattice.of(pieces, pieces).best_parts(scores)
    )


def test_the_pieces_that_stay_make_the_words_likelier_than_characters_do() -> None:
    counts = Counter(word for text in TEXTS * 3 for word in words(text.lower(), RUNS))

    def likelihood(pieces: list[tuple[str, float]]) -> float:
        reader = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces], unk_id=0))
        score = dict(pieces)
        return sum(times * sum(score[part] for part in reader.encode(word).tokens) for word, times in counts.items())

    characters = len({character for word in counts for character in word})
    sizes = [characters, characters + 10, characters + 40]
    found = [train_unigram(counts, size) for size in sizes]
    assert [len(each) for each in found] == sizes
    assert all(sum(math.exp(score) for _, score in each) == pytest.approx(1) for each in found)
    assert likelihood(found[0]) < likelihood(found[1]) < likelihood(found[2])
    assert len(train_unigram(counts, 2)) == characters and train_unigram({}, 5) == []
    long = "ab" * 500
    assert len(train_unigram({long: 2}, 6)) == 6
