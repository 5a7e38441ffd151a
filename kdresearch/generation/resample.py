"""Texts made from the training texts by masking, replacing and cutting (Tang et al. 2019, section 3)."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from kdresearch.errors import UserError
from kdresearch.generation.generator import Preparation, check_least

_WORD = re.compile(r"(\w+(?:['’]\w+)*)")


class Resample:
    """The augmentation of "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks".

    For each word w_i of an example, X_i ~ U[0, 1] is drawn: X_i < p_mask masks it, p_mask <= X_i < p_mask + p_replace
    replaces it. After that sweep, with probability p_ng, the text becomes one of its own n-grams, n ~ U{1..max_ngram}.
    Every example is gone through n_iter times, each time in another order.

    The paper draws a replacement from the unigram distribution renormalised among the words of the same part of
    speech. Here it comes from the unigram distribution of all words, so that no tagger is needed: corpus frequency
    alone guides it. Punctuation and white space between the words stay as they are.

    Args:
        p_mask, p_replace, p_ng, n_iter, max_ngram: by default the published values (p_replace is the paper's p_pos).
        mask: what stands for a masked word; by default BERT's own token.

    Raises:
        UserError: a value outside [0, 1], p_mask + p_replace > 1, n_iter or max_ngram below 1.
    """

    def __init__(
        self,
        *,
        p_mask: float = 0.1,
        p_replace: float = 0.1,
        p_ng: float = 0.25,
        n_iter: int = 20,
        max_ngram: int = 5,
        mask: str = "[MASK]",
    ) -> None:
        for name, value in {"p_mask": p_mask, "p_replace": p_replace, "p_ng": p_ng}.items():
            if not 0 <= value <= 1:
                raise UserError(f"generator.{name} must be a probability, from 0 to 1, not {value}")
        if p_mask + p_replace > 1:
            raise UserError(f"generator.p_mask + generator.p_replace must not exceed 1: {p_mask} + {p_replace}")
        self.p_mask, self.p_replace, self.p_ng = p_mask, p_replace, p_ng
        self.n_iter, self.max_ngram, self.mask = n_iter, max_ngram, mask
        check_least(self, n_iter=1, max_ngram=1)
        self.settings = {
            "p_mask": p_mask,
            "p_replace": p_replace,
            "p_ng": p_ng,
            "n_iter": n_iter,
            "max_ngram": max_ngram,
            "mask": mask,
        }

    def key(self) -> dict[str, Any]:
        """The settings."""
        return {"generator": "resample", **self.settings}

    def preparation_key(self) -> None:
        """None: nothing is left in a folder."""

    def prepare(self, preparation: Preparation) -> None:
        """Count the words."""
        counts = Counter(word for text in preparation.texts for word in _WORD.findall(text))
        self._texts = preparation.texts
        self._words: list[str] = list(counts)
        self._cumulative = np.cumsum(list(counts.values()))

    def generate(self, number: int, seed: int, start: int) -> list[str]:
        """Samples of the examples from place ``start`` on; they end after n_iter times all examples."""
        random, size = np.random.default_rng(seed), len(self._texts)
        samples: list[str] = []
        while len(samples) < number and start + len(samples) < self.n_iter * size:
            iteration, first = divmod(start + len(samples), size)
            order = np.random.default_rng(iteration).permutation(size)  # shuffled, since a corpus is often sorted
            places = order[first : first + number - len(samples)]
            samples += [self._sample(self._texts[place], random) for place in places]
        return samples

    def _sample(self, text: str, random: np.random.Generator) -> str:
        pieces = _WORD.split(text)  # words at the odd places, what is between them at the even ones
        words = pieces[1::2]
        if not words:
            return text
        draws = random.random(len(words))
        for place in np.flatnonzero(draws < self.p_mask + self.p_replace):
            words[place] = self.mask if draws[place] < self.p_mask else self._word(random)
        pieces[1::2] = words
        if random.random() < self.p_ng:
            length = min(int(random.integers(1, self.max_ngram + 1)), len(words))
            first = int(random.integers(len(words) - length + 1))
            pieces = pieces[2 * first + 1 : 2 * (first + length)]
        return "".join(pieces)

    def _word(self, random: np.random.Generator) -> str:
        """One word by its frequency."""
        position = random.integers(self._cumulative[-1])
        return self._words[int(np.searchsorted(self._cumulative, position, side="right"))]
