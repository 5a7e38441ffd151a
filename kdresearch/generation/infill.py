"""Rows of which a masked language model writes some tokens anew."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdresearch.errors import UserError
from kdresearch.generation.generator import Preparation, check_least
from kdresearch.generation.pretrained import Pretrained, load

CONTINUATION = "##"  # what WordPiece writes before a piece that is not the first of its word


@dataclass(kw_only=True)
class Infill(Pretrained):
    """Any Hugging Face masked language model: it masks tokens of a row and draws others for them (Wu et al. 2019).

    Words of which no token is masked stay as they are written, those that the tokenizer does not know among them; the
    others read as the tokenizer writes them: an uncased one gives lower case.

    Args:
        mask_share: of a text's tokens, at least one, that are masked in each round.
        temperature: 0 takes the likeliest token.
        top_k: tokens that are drawn from, the likeliest; None is all of them. Special tokens are never drawn.
        max_length: tokens read of a text, the special ones included.
        rounds: times that a text is masked and filled, one after the other.

    Raises:
        UserError: settings that make no sense.
    """

    NAME = "infill"

    mask_share: float = 0.3
    temperature: float = 1.0
    top_k: int | None = 50
    max_length: int = 128
    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_share <= 1:
            raise UserError(f"generator.mask_share must be above 0 and at most 1, not {self.mask_share}")
        check_least(self, temperature=0, top_k=1, max_length=3, rounds=1)

    def key(self) -> dict[str, Any]:
        """Settings, with the model's fingerprint and the version of the algorithm."""
        return {**super().key(), "format": 2}  # words that are not masked are the row's own

    def prepare(self, preparation: Preparation) -> None:
        """Load the model; UserError where it or its tokenizer cannot fill in masks."""
        self.rows = [text for text in preparation.texts if text.strip()]
        if not self.rows:
            raise UserError("generator: there is no text to mask")
        preparation.say(f"loading the language model {self.path}")
        self.model, self.tokenizer = load(self.path, "AutoModelForMaskedLM", self.dtype, preparation.device)
        if self.tokenizer.mask_token_id is None:
            raise UserError(f"generator.path: the tokenizer of {self.path} has no mask token")
        if not self.tokenizer.is_fast:
            raise UserError(f"generator.path: the tokenizer of {self.path} gives no offsets of its tokens in a text")
        positions = getattr(self.model.config, "max_position_embeddings", self.max_length)
        room = min(positions, self.tokenizer.model_max_length)  # some positions may be the padding's own
        if self.max_length > room:
            raise UserError(f"generator.max_length: {self.path} reads at most {room} tokens, not {self.max_length}")

    def generate(self, number: int, seed: int, start: int) -> list[str]:
        """Rows drawn at random, with some of their words written anew."""
        random = np.random.default_rng(seed)
        draws = torch.Generator(self.model.device).manual_seed(seed)
        rows = random.choice(len(self.rows), size=number, replace=number > len(self.rows))
        texts = [self.rows[row] for row in rows]
        encoded = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, return_offsets_mapping=True, return_attention_mask=False
        )
        ids = encoded["input_ids"]
        samples = [""] * number
        by_length = np.argsort([len(row) for row in ids], kind="stable")
        for first in range(0, number, self.batch_size):
            places = by_length[first : first + self.batch_size]
            batch = self.tokenizer.pad({"input_ids": [ids[place] for place in places]}, return_tensors="pt")
            special = torch.isin(batch["input_ids"], torch.tensor(self.tokenizer.all_special_ids))
            tokens, mask = batch["input_ids"].to(self.model.device), batch["attention_mask"].to(self.model.device)
            replaced = np.zeros(special.shape, bool)
            for _ in range(self.rounds):
                masked = masked_positions(~special.numpy(), self.mask_share, random)
                tokens = self.fill(tokens, mask, torch.from_numpy(masked).to(tokens.device), draws)
                replaced |= masked
            for place, row, new, real in zip(
                places, tokens.cpu().numpy(), replaced, batch["attention_mask"].bool().numpy(), strict=True
            ):
                spans = encoded["offset_mapping"][place]
                samples[place] = self._written(texts[place], encoded.word_ids(place), spans, row[real], new[real])
        return samples

    def _written(
        self, text: str, names: list[int | None], spans: list[tuple[int, int]], ids: np.ndarray, new: np.ndarray
    ) -> str:
        """The text with those words written anew of which a token is ``new``, and all others as they stand in it.

        Args:
            names: [T] the word of each token; None for special ones.
            spans: [T] characters of each token.
            ids: [T] tokens, drawn ones in their places.
            new: [T] bool.
        """
        written, end = "", 0
        real = [place for place, name in enumerate(names) if name is not None]
        for _, group in groupby(real, key=lambda place: names[place]):
            word = list(group)
            first, last = spans[word[0]][0], spans[word[-1]][1]
            written, end = written + text[end:first], max(end, last)
            if new[word].any():
                decoded = self.tokenizer.decode(ids[word].tolist(), clean_up_tokenization_spaces=False)
                written += decoded.strip().removeprefix(CONTINUATION)
            else:
                written += text[first:last]
        rest = "" if len(names) == self.max_length else text[end:]
        return (written + rest).strip()

    @torch.inference_mode()
    def fill(self, ids: Tensor, mask: Tensor, masked: Tensor, draws: torch.Generator) -> Tensor:
        """Ids [B, T] with those where ``masked`` [B, T] drawn from the model, which sees all the others.

        Args:
            mask: [B, T], 1 on real tokens.
        """
        read = ids.masked_fill(masked, self.tokenizer.mask_token_id)
        logits = self.model(input_ids=read, attention_mask=mask).logits[masked].float()  # [M, V]
        logits[:, self.tokenizer.all_special_ids] = -torch.inf
        logits[:, len(self.tokenizer) :] = -torch.inf  # an embedding table may be wider than the vocabulary
        likeliest, names = logits.topk(min(self.top_k or logits.shape[1], logits.shape[1]))
        if self.temperature == 0:
            tokens = names[:, :1]
        else:
            shares = torch.softmax(likeliest / self.temperature, dim=-1)
            tokens = names.gather(1, torch.multinomial(shares, 1, generator=draws))
        return ids.masked_scatter(masked, tokens)


def masked_positions(real: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Positions [B, T] to mask: ``share`` of those that are ``real`` [B, T], rounded, at least one of each row."""
    counts = real.sum(axis=1, keepdims=True)
    targets = np.minimum(counts, np.maximum(1, np.rint(share * counts)))
    order = np.where(real, random.random(real.shape), np.inf)
    ranks: np.ndarray = order.argsort(axis=1).argsort(axis=1)
    masked: np.ndarray = ranks < targets
    return masked
