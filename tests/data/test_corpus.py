from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kdresearch.artifacts import Store
from kdresearch.data.corpus import Row, load, text_digest
from kdresearch.errors import UserError
from kdresearch.structures import UNLABELLED


class Listed:
    """A source of rows that are at hand, which counts how often it is read."""

    name = "listed"
    synthetic = True

    def __init__(self, rows: Sequence[Row], classes: tuple[str, ...] = ("no", "yes")) -> None:
        self.content, self.classes, self.reads = list(rows), classes, 0

    def key(self) -> dict[str, object]:
        return {"rows": [list(row) for row in self.content], "classes": list(self.classes)}

    def rows(self) -> Iterator[Row]:
        self.reads += 1
        return iter(self.content)


ROWS = [
    Row("test", "x/0", "a test", "yes"),
    Row("train", "t/0", "first\nline  \u00e9 🙂", "no"),
    Row("unlabelled", "u/0", "who knows", None),
    Row("train", "t/1", "second", "yes"),
    Row("validation", "v/0", "between", "no"),
    Row("train", "t/2", " first line \t\u00e9  🙂\n", "yes"),
    Row("unlabelled", "u/1", "a label that is given is kept", "yes"),
]
FEW = (Row("train", "a", "x", "no"), Row("train", "b", "y", "yes"), Row("test", "c", "z", "no"))


def long_rows(count: int = 9000) -> list[Row]:
    """More rows than one chunk holds, the parts interleaved."""
    parts = ("train", "test", "train", "unlabelled", "validation")
    return [
        Row(part, f"{part}/{i}", f"text {i}", None if part == "unlabelled" else ("no", "yes")[i // 7 % 2])
        for i in range(count)
        for part in [parts[i % len(parts)]]
    ]


def test_rows_come_back_as_the_source_gave_them(tmp_path: Path) -> None:
    corpus = load(Listed(ROWS), Store(tmp_path))
    assert list(corpus.parts_by_name) == ["train", "validation", "test", "unlabelled"] and len(corpus) == len(ROWS)
    for name, part in corpus.parts_by_name.items():
        own = [row for row in ROWS if row.part == name]
        everything = np.arange(len(part))
        assert part.take_ids(everything) == [row.id for row in own]
        assert [text for texts in part.take_texts(everything) for text in texts] == [row.text for row in own]
        labels = [UNLABELLED if row.label is None else corpus.classes.index(row.label) for row in own]
        assert part.labels.tolist() == labels
        assert part.digests.tolist() == [text_digest(row.text) for row in own]
    starts = [part.start for part in corpus.parts_by_name.values()]
    assert starts == [0, 3, 4, 5]


def test_white_space_makes_no_other_text_and_anything_else_does() -> None:
    assert text_digest("a b\n c") == text_digest("\t a  b c ")
    texts = ("a b c", "A b c", "ab c", "a b c.", "a b \u0107")
    assert len({text_digest(text) for text in texts}) == len(texts)
    assert all(0 <= text_digest(text) < 2**64 for text in texts)


def test_any_order_over_parts_and_chunks(tmp_path: Path) -> None:
    rows = long_rows()
    corpus = load(Listed(rows), Store(tmp_path))
    flat = [row for part in corpus.parts_by_name for row in rows if row.part == part]  # by corpus-wide index
    index = np.random.default_rng(0).permutation(np.repeat(np.arange(len(rows)), 2))[:13_000]
    assert [text for texts in corpus.texts(index) for text in texts] == [flat[i].text for i in index]
    assert corpus.ids(index) == [flat[i].id for i in index]
    assert corpus.digests(index).tolist() == [text_digest(flat[i].text) for i in index]
    seen = np.zeros(len(index), int)
    for part, within, positions in corpus.locate(index):
        assert (index[positions] == part.start + within).all() and (within < len(part)).all()
        seen[positions] += 1
    assert (seen == 1).all()
    assert corpus.ids(np.empty(0, np.int64)) == [] and list(corpus.texts(np.empty(0, np.int64))) == []


def test_what_was_read_is_opened_and_not_read_again(tmp_path: Path) -> None:
    source, said = Listed(ROWS), []
    first = load(source, Store(tmp_path), said.append)
    again = load(source, Store(tmp_path), said.append)
    assert source.reads == 1 and said == ["reading listed"]
    assert again.fingerprint == first.fingerprint
    index = np.arange(len(ROWS))
    assert list(again.texts(index)) == list(first.texts(index))
    other = load(Listed([*ROWS, Row("train", "t/3", "more", "no")]), Store(tmp_path))
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("rows", "needles"),
    [
        ([*FEW, Row("train", "t/7", " \n\t", "no")], ["'t/7'", "empty"]),
        ([*FEW, Row("train", "t/8", "", "no")], ["'t/8'", "empty"]),
        ([*FEW, Row("test", "t/9", "w", "yess")], ["'t/9'", "did you mean 'yes'", "no, yes"]),
        ([*FEW, Row("validation", "v/1", "w", None)], ["'v/1'", "validation", "no label"]),
        ([*FEW, Row("trian", "t/1", "w", "no")], ["did you mean 'train'", "unlabelled"]),
        ([FEW[0], FEW[2], Row("test", "d", "w", "yes")], ["one class only", "'no'"]),
        (FEW[:2], ["no test rows"]),
        (FEW[2:], ["no train rows"]),
        ([], ["no train rows"]),
    ],
)
def test_what_makes_no_corpus_is_refused_and_leaves_nothing(
    tmp_path: Path, rows: list[Row], needles: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load(Listed(rows), Store(tmp_path))
    for needle in ["listed", *needles]:
        assert needle in str(caught.value)
    assert list(Store(tmp_path).artifacts()) == []
    assert [path for path in (tmp_path / "corpus").iterdir() if path.suffix != ".lock"] == []


def test_a_classifier_needs_two_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two classes.*\['no'\]"):
        load(Listed([row for row in FEW if row.label == "no"], classes=("no",)), Store(tmp_path))
