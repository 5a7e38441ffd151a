"""A unigram language model of pieces of words (Kudo 2018), the same from the same words.

The trainer of the library that reads with it draws the order of its words anew each time, and ends elsewhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LONGEST = 16  # characters of a piece
_STRETCH = 32  # characters of a word that are read together while training
_SEEDS = 8  # pieces to begin with, in multiples of those that stay
_KEEP = 0.75  # of the pieces in each round
_STEPS = 2  # of expectation and maximisation in each round


def train_unigram(counts: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """The ``size`` pieces, or as many as there are, that make the words likely; every character is one.

    Each round fits the probabilities by EM over all segmentations and drops the pieces whose removal costs the
    likelihood least (Kudo 2018, section 3.2): their expected count times what their best other segmentation is
    worse by.

    Args:
        counts: occurrences of each word.

    Returns:
        pieces with the logarithm of their probabilities, the likeliest first.
    """
    stretches: Counter[str] = Counter()
    for word, count in counts.items():
        for first in range(0, len(word), _STRETCH):
            stretches[word[first : first + _STRETCH]] += count
    if not stretches:
        return []
    words = sorted(stretches)
    times = np.array([stretches[word] for word in words], np.float64)
    pieces, occurrences = _seeds(words, stretches, size)
    single = np.array([len(piece) == 1 for piece in pieces])
    scores = np.log(occurrences / occurrences.sum())
    lattice, inside = Lattice.of(words, pieces), Lattice.of(pieces, pieces)
    target = max(size, int(single.sum()))
    while True:
        for _ in range(_STEPS):
            expected = np.maximum(lattice.expected(times, scores), np.where(single, 0.5, 1e-9))
            scores = np.log(expected / expected.sum())
        if len(pieces) <= target:
            break
        loss = np.where(single, np.inf, expected * (scores - inside.best_parts(scores)))
        most = max(target, int(_KEEP * len(pieces)))
        stay = np.sort(np.argsort(-loss, kind="stable")[:most])
        pieces, scores, single = [pieces[number] for number in stay], scores[stay], single[stay]
        number = np.full(len(loss), -1, np.int32)
        number[stay] = np.arange(len(stay))
        lattice = lattice.narrowed(number, np.arange(len(words)))
        inside = inside.narrowed(number, number)
    order = np.argsort(-scores, kind="stable")
    return [(pieces[number], float(scores[number])) for number in order]


def _seeds(words: list[str], times: Mapping[str, int], size: int) -> tuple[list[str], np.ndarray]:
    """All characters, and the substrings that cover most of the text, each at least twice, with their occurrences."""
    single: Counter[str] = Counter()
    for word in words:
        for character in word:
            single[character] += times[word]
    longer: dict[str, int] = {}
    shorter: Mapping[str, int] = single
    alive: dict[str, Sequence[int]] = {
        word: range(len(word)) for word in words
    }  # where a substring starts that others have, too
    for width in range(2, LONGEST + 1):
        occurrences: Counter[str] = Counter()
        starts: dict[str, list[int]] = {}
        for word, places in alive.items():
            here = [place for place in places if place + width <= len(word)]
            here = [place for place in here if shorter.get(word[place + 1 : place + width], 0) >= 2]
            for place in here:
                occurrences[word[place : place + width]] += times[word]
            if here:
                starts[word] = here
        shorter = {piece: count for piece, count in occurrences.items() if count >= 2}
        longer |= shorter
        alive = {
            word: repeated
            for word, places in starts.items()
            if (repeated := [place for place in places if word[place : place + width] in shorter])
        }
    most = sorted(longer, key=lambda piece: (-longer[piece] * len(piece), piece))[: _SEEDS * size]
    pieces = [*sorted(single), *most]
    return pieces, np.array([single.get(piece) or longer[piece] for piece in pieces], np.float64)


@dataclass(frozen=True)
class Lattice:
    """All segmentations of N words: for each start and width, which words [M] have a piece there, and which [M]."""

    lengths: np.ndarray  # [N]
    edges: list[tuple[int, int, np.ndarray, np.ndarray]]  # by start, then width

    @classmethod
    def of(cls, words: list[str], pieces: list[str]) -> Lattice:
        number = {piece: place for place, piece in enumerate(pieces)}
        beginnings = {piece[:width] for piece in pieces for width in range(1, len(piece) + 1)}
        cells: defaultdict[tuple[int, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for row, word in enumerate(words):
            for start in range(len(word)):
                for end in range(start + 1, len(word) + 1):
                    piece = word[start:end]
                    if piece not in beginnings:
                        break
                    if piece in number:
                        rows, ids = cells[start, end - start]
                        rows.append(row)
                        ids.append(number[piece])
        edges = [(*place, np.array(rows), np.array(ids)) for place, (rows, ids) in sorted(cells.items())]
        return cls(np.array([len(word) for word in words]), edges)

    def narrowed(self, pieces: np.ndarray, words: np.ndarray) -> Lattice:
        """Without some pieces and words, from the new number of each, -1 for those that go."""
        edges = []
        for start, width, rows, ids in self.edges:
            stay = (pieces[ids] >= 0) & (words[rows] >= 0)
            if stay.any():
                edges.append((start, width, words[rows[stay]], pieces[ids[stay]]))
        return Lattice(self.lengths[words >= 0], edges)

    def expected(self, times: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """How often each piece [V] is expected in the words, each so many ``times`` [N]: forward and backward."""
        every = np.arange(len(self.lengths))
        forward = np.full((int(self.lengths.max()) + 1, len(every)), -np.inf)
        backward = forward.copy()
        forward[0] = backward[self.lengths, every] = 0
        for start, width, rows, ids in self.edges:
            step = forward[start, rows] + scores[ids]
            forward[start + width, rows] = np.logaddexp(forward[start + width, rows], step)
        totals, expected = forward[self.lengths, every], np.zeros(len(scores))
        for start, width, rows, ids in reversed(self.edges):
            step = backward[start + width, rows] + scores[ids]
            backward[start, rows] = np.logaddexp(backward[start, rows], step)
            share = np.exp(forward[start, rows] + step - totals[rows]) * times[rows]
            expected += np.bincount(ids, share, len(scores))
        return expected

    def best_parts(self, scores: np.ndarray) -> np.ndarray:
        """The best score of each word [N] cut into at least two pieces (Viterbi); -inf where it cannot be."""
        every = np.arange(len(self.lengths))
        best = np.full((int(self.lengths.max()) + 1, len(every)), -np.inf)
        best[0] = 0
        for start, width, rows, ids in self.edges:
            longer = self.lengths[rows] > width
            rows, step = rows[longer], best[start, rows[longer]] + scores[ids[longer]]
            best[start + width, rows] = np.maximum(best[start + width, rows], step)
        best_scores: np.ndarray = best[self.lengths, every]
        return best_scores
