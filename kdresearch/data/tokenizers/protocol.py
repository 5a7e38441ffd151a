"""What every tokenizer answers, and what some answer beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from kdresearch.data.tokenizers.rows import Encoded, EncodedWords


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

    def vectors(self) -> tuple[Any, Any] | None:
        """Word vectors [V, E] that it brings and which rows have one [V]; None where it brings none."""


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
    from kdresearch.data.tokenizers.pretrained import PretrainedTokenizer

    if isinstance(tokenizer, PretrainedTokenizer):
        return tokenizer.backend is not None  # those written in Python keep no offsets
    return hasattr(tokenizer, "encode_with_words")


class WithoutVectors:
    """The base of tokenizers that bring no word vectors."""

    def vectors(self) -> None:
        return None
