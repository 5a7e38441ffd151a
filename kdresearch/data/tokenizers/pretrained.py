"""The tokenizers of Hugging Face models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kdresearch.data.tokenizers.protocol import WithoutVectors
from kdresearch.data.tokenizers.rows import NO_WORD, Encoded, EncodedWords, check_lengths, cut, flat, words_of
from kdresearch.errors import UserError
from kdresearch.hub import from_pretrained, hub_name


class PretrainedTokenizer(WithoutVectors):
    """Any tokenizer of a Hugging Face model, by folder or hub id.

    Args:
        path: a folder with the tokenizer's files, or a hub id.
        max_length: tokens kept, the special ones included.
    """

    def __init__(self, *, path: str | Path, max_length: int | None = 256, truncation: str = "head_tail") -> None:
        check_lengths(max_length, truncation)
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
        return self._framed(*flat(rows), self.prefix, self.suffix)

    def encode_with_words(self, texts: list[str]) -> EncodedWords:
        rows = self.backend.encode_batch(texts, add_special_tokens=False)  # the fast one gives no offsets
        ids, lengths = flat([row.ids for row in rows])
        words = words_of(texts, [row.offsets for row in rows])
        of_none = (np.full_like(side, NO_WORD) for side in (self.prefix, self.suffix))
        words, _ = self._framed(words, lengths, *of_none)
        return *self._framed(ids, lengths, self.prefix, self.suffix), words

    def _framed(self, ids: np.ndarray, lengths: np.ndarray, prefix: np.ndarray, suffix: np.ndarray) -> Encoded:
        """Rows of flat ids cut to the room that is left, each between what comes before and after."""
        around = len(prefix) + len(suffix)
        ids, lengths = cut(ids, lengths, None if self.max_length is None else self.max_length - around, self.truncation)
        row_ends = np.cumsum(lengths)
        # Row after row, prefix before suffix: what shares a place is inserted in this order.
        sides = np.stack([row_ends - lengths, row_ends], axis=1)
        places = np.repeat(sides.ravel(), np.tile([len(prefix), len(suffix)], len(lengths)))
        framed: np.ndarray = np.insert(ids, places, np.tile(np.concatenate([prefix, suffix]), len(lengths)))
        return framed, lengths + around

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(str(folder))

    def load(self, folder: str | Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = from_pretrained(AutoTokenizer, hub_name(folder, "tokenizer_config.json"))
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        if self.backend is not None:  # a tokenizer.json may carry fixed padding and truncation of its own
            self.backend.no_padding()
            self.backend.no_truncation()
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        framed = self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
        self.prefix = np.array(framed[:start], np.int32)
        self.suffix = np.array(framed[start + len(bare) :], np.int32)
        if self.max_length is not None and self.max_length <= len(self.prefix) + len(self.suffix):
            raise UserError(f"max_length {self.max_length} leaves no room beside the special tokens of {self.path}")
