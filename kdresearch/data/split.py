"""Which rows are trained on, validated on and tested on; nothing that is evaluated on is ever trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kdresearch.data.corpus import Corpus
from kdresearch.errors import UserError, choices
from kdresearch.structures import UNLABELLED

TRANSFERS = ("none", "unlabelled")
CONFLICTS = ("first", "drop")


@dataclass(frozen=True)
class Split:
    """Corpus-wide row indices, and what was dropped to keep them apart."""

    train: np.ndarray  # labelled rows that are trained on
    transfer: np.ndarray  # rows of the corpus that train by the teacher alone
    validation: np.ndarray
    test: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)
    generated: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # pseudo-samples: by the teacher alone

    @property
    def trained(self) -> np.ndarray:
        """Every real row that the student trains on, in corpus order; tokenizers are fitted on them."""
        return np.concatenate([self.train, self.transfer])


def labels_of(corpus: Corpus) -> np.ndarray:
    """Labels [N] int64 of the whole corpus, UNLABELLED where there is none."""
    return np.concatenate([part.labels for part in corpus.parts.values()])


def split(
    corpus: Corpus,
    *,
    seed: int = 0,
    validation: float | int = 0.1,
    folds: int | None = None,
    fold: int = 0,
    limit: int | None = None,
    transfer: str = "none",
    transfer_limit: int | None = None,
    leave_out: Sequence[int] | None = None,
    conflicts: str = "first",
) -> Split:
    """Carve the corpus.

    Exact duplicates (by text) of test and validation rows, and second copies within the training rows, are dropped
    from whatever is trained on. A validation part of the source is used as it is; otherwise one is carved from the
    training rows, stratified by label: every class of two rows or more has some on either side, and a class of one row
    is trained on and not validated. The validation rows do not depend on ``limit``, so that students of fewer labels
    are selected on the same rows.

    Args:
        seed: of the carving and the sampling.
        validation: rows (an integer) or a share of the training rows (a fraction) kept for validation.
        folds: cut the training rows into this many stratified folds instead; ``fold`` is then the validation.
        limit: labelled training rows kept, a stratified sample.
        transfer: ``unlabelled`` adds the unlabelled part to what is trained on.
        transfer_limit: unlabelled rows kept, a random sample.
        leave_out: (fold, folds): of the labelled training rows that are left after all this, cut into stratified
            folds, this one is not trained on. The same seed cuts them alike.
        conflicts: of training rows of one text and several labels, the ``first`` is kept, or all are taken out
            (``drop``).

    Raises:
        UserError: settings that the rows cannot satisfy.
    """
    if transfer not in TRANSFERS:
        raise UserError(f"data.transfer: {choices(transfer, TRANSFERS)}")
    if conflicts not in CONFLICTS:
        raise UserError(f"data.conflicts: {choices(conflicts, CONFLICTS)}")
    if transfer_limit is not None and transfer_limit < 0:
        raise UserError(f"data.transfer_limit must be at least 0, not {transfer_limit}")
    if transfer == "unlabelled" and "unlabelled" not in corpus.parts:
        raise UserError(f"data.transfer=unlabelled: {corpus.name} has no unlabelled part")
    labels = labels_of(corpus)
    dropped: dict[str, int] = {}
    test = corpus.rows("test")
    given = corpus.rows("validation") if "validation" in corpus.parts and folds is None else None

    train = corpus.rows("train")
    train = _without(corpus, train, test, "train_in_test", dropped)
    if given is not None:
        train = _without(corpus, train, given, "train_in_validation", dropped)
    if conflicts == "drop":
        train = _without(corpus, train, train[label_conflicts(corpus, train)], "conflicting", dropped)
    train = _first_copies(corpus, train, "within_train", dropped)
    generator = np.random.default_rng([seed, 0x5EED])
    if given is not None:
        held = given
    elif folds is not None:
        where = f"data.fold={fold} of data.folds={folds}"
        held = train[_fold(labels[train], folds, fold, generator, where, single=False)]
    else:
        count = _count(validation, len(train))
        held = train[_stratified(labels[train], count, generator, "data.validation", spare=1)]
    train = np.setdiff1d(train, held)
    extra = np.empty(0, np.int64)
    if transfer == "unlabelled":
        extra = corpus.rows("unlabelled")
        extra = _without(corpus, extra, np.concatenate([test, held]), "transfer_in_evaluation", dropped)
        extra = _without(corpus, extra, train, "transfer_in_train", dropped)
        extra = _first_copies(corpus, extra, "within_transfer", dropped)
        if transfer_limit is not None and transfer_limit < len(extra):
            extra = np.sort(np.random.default_rng([seed, 0x7AF]).permutation(extra)[:transfer_limit])
    if limit is not None:
        if limit > len(train):
            raise UserError(f"data.limit={limit}: there are only {len(train)} training rows")
        train = train[_stratified(labels[train], limit, np.random.default_rng([seed, 0x11]), "data.limit")]
    if leave_out is not None:
        number, of = leave_out
        generator = np.random.default_rng([seed, 0xF01D])
        train = np.delete(train, _fold(labels[train], of, number, generator, f"fold {number} of teacher.folds={of}"))
    if len(np.unique(labels[train])) < 2:
        raise UserError(f"the {len(train)} training rows have one class only: raise data.limit")
    return Split(train, extra, held, test, dropped)


def label_conflicts(corpus: Corpus, index: np.ndarray) -> np.ndarray:
    """Which rows [N] bool have a copy of another label among them."""
    labels = labels_of(corpus)[index]
    _, text = np.unique(corpus.digests(index), return_inverse=True)
    low, high = np.full(len(index), len(corpus.classes)), np.full(len(index), UNLABELLED)
    np.minimum.at(low, text, labels)
    np.maximum.at(high, text, labels)
    return np.asarray((low != high)[text])


def _without(corpus: Corpus, index: np.ndarray, other: np.ndarray, name: str, dropped: dict[str, int]) -> np.ndarray:
    kept = index[~np.isin(corpus.digests(index), corpus.digests(other))]
    dropped[name] = len(index) - len(kept)
    return kept


def _first_copies(corpus: Corpus, index: np.ndarray, name: str, dropped: dict[str, int]) -> np.ndarray:
    kept = np.sort(index[np.unique(corpus.digests(index), return_index=True)[1]])
    dropped[name] = len(index) - len(kept)
    return kept


def _count(amount: float | int, rows: int) -> int:
    count = round(amount * rows) if isinstance(amount, float) and amount < 1 else int(amount)
    if not 0 < count < rows:
        raise UserError(f"data.validation={amount} of {rows} training rows leaves {max(0, rows - count)} to train on")
    return count


def _stratified(
    labels: np.ndarray, count: int, generator: np.random.Generator, name: str, spare: int = 0
) -> np.ndarray:
    """Positions of a sample with each class's share kept (largest remainders), every class at least once.

    Args:
        spare: rows of each class that the sample may not have; a class of no more is not in it.
    """
    classes, sizes = np.unique(labels[labels != UNLABELLED], return_counts=True)
    most = np.maximum(sizes - spare, 0)
    if count < (most > 0).sum():
        raise UserError(f"{name}: {count} rows cannot hold the {(most > 0).sum()} classes")
    if count > most.sum():
        raise UserError(f"{name}: {count} of {sizes.sum()} rows leave none of some classes to train on")
    shares = sizes * count / sizes.sum()
    take = np.minimum(most, np.maximum(1, np.floor(shares)).astype(int))
    by_remainder = np.argsort(-(shares - np.floor(shares)), kind="stable")
    while take.sum() < count:
        for position in by_remainder:
            if take.sum() < count and take[position] < most[position]:
                take[position] += 1
    while take.sum() > count:
        take[np.argmax(take)] -= 1
    chosen = [
        generator.permutation(np.flatnonzero(labels == name_))[:number]
        for name_, number in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _fold(
    labels: np.ndarray, folds: int, fold: int, generator: np.random.Generator, name: str, single: bool = True
) -> np.ndarray:
    """Positions of one of ``folds`` stratified folds; the only row of a class is in one where ``single`` says so."""
    if folds < 2 or not 0 <= fold < folds:
        raise UserError(f"{name}: needs at least 2 folds, counted from 0")
    number = np.empty(len(labels), int)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        number[rows] = np.arange(len(rows)) % folds if single or len(rows) > 1 else folds
    held = np.flatnonzero(number == fold)
    if not len(held):
        raise UserError(f"{name} holds none of the {len(labels)} training rows")
    return held
