"""torchtext's tokenizers and vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdresearch.data.tokenizers.rows import UNKNOWN, Encoded, check_lengths, cut, flat
from kdresearch.errors import UserError


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

        check_lengths(max_length, truncation)
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
        words = [word for word in self.field.vocab.itos if word not in ("<pad>", "<unk>")]
        self.words = ["<pad>", "<unk>", *words]

    def encode(self, texts: list[str]) -> Encoded:
        # From 2: a text that says "<pad>" holds no padding.
        index = {word: number for number, word in enumerate(self.words) if number > UNKNOWN}
        rows = [[index.get(word, UNKNOWN) for word in self.field.preprocess(text)] or [UNKNOWN] for text in texts]
        return cut(*flat(rows), self.max_length, self.truncation)

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
        has_vector = torch.tensor([word in table.stoi for word in self.words])
        return table.get_vecs_by_tokens(self.words), has_vector

    def save(self, folder: Path) -> None:
        (folder / "words.json").write_text(json.dumps(self.words, ensure_ascii=False), encoding="utf-8")

    def load(self, folder: Path) -> None:
        self.words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
