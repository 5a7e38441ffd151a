from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdresearch.artifacts import Store
from kdresearch.data.corpus import Corpus, Row, load
from kdresearch.data.split import Split, labels_of, split
from kdresearch.errors import UserError

CLASSES = ("a", "b", "c")
SHARES = (0.6, 0.3, 0.1)


class Repeating:
    """Rows of few distinct texts, so that there are duplicates within and across all parts."""

    name = "repeating"
    synthetic = True
    classes = CLASSES

    def __init__(self, sizes: dict[str, int], texts: int = 1500, seed: int = 0) -> None:
        self.sizes, self.texts, self.seed = sizes, texts, seed

    def key(self) -> dict[str, object]:
        return {"sizes": self.sizes, "texts": self.texts, "seed": self.seed}

    def rows(self) -> Iterator[Row]:
        random = np.random.default_rng(self.seed)
        for part, size in self.sizes.items():
            for i in range(size):
                text, label = (
                    f"text{' ' * int(random.integers(1, 4))}{random.integers(self.texts)}",
                    random.choice(3, p=SHARES),
                )
                yield Row(part, f"{part}/{i}", text, None if part == "unlabelled" else CLASSES[label])


SIZES = {"train": 800, "test": 200, "unlabelled": 600}


def corpus_of(folder: Path, **sizes: int) -> Corpus:
    return load(Repeating(SIZES | sizes), Store(folder / "store"))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return corpus_of(tmp_path)


def part_of(corpus: Corpus, name: str) -> set[int]:
    part = corpus.parts_by_name[name]
    return set(range(part.start, part.start + len(part)))


def check_kept_apart(corpus: Corpus, carved: Split) -> None:
    """Every text that is trained on occurs once there, and nowhere in what is evaluated on."""
    trained = corpus.digests(carved.trained)
    assert len(set(trained.tolist())) == len(trained)
    for evaluated in (carved.validation, carved.test):
        assert not np.isin(trained, corpus.digests(evaluated)).any()
        assert len(np.unique(evaluated)) == len(evaluated) > 0
    assert set(carved.train) <= part_of(corpus, "train")
    assert (
        set(carved.transfer) <= part_of(corpus, "unlabelled")
        if "unlabelled" in corpus.parts_by_name
        else not len(carved.transfer)
    )
    assert set(carved.test) == part_of(corpus, "test")
    assert all(np.array_equal(index, np.sort(index)) for index in (carved.train, carved.transfer, carved.validation))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"validation": 37},
        {"folds": 5, "fold": 4},
        {"transfer": "unlabelled"},
        {"limit": 50, "transfer": "unlabelled", "transfer_limit": 40},
        {"folds": 3, "fold": 1, "transfer": "unlabelled", "limit": 20},
    ],
)
def test_nothing_that_is_evaluated_on_is_trained_on(corpus: Corpus, options: dict[str, Any], seed: int) -> None:
    carved = split(corpus, seed=seed, **options)
    check_kept_apart(corpus, carved)
    assert set(carved.validation) <= part_of(corpus, "train")
    assert len(carved.transfer) == options.get("transfer_limit", len(carved.transfer))


def test_the_sources_own_validation_part_is_kept_whole(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, validation=150)
    carved = split(corpus, transfer="unlabelled")
    check_kept_apart(corpus, carved)
    assert set(carved.validation) == part_of(corpus, "validation")
    folded = split(corpus, folds=4)
    check_kept_apart(corpus, folded)
    assert set(folded.validation) <= part_of(corpus, "train")


def test_only_duplicates_are_dropped_and_they_are_counted(corpus: Corpus) -> None:
    carved = split(corpus, transfer="unlabelled")
    train, test = corpus.parts_by_name["train"].digests.tolist(), set(corpus.parts_by_name["test"].digests.tolist())
    unlabelled = corpus.parts_by_name["unlabelled"].digests.tolist()
    kept = set(train) - test
    assert {*corpus.digests(carved.train), *corpus.digests(carved.validation)} == kept
    held = set(corpus.digests(carved.validation).tolist())
    assert set(corpus.digests(carved.transfer).tolist()) == set(unlabelled) - test - kept
    free = [text for text in unlabelled if text not in test | held]
    assert carved.dropped == {
        "train_in_test": sum(text in test for text in train),
        "within_train": sum(text not in test for text in train) - len(kept),
        "transfer_in_evaluation": len(unlabelled) - len(free),
        "transfer_in_train": sum(text in kept for text in free),
        "within_transfer": sum(text not in kept for text in free) - len(set(free) - kept),
    }
    assert all(carved.dropped.values())


def test_of_copies_the_first_is_kept(corpus: Corpus) -> None:
    carved = split(corpus)
    digests = corpus.parts_by_name["train"].digests.tolist()
    assert all(digests.index(digests[row]) == row for row in [*carved.train, *carved.validation])


@pytest.mark.parametrize("count", [3, 10, 37, 100, 0.1, 0.25])
def test_samples_keep_the_classes_shares_to_the_row(corpus: Corpus, count: float) -> None:
    whole = split(corpus, validation=3)
    labels = labels_of(corpus)
    everything = np.concatenate([whole.train, whole.validation])
    shares = np.bincount(labels[everything], minlength=3) / len(everything)
    rows = round(count * len(everything)) if isinstance(count, float) else count
    held = np.bincount(labels[split(corpus, validation=count).validation], minlength=3)
    assert held.sum() == rows and (held >= 1).all()
    assert (np.abs(held - np.maximum(1, shares * rows)) <= 1).all()
    if isinstance(count, int):
        limited = np.bincount(labels[split(corpus, validation=3, limit=count).train], minlength=3)
        shares = np.bincount(labels[whole.train], minlength=3) / len(whole.train)
        assert limited.sum() == count and (limited >= 1).all()
        assert (np.abs(limited - np.maximum(1, shares * count)) <= 1).all()


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_folds_share_out_the_training_rows(corpus: Corpus, folds: int) -> None:
    carved = [split(corpus, folds=folds, fold=fold, seed=3) for fold in range(folds)]
    held = np.concatenate([one.validation for one in carved])
    assert len(np.unique(held)) == len(held)
    labels, counts = labels_of(corpus), []
    for one in carved:
        assert set(one.train) | set(one.validation) == set(held) and not set(one.train) & set(one.validation)
        counts.append(np.bincount(labels[one.validation], minlength=3))
    assert (np.ptp(counts, axis=0) <= 1).all()
    digests = set(corpus.parts_by_name["train"].digests.tolist()) - set(corpus.parts_by_name["test"].digests.tolist())
    assert len(held) == len(digests)


@pytest.mark.parametrize("options", [{}, {"folds": 3, "fold": 1}, {"limit": 60, "transfer": "unlabelled"}])
def test_a_fold_that_is_left_out_changes_nothing_else(corpus: Corpus, options: dict[str, Any]) -> None:
    whole, labels = split(corpus, **options), labels_of(corpus)
    parts = [split(corpus, leave_out=[fold, 4], **options) for fold in range(4)]
    left = [np.setdiff1d(whole.train, part.train) for part in parts]
    assert np.array_equal(np.sort(np.concatenate(left)), whole.train)  # each row is left out exactly once
    for part in parts:
        assert set(part.train) < set(whole.train)
        for name in ("transfer", "validation", "test"):
            assert np.array_equal(getattr(part, name), getattr(whole, name))
    counts = [np.bincount(labels[rows], minlength=3) for rows in left]
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_the_seed_decides(corpus: Corpus) -> None:
    def rows(seed: int, **options: Any) -> list[list[int]]:
        carved = split(corpus, seed=seed, **options)
        return [carved.train.tolist(), carved.transfer.tolist(), carved.validation.tolist(), carved.test.tolist()]

    for options in ({}, {"folds": 4}, {"limit": 60}, {"transfer": "unlabelled", "transfer_limit": 50}):
        first, same, other = rows(1, **options), rows(1, **options), rows(2, **options)
        assert first == same and first[3] == other[3]
        assert first[0] != other[0] and first[2] != other[2]
        assert "transfer_limit" not in options or first[1] != other[1]


def test_fewer_labels_leave_the_rest_as_it_is(corpus: Corpus) -> None:
    options: dict[str, Any] = {"seed": 5, "transfer": "unlabelled"}
    whole, few, fewer = (split(corpus, limit=limit, **options) for limit in (None, 100, 20))
    for one in (few, fewer):
        assert np.array_equal(one.validation, whole.validation) and np.array_equal(one.transfer, whole.transfer)
    assert set(fewer.train) < set(few.train) < set(whole.train)
    assert (len(fewer.train), len(few.train)) == (20, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer": "unlabeled"}, r"data.transfer: 'unlabeled' \(did you mean 'unlabelled'\?\)"),
        ({"transfer": "unlabelled", "transfer_limit": -1}, "data.transfer_limit must be at least 0, not -1"),
        ({"limit": 5000}, "data.limit=5000: there are only"),
        ({"limit": 2}, "data.limit: 2 rows cannot hold the 3 classes"),
        ({"validation": 0}, "data.validation=0 of"),
        ({"validation": -5}, "data.validation=-5"),
        ({"validation": 800}, "leaves 0 to train on"),
        ({"validation": 2}, "data.validation: 2 rows cannot hold the 3 classes"),
        ({"folds": 1}, "data.fold=0 of data.folds=1"),
        ({"folds": 3, "fold": 3}, "counted from 0"),
        ({"folds": 5000, "fold": 4999}, "data.fold=4999 of data.folds=5000 holds none"),
        ({"leave_out": [3, 3]}, "fold 3 of teacher.folds=3: needs at least 2 folds"),
        ({"leave_out": [4999, 5000]}, "fold 4999 of teacher.folds=5000 holds none"),
    ],
)
def test_settings_that_the_rows_cannot_satisfy_are_refused(
    corpus: Corpus, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        split(corpus, **options)


def test_without_an_unlabelled_part_there_is_no_transfer(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, unlabelled=0)
    with pytest.raises(UserError, match="repeating has no unlabelled part"):
        split(corpus, transfer="unlabelled")
    assert not len(split(corpus).transfer)
