"""Which word of the text a token belongs to, whatever the tokenizer cuts the text into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from kdresearch.data.tokenizers import (
    NgramTokenizer,
    PretrainedTokenizer,
    TorchtextTokenizer,
    WordTokenizer,
    gives_words,
    words_of,
)

# Texts and their words, by hand.
WORDS = {
    "The film isn't bad,  it's unbelievably GOOD!": [
        *("The", "film", "isn't", "bad", ",", "it's", "unbelievably", "GOOD", "!"),
    ],
    "": [],
    "cafe\u0301 caf\u00e9 U\u0308ber-e\u0301te\u0301": [
        *("cafe\u0301", "caf\u00e9", "U\u0308ber", "-", "e\u0301te\u0301"),
    ],
    "good 👍🏽👍 film 3.5/10 ...": ["good", "👍", "🏽", "👍", "film", "3", ".", "5", "/", "10", ".", ".", "."],
    " \t ": [],
    "film": ["film"],
    "हिन्दी the  फिल्म": ["हिन्दी", "the", "फिल्म"],
    "  the film, the film\n\nthe rock'n'roll film  ": ["the", "film", ",", "the", "film", "the", "rock'n'roll", "film"],
    "日本 İs it": ["日", "本", "İs", "it"],
}
TEXTS = list(WORDS)


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(str(folder))
    return folder


def word_piece(folder: Path) -> Path:
    """A few whole words, and letters for all others; lower case, without accents."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "film",
        "un",
        "##believ",
        "##ably",
        "good",
        *",.!/'-0123456789",
    ]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = list(dict.fromkeys([*pieces, *letters, *(f"##{letter}" for letter in letters)]))
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return saved(tokenizer, folder)


def byte_level(folder: Path) -> Path:
    """Merged bytes; tokens begin with the space before them, and a character may take several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the film is good, the film isn't bad ..."] * 3, trainer)
    return saved(tokenizer, folder)


def fitted_words(folder: Path, **options: Any) -> WordTokenizer:
    tokenizer = WordTokenizer(min_count=1, **options)
    tokenizer.fit([TEXTS[:5]])
    return tokenizer


MAKERS: dict[str, Callable[..., Any]] = {
    "word": fitted_words,
    "word_piece": lambda folder, **options: PretrainedTokenizer(path=word_piece(folder), **options),
    "byte_level": lambda folder, **options: PretrainedTokenizer(path=byte_level(folder), **options),
}


def by_row(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [row.tolist() for row in np.split(flat, np.cumsum(lengths)[:-1])]


def words_of_characters(text: str) -> list[int]:
    """The number of the word that each character of a text belongs to, -1 for none."""
    found, place = [-1] * len(text), 0
    for number, word in enumerate(WORDS[text]):
        place = text.index(word, place)
        found[place : place + len(word)] = [number] * len(word)
        place += len(word)
    return found


def spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """The characters that each token comes from, special tokens included."""
    if isinstance(tokenizer, WordTokenizer):
        return tokenizer.words.encode(text).offsets or [(0, 0)]
    around = [[(0, 0)] * len(side) for side in (tokenizer.prefix, tokenizer.suffix)]
    return [*around[0], *tokenizer.backend.encode(text, add_special_tokens=False).offsets, *around[1]]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_token_belongs_to_the_first_word_that_it_touches(tmp_path: Path, kind: str) -> None:
    tokenizer = MAKERS[kind](tmp_path, max_length=None)
    _, lengths, words = tokenizer.encode_with_words(TEXTS)
    several, spaced = set(), False
    for text, found in zip(TEXTS, by_row(words, lengths), strict=True):
        characters = words_of_characters(text)
        for word, (start, end) in zip(found, spans(tokenizer, text), strict=True):
            touched = [number for number in characters[start:end] if number >= 0]
            assert word == (touched[0] if touched else -1)
            several |= {text[start:end]} if len(set(touched)) > 1 else set()
            spaced |= bool(touched) and text[start].isspace()
    assert several == {"word": set(), "word_piece": {"👍🏽👍"}, "byte_level": {" ..."}}[kind]
    assert spaced == (kind == "byte_level")


def test_words_of_characters_by_hand() -> None:
    texts = ["", "ab, cd", " ", "it's"]  # 0: ab, 1: a comma, 2: cd
    spans = [[(0, 0)], [(0, 0), (0, 1), (1, 1), (1, 2), (1, 5), (2, 6), (3, 4), (3, 6), (6, 6)], [(0, 1)], [(2, 3)]]
    assert words_of(texts, spans).tolist() == [-1, -1, 0, -1, 0, 0, 1, -1, 2, -1, -1, 0]


def test_words_by_hand(tmp_path: Path) -> None:
    text = "isn't it  unbelievably\u200b good?!"
    numbers = {kind: make(tmp_path / kind).encode_with_words([text, "", text]) for kind, make in MAKERS.items()}
    words = {kind: by_row(found[2], found[1]) for kind, found in numbers.items()}
    assert words["word"] == [[0, 1, 2, 3, 4, 5, 6], [-1], [0, 1, 2, 3, 4, 5, 6]]
    pieces = [-1, *[0] * 5, *[1] * 2, *[2] * 3, 4, 5, 6, -1]  # i s n ' t, i t, un believ ably, good, ?, !
    assert words["word_piece"] == [pieces, [-1, -1], pieces]  # without the space of no width, which is word 3
    assert words["byte_level"][0].count(3) == 3  # of which it reads each byte


@pytest.mark.parametrize("kind", MAKERS)
def test_states_of_words_are_the_same_whatever_the_cuts(tmp_path: Path, kind: str) -> None:
    """What is constant within a word is still there when its tokens are pooled; nothing else gets in."""
    tokenizer, random = MAKERS[kind](tmp_path, max_length=None), np.random.default_rng(0)
    _, lengths, words = tokenizer.encode_with_words(TEXTS)
    for text, found in zip(TEXTS, by_row(words, lengths), strict=True):
        truth = np.random.default_rng(len(text)).normal(size=(len(WORDS[text]), 3))
        characters, pooled, count = words_of_characters(text), np.zeros_like(truth), np.zeros(len(truth))
        for word, (start, end) in zip(found, spans(tokenizer, text), strict=True):
            real = [number for number in characters[start:end] if number >= 0]
            state = truth[real[0]] if real else random.normal(size=3)
            if word >= 0:
                pooled[word] += state
                count[word] += 1
        # Words that have no token of their own: of one for three signs, or three dots, it is the first that has it.
        without = {"word": [], "word_piece": [2, 3], "byte_level": [11, 12]}[kind] if "👍" in text else []
        assert np.flatnonzero(count == 0).tolist() == without
        assert np.allclose(pooled / np.maximum(count, 1)[:, None], np.where(count[:, None] > 0, truth, 0))


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
@pytest.mark.parametrize("max_length", [None, 3, 7, 200])
@pytest.mark.parametrize("kind", MAKERS)
def test_ids_are_those_of_encode(tmp_path: Path, kind: str, max_length: int | None, truncation: str) -> None:
    tokenizer = MAKERS[kind](tmp_path, max_length=max_length, truncation=truncation)
    ids, lengths, words = tokenizer.encode_with_words(TEXTS)
    expected = tokenizer.encode(TEXTS)
    assert np.array_equal(ids, expected[0]) and np.array_equal(lengths, expected[1])
    assert words.dtype == ids.dtype == np.int32 and lengths.dtype == expected[1].dtype
    assert by_row(words, lengths) == [tokenizer.encode_with_words([text])[2].tolist() for text in TEXTS]
    assert [len(part) for part in tokenizer.encode_with_words([])] == [0, 0, 0]


@pytest.mark.parametrize(("truncation", "kept"), [("head", [0, 1, 2]), ("tail", [4, 5, 6]), ("head_tail", [0, 1, 6])])
def test_numbers_are_those_of_the_whole_text(tmp_path: Path, truncation: str, kept: list[int]) -> None:
    text = "the film the film, the film"  # one token for each word: 0 1 2 3 4 5 6
    for kind, max_length in (("word", 3), ("word_piece", 5), ("byte_level", 5)):
        tokenizer = MAKERS[kind](tmp_path / kind, max_length=max_length, truncation=truncation)
        found = tokenizer.encode_with_words(["film film", text])[2].tolist()
        ends = [] if kind == "word" else [-1]
        assert found[2 + 2 * len(ends) :] == [*ends, *kept, *ends]


def test_who_gives_words(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(str(tmp_path / "slow"))
    slow = PretrainedTokenizer(path=tmp_path / "slow")
    assert all(gives_words(make(tmp_path / kind)) for kind, make in MAKERS.items())
    assert not any(map(gives_words, (slow, NgramTokenizer(), TorchtextTokenizer())))
    assert slow.encode(["ab"])[0].tolist() == [100, 101, 1]  # it reads, all the same
