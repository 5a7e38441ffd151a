from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdresearch.artifacts import Store
from kdresearch.data.corpus import Corpus, Row, load
from kdresearch.data.encoding import EncodedRows, encoded, fitted, pad, rows_digest
from kdresearch.data.tokenizers import NgramTokenizer, WordTokenizer
from kdresearch.errors import UserError


class Numbers:
    """Rows of 1 to 9 words, more than one chunk of them."""

    name = "numbers"
    synthetic = True
    classes = ("even", "odd")

    def key(self) -> dict[str, object]:
        return {}

    def rows(self) -> Iterator[Row]:
        for part, count in {"test": 40, "train": 5000, "unlabelled": 30, "validation": 20}.items():
            for i in range(count):
                words = " ".join(f"{part[:2]}{(i * 31 + j) % 97}" for j in range(1 + i % 9))
                yield Row(part, f"{part}/{i}", words, None if part == "unlabelled" else self.classes[i % 2])


class Counted(WordTokenizer):
    """Counts the texts that it fits on and encodes."""

    texts_fitted = texts_encoded = 0

    def fit(self, texts: Iterable[list[str]]) -> None:
        chunks = list(texts)
        self.texts_fitted += sum(map(len, chunks))
        super().fit(chunks)

    def encode(self, texts: list[str]) -> Any:
        self.texts_encoded += len(texts)
        return super().encode(texts)

    def encode_with_words(self, texts: list[str]) -> Any:
        self.texts_encoded += len(texts)
        return super().encode_with_words(texts)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def corpus(store: Store) -> Corpus:
    return load(Numbers(), store)


def texts_of(corpus: Corpus, index: np.ndarray) -> list[str]:
    return [text for texts in corpus.texts(index) for text in texts]


def check(found: EncodedRows, tokenizer: WordTokenizer, corpus: Corpus, index: np.ndarray) -> None:
    """Ids, mask and lengths are those of encoding each row by itself."""
    tokens, lengths = found.tokens(index), found.lengths(index)
    width = tokens.ids.shape[1]
    assert tokens.ids.shape == tokens.mask.shape == (len(index), width)
    assert lengths.max() <= width < lengths.max() + 8
    longest = max(int(np.diff(part.offsets).max()) for part in found.encoded_parts)
    assert width % 8 == 0 or width == longest
    for row, text in enumerate(texts_of(corpus, index)):
        ids = tokenizer.encode([text])[0].tolist()
        assert lengths[row] == len(ids) == tokens.mask[row].sum()
        assert tokens.ids[row].tolist() == ids + [tokenizer.pad_id] * (width - len(ids))
        assert tokens.mask[row].tolist() == [True] * len(ids) + [False] * (width - len(ids))


def test_rows_in_any_order_over_parts_equal_direct_encoding(corpus: Corpus, store: Store) -> None:
    tokenizer = WordTokenizer(min_count=1)
    name = fitted(tokenizer, corpus, np.arange(100), store)
    found = encoded(tokenizer, name, corpus, np.arange(len(corpus)), store)
    random = np.random.default_rng(0)
    for _ in range(5):
        check(found, tokenizer, corpus, random.choice(len(corpus), 50))
    check(found, tokenizer, corpus, np.array([len(corpus) - 1, 0, 4999, 5000, 5019, 5020, 5059, 5060, 0]))


def test_a_subset_of_parts_and_rows(corpus: Corpus, store: Store) -> None:
    tokenizer = WordTokenizer(min_count=1)
    name = fitted(tokenizer, corpus, np.arange(100), store)
    index = np.array(
        [5062, 17, 5070, 3, 4096, 17, 5025]
    )  # train, test and unlabelled; validation (5000-5019) is not read
    found = encoded(tokenizer, name, corpus, index, store)
    assert [part.start for part in found.encoded_parts] == [0, 5020, 5060]
    check(found, tokenizer, corpus, np.array([5070, 3, 4096, 5062, 3, 5025]))
    for stranger in (4, 4999, 5003, 5026, 5089):
        for read in (found.tokens, found.lengths):
            with pytest.raises(KeyError, match=f"row {stranger} was not encoded"):
                read(np.array([17, stranger]))
    check(encoded(tokenizer, name, corpus, np.array([4, 17, 5080]), store), tokenizer, corpus, np.array([5080, 4, 17]))
    test_only = encoded(tokenizer, name, corpus, np.arange(5020, 5060), store)
    with pytest.raises(KeyError, match="row 3 was not encoded"):
        test_only.tokens(np.array([5020, 3]))


def test_rows_are_encoded_and_fitted_once(corpus: Corpus, store: Store) -> None:
    tokenizer, said, train = Counted(min_count=1), [], np.arange(4500)
    index = np.arange(len(corpus))
    name = fitted(tokenizer, corpus, train, store, said.append)
    encoded(tokenizer, name, corpus, index, store, said.append)
    assert tokenizer.texts_fitted == 4500 and tokenizer.texts_encoded == len(corpus)
    assert said[0] == "fitting the word tokenizer on 4,500 rows" and len(said) == 6
    assert said[1] == f"the word tokenizer has {tokenizer.size} entries: the rows give no 30,000"
    again = Counted(min_count=1)
    assert fitted(again, corpus, train[::-1], store, said.append) == name  # rows are a set
    check(encoded(again, name, corpus, index[::-1], store, said.append), tokenizer, corpus, index[-30:])
    assert again.texts_fitted == again.texts_encoded == 0 and again.size == tokenizer.size and len(said) == 6


def test_other_rows_or_settings_are_another_fingerprint(corpus: Corpus, store: Store) -> None:
    names = [
        fitted(WordTokenizer(min_count=1), corpus, np.arange(100), store),
        fitted(WordTokenizer(min_count=1), corpus, np.arange(101), store),
        fitted(WordTokenizer(min_count=2), corpus, np.arange(100), store),
        fitted(NgramTokenizer(min_count=1), corpus, np.arange(100), store),
    ]
    assert len(set(names)) == len(names)
    assert fitted(WordTokenizer(min_count=1), corpus, np.arange(100), store) == names[0]
    assert (
        rows_digest(np.array([3, 1, 2])) == rows_digest(np.array([1, 2, 3], np.int32)) != rows_digest(np.array([1, 2]))
    )


def test_the_vocabulary_is_that_of_the_training_rows(corpus: Corpus, store: Store) -> None:
    tokenizer = WordTokenizer(min_count=1, max_length=None)
    fitted(tokenizer, corpus, np.arange(5), store)
    words = {word for text in texts_of(corpus, np.arange(5)) for word in text.split()}
    assert tokenizer.size == 2 + len(words)
    assert set(tokenizer.encode(texts_of(corpus, np.arange(5020, 5060)))[0].tolist()) == {1}  # none of the test part's


def test_rows_without_features_are_padding_alone(corpus: Corpus, store: Store) -> None:
    tokenizer = NgramTokenizer(min_count=1)
    name = fitted(tokenizer, corpus, np.arange(5), store)
    found = encoded(tokenizer, name, corpus, np.arange(5030), store)
    tokens = found.tokens(np.array([5020, 2, 5021]))  # no word of the test part is known
    assert tokens.mask.sum(1).tolist() == [0, 6, 0] and not tokens.ids[0].any()
    alone = encoded(tokenizer, name, corpus, np.arange(5020, 5060), store).tokens(np.array([5022]))
    assert alone.ids.tolist() == [[0]] and alone.mask.tolist() == [[False]]


def kept(store: Store) -> dict[str, list[str]]:
    """Every artifact with its files."""
    return {f"{each.kind}/{each.path.name} {each.created}": sorted(each.files) for each in store.artifacts()}


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_words_lie_beside_the_ids_row_by_row(corpus: Corpus, store: Store, truncation: str) -> None:
    tokenizer = WordTokenizer(min_count=1, max_length=4, truncation=truncation)
    name = fitted(tokenizer, corpus, np.arange(100), store)
    found = encoded(tokenizer, name, corpus, np.arange(len(corpus)), store, words=True)
    random = np.random.default_rng(0)
    for index in (random.choice(len(corpus), 50), np.array([8, 5019, 0, 5020, 5089])):
        check(found, tokenizer, corpus, index)
        tokens = found.tokens(index)
        assert tokens.words is not None and tokens.words.dtype == torch.int64
        assert tokens.words.shape == tokens.ids.shape and (tokens.words[~tokens.mask] == -1).all()
        for text, words, mask in zip(texts_of(corpus, index), tokens.words, tokens.mask, strict=True):
            places = list(range(len(text.split())))
            cut = {"head": places[:4], "tail": places[-4:], "head_tail": places[:2] + places[-2:]}[truncation]
            assert words[mask].tolist() == (cut if len(places) > 4 else places)


def test_words_are_kept_once_and_leave_the_encodings_alone(corpus: Corpus, store: Store) -> None:
    tokenizer, index, said = Counted(min_count=1), np.array([17, 3, 5025, 5070]), []
    name = fitted(tokenizer, corpus, np.arange(100), store)
    plain = encoded(tokenizer, name, corpus, index, store)
    before = kept(store)
    assert tokenizer.texts_encoded == 4 and plain.tokens(index).words is None
    worded = encoded(tokenizer, name, corpus, index, store, said.append, words=True)
    assert tokenizer.texts_encoded == 8 and said[0] == "finding the words of 2 rows of train" and len(said) == 3
    after = kept(store)
    assert {name: after[name] for name in before} == before
    assert [files for name, files in after.items() if name not in before] == [["words.bin"]] * 3
    assert worded.same_ids(plain) and plain.same_ids(worded)
    again = encoded(tokenizer, name, corpus, index, store, said.append, words=True)
    assert torch.equal(again.tokens(index).words, worded.tokens(index).words)
    assert encoded(tokenizer, name, corpus, index, store, said.append).tokens(index).words is None
    assert tokenizer.texts_encoded == 8 and len(said) == 3 and kept(store) == after


def test_words_that_a_tokenizer_does_not_give_are_refused(corpus: Corpus, store: Store) -> None:
    tokenizer = NgramTokenizer(min_count=1)
    name = fitted(tokenizer, corpus, np.arange(5), store)
    with pytest.raises(UserError, match="the ngram tokenizer does not say which word a token belongs to"):
        encoded(tokenizer, name, corpus, np.arange(5), store, words=True)


def test_the_same_ids_are_those_of_the_same_rows(corpus: Corpus, store: Store) -> None:
    def read(index: np.ndarray, **options: Any) -> EncodedRows:
        tokenizer = WordTokenizer(**{"min_count": 1} | options)
        return encoded(tokenizer, fitted(tokenizer, corpus, np.arange(100), store), corpus, index, store)

    index = np.array([1, 2, 3, 5025])
    rows = read(index)
    assert rows.same_ids(read(index, size=20000)) and rows.same_ids(read(index, max_length=8))  # of at most 6 words
    others = [read(index[:-1]), read(np.array([1, 2, 4, 5025])), read(np.array([1, 2, 3, 5026]))]
    others += [read(index, max_length=3), read(index, size=50)]
    others += [read(np.array([1, 2, 3 + 873, 5025]))]  # whose text is that of row 3
    assert len(set(texts_of(corpus, np.array([3, 3 + 873])))) == 1
    assert not any(rows.same_ids(other) or other.same_ids(rows) for other in others)


def test_words_are_padded_with_none() -> None:
    tokens = pad([np.array([4, 5]), np.array([], int)], 9, words=[np.array([0, 3]), np.array([], int)])
    assert tokens.words is not None and tokens.words.tolist() == [[0, 3], [-1, -1]]
    assert tokens.ids.tolist() == [[4, 5], [9, 9]] and pad([np.array([4])], 9).words is None


def test_padding_takes_its_own_id() -> None:
    tokens = pad([np.array([4, 5]), np.array([], int), np.array([6])], pad_id=9)
    assert tokens.ids.tolist() == [[4, 5], [9, 9], [6, 9]]
    assert tokens.mask.tolist() == [[True, True], [False, False], [True, False]]
