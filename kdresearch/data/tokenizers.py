"""Tokenizers: how a model reads text. Each is fitted on training rows only, saved with the model, loaded with it.

Every tokenizer answers ``encode(texts) -> (ids [sum of lengths] int32, lengths [N] int64)``: flat arrays, because
lists of Python integers are walked by the garbage collector and slow a training loop down. Id 0 is padding, except
in a pretrained vocabulary, which has its own.

Those that know which characters a token comes from (``gives_words``) can also ``encode_with_words``, by which the
tokens of two tokenizers are compared word by word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeGuard

import numpy as np

from kdresearch.errors import UserError, choices
from kdresearch.hub import hub_name

TRUNCATIONS = ("head", "tail", "head_tail")
WORDS = r"\w+(?:['’]\w+)*|[^\w\s]"
UNKNOWN = 1  # id of a word outside the vocabulary, where it is fitted here
NO_WORD = -1  # of a token that belongs to no word
Encoded = tuple[np.ndarray, np.ndarray]
EncodedWords = tuple[np.ndarray, np.ndarray, np.ndarray]


class TextTokenizer(Protocol):
    """Text in, ids out."""

    pad_id: int

    @property
    def size(self) -> int:
        """Rows of the embedding table that the ids index."""

    def key(self) -> dict[str, Any]:
        """The settings, JSON-able; together with the rows it was fitted on they determine the ids."""

    def fit(self, texts: Iterable[list[str]]) -> None:
        """Learn the vocabulary from chunks of training texts."""

    def encode(self, texts: list[str]) -> Encoded: ...

    def save(self, folder: Path) -> None: ...


class WordwiseTokenizer(TextTokenizer, Protocol):
    """One that also says which word of the original text each token belongs to."""

    def encode_with_words(self, texts: list[str]) -> EncodedWords:
        """``encode``'s ids [sum of lengths] and lengths [N], and the number of each token's word, int32 like the ids.

        Words are the matches of ``WORDS`` in the whole text as it was given, numbered from 0, whatever is cut off.
        A token belongs to the first word that it shares a character with; special tokens, and those that stand for
        space or for no text at all, are of ``NO_WORD``.
        """


def gives_words(tokenizer: TextTokenizer) -> TypeGuard[WordwiseTokenizer]:
    """Whether a tokenizer can ``encode_with_words``."""
    if isinstance(tokenizer, PretrainedTokenizer):
        return tokenizer.backend is not None  # those written in Python keep no offsets
    return hasattr(tokenizer, "encode_with_words")


def cut(ids: np.ndarray, lengths: np.ndarray, max_length: int | None, truncation: str) -> Encoded:
    """Shorten rows of flat ids to ``max_length``: their head, their tail, or half of each.

    Args:
        ids: [sum of lengths]; lengths: [N].
    """
    if max_length is None or not len(lengths) or lengths.max() <= max_length:
        return ids, lengths
    head = {"head": max_length, "tail": 0, "head_tail": (max_length + 1) // 2}[truncation]
    ends = np.cumsum(lengths)
    place = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)  # position within the row
    from_end = np.repeat(lengths, lengths) - place
    long = np.repeat(lengths > max_length, lengths)
    keep = ~long | (place < head) | (from_end <= max_length - head)
    return ids[keep], np.minimum(lengths, max_length)


def _check_lengths(max_length: int | None, truncation: str) -> None:
    if truncation not in TRUNCATIONS:
        raise UserError(f"truncation: {choices(truncation, TRUNCATIONS)}")
    if max_length is not None and max_length < 1:
        raise UserError(f"max_length must be at least 1, not {max_length}")


def _flat(rows: Sequence[Sequence[int]]) -> Encoded:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def _by_words() -> Any:
    """What splits a text into its words (Rust, whose ``\\w`` holds combining marks, unlike that of Python's ``re``)."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)


def words_of(texts: list[str], spans: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """The word of each token [sum of lengths] int32, by the characters of its text that each comes from.

    Args:
        spans: per text, the first character of each token and the one after its last; equal where it has none.
    """
    split = _by_words()
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


def _word_level(lowercase: bool) -> Any:
    """An untrained word-level tokenizer (Rust)."""
    from tokenizers import Tokenizer, models, normalizers

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = _by_words()
    tokenizer.encode_special_tokens = True  # a text that says "<pad>" holds no padding
    return tokenizer


def _load_words(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "words.json"))
    tokenizer.encode_special_tokens = True  # not part of the file
    return tokenizer


def _train_words(tokenizer: Any, texts: Iterable[list[str]], size: int, min_count: int) -> None:
    from tokenizers import trainers

    trainer = trainers.WordLevelTrainer(
        vocab_size=size, min_frequency=min_count, special_tokens=["<pad>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)


class WordTokenizer:
    """Words and punctuation marks by a regular expression, the most frequent kept.

    Args:
        size: vocabulary entries, padding and unknown included.
        min_count: occurrences in the training rows below which a word is unknown.
        max_length: tokens kept of a text; None keeps all.
        truncation: which of them: ``head``, ``tail`` or ``head_tail`` (half from each end).
    """

    pad_id = 0

    def __init__(
        self,
        *,
        size: int = 30000,
        min_count: int = 2,
        lowercase: bool = True,
        max_length: int | None = 256,
        truncation: str = "head_tail",
    ) -> None:
        _check_lengths(max_length, truncation)
        self.settings: dict[str, Any] = {
            "size": size,
            "min_count": min_count,
            "lowercase": lowercase,
            "max_length": max_length,
            "truncation": truncation,
        }
        self.max_length, self.truncation = max_length, truncation
        self.words = _word_level(lowercase)

    @property
    def size(self) -> int:
        return int(self.words.get_vocab_size())

    def key(self) -> dict[str, Any]:
        return {"tokenizer": "word", **self.settings}

    def fit(self, texts: Iterable[list[str]]) -> None:
        _train_words(self.words, texts, self.settings["size"], self.settings["min_count"])

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
        return _flat([row.ids or [UNKNOWN] for row in rows])

    def save(self, folder: Path) -> None:
        self.words.save(str(folder / "words.json"))

    def load(self, folder: Path) -> None:
        self.words = _load_words(folder)


class NgramTokenizer:
    """The set of a text's word n-grams: ids of 1 to ``orders`` words in a row, each once, in no order.

    Exact n-grams keep the ``size`` that occur in most training rows; ``hashed`` ones fold every n-gram of known
    words into ``size`` buckets (Weinberger et al. 2009).

    Args:
        orders: the longest n-gram.
        size: features, the padding id 0 not included.
        min_count: training rows below which an exact n-gram is dropped.
        max_length: words of the text that are read; None reads all.
    """

    pad_id = 0
    _MERGE = 8_000_000  # n-grams held before they are folded into the running counts: bounds the memory of fit

    def __init__(
        self,
        *,
        orders: int = 3,
        size: int = 500_000,
        min_count: int = 2,
        hashed: bool = False,
        lowercase: bool = True,
        max_length: int | None = None,
        truncation: str = "head_tail",
    ) -> None:
        _check_lengths(max_length, truncation)
        if orders < 1:
            raise UserError(f"orders must be at least 1, not {orders}")
        self.settings: dict[str, Any] = {
            "orders": orders,
            "size": size,
            "min_count": min_count,
            "hashed": hashed,
            "lowercase": lowercase,
            "max_length": max_length,
            "truncation": truncation,
        }
        self.orders, self.buckets, self.hashed = orders, size, hashed
        self.max_length, self.truncation = max_length, truncation
        self.words = _word_level(lowercase)
        self.keys = np.empty(0, np.uint64)  # sorted 64-bit names of the exact n-grams

    @property
    def size(self) -> int:
        return 1 + (self.buckets if self.hashed else len(self.keys))

    def key(self) -> dict[str, Any]:
        return {"tokenizer": "ngram", **self.settings}

    def fit(self, texts: Iterable[list[str]]) -> None:
        held: list[list[str]] = []

        def remember() -> Iterator[list[str]]:
            for chunk in texts:
                held.append(chunk)
                yield chunk

        _train_words(self.words, remember(), 1 << 31, 1)
        if self.hashed:
            return
        keys, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        fresh: list[np.ndarray] = []
        for chunk in held:
            fresh.append(self._names(chunk)[0])
            if sum(map(len, fresh)) > self._MERGE:
                keys, counts = _merge_counts(keys, counts, fresh)
                fresh = []
        keys, counts = _merge_counts(keys, counts, fresh)
        kept = counts >= self.settings["min_count"]
        keys, counts = keys[kept], counts[kept]
        most = np.lexsort((keys, -counts))[: self.buckets]
        self.keys = np.sort(keys[most])

    def encode(self, texts: list[str]) -> Encoded:
        names, rows = self._names(texts)
        ids = self._features(names)
        ids, rows = ids[ids > 0], rows[ids > 0]
        flat = np.unique(rows * self.size + ids)  # each feature once per row, rows in order
        rows, ids = np.divmod(flat, self.size)
        return ids.astype(np.int32), np.bincount(rows, minlength=len(texts))

    def members(self, texts: Iterable[list[str]]) -> np.ndarray:
        """The words that each feature consists of, found again in the texts that it was fitted on.

        Returns:
            ids of ``words`` [size, orders] int32, 0 from where an n-gram ends; all 0 where no text holds the feature.
            Of n-grams that share a bucket, the first chunk's shortest.
        """
        found = np.zeros((self.size, self.orders), np.int32)
        for chunk in texts:
            ids, lengths = self._read(chunk)
            for order, (names, starts) in enumerate(self._ngrams(ids, lengths), 1):
                feature, first = np.unique(self._features(names), return_index=True)
                new = found[feature, 0] == 0
                new[feature == 0] = False
                feature, first = feature[new], starts[first[new]]
                found[feature, :order] = ids[first[:, None] + np.arange(order)]
        return found

    def _read(self, texts: list[str]) -> Encoded:
        """The ids of the words of each text, flat, and how many."""
        rows = self.words.encode_batch_fast(texts)
        return cut(*_flat([row.ids for row in rows]), self.max_length, self.truncation)

    def _features(self, names: np.ndarray) -> np.ndarray:
        """The feature of each n-gram's name; 0 where there is none."""
        if self.hashed:
            return (names % np.uint64(self.buckets)).astype(np.int64) + 1
        place = np.searchsorted(self.keys, names)
        known = place < len(self.keys)
        known[known] = self.keys[place[known]] == names[known]
        return np.where(known, place + 1, 0)

    def _ngrams(self, ids: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """From order 1 on: the 64-bit names of the n-grams of known words, and where in ``ids`` each starts."""
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(ids))  # tokens from here to the row's end
        word, known = ids.astype(np.uint64), ids != UNKNOWN
        name, whole = np.zeros(len(ids), np.uint64), np.ones(len(ids), bool)
        for order in range(1, self.orders + 1):
            # Of the n-gram that starts at each position: its name, and whether all its words are known.
            name, whole = _mix(name[: len(word)] + word), whole[: len(word)] & known
            starts = np.flatnonzero(whole & (left[: len(word)] >= order))
            yield name[starts], starts
            word, known = word[1:], known[1:]
            if not len(word):
                break

    def _names(self, texts: list[str]) -> Encoded:
        """64-bit names of the distinct n-grams of known words of each text, and the row of each."""
        ids, lengths = self._read(texts)
        row = np.repeat(np.arange(len(texts)), lengths)
        ngrams = [(names, row[starts]) for names, starts in self._ngrams(ids, lengths)]
        all_names, all_rows = (np.concatenate(side) for side in zip(*ngrams, strict=True))
        order = np.lexsort((all_names, all_rows))
        all_names, all_rows = all_names[order], all_rows[order]
        first = np.ones(len(all_names), bool)
        first[1:] = (all_names[1:] != all_names[:-1]) | (all_rows[1:] != all_rows[:-1])
        return all_names[first], all_rows[first]

    def save(self, folder: Path) -> None:
        self.words.save(str(folder / "words.json"))
        np.save(folder / "ngrams.npy", self.keys)

    def load(self, folder: Path) -> None:
        self.words = _load_words(folder)
        self.keys = np.load(folder / "ngrams.npy")


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection that scatters 64-bit integers."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    return value


def _merge_counts(keys: np.ndarray, counts: np.ndarray, fresh: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Fold new occurrences into sorted distinct keys and their counts."""
    if not fresh:
        return keys, counts
    new, occurrences = np.unique(np.concatenate(fresh), return_counts=True)
    merged, inverse = np.unique(np.concatenate([keys, new]), return_inverse=True)
    total = np.bincount(inverse, weights=np.concatenate([counts, occurrences]), minlength=len(merged))
    return merged, total.astype(np.int64)


class TorchtextTokenizer:
    """torchtext's own tokenizer and vocabulary, with pretrained word vectors when a file is given.

    Args:
        name: a tokenizer that ``torchtext.data.utils.get_tokenizer`` knows.
        vectors: a text file of word vectors in GloVe's layout; known words start from them.
    """

    pad_id = 0

    def __init__(
        self,
        *,
        name: str = "basic_english",
        size: int = 30000,
        min_count: int = 2,
        vectors: str | Path | None = None,
        max_length: int | None = 256,
        truncation: str = "head_tail",
    ) -> None:
        from torchtext.data import Field

        _check_lengths(max_length, truncation)
        self.vectors_file = Path(vectors).expanduser() if vectors else None
        if self.vectors_file is not None and not self.vectors_file.is_file():
            raise UserError(f"student.tokenizer.vectors: {self.vectors_file} does not exist")
        self.settings: dict[str, Any] = {
            "name": name,
            "size": size,
            "min_count": min_count,
            "max_length": max_length,
            "truncation": truncation,
        }
        self.max_length, self.truncation = max_length, truncation
        self.field = Field(sequential=True, lower=True, tokenize=self._tokenizer(name))
        self.words: list[str] = ["<pad>", "<unk>"]

    @staticmethod
    def _tokenizer(name: str) -> Callable[[str], list[str]]:
        from torchtext.data.utils import get_tokenizer

        try:
            tokenizer: Callable[[str], list[str]] = get_tokenizer(name)
        except (AttributeError, ImportError, OSError, ValueError) as error:
            raise UserError(f"student.tokenizer.name: torchtext has no tokenizer {name!r} here ({error})") from error
        return tokenizer

    @property
    def size(self) -> int:
        return len(self.words)

    def key(self) -> dict[str, Any]:
        return {"tokenizer": "torchtext", **self.settings}

    def fit(self, texts: Iterable[list[str]]) -> None:
        rows = (self.field.preprocess(text) for chunk in texts for text in chunk)
        self.field.build_vocab(rows, max_size=self.settings["size"] - 2, min_freq=self.settings["min_count"])
        known = [word for word in self.field.vocab.itos if word not in ("<pad>", "<unk>")]
        self.words = ["<pad>", "<unk>", *known]

    def encode(self, texts: list[str]) -> Encoded:
        # From 2: a text that says "<pad>" holds no padding.
        index = {word: number for number, word in enumerate(self.words) if number > UNKNOWN}
        rows = [[index.get(word, UNKNOWN) for word in self.field.preprocess(text)] or [UNKNOWN] for text in texts]
        return cut(*_flat(rows), self.max_length, self.truncation)

    def vectors(self) -> tuple[Any, Any] | None:
        """Word vectors [V, E] and which rows are known [V], or None where no file was given."""
        if self.vectors_file is None:
            return None
        import ssl

        import torch
        from torchtext.vocab import Vectors

        verified = ssl._create_default_https_context
        try:
            # torchtext keeps a copy under the file's name, which it would prefer to a file that has changed since.
            with TemporaryDirectory() as cache:
                table = Vectors(str(self.vectors_file), cache=cache)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"student.tokenizer.vectors: {self.vectors_file} is not in GloVe's layout ({error})"
            ) from error
        finally:
            ssl._create_default_https_context = verified  # torchtext turns certificates off for the whole process
        known = torch.tensor([word in table.stoi for word in self.words])
        return table.get_vecs_by_tokens(self.words), known

    def save(self, folder: Path) -> None:
        (folder / "words.json").write_text(json.dumps(self.words, ensure_ascii=False), encoding="utf-8")

    def load(self, folder: Path) -> None:
        self.words = json.loads((folder / "words.json").read_text(encoding="utf-8"))


class PretrainedTokenizer:
    """Any tokenizer of a Hugging Face model, by folder or hub id.

    Args:
        path: a folder with the tokenizer's files, or a hub id.
        max_length: tokens kept, the special ones included.
    """

    def __init__(self, *, path: str | Path, max_length: int | None = 256, truncation: str = "head_tail") -> None:
        _check_lengths(max_length, truncation)
        self.settings = {"max_length": max_length, "truncation": truncation}
        self.max_length, self.truncation = max_length, truncation
        self.path = path
        self.load(path)

    @property
    def size(self) -> int:
        return len(self.tokenizer)

    @property
    def backend(self) -> Any:
        """The tokenizer in Rust, or None for one that is written in Python."""
        return getattr(self.tokenizer, "backend_tokenizer", None)

    def key(self) -> dict[str, Any]:
        backend = self.backend
        content = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return {"tokenizer": "pretrained", "content": hashlib.sha256(content.encode()).hexdigest(), **self.settings}

    def fit(self, texts: Iterable[list[str]]) -> None:
        """Nothing: its vocabulary came with it."""

    def encode(self, texts: list[str]) -> Encoded:
        if self.backend is not None:
            rows = [row.ids for row in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        else:
            rows = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return self._framed(*_flat(rows), self.prefix, self.suffix)

    def encode_with_words(self, texts: list[str]) -> EncodedWords:
        rows = self.backend.encode_batch(texts, add_special_tokens=False)  # the fast one gives no offsets
        ids, lengths = _flat([row.ids for row in rows])
        words = words_of(texts, [row.offsets for row in rows])
        of_none = (np.full_like(side, NO_WORD) for side in (self.prefix, self.suffix))
        words, _ = self._framed(words, lengths, *of_none)
        return *self._framed(ids, lengths, self.prefix, self.suffix), words

    def _framed(self, ids: np.ndarray, lengths: np.ndarray, prefix: np.ndarray, suffix: np.ndarray) -> Encoded:
        """Rows of flat ids cut to the room that is left, each between what comes before and after."""
        around = len(prefix) + len(suffix)
        ids, lengths = cut(ids, lengths, None if self.max_length is None else self.max_length - around, self.truncation)
        ends = np.cumsum(lengths)
        # Row after row, prefix before suffix: what shares a place is inserted in this order.
        sides = np.stack([ends - lengths, ends], axis=1)
        places = np.repeat(sides.ravel(), np.tile([len(prefix), len(suffix)], len(lengths)))
        whole: np.ndarray = np.insert(ids, places, np.tile(np.concatenate([prefix, suffix]), len(lengths)))
        return whole, lengths + around

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(str(folder))

    def load(self, folder: str | Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(hub_name(folder, "tokenizer_config.json"))
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        if self.backend is not None:  # a tokenizer.json may carry fixed padding and truncation of its own
            self.backend.no_padding()
            self.backend.no_truncation()
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        self.prefix = np.array(whole[:start], np.int32)
        self.suffix = np.array(whole[start + len(bare) :], np.int32)
        if self.max_length is not None and self.max_length <= len(self.prefix) + len(self.suffix):
            raise UserError(f"max_length {self.max_length} leaves no room beside the special tokens of {self.path}")
