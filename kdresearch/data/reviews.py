"""The embedded corpus: film reviews written by a grammar, so that everything runs with nothing downloaded.

A review is a plan: opinions, each of one aspect of the film, with a value from -3 to 3 and a weight, among remarks
that are no opinion on this film (its plot, other films, what others said, what was expected). The weighted mean of the
opinions, slightly blurred, gives the stars. The wording then hides the plan in ways that word counts do not see:
negation ("anything but dull"), negative words that negate nothing ("nothing short of superb"), contrast, one side of
which counts five times the other, and praise or blame that somebody or something else gets.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random
from typing import NamedTuple

from kdresearch.data.corpus import Row
from kdresearch.data.review_words import (
    ADJECTIVES,
    ADVICE,
    ASIDES,
    CONJUNCTIONS,
    CONTRASTS,
    DETAIL_ASPECTS,
    FILLERS,
    FILM_ASPECTS,
    HEDGED_CLAUSES,
    NEGATED_CLAUSES,
    NEGATED_VERDICTS,
    NOUNS,
    PEOPLE,
    PLAIN_CLAUSES,
    PLOTS,
    UNREAL_CLAUSES,
    VERBS,
    VERDICTS,
    Aspect,
)
from kdresearch.errors import UserError, choices

GRAMMAR = 1
"""The version of the grammar: raised with any change that changes a text or a label."""

CLASSES = {"polarity": ("negative", "positive"), "stars": ("1", "2", "3", "4", "7", "8", "9", "10")}
WORDS = (20, 90)
"""The shortest and the longest review."""

_BOUNDS = (-2.0, -1.5, -1.0, -0.3, 0.0, 0.3, 1.0, 1.5, 2.0)  # scores that part 1 star from 2, ..., 9 from 10
_BLUR = 0.7  # sd of what moves the stars and does not show in the text: the middle of the scale is ambiguous

# Stars of one block of rows: balanced, and the extremes as frequent as in IMDB; without labels, the middle too.
_LABELLED = (1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 7, 7, 8, 8, 9, 9, 10, 10, 10, 10)
_UNLABELLED = (*_LABELLED, 5, 5, 6, 6)

_KINDS = ("plain", "contrast", "both", "aside", "plot")
_SHARES = (5, 2.5, 1.5, 2, 1)


class _Opinion(NamedTuple):
    aspect: Aspect
    value: int  # -3..3, never 0
    weight: float = 1.0  # of its place in the review


class _Sentence(NamedTuple):
    kind: str  # plain, contrast, both, verdict: as many opinions as the kind needs; aside, plot: none
    opinions: tuple[_Opinion, ...] = ()
    value: int = 0  # of an aside: what it says of something else


class Reviews:
    """Synthetic English film reviews with stars; the same rows for the same seed on every machine.

    Args:
        labels: ``polarity`` (negative: at most 4 stars, positive: at least 7) or ``stars`` (1-4 and 7-10).
        train, test, unlabelled: rows of each part. The first n rows of a part do not depend on its size.
            The unlabelled part has reviews of 5 and 6 stars too.
        seed: another seed gives another corpus of the same distribution.

    Raises:
        UserError: labels of another name, a negative number of rows.
    """

    name = "reviews"
    synthetic = True

    def __init__(
        self, *, labels: str = "polarity", train: int = 3000, test: int = 2000, unlabelled: int = 9000, seed: int = 0
    ) -> None:
        if labels not in CLASSES:
            raise UserError(f"data.labels: {choices(labels, CLASSES)}")
        self.sizes = {"train": train, "test": test, "unlabelled": unlabelled}
        for part, size in self.sizes.items():
            if size < 0:
                raise UserError(f"data.{part}: {size} rows; the number of rows cannot be negative")
        self.labels = labels
        self.seed = seed
        self.classes: tuple[str, ...] = CLASSES[labels]

    def key(self) -> dict[str, object]:
        """Everything that the rows depend on."""
        return {"grammar": GRAMMAR, "labels": self.labels, "seed": self.seed, **self.sizes}

    def rows(self) -> Iterator[Row]:
        """The rows of train, test and unlabelled, in this order."""
        for part, size in self.sizes.items():
            for number, (stars, text) in enumerate(islice(_reviews(self.seed, part), size)):
                yield Row(part, f"{part}/{number}", text, None if part == "unlabelled" else self._label(stars))

    def _label(self, stars: int) -> str:
        return str(stars) if self.labels == "stars" else self.classes[stars > 5]


def _reviews(seed: int, part: str) -> Iterator[tuple[int, str]]:
    """The endless rows of a part: stars 1..10 and text. Seeded by a string, which is the same on every machine."""
    rng = Random(f"reviews/{GRAMMAR}/{seed}/{part}")
    while True:
        block = list(_UNLABELLED if part == "unlabelled" else _LABELLED)
        rng.shuffle(block)
        for stars in block:
            yield stars, _review(rng, stars)


def _review(rng: Random, stars: int) -> str:
    """A review that deserves so many stars: plans and words are drawn until stars and length fit."""
    while True:
        plan = _plan(rng, mood=(stars - 5.5) * 0.6)
        if _stars(_score(plan) + rng.gauss(0.0, _BLUR)) == stars:
            text = " ".join(_sentence(rng, sentence) for sentence in plan)
            if WORDS[0] <= len(text.split()) <= WORDS[1]:
                return text


def _score(plan: Sequence[_Sentence]) -> float:
    """The weighted mean of the opinions, -3..3."""
    weighed = [(o.value, o.weight * o.aspect.weight) for sentence in plan for o in sentence.opinions]
    return sum(value * weight for value, weight in weighed) / sum(weight for _, weight in weighed)


def _stars(score: float) -> int:
    """1..10."""
    return 1 + bisect(_BOUNDS, score)


def _plan(rng: Random, mood: float) -> list[_Sentence]:
    """Draw what a reviewer in this mood (about -2.5..2.5) has to say."""
    aspects = [rng.choice(FILM_ASPECTS), *rng.sample(DETAIL_ASPECTS, 9)]  # as many as five sentences can need
    rng.shuffle(aspects)

    def draw_value() -> int:
        score = max(-3, min(3, round(rng.gauss(mood, 1.0))))
        return score or rng.choice((-1, 1))

    body = []
    for kind in rng.choices(_KINDS, _SHARES, k=rng.choice((2, 3, 3, 4, 5))):
        if kind == "plain":
            body.append(_Sentence(kind, (_Opinion(aspects.pop(), draw_value()),)))
        elif kind == "contrast":
            main = draw_value()
            granted = (-1 if main > 0 else 1) * rng.choice((1, 2, 2, 3))
            body.append(_Sentence(kind, (_Opinion(aspects.pop(), main, 2.0), _Opinion(aspects.pop(), granted, 0.4))))
        elif kind == "both":
            first = draw_value()
            second = (1 if first > 0 else -1) * rng.choice((1, 2, 2, 3))
            body.append(_Sentence(kind, (_Opinion(aspects.pop(), first), _Opinion(aspects.pop(), second))))
        else:
            against = (mood < 0) == (rng.random() < 0.55)  # what was expected or said is worth telling if it was wrong
            body.append(_Sentence(kind, value=(1 if against else -1) * rng.choice((2, 2, 3))))
    if rng.random() < 0.5 or not any(sentence.opinions for sentence in body):
        verdict = _Sentence("verdict", (_Opinion(rng.choice(FILM_ASPECTS), draw_value(), 2.0),))
        body.insert(len(body) if rng.random() < 0.7 else 0, verdict)
    return body


def _sentence(rng: Random, sentence: _Sentence) -> str:
    """Put one sentence into words, with capital and full stop."""
    kind, opinions = sentence.kind, sentence.opinions
    if kind == "plain":
        text = _clause(rng, opinions[0].aspect, opinions[0].value)
    elif kind in ("contrast", "both"):
        main, lesser = (_clause(rng, o.aspect, o.value) for o in opinions)
        text = _fill(rng, rng.choice(CONTRASTS if kind == "contrast" else CONJUNCTIONS), m=main, l=lesser)
    elif kind == "verdict":
        text = _verdict(rng, opinions[0].value)
    elif kind == "aside":
        aspect = rng.choice(DETAIL_ASPECTS)
        x, y = _pair(rng, ADJECTIVES[sentence.value])
        text = _fill(
            rng,
            rng.choice(ASIDES),
            c=_clause(rng, aspect, sentence.value),
            x=x,
            y=y,
            n=_pick(rng, NOUNS[sentence.value]),
            p=_pick(rng, PEOPLE[sentence.value > 0]),
            **_agreement(aspect),
        )
    else:
        text = _fill(rng, rng.choice(PLOTS))
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    start = 1 if text.startswith('"') else 0
    return text[:start] + text[start].upper() + text[start + 1 :] + "."


def _clause(rng: Random, aspect: Aspect, value: int) -> str:
    """An opinion on an aspect in words: as it is, by a verb, hedged, or by denying its opposite."""
    size, sign = abs(value), 1 if value > 0 else -1
    x, y = _pair(rng, ADJECTIVES[value])
    chance = rng.random()
    if chance < 0.27 and size < 3:
        frames = UNREAL_CLAUSES[sign] if rng.random() < 0.2 else NEGATED_CLAUSES[size]
        x = _pick(rng, ADJECTIVES[-sign * rng.choice((2, 2, 3))])
    elif chance < 0.45:
        frames = tuple("{a}[, {aside},] " + verb for verb in VERBS[value])
    elif chance < 0.65 and size == 1:
        frames = HEDGED_CLAUSES
        x = _pick(rng, ADJECTIVES[value + sign])
    else:
        frames = PLAIN_CLAUSES
    return _fill(rng, rng.choice(frames), x=x, y=y, **_agreement(aspect))


def _verdict(rng: Random, value: int) -> str:
    """An opinion on the whole film in words."""
    size, sign = abs(value), 1 if value > 0 else -1
    chance = rng.random()
    if chance < 0.3 and size > 1:
        return _fill(rng, "[{finally}, ]{c}", c=rng.choice(ADVICE[sign]))
    if chance < 0.5:
        opinion = _clause(rng, rng.choice(FILM_ASPECTS), value)
    elif chance < 0.75 and size < 3:
        opinion = _fill(rng, rng.choice(NEGATED_VERDICTS[size]), n=_pick(rng, NOUNS[-sign * rng.choice((2, 3))]))
    else:
        opinion = _fill(rng, rng.choice(VERDICTS), n=_pick(rng, NOUNS[value]))
    return _fill(rng, "[{finally}, ]{c}", c=opinion)


def _agreement(aspect: Aspect) -> dict[str, str]:
    if aspect.plural:
        return {"a": aspect.name, "be": "are", "was": "were", "s": "", "es": ""}
    return {"a": aspect.name, "be": "is", "was": "was", "s": "s", "es": "es"}


def _pick(rng: Random, words: Sequence[str]) -> str:
    """Draw a word, the last of a list e^-4 times as often as the first."""
    return words[int(len(words) * rng.expovariate(4.0)) % len(words)]


def _pair(rng: Random, words: Sequence[str]) -> tuple[str, str]:
    """Draw two different words."""
    first = second = _pick(rng, words)
    while second == first:
        second = _pick(rng, words)
    return first, second


def _fill(rng: Random, template: str, **slots: str) -> str:
    """Decide on the [optional] parts, then fill the {slots}, from the lists where no word is given."""

    def fill_slot(match: re.Match[str]) -> str:
        name = match[1]
        return slots[name] if name in slots else _fill(rng, _pick(rng, FILLERS[name]), **slots)

    expanded = re.sub(r"\[([^]]*)\]", lambda match: match[1] if rng.random() < 0.5 else "", template)
    return re.sub(r"\{(\w+)\}", fill_slot, expanded)
