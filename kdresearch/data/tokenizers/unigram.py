"""A unigram language model of pieces of words (Kudo 2018), the same from the same words.

The trainer of the library that reads with it draws the order of its words anew each time, and ends elsewhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

LONGEST = 16  # characters of a piece
_STRETCH = 32  # characters of a word that are read together while training
_SEEDS = 8  # pieces to begin with, in multiples of those that stay
_KEEP = 0.75  # of the pieces in each round
_STEPS = 2  # of expectation and maximisation in each round
_BLOCK = 20_000  # words that are read together: bounds the memory

Block = tuple[np.ndarray, np.ndarray]  # which words [N], and the piece of each start and length [N, L, K], -1 for none


def train_unigram(counts: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """The ``size`` pieces, or as many as there are, that make the words likely; every character is one.

    Each round fits the probabilities by EM over all segmentations (equations 1 and 2) and drops the pieces whose
    removal costs the likelihood least: their expected count times what their own best segmentation is worse by.

    Args:
        counts: occurrences of each word.

    Returns:
        pieces with the logarithm of their probabilities, the likeliest first.
    """
    stretches: Counter[str] = Counter()
    for word, count in counts.items():
        for first in range(0, len(word), _STRETCH):
            stretches[word[first : first + _STRETCH]] += count
    words = sorted(stretches)
    if not words:
        return []
    times = np.array([stretches[word] for word in words], np.float64)
    pieces, occurrences = _seeds(words, times, size)
    single = np.array([len(piece) == 1 for piece in pieces])
    scores = np.log(occurrences / occurrences.sum())
    blocks, inside = _blocks(words, pieces), _blocks(pieces, pieces)
    target = max(size, int(single.sum()))
    while True:
        for _ in range(_STEPS):
            expected = np.maximum(_expected(blocks, times, scores), 0.5 * single)
            scores = np.log(np.maximum(expected, 1e-9) / expected.sum())
        if len(pieces) <= target:
            break
        loss = np.where(single, np.inf, expected * (scores - _best_parts(inside, scores)))
        most = max(target, int(_KEEP * len(pieces)))
        stay = np.sort(np.argsort(-loss, kind="stable")[:most])
        pieces, scores, single = [pieces[number] for number in stay], scores[stay], single[stay]
        blocks, inside = _narrowed(blocks, stay, len(loss)), _narrowed(inside, stay, len(loss), own=True)
    order = np.argsort(-scores, kind="stable")
    return [(pieces[number], float(scores[number])) for number in order]


def _seeds(words: list[str], times: np.ndarray, size: int) -> tuple[list[str], np.ndarray]:
    """All characters, and the substrings of words that cover most of the text, each at least twice."""
    found: defaultdict[str, float] = defaultdict(float)
    for word, count in zip(words, times.tolist(), strict=True):
        for start in range(len(word)):
            for end in range(start + 1, min(start + LONGEST, len(word)) + 1):
                found[word[start:end]] += count
    single = sorted(piece for piece in found if len(piece) == 1)
    longer = [piece for piece, count in found.items() if len(piece) > 1 and count >= 2]
    longer.sort(key=lambda piece: (-found[piece] * len(piece), piece))
    pieces = [*single, *longer[: _SEEDS * size]]
    return pieces, np.array([found[piece] for piece in pieces])


def _blocks(words: list[str], pieces: list[str]) -> list[Block]:
    """The pieces that each word can be cut into, words of one length together."""
    number = {piece: place for place, piece in enumerate(pieces)}
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for place, word in enumerate(words):
        by_length[len(word)].append(place)
    blocks = []
    for length, places in sorted(by_length.items()):
        widest = min(LONGEST, length)
        for first in range(0, len(places), _BLOCK):
            here = places[first : first + _BLOCK]
            table = np.full((len(here), length, widest), -1, np.int32)
            for row, place in enumerate(here):
                word = words[place]
                for start in range(length):
                    for width in range(1, min(widest, length - start) + 1):
                        table[row, start, width - 1] = number.get(word[start : start + width], -1)
            blocks.append((np.array(here), table))
    return blocks


def _narrowed(blocks: list[Block], stay: np.ndarray, before: int, own: bool = False) -> list[Block]:
    """The tables of the pieces that stay [M] of ``before``; with ``own``, the words are the pieces themselves."""
    number = np.full(before + 1, -1, np.int32)  # the last stands for -1
    number[stay] = np.arange(len(stay))
    if not own:
        return [(words, number[table]) for words, table in blocks]
    kept = [(number[words], number[table], number[words] >= 0) for words, table in blocks]
    return [(words[mask], table[mask]) for words, table, mask in kept if mask.any()]


def _expected(blocks: list[Block], times: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How often each piece [V] is expected in the words, over all their segmentations: forward and backward."""
    with_none = np.append(scores, -np.inf)
    total = np.zeros(len(with_none))
    for words, table in blocks:
        rows, length, widest = table.shape
        steps = with_none[table]
        forward = np.full((rows, length + 1), -np.inf)
        backward = forward.copy()
        forward[:, 0] = backward[:, length] = 0
        for end in range(1, length + 1):
            for width in range(1, min(widest, end) + 1):
                step = forward[:, end - width] + steps[:, end - width, width - 1]
                forward[:, end] = np.logaddexp(forward[:, end], step)
        for start in range(length - 1, -1, -1):
            for width in range(1, min(widest, length - start) + 1):
                step = backward[:, start + width] + steps[:, start, width - 1]
                backward[:, start] = np.logaddexp(backward[:, start], step)
        for width in range(1, widest + 1):
            starts = length - width + 1
            share = forward[:, :starts] + steps[:, :starts, width - 1] + backward[:, width:]
            share = np.exp(share - forward[:, length:]) * times[words, None]
            total += np.bincount(table[:, :starts, width - 1].ravel() % len(total), share.ravel(), len(total))
    return total[:-1]


def _best_parts(blocks: list[Block], scores: np.ndarray) -> np.ndarray:
    """The best score of each piece [V] that is cut into others (Viterbi); -inf for characters."""
    with_none, found = np.append(scores, -np.inf), np.full(len(scores), -np.inf)
    for words, table in blocks:
        rows, length, widest = table.shape
        steps = with_none[table]
        best = np.full((rows, length + 1), -np.inf)
        best[:, 0] = 0
        for end in range(1, length + 1):
            for width in range(1, min(widest, end, length - 1) + 1):
                best[:, end] = np.maximum(best[:, end], best[:, end - width] + steps[:, end - width, width - 1])
        found[words] = best[:, length]
    return found
