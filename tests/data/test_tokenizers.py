from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdresearch.data.tokenizers import (
    NgramTokenizer,
    PretrainedTokenizer,
    TorchtextTokenizer,
    WordTokenizer,
    cut,
    gives_words,
)
from kdresearch.errors import UserError

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
TEXTS = [
    "The film isn't bad, the film is good!",
    "The film is bad.",
    "A good film\nis a good FILM.",
    "Über-\u00e9t\u00e9 caf\u00e9 🙂 is 3.5/10",
]


def rows(encoded: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    ids, lengths = encoded
    assert ids.dtype == np.int32 and len(ids) == lengths.sum()
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]


def naive_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def naive_ngrams(words: list[str], orders: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for n in range(1, orders + 1) for i in range(len(words) - n + 1)}


def random_texts(count: int, seed: int = 0, words: int = 30, longest: int = 25) -> list[str]:
    random = np.random.default_rng(seed)
    vocabulary = np.array([f"w{i}" for i in range(words)])
    share = 1 / np.arange(1, words + 1)
    return [
        " ".join(random.choice(vocabulary, size=random.integers(1, longest), p=share / share.sum()))
        for _ in range(count)
    ]


def chunked(texts: list[str], size: int = 7) -> Iterable[list[str]]:
    return (texts[i : i + size] for i in range(0, len(texts), size))


# cut


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_cut_equals_a_loop_over_rows(truncation: str) -> None:
    random = np.random.default_rng(1)
    for _ in range(60):
        limit = int(random.integers(1, 12))
        lengths = random.integers(0, 25, size=random.integers(1, 12))
        ids = random.integers(0, 1000, size=lengths.sum()).astype(np.int32)
        expected = []
        for row in np.split(ids, np.cumsum(lengths)[:-1]):
            head = {"head": limit, "tail": 0, "head_tail": limit - limit // 2}[truncation]
            row = row.tolist()
            expected.append(row if len(row) <= limit else row[:head] + row[len(row) - (limit - head) :])
        found = cut(ids, lengths, limit, truncation)
        assert rows(found) == expected
        assert all(
            np.array_equal(a, b) for a, b in zip(cut(ids, lengths, None, truncation), (ids, lengths), strict=True)
        )


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"truncation: 'heads' \(did you mean 'head'\?\)"):
        WordTokenizer(truncation="heads")
    with pytest.raises(UserError, match="max_length must be at least 1, not 0"):
        NgramTokenizer(max_length=0)
    with pytest.raises(UserError, match="orders must be at least 1, not 0"):
        NgramTokenizer(orders=0)


# words


def test_words_are_those_of_the_training_rows_and_keep_two_ids_free() -> None:
    tokenizer = WordTokenizer(min_count=1, max_length=None)
    tokenizer.fit(chunked(TEXTS[:3], 2))
    known = {word for text in TEXTS[:3] for word in naive_words(text)}
    assert tokenizer.size == 2 + len(known)
    number = {word: tokenizer.encode([word])[0].item() for word in known}
    assert sorted(number.values()) == list(range(2, tokenizer.size))
    for text, row in zip(TEXTS, rows(tokenizer.encode(TEXTS)), strict=True):
        assert row == [number.get(word, 1) for word in naive_words(text)]
    assert rows(tokenizer.encode(["zebra", " \u200b\t", "", "film"])) == [[1], [1], [1], [number["film"]]]


@pytest.mark.parametrize("kind", [WordTokenizer, TorchtextTokenizer])
def test_size_keeps_the_most_frequent_and_min_count_drops_the_rare(kind: Any) -> None:
    texts = [" ".join(["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2 + ["e"])]
    for options, kept in [({"size": 4}, "ab"), ({"min_count": 3}, "abc"), ({"min_count": 1}, "abcde"), ({}, "abcd")]:
        tokenizer = kind(**options)
        tokenizer.fit([texts])
        assert tokenizer.size == 2 + len(kept)
        assert [row != [1] for row in rows(tokenizer.encode(list("abcde")))] == [word in kept for word in "abcde"]


@pytest.mark.parametrize("kind", [WordTokenizer, TorchtextTokenizer])
def test_a_text_that_names_the_special_words_holds_no_padding(kind: Any, tmp_path: Path) -> None:
    tokenizer = kind(min_count=1)
    tokenizer.fit([["a <pad> or <unk> b"]])
    before = rows(tokenizer.encode(["<pad> a <unk>"]))
    assert 0 not in before[0]
    tokenizer.save(tmp_path)
    tokenizer.load(tmp_path)
    assert rows(tokenizer.encode(["<pad> a <unk>"])) == before


def test_case_is_kept_where_asked_and_composed_letters_are_one() -> None:
    tokenizer = WordTokenizer(min_count=1, lowercase=False)
    tokenizer.fit([["Film film caf\u00e9"]])
    (row,) = rows(tokenizer.encode(["Film film FILM cafe\u0301"]))
    assert row[0] != row[1] and row[2] == 1 and row[3] == tokenizer.encode(["caf\u00e9"])[0][0] != 1


def test_long_texts_are_cut() -> None:
    tokenizer = WordTokenizer(min_count=1, max_length=5)
    text = "a b c d e f g"
    tokenizer.fit([[text]])
    (whole,) = rows(WordTokenizer.encode(tokenizer, ["a b c"])) + rows(tokenizer.encode(["f g"]))[:0]
    (row,) = rows(tokenizer.encode([text]))
    assert row == whole + rows(tokenizer.encode(["f g"]))[0]


# n-grams


def fit_ngrams(texts: list[str], **options: Any) -> NgramTokenizer:
    tokenizer = NgramTokenizer(**options)
    tokenizer.fit(chunked(texts))
    return tokenizer


@pytest.mark.parametrize("orders", [1, 2, 3, 5])
@pytest.mark.parametrize("min_count", [1, 3])
def test_exact_ngrams_equal_the_sets_of_a_loop(orders: int, min_count: int) -> None:
    texts = [*random_texts(60), "w0", "w0 w0 w0 w0 w0"]
    tokenizer = fit_ngrams(texts, orders=orders, min_count=min_count)
    sets = [naive_ngrams(naive_words(text), orders) for text in texts]
    held = Counter(ngram for row in sets for ngram in row)
    known = {ngram for ngram, count in held.items() if count >= min_count}
    assert tokenizer.size == 1 + len(known)
    # An id's n-gram is found by what it shares with texts: the same rows hold both, and no others.
    found = rows(tokenizer.encode(texts))
    for row, expected in zip(found, sets, strict=True):
        assert len(row) == len(set(row)) == len(expected & known)
        assert not row or (min(row) >= 1 and max(row) < tokenizer.size)
    number = {}
    for ngram in known:
        inner = {other for other in naive_ngrams(list(ngram), orders) if other != ngram}
        alone = set(rows(tokenizer.encode([" ".join(ngram)]))[0])
        for part in inner & known:
            alone -= set(rows(tokenizer.encode([" ".join(part)]))[0])
        (number[ngram],) = alone
    assert sorted(number.values()) == list(range(1, tokenizer.size))
    for row, expected in zip(found, sets, strict=True):
        assert set(row) == {number[ngram] for ngram in expected & known}


def test_ngrams_of_words_that_were_never_seen_are_no_features() -> None:
    for hashed in (False, True):
        tokenizer = fit_ngrams(["a b c d"], orders=3, min_count=1, hashed=hashed, size=10_000)
        a, ab, nothing, none, gap = rows(tokenizer.encode(["a", "a b", "", "zebra quagga", "zebra a b quagga a"]))
        assert nothing == none == [] and len(a) == 1 and len(ab) == 3 and set(gap) == set(ab)


def test_no_ngram_crosses_from_one_text_into_the_next() -> None:
    tokenizer = fit_ngrams(["a b c", "d e"], orders=2, min_count=1)
    together, apart = rows(tokenizer.encode(["a b", "c"])), [rows(tokenizer.encode([text]))[0] for text in ("a b", "c")]
    assert together == apart and tokenizer.size == 1 + len({"a", "b", "c", "d", "e", "ab", "bc", "de"})


def test_size_keeps_the_ngrams_of_most_rows_the_same_in_any_process() -> None:
    texts = ["a a a a", "b c", "b c", "b d", "c"]
    tokenizer = fit_ngrams(texts, orders=1, min_count=1, size=2)
    assert tokenizer.size == 3
    assert [len(row) for row in rows(tokenizer.encode(list("abcd")))] == [0, 1, 1, 0]  # four times in one row is once
    ties = random_texts(60, words=200, longest=9)
    script = (
        "import sys, json; from kdresearch.data.tokenizers import NgramTokenizer\n"
        "tokenizer = NgramTokenizer(orders=2, min_count=1, size=150)\n"
        "tokenizer.fit([json.loads(sys.argv[1])]); print(tokenizer.keys.tolist())"
    )
    first = fit_ngrams(ties, orders=2, min_count=1, size=150).keys.tolist()
    elsewhere = subprocess.run([sys.executable, "-c", script, json.dumps(ties)], capture_output=True, check=True)
    assert json.loads(elsewhere.stdout) == first and len(first) == 150


def test_counts_folded_early_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts(80, seed=3)
    whole = fit_ngrams(texts, min_count=2, size=200)
    monkeypatch.setattr(NgramTokenizer, "_MERGE", 50)
    folded = fit_ngrams(texts, min_count=2, size=200)
    assert np.array_equal(whole.keys, folded.keys) and len(whole.keys) == 200


def test_hashed_ngrams_fall_into_the_buckets_each_once() -> None:
    texts = random_texts(50)
    exact, tight = (fit_ngrams(texts, hashed=True, size=size) for size in (1 << 40, 97))
    assert tight.size == 98 and exact.size == 1 + (1 << 40)
    found = rows(tight.encode(texts))
    assert all(len(row) == len(set(row)) and min(row) >= 1 and max(row) <= 97 for row in found)
    assert {id for row in found for id in row} == set(range(1, 98))
    wide = fit_ngrams(texts, hashed=True, size=1_000_000)
    sets = [naive_ngrams(naive_words(text), 3) for text in texts]
    assert [len(row) for row in rows(wide.encode(texts))] == [len(row) for row in sets]  # hardly any share a bucket


@pytest.mark.parametrize("characters", [(1, 2), (3, 5), (4, 4)])
def test_character_ngrams_are_those_of_scikit_learn(characters: tuple[int, int], tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [
        *random_texts(20),
        "It's  a film,\na FILM!",
        "",
        "   ",
        "caf\u00e9 \u6211\u559c\u6b22 \U0001f600\U0001f600",
        "a",
    ]
    tokenizer = fit_ngrams(texts, orders=1, min_count=1, characters=characters)
    words = fit_ngrams(texts, orders=1, min_count=1)
    analyse = CountVectorizer(analyzer="char_wb", ngram_range=characters).build_analyzer()
    sets = [set(analyse(text)) for text in texts]
    assert tokenizer.size == words.size + len(set().union(*sets))
    assert np.bincount(tokenizer.lengths[1:]).tolist() == [len(set().union(*sets)), words.size - 1]
    ids = [set(row) for row in rows(tokenizer.encode(texts))]
    letters = [{one for one in row if tokenizer.lengths[one] == 0} for row in ids]
    assert [len(row) for row in letters] == [len(row) for row in sets]
    for first in range(len(texts)):  # which features two texts share tells that they are the same ones
        assert [len(letters[first] & other) for other in letters] == [len(sets[first] & other) for other in sets]
    tokenizer.save(tmp_path)
    again = NgramTokenizer(**tokenizer.settings)
    again.load(tmp_path)
    assert rows(again.encode(texts)) == rows(tokenizer.encode(texts))
    assert np.array_equal(again.lengths, tokenizer.lengths)


def test_characters_are_those_of_the_words_that_are_read() -> None:
    tokenizer = fit_ngrams(["ab cd ef gh"], orders=1, min_count=1, characters=[4, 4], max_length=2)
    assert rows(tokenizer.encode(["ab cd ef gh"])) == rows(tokenizer.encode(["ab gh"]))
    assert len(rows(tokenizer.encode(["ab gh"]))[0]) == 4


@pytest.mark.parametrize("characters", [3, "35", [5, 3], [0, 2], [3], [3.0, 5]])
def test_characters_that_are_no_range_are_refused(characters: Any) -> None:
    with pytest.raises(UserError, match="characters: the shortest and the longest n-gram"):
        NgramTokenizer(characters=characters)


def test_features_know_how_many_words_they_have() -> None:
    tokenizer = fit_ngrams(["a b c"], orders=3, min_count=1)
    assert sorted(tokenizer.lengths.tolist()) == [0, 1, 1, 1, 2, 2, 3]
    ((abc, *rest),) = [sorted(rows(tokenizer.encode(["a b c"]))[0], key=lambda one: -tokenizer.lengths[one])]
    assert abc not in rows(tokenizer.encode(["a b"]))[0] and rest


def test_ngrams_of_a_cut_text() -> None:
    tokenizer = fit_ngrams(["a b c d e f"], orders=1, min_count=1, max_length=3)
    whole = {word: tuple(row) for word, row in zip("abcdef", rows(tokenizer.encode(list("abcdef"))), strict=True)}
    assert [word for word, row in whole.items() if row] == ["a", "b", "f"]


# torchtext


def test_torchtext_equals_its_own_tokenizer() -> None:
    from torchtext.data.utils import get_tokenizer

    split = get_tokenizer("basic_english")
    tokenizer = TorchtextTokenizer(min_count=1, max_length=None)
    tokenizer.fit(chunked(TEXTS[:3], 2))
    assert tokenizer.words[:2] == ["<pad>", "<unk>"] and tokenizer.size == len(set(tokenizer.words))
    assert set(tokenizer.words[2:]) == {word for text in TEXTS[:3] for word in split(text)}
    for text, row in zip(TEXTS, rows(tokenizer.encode(TEXTS)), strict=True):
        words = [word if word in tokenizer.words else "<unk>" for word in split(text)]
        assert [tokenizer.words[id] for id in row] == words
    assert rows(tokenizer.encode([" \t"])) == [[1]]
    with pytest.raises(UserError, match="torchtext has no tokenizer 'basic_french'"):
        TorchtextTokenizer(name="basic_french")


@pytest.mark.parametrize("header", ["", "3 3\n"])
def test_word_vectors_in_gloves_layout(tmp_path: Path, header: str) -> None:
    file = tmp_path / "vectors.txt"
    file.write_text(f"{header}film 0.5 -1 4\ngood 2 3 4\nzebra 9 9 9\n")
    tokenizer = TorchtextTokenizer(min_count=1, vectors=file)
    tokenizer.fit([["good good film plot"]])
    verified = ssl._create_default_https_context
    table, known = tokenizer.vectors()  # type: ignore[misc]
    assert tokenizer.words == ["<pad>", "<unk>", "good", "film", "plot"]
    assert known.tolist() == [False, False, True, True, False]
    assert (
        table[known].tolist() == [[2.0, 3.0, 4.0], [0.5, -1.0, 4.0]]
        and table.shape == (5, 3)
        and table.dtype == torch.float32
    )
    assert ssl._create_default_https_context is verified
    file.write_text("film 1 1 1\n")
    assert tokenizer.vectors()[0][3].tolist() == [1.0, 1.0, 1.0]  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.txt"]
    for content in ("film 1 1 1\nplot 1 2 3 4\n", "film 1 one 1\n", "film,1,1,1\n", ""):
        file.write_text(content)
        with pytest.raises(UserError, match=r"vectors.txt is not in GloVe's layout"):
            tokenizer.vectors()
    assert TorchtextTokenizer().vectors() is None
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        TorchtextTokenizer(vectors=tmp_path / "nowhere.txt")


# pretrained


def pretrained_folder(folder: Path, baked: bool = False) -> Path:
    """A tokenizer as the hub has them: word pieces, [CLS] and [SEP]; ``baked`` pads and truncates by itself."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "is", "good", "bad"]
    pieces += ["a", "##s", "##n", ",", ".", "!", "'", "t"]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    if baked:
        tokenizer.enable_padding(length=16)
        tokenizer.enable_truncation(max_length=6)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(str(folder))
    if baked:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["padding"] = json.loads(tokenizer.to_str())["padding"]
        content["truncation"] = json.loads(tokenizer.to_str())["truncation"]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


ODD = ["the films, isn't", "", "\u200b", "film", "\u200b", "[SEP] film [CLS]", *TEXTS, "good " * 30]


@pytest.mark.parametrize("baked", [False, True])
def test_ids_are_those_of_the_models_own_tokenizer(tmp_path: Path, baked: bool) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(str(pretrained_folder(tmp_path)))
    tokenizer = PretrainedTokenizer(path=pretrained_folder(tmp_path / "baked", baked=True) if baked else tmp_path)
    expected = own(ODD, padding=False, truncation=False)["input_ids"]
    assert rows(tokenizer.encode(ODD)) == expected
    assert max(map(len, expected)) == 32 and tokenizer.size == len(own) and tokenizer.pad_id == 0


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_what_is_cut_keeps_its_special_tokens(tmp_path: Path, truncation: str) -> None:
    path = pretrained_folder(tmp_path)
    whole, short = PretrainedTokenizer(path=path), PretrainedTokenizer(path=path, max_length=7, truncation=truncation)
    for long, row in zip(rows(whole.encode(ODD)), rows(short.encode(ODD)), strict=True):
        middle = long[1:-1]
        parts = {"head": middle[:5], "tail": middle[-5:], "head_tail": middle[:3] + middle[-2:]}
        assert row == ([2, *parts[truncation], 3] if len(middle) > 5 else long)
    with pytest.raises(UserError, match="max_length 2 leaves no room"):
        PretrainedTokenizer(path=path, max_length=2)
    with pytest.raises(UserError, match="is no folder"):
        PretrainedTokenizer(path=tmp_path / "nowhere")


# all


@pytest.mark.parametrize("kind", ["word", "ngram", "hashed", "torchtext", "pretrained"])
def test_saved_and_loaded_it_reads_the_same(tmp_path: Path, kind: str) -> None:
    makers: dict[str, Any] = {
        "word": lambda **options: WordTokenizer(min_count=1, **options),
        "ngram": lambda **options: NgramTokenizer(min_count=1, **options),
        "hashed": lambda **options: NgramTokenizer(hashed=True, size=100, **options),
        "torchtext": lambda **options: TorchtextTokenizer(min_count=1, **options),
        "pretrained": lambda **options: PretrainedTokenizer(path=pretrained_folder(tmp_path / "own"), **options),
    }
    make, saved = makers[kind], tmp_path / "saved"
    saved.mkdir()
    tokenizer = make()
    tokenizer.fit(chunked(TEXTS, 2))
    tokenizer.save(saved)
    again = make()
    again.load(saved)
    assert again.size == tokenizer.size and again.key() == tokenizer.key()
    assert rows(again.encode(ODD)) == rows(tokenizer.encode(ODD))
    assert gives_words(again) == gives_words(tokenizer) == (kind in ("word", "pretrained"))
    if gives_words(again) and gives_words(tokenizer):
        assert np.array_equal(again.encode_with_words(ODD)[2], tokenizer.encode_with_words(ODD)[2])
    json.dumps(tokenizer.key())
    assert len({json.dumps(make(**options).key()) for options in ({}, {"max_length": 8}, {"truncation": "tail"})}) == 3


def test_other_settings_are_another_key() -> None:
    keys = [
        WordTokenizer(),
        *(WordTokenizer(**one) for one in ({"size": 9}, {"min_count": 9}, {"lowercase": False})),
        NgramTokenizer(),
        *(
            NgramTokenizer(**one)
            for one in (
                {"orders": 2},
                {"size": 9},
                {"min_count": 9},
                {"hashed": True},
                {"lowercase": False},
                {"characters": [3, 5]},
                {"characters": [2, 5]},
            )
        ),
        TorchtextTokenizer(),
        *(TorchtextTokenizer(**one) for one in ({"size": 9}, {"min_count": 9}, {"name": None})),
    ]
    assert len({json.dumps(tokenizer.key(), sort_keys=True) for tokenizer in keys}) == len(keys)


def test_another_vocabulary_is_another_key(tmp_path: Path) -> None:
    first = PretrainedTokenizer(path=pretrained_folder(tmp_path / "a"))
    content = (tmp_path / "a" / "tokenizer.json").read_text().replace('"bad"', '"worse"')
    same = PretrainedTokenizer(path=pretrained_folder(tmp_path / "b"))
    (tmp_path / "b" / "tokenizer.json").write_text(content)
    assert same.key() == first.key() != PretrainedTokenizer(path=tmp_path / "b").key()


@pytest.mark.parametrize("orders", [1, 2, 4])
@pytest.mark.parametrize("hashed", [False, True])
def test_the_words_of_a_feature_are_found_again_in_the_texts(orders: int, hashed: bool) -> None:
    texts = [*random_texts(60), "", "w0"]
    tokenizer = fit_ngrams(texts, orders=orders, hashed=hashed, size=1 << 20 if hashed else 500, max_length=12)
    vocabulary = {number: word for word, number in tokenizer.words.get_vocab().items()}
    members = tokenizer.members(chunked(texts))
    assert members.shape == (tokenizer.size, orders) and members.dtype == np.int32
    assert members[0].tolist() == [0] * orders  # padding
    seen = {number for row in rows(tokenizer.encode(texts)) for number in row}
    assert set(np.flatnonzero(members[:, 0]).tolist()) == seen
    for number in seen:
        words = [vocabulary[int(word)] for word in members[number] if word]
        whole, *parts = rows(tokenizer.encode([" ".join(each) for each in (words, words[:-1], words[1:])]))
        assert number in set(whole).difference(*parts)  # it needs all of them
    assert len({tuple(row) for row in members[sorted(seen)].tolist()}) == len(seen)


def test_a_shared_bucket_has_the_words_of_one_of_its_ngrams() -> None:
    tokenizer = fit_ngrams(["a b c d e f g"], orders=2, hashed=True, size=3, min_count=1)
    vocabulary = {number: word for word, number in tokenizer.words.get_vocab().items()}
    members = tokenizer.members([["a b c"], ["d e f g"]])
    for bucket in np.flatnonzero(members[:, 0]):
        ngram = " ".join(vocabulary[int(word)] for word in members[bucket] if word)
        assert bucket in rows(tokenizer.encode([ngram]))[0]
    assert not tokenizer.members([]).any()
