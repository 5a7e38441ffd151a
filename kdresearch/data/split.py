"""Which rows are trained on, validated on and tested on; nothing that is evaluated on is ever trained on.

Exact duplicates (by text) of test and validation rows, and second copies within the training rows, are dropped from
whatever is trained on. A validation part of the source is used as it is; otherwise one is carved from the training
rows, stratified by label: every class of two rows or more has some on either side, and a class of one row is trained on
and not validated. The validation rows do not depend on ``limit``, so that students of fewer labels are selected on the
same rows.
"""

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
    return np.concatenate([part.labels for part in corpus.parts_by_name.values()])


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

    Args:
        seed: of the carving and the sampling.
        validation: rows (an integer) or a share of the training rows (a fraction) kept for validation.
        folds: cut the training rows into this many stratified folds instead; ``fold`` is then the validation.
        limit: labelled training rows kept, a stratified sample.
        transfer: ``unlabelled`` adds the unlabelled part to what is trained on.
        transfer_limit: unlabelled rows kept, a random sample.
        leave_out: (fold, folds): of the labelled training rows that are left after all this, cut into stratified
            folds, this one is not trained on. The same seed cuts them alike.
        conflicts: of training rows of one text and several labels, the ``first`` is kept, or all dropped (``drop``).

    Raises:
        UserError: settings that the rows cannot satisfy.
    """
    _check_settings(corpus, transfer, transfer_limit, conflicts)
    labels, test = labels_of(corpus), corpus.rows("test")
    dropped: dict[str, int] = {}
    held_out = corpus.rows("validation") if "validation" in corpus.parts_by_name and folds is None else None
    train = _labelled_candidates(corpus, test, held_out, conflicts, dropped)
    if held_out is None:
        held_out = train[_carve_validation(labels[train], validation, folds, fold, seed)]
        train = np.setdiff1d(train, held_out)
    unlabelled = np.empty(0, np.int64)
    if transfer == "unlabelled":
        evaluated = np.concatenate([test, held_out])
        unlabelled = _transfer_rows(corpus, evaluated, train, transfer_limit, seed, dropped)
    train = train[_sample_labelled(labels[train], limit, leave_out, seed)]
    if len(np.unique(labels[train])) < 2:
        raise UserError(f"the {len(train)} training rows have one class only: raise data.limit")
    return Split(train, unlabelled, held_out, test, dropped)


def _check_settings(corpus: Corpus, transfer: str, transfer_limit: int | None, conflicts: str) -> None:
    if transfer not in TRANSFERS:
        raise UserError(f"data.transfer: {choices(transfer, TRANSFERS)}")
    if conflicts not in CONFLICTS:
        raise UserError(f"data.conflicts: {choices(conflicts, CONFLICTS)}")
    if transfer_limit is not None and transfer_limit < 0:
        raise UserError(f"data.transfer_limit must be at least 0, not {transfer_limit}")
    if transfer == "unlabelled" and "unlabelled" not in corpus.parts_by_name:
        raise UserError(f"data.transfer=unlabelled: {corpus.name} has no unlabelled part")


def _labelled_candidates(
    corpus: Corpus, test: np.ndarray, validation: np.ndarray | None, conflicts: str, dropped: dict[str, int]
) -> np.ndarray:
    """Rows of the training part, without copies of each other and of rows that are evaluated on."""
    train = _without(corpus, corpus.rows("train"), test, "train_in_test", dropped)
    if validation is not None:
        train = _without(corpus, train, validation, "train_in_validation", dropped)
    if conflicts == "drop":
        train = _without(corpus, train, train[label_conflicts(corpus, train)], "conflicting", dropped)
    return _first_copies(corpus, train, "within_train", dropped)


def _carve_validation(
    labels: np.ndarray, validation: float | int, folds: int | None, fold: int, seed: int
) -> np.ndarray:
    """Positions of the validation rows among the training rows of these ``labels``."""
    generator = np.random.default_rng([seed, 0x5EED])
    if folds is not None:
        return _fold(labels, folds, fold, generator, f"data.fold={fold} of data.folds={folds}", single=False)
    return _stratified(labels, _count(validation, len(labels)), generator, "data.validation", spare=1)


def _transfer_rows(
    corpus: Corpus,
    evaluated: np.ndarray,
    train: np.ndarray,
    limit: int | None,
    seed: int,
    dropped: dict[str, int],
) -> np.ndarray:
    """Rows of the unlabelled part, without copies of each other and of labelled rows; a sample of ``limit``."""
    rows = _without(corpus, corpus.rows("unlabelled"), evaluated, "transfer_in_evaluation", dropped)
    rows = _without(corpus, rows, train, "transfer_in_train", dropped)
    rows = _first_copies(corpus, rows, "within_transfer", dropped)
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng([seed, 0x7AF]).permutation(rows)[:limit])
    return rows


def _sample_labelled(labels: np.ndarray, limit: int | None, leave_out: Sequence[int] | None, seed: int) -> np.ndarray:
    """Positions of the labelled rows that are trained on: a stratified sample, without the fold that is left out."""
    positions = np.arange(len(labels))
    if limit is not None:
        if limit > len(labels):
            raise UserError(f"data.limit={limit}: there are only {len(labels)} training rows")
        positions = _stratified(labels, limit, np.random.default_rng([seed, 0x11]), "data.limit")
    if leave_out is not None:
        fold, folds = leave_out
        generator = np.random.default_rng([seed, 0xF01D])
        name = f"fold {fold} of teacher.folds={folds}"
        positions = np.delete(positions, _fold(labels[positions], folds, fold, generator, name))
    return positions


def label_conflicts(corpus: Corpus, index: np.ndarray) -> np.ndarray:
    """Which rows [N] bool have a copy of another label among them."""
    labels = labels_of(corpus)[index]
    _, text = np.unique(corpus.digests(index), return_inverse=True)
    low, high = np.full(len(index), len(corpus.classes)), np.full(len(index), UNLABELLED)
    np.minimum.at(low, text, labels)
    np.maximum.at(high, text, labels)
    return np.asarray((low != high)[text])


def _without(corpus: Corpus, index: np.ndarray, excluded: np.ndarray, name: str, dropped: dict[str, int]) -> np.ndarray:
    remaining = index[~np.isin(corpus.digests(index), corpus.digests(excluded))]
    dropped[name] = len(index) - len(remaining)
    return remaining


def _first_copies(corpus: Corpus, index: np.ndarray, name: str, dropped: dict[str, int]) -> np.ndarray:
    remaining = np.sort(index[np.unique(corpus.digests(index), return_index=True)[1]])
    dropped[name] = len(index) - len(remaining)
    return remaining


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
    samples = [
        generator.permutation(np.flatnonzero(labels == name_))[:number]
        for name_, number in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(samples))


def _fold(
    labels: np.ndarray, folds: int, fold: int, generator: np.random.Generator, name: str, single: bool = True
) -> np.ndarray:
    """Positions of one of ``folds`` stratified folds; the only row of a class is in one where ``single``."""
    if folds < 2 or not 0 <= fold < folds:
        raise UserError(f"{name}: needs at least 2 folds, counted from 0")
    number = np.empty(len(labels), int)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        number[rows] = np.arange(len(rows)) % folds if single or len(rows) > 1 else folds
    positions = np.flatnonzero(number == fold)
    if not len(positions):
        raise UserError(f"{name} holds none of the {len(labels)} training rows")
    return positions
