"""What was done to the rows of a corpus before anything was trained on them, as facts and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdresearch.data.corpus import Corpus
from kdresearch.data.split import Split, label_conflicts, labels_of
from kdresearch.errors import UserError, choices
from kdresearch.structures import UNLABELLED

ANOTHER_TASK = 0.05
"""The share of a part that may go as copies before the rest is another task than the files state."""
IMBALANCED = 0.6
"""The share of the commonest class above which an accuracy alone hides the errors on the other classes."""


def account(corpus: Corpus, split: Split, label_changes: Mapping[str, int]) -> dict[str, Any]:
    """The facts of the rows that the record holds beside their number.

    Args:
        label_changes: rows of each part whose label the source had to rewrite.

    Returns:
        ``labels_normalised``: those rows. ``conflicting_labels``: texts of several labels ``within_train`` and
        ``within_test``, and texts of one label there and another here (``train_and_test``). ``dropped_share``: of each
        part that is trained on, the share that went as copies. ``unvalidated_classes``: trained on without a validation
        row. ``untrained_classes``: without a training row, and in validation or test. ``majority``: the commonest class
        of the training and of the test rows, and its share. ``imbalanced``: whether either share exceeds
        ``IMBALANCED``.
    """
    labels = labels_of(corpus)
    train, validation, test = (set(labels[part].tolist()) for part in (split.train, split.validation, split.test))
    majority = {"train": _majority(corpus, labels[split.train]), "test": _majority(corpus, labels[split.test])}
    return {
        "labels_normalised": dict(label_changes),
        "conflicting_labels": _conflicts(corpus, labels),
        "dropped_share": _dropped_share(corpus, split),
        "unvalidated_classes": _names(corpus, train - validation),
        "untrained_classes": _names(corpus, (validation | test) - train),
        "majority": majority,
        "imbalanced": any(entry["share"] > IMBALANCED for entry in majority.values()),
    }


def account_lines(facts: Mapping[str, Any], conflicts: str = "first") -> list[str]:
    """One line for each decision about the rows that a user should know of; none where there was none.

    Args:
        facts: ``account``'s, with ``duplicates_dropped``.
        conflicts: what was done with training rows of one text and several labels; see ``split``.
    """
    lines = []
    if changes := facts["labels_normalised"]:
        changed_rows = _counts(changes)
        lines.append(
            f"labels of {changed_rows} rows had white space around them or decomposed characters: taken as the same"
        )
    if dropped := {name: number for name, number in facts["duplicates_dropped"].items() if number}:
        lines.append(f"duplicates dropped from training: {_counts(dropped)}")
    for part, share in facts["dropped_share"].items():
        if share > ANOTHER_TASK:
            lines.append(
                f"WARNING: {share:.1%} of the {part} rows were copies and were dropped: this is another task now, and "
                "published figures on these files do not compare"
            )
    if clashes := {name: number for name, number in facts["conflicting_labels"].items() if number}:
        handling = {"first": "in training the first copy is kept", "drop": "no copy is trained on"}[conflicts]
        lines.append(f"texts of several labels: {_counts(clashes)}; {handling} (data.conflicts={conflicts})")
    if names := facts["unvalidated_classes"]:
        lines.append(f"trained on, and too rare to be validated: {_few(names)}")
    if names := facts["untrained_classes"]:
        lines.append(f"WARNING: evaluated on without a single training row: {_few(names)}")
    if facts["imbalanced"]:
        shares = ", ".join(
            f"{entry['share']:.1%} of {part} {entry['class']}" for part, entry in facts["majority"].items()
        )
        lines.append(f"imbalanced: {shares}; read macro-F1 beside accuracy (selection.monitor=val/macro_f1)")
    return lines


def class_weights(setting: str | Mapping[Any, float] | None, classes: Sequence[str], counts: np.ndarray) -> list[float]:
    """The weight of each class in the loss on gold labels.

    Args:
        setting: ``balanced`` gives N / (C · n_c), N rows of C classes and n_c of this one, so that all classes weigh
            alike (King & Zeng 2001; scikit-learn's ``class_weight``); or weights by name, 1 for those not named.
        counts: n_c [C] of the labelled training rows; a class of none is not counted and has weight 1.

    Raises:
        UserError: another word, a name that is no class, a weight that is no positive number.
    """
    if setting == "balanced":
        present = counts > 0
        weights = counts.sum() / (present.sum() * np.maximum(counts, 1))
        return [float(weight) if there else 1.0 for weight, there in zip(weights, present, strict=True)]
    if not isinstance(setting, Mapping):
        raise UserError(f"student.training.class_weights: balanced, or weights by class, not {setting!r}")
    named = {str(name): weight for name, weight in setting.items()}
    for name, weight in named.items():
        if name not in classes:
            raise UserError(f"student.training.class_weights: {choices(name, classes)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"student.training.class_weights.{name} must be a positive number, not {weight!r}")
    return [float(named.get(name, 1.0)) for name in classes]


def _majority(corpus: Corpus, labels: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(corpus.classes))
    return {"class": corpus.classes[int(counts.argmax())], "share": float(counts.max() / counts.sum())}


def _conflicts(corpus: Corpus, labels: np.ndarray) -> dict[str, int]:
    """Texts, as the source has them."""
    counts: dict[str, int] = {}
    rows = {name: corpus.rows(name) for name in ("train", "test")}
    clashing = {}
    for name, index in rows.items():
        clashing[name] = np.unique(corpus.digests(index[label_conflicts(corpus, index)]))
        counts[f"within_{name}"] = len(clashing[name])
    first = [np.unique(corpus.digests(index), return_index=True) for index in rows.values()]
    (shared, here, there) = np.intersect1d(first[0][0], first[1][0], return_indices=True)
    differ = labels[rows["train"][first[0][1][here]]] != labels[rows["test"][first[1][1][there]]]
    within = np.isin(shared, np.concatenate(list(clashing.values())))
    return counts | {"train_and_test": int((differ & ~within).sum())}


def _dropped_share(corpus: Corpus, split: Split) -> dict[str, float]:
    dropped_kinds = {
        "train": ("train_in_", "within_train", "conflicting"),
        "transfer": ("transfer_in_", "within_transfer"),
    }
    shares = {}
    for name, kinds in dropped_kinds.items():
        dropped_rows = sum(number for kind, number in split.dropped.items() if kind.startswith(kinds))
        source = corpus.parts_by_name.get("train" if name == "train" else "unlabelled")
        if source is not None and (name == "train" or len(split.transfer)):
            shares[name] = dropped_rows / len(source)
    return shares


def _names(corpus: Corpus, labels: set[int]) -> list[str]:
    return [corpus.classes[label] for label in sorted(labels - {UNLABELLED})]


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items())


def _few(names: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} class{'es' * (len(names) > 1)}: {', '.join(names[:most])}{rest}"
