from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdresearch.artifacts import Store
from kdresearch.data.account import account, account_lines, class_weights
from kdresearch.data.corpus import Corpus, Row, load
from kdresearch.data.files import Files
from kdresearch.data.split import Split, label_conflicts, labels_of, split
from kdresearch.errors import UserError


class Written:
    """Rows as they stand: (text, label) by part."""

    name = "written"
    synthetic = True

    def __init__(self, classes: tuple[str, ...], **parts: list[tuple[str, str | None]]) -> None:
        self.classes, self.parts = classes, parts

    def key(self) -> dict[str, object]:
        return {"classes": self.classes, "parts": self.parts}

    def rows(self) -> Iterator[Row]:
        for part, rows in self.parts.items():
            for number, (text, label) in enumerate(rows):
                yield Row(part, f"{part}/{number}", text, label)


def corpus_of(folder: Path, classes: tuple[str, ...] = ("a", "b", "c"), **parts: list[Any]) -> Corpus:
    return load(Written(classes, **parts), Store(folder / "store"))


def many(label: str, count: int, prefix: str = "") -> list[tuple[str, str]]:
    return [(f"{prefix}{label}{number}", label) for number in range(count)]


def facts_of(corpus: Corpus, carved: Split, changes: dict[str, int] | None = None) -> dict[str, Any]:
    return {"duplicates_dropped": carved.dropped} | account(corpus, carved, changes or {})


TEST = [("t1", "a"), ("t2", "b")]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("validation", [2, 0.3, 7])
def test_a_class_of_one_row_is_trained_on_and_told(tmp_path: Path, seed: int, validation: float) -> None:
    corpus = corpus_of(tmp_path, train=[*many("a", 9), *many("b", 2), ("only", "c")], test=TEST)
    carved = split(corpus, seed=seed, validation=validation)
    labels = labels_of(corpus)
    assert len(carved.validation) == (validation if validation >= 1 else round(validation * 12))
    assert set(labels[carved.train]) == {0, 1, 2}
    assert set(labels[carved.validation]) == {0, 1}
    facts = facts_of(corpus, carved)
    assert facts["unvalidated_classes"] == ["c"] and facts["untrained_classes"] == []
    assert any("too rare to be validated: 1 class: c" in line for line in account_lines(facts))


@pytest.mark.parametrize("fold", range(3))
def test_nor_does_a_fold_take_it(tmp_path: Path, fold: int) -> None:
    corpus = corpus_of(tmp_path, train=[*many("a", 9), *many("b", 3), ("only", "c")], test=TEST)
    carved = split(corpus, folds=3, fold=fold)
    assert 2 in labels_of(corpus)[carved.train] and 2 not in labels_of(corpus)[carved.validation]


def test_a_validation_that_would_empty_a_class_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, train=[*many("a", 3), *many("b", 2), ("only", "c")], test=TEST)
    assert len(split(corpus, validation=3).validation) == 3
    with pytest.raises(UserError, match=r"data\.validation: 4 of 6 rows leave none of some classes"):
        split(corpus, validation=4)


def test_a_class_that_its_copies_in_the_test_part_took_away_is_named(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, train=[*many("a", 9), *many("b", 9), ("t3", "c")], test=[*TEST, ("t3", "c")])
    facts = facts_of(corpus, split(corpus))
    assert facts["untrained_classes"] == ["c"]
    assert any(
        line == "WARNING: evaluated on without a single training row: 1 class: c" for line in account_lines(facts)
    )


COPIES = [("x", "a"), ("x ", "b"), ("x", "a"), ("y", "a"), ("y", "a"), ("z", "b"), ("t1", "b"), ("t1", "b")]


def test_texts_of_several_labels_are_counted_and_kept_or_dropped(tmp_path: Path) -> None:
    train = [*many("a", 9), *many("b", 9), *COPIES]
    corpus = corpus_of(tmp_path, ("a", "b"), train=train, test=[*TEST, ("u", "a"), ("u", "b")])
    found = label_conflicts(corpus, corpus.rows("train"))
    assert np.flatnonzero(found).tolist() == [18, 19, 20]
    first, dropped = split(corpus), split(corpus, conflicts="drop")
    whole = [{*corpus.ids(each.train), *corpus.ids(each.validation)} for each in (first, dropped)]
    assert whole[0] - whole[1] == {"train/18"} and not whole[1] - whole[0]  # the first x, which both others copy
    facts = facts_of(corpus, first)
    # x in train; u in test; t1 is b in training and a in test
    assert facts["conflicting_labels"] == {"within_train": 1, "within_test": 1, "train_and_test": 1}
    assert first.dropped == {"train_in_test": 2, "within_train": 3}
    assert dropped.dropped == {"train_in_test": 2, "conflicting": 3, "within_train": 1}
    assert facts["dropped_share"] == {"train": 5 / 26} and facts_of(corpus, dropped)["dropped_share"] == {
        "train": 6 / 26
    }
    (line,) = (line for line in account_lines(facts) if "several labels" in line)
    assert "1 within_train, 1 within_test, 1 train_and_test; in training the first copy is kept" in line
    assert any("no copy is trained on (data.conflicts=drop)" in line for line in account_lines(facts, "drop"))
    with pytest.raises(UserError, match=r"data\.conflicts: 'frist' \(did you mean 'first'\?\)"):
        split(corpus, conflicts="frist")


@pytest.mark.parametrize(("copies", "warned"), [(5, False), (6, True)])
def test_more_than_a_twentieth_of_copies_makes_another_task(tmp_path: Path, copies: int, warned: bool) -> None:
    rows = [*many("a", 50), *many("b", 50 - copies), *(("a0", "a"),) * copies]
    corpus = corpus_of(tmp_path, ("a", "b"), train=rows, test=TEST)
    facts = facts_of(corpus, split(corpus))
    assert facts["dropped_share"] == {"train": copies / 100}
    told = [line for line in account_lines(facts) if line.startswith("WARNING")]
    assert bool(told) == warned
    assert not warned or told[0].startswith("WARNING: 6.0% of the train rows were copies and were dropped: this is")


def test_the_share_of_transfer_rows_that_went(tmp_path: Path) -> None:
    unlabelled = [(text, None) for text in ("t1", "a0", "u1", "u1", "u2", "u3", "u4", "u5")]
    corpus = corpus_of(tmp_path, ("a", "b"), train=[*many("a", 9), *many("b", 9)], test=TEST, unlabelled=unlabelled)
    assert facts_of(corpus, split(corpus))["dropped_share"] == {"train": 0.0}  # not trained on: nothing went
    assert facts_of(corpus, split(corpus, transfer="unlabelled"))["dropped_share"]["transfer"] == 3 / 8


@pytest.mark.parametrize(("share", "imbalanced"), [(12, False), (13, True)])
def test_majority(tmp_path: Path, share: int, imbalanced: bool) -> None:
    rows = [*many("a", 20 - share), *many("b", share)]
    corpus = corpus_of(tmp_path, ("a", "b"), train=rows, validation=[("v", "a")], test=TEST)
    facts = facts_of(corpus, split(corpus))
    assert facts["majority"] == {"train": {"class": "b", "share": share / 20}, "test": {"class": "a", "share": 0.5}}
    assert facts["imbalanced"] is imbalanced
    told = [line for line in account_lines(facts) if line.startswith("imbalanced")]
    assert bool(told) == imbalanced
    assert not told or told[0].startswith("imbalanced: 65.0% of train b, 50.0% of test a; read macro-F1")


def test_nothing_to_say_of_rows_as_they_should_be(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ("a", "b"), train=[*many("a", 9), *many("b", 9)], test=TEST)
    assert account_lines(facts_of(corpus, split(corpus))) == []


def test_labels_are_one_class_whatever_stands_around_them(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    train = f"text,label\na,{composed}\nb,{decomposed}\nc, pos\nd,pos \ne,pos\nf,\u00a0pos\n"
    for name, content in {"train": train, "test": f"text,label\ng,pos\nh,{decomposed}\n"}.items():
        (tmp_path / f"{name}.csv").write_text(content, encoding="utf-8")
    source = Files(train=tmp_path / "train.csv", test=tmp_path / "test.csv")
    assert source.classes == (composed, "pos")
    corpus = load(source, Store(tmp_path / "store"))
    assert corpus.parts_by_name["train"].labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert source.label_changes == {"train": 4, "test": 1}
    facts = facts_of(corpus, split(corpus, validation=2), source.label_changes)
    assert facts["labels_normalised"] == {"train": 4, "test": 1}
    assert account_lines(facts)[0].startswith("labels of 4 train, 1 test rows had white space around them")


def test_balanced_weights_are_scikit_learns() -> None:
    weights = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.repeat([0, 1, 3], [50, 7, 1])
    reference = weights.compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    found = class_weights("balanced", ("a", "b", "c", "d"), np.bincount(labels, minlength=4))
    assert found == pytest.approx([reference[0], reference[1], 1.0, reference[2]])


def test_weights_by_name() -> None:
    counts = np.array([5, 5, 5])
    assert class_weights({"b": 2, 7: 0.5}, ("a", "b", "7"), counts) == [1.0, 2.0, 0.5]
    for setting, message in (({"bb": 2}, "'bb'"), ({"a": -1}, "positive"), ({"a": True}, "positive"), (2, "balanced")):
        with pytest.raises(UserError, match=message):
            class_weights(setting, ("a", "b", "7"), counts)
