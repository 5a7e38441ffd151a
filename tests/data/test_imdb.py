from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kdresearch.artifacts import Store
from kdresearch.data.corpus import Row, load
from kdresearch.data.imdb import Imdb
from kdresearch.data.split import split
from kdresearch.errors import UserError

FILES = {
    "train/pos/0_9.txt": "Splendid.<br /><br />Twice <br/> seen.",
    "train/pos/1_10.txt": "Perfect \u00e9t\u00e9.",
    "train/neg/0_1.txt": "Awful <BR> kept as it is.",
    "train/neg/12_4.txt": "Dull.",
    "test/pos/0_7.txt": "Good enough.",
    "test/neg/0_3.txt": "Not good enough.",
    "train/unsup/0_0.txt": "Neither.<br />",
    "train/unsup/1_0.txt": "Nor.",
    "README": "not a review",
    "train/urls_pos.txt": "http://example.org",
    "train/labeledBow.feat": "9 0:9",
    "train/pos/._0_9.txt": "what a Mac leaves behind",
}
ROWS = {
    Row("train", "train/pos/0", "Splendid.\n\nTwice\nseen.", "positive"),
    Row("train", "train/pos/1", "Perfect \u00e9t\u00e9.", "positive"),
    Row("train", "train/neg/0", "Awful <BR> kept as it is.", "negative"),
    Row("train", "train/neg/12", "Dull.", "negative"),
    Row("test", "test/pos/0", "Good enough.", "positive"),
    Row("test", "test/neg/0", "Not good enough.", "negative"),
    Row("unlabelled", "train/unsup/0", "Neither.", None),
    Row("unlabelled", "train/unsup/1", "Nor.", None),
}


def folder(root: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        (root / "aclImdb" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "aclImdb" / name).write_text(text, encoding="utf-8")
    return root / "aclImdb"


def archive(path: Path, files: dict[str, str] = FILES) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.addfile(directory := tarfile.TarInfo("aclImdb"))
        directory.type = tarfile.DIRTYPE
        for name, text in files.items():
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    path.write_bytes(gzip.compress(plain.getvalue()) if path.suffix == ".gz" else plain.getvalue())
    return path


def test_archive_and_folder_give_the_rows_of_the_published_layout(tmp_path: Path) -> None:
    packed = list(Imdb(path=archive(tmp_path / "a.tar.gz")).rows())
    plain = list(Imdb(path=archive(tmp_path / "a.tar")).rows())
    unpacked = list(Imdb(path=folder(tmp_path)).rows())
    assert set(packed) == ROWS and len(packed) == len(ROWS)
    assert packed == plain and sorted(packed, key=lambda row: row.id) == sorted(unpacked, key=lambda row: row.id)


def test_stars_are_those_of_the_file_names(tmp_path: Path) -> None:
    source = Imdb(path=folder(tmp_path), labels="stars")
    stars = {row.id: row.label for row in source.rows() if row.part != "unlabelled"}
    assert stars["train/pos/1"] == "10" and stars["test/neg/0"] == "3" and stars["train/neg/12"] == "4"
    assert source.classes == ("1", "2", "3", "4", "7", "8", "9", "10")
    assert {row.label for row in source.rows() if row.part == "unlabelled"} == {None}
    assert source.key() != Imdb(path=tmp_path / "aclImdb").key()
    corpus = load(source, Store(tmp_path / "store"))
    train = corpus.parts_by_name["train"]
    given = zip(train.take_ids(np.arange(4)), [corpus.classes[label] for label in train.labels], strict=True)
    assert dict(given) == {"train/pos/0": "9", "train/pos/1": "10", "train/neg/0": "1", "train/neg/12": "4"}


def test_a_corpus_is_read_once_and_anew_when_the_files_change(tmp_path: Path) -> None:
    path, store = folder(tmp_path), Store(tmp_path / "store")
    first = load(Imdb(path=path), store)
    assert first.classes == ("negative", "positive") and first.name == "imdb" and not first.synthetic
    assert load(Imdb(path=path), store).fingerprint == first.fingerprint
    (path / "test/pos/5_8.txt").write_text("Added later.")
    assert len(load(Imdb(path=path), store)) == len(first) + 1


@pytest.mark.parametrize("suffix", ["gz", "tar"])
def test_a_truncated_archive_is_refused_wherever_it_ends_and_the_store_stays_clean(tmp_path: Path, suffix: str) -> None:
    path, store = archive(tmp_path / f"whole.{suffix}"), Store(tmp_path / "store")
    whole, cut, refused = path.read_bytes(), tmp_path / "cut", 0
    needed = len(whole) if suffix == "gz" else (1 + 2 * len(FILES)) * tarfile.BLOCKSIZE  # then zeros that mark the end
    for size in [0, 1, 100, *np.linspace(101, needed, 80).astype(int)]:
        cut.write_bytes(whole[:size])
        try:
            assert set(Imdb(path=cut).rows()) == ROWS
        except UserError:
            refused += 1
    assert refused > 70  # but for the padding at its very end, which is not missed
    cut.write_bytes(whole[: needed // 2])
    with pytest.raises(UserError, match=r"cut is truncated or is no tar archive.*fetch it again"):
        load(Imdb(path=cut), store)
    assert list(store.artifacts()) == []
    assert not [file for file in store.root.rglob("*") if file.is_file() and file.suffix != ".lock"]
    path.replace(cut)
    assert len(load(Imdb(path=cut), store)) == len(ROWS)


def test_another_layout_or_no_path_is_said(tmp_path: Path) -> None:
    other = {"pos/0_9.txt": "x", "train/pos/0.txt": "y"}
    for path in (archive(tmp_path / "other.tar.gz", other), folder(tmp_path, other)):
        with pytest.raises(UserError, match=r"no reviews in the published layout.*aclImdb/train/pos/0_9"):
            list(Imdb(path=path).rows())
    (tmp_path / "notes.txt").write_text("no archive at all\n" * 99)
    with pytest.raises(UserError, match="no tar archive"):
        list(Imdb(path=tmp_path / "notes.txt").rows())
    with pytest.raises(UserError, match=r"nowhere does not exist; give the IMDB archive or the extracted folder"):
        Imdb(path=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data.labels: 'star' \(did you mean 'stars'\?\)"):
        Imdb(path=tmp_path, labels="star")


def packed(path: Path, members: list[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_a_review_that_an_archive_or_folder_holds_twice_is_named(tmp_path: Path) -> None:
    twice = [("aclImdb/test/pos/0_9.txt", b"once"), ("aclImdb/test/pos/0_9.txt", b"and again")]
    with pytest.raises(UserError, match=r"a\.tar\.gz holds the review test/pos/0 twice"):
        list(Imdb(path=packed(tmp_path / "a.tar.gz", twice)).rows())
    otherwise = folder(tmp_path, FILES | {"test/pos/0_8.txt": "the same number under another rating"})
    with pytest.raises(UserError, match="holds the review test/pos/0 twice"):
        list(Imdb(path=otherwise).rows())


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_review_that_inflates_without_bound_is_not_read(mode: str, tmp_path: Path) -> None:
    path = packed(tmp_path / "a", [("aclImdb/train/pos/0_9.txt", bytes(50_000_000))], mode)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(UserError, match=r"train/pos/0_9\.txt has 50,000,000 bytes; a review has at most 131,072"):
        list(Imdb(path=path).rows())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000
    long = folder(tmp_path, FILES | {"train/pos/7_9.txt": "x" * 200_000})
    with pytest.raises(UserError, match=r"train/pos/7_9\.txt has 200,000 bytes"):
        list(Imdb(path=long).rows())


def test_an_archive_that_inflates_without_bound_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdresearch.data.imdb._MAX_INFLATED", 1_000_000)
    reviews = [(f"aclImdb/train/pos/{number}_9.txt", b"x" * 100_000) for number in range(11)]
    for members in (reviews, [("aclImdb/imdb.vocab", bytes(1_100_000))]):
        with pytest.raises(UserError, match="inflates to more than 1,000,000 bytes: it is not the published archive"):
            list(Imdb(path=packed(tmp_path / "a.tar.gz", members)).rows())
    assert len(list(Imdb(path=packed(tmp_path / "a.tar.gz", reviews[:9])).rows())) == 9


def test_a_name_without_end_is_not_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar.gz", [("a" * 20_000_000, b"")])
    with pytest.raises(UserError, match=r"no tar archive \(a header of 20,000,\d+ bytes\)"):
        list(Imdb(path=path).rows())


@pytest.mark.imdb
def test_the_real_reviews(tmp_path: Path) -> None:
    place = os.environ.get("KDRESEARCH_DATA")
    if not place:
        pytest.skip("KDRESEARCH_DATA names no folder with aclImdb_v1.tar.gz")
    corpus = load(Imdb(path=Path(place) / "aclImdb_v1.tar.gz"), Store(tmp_path))
    assert {name: len(part) for name, part in corpus.parts_by_name.items()} == {
        "train": 25_000,
        "test": 25_000,
        "unlabelled": 50_000,
    }
    for name in ("train", "test"):
        assert np.bincount(corpus.parts_by_name[name].labels).tolist() == [12_500, 12_500]
    digests = {name: Counter(part.digests.tolist()) for name, part in corpus.parts_by_name.items()}
    train, test, unlabelled = digests["train"], digests["test"], digests["unlabelled"]
    assert len(train & test) == 123
    assert sum(train.values()) - len(train) == 98  # 96 as the files have it, and two that differ in their breaks alone
    assert len(train.keys() & unlabelled.keys()) == 354 and len(test.keys() & unlabelled.keys()) == 266
    carved = split(corpus, transfer="unlabelled")
    rows = 25_000 - carved.dropped["train_in_test"] - carved.dropped["within_train"]
    assert rows == len(train.keys() - test.keys()) and len(carved.train) + len(carved.validation) == rows
    assert not any("<br" in text for texts in corpus.texts(np.arange(2000)) for text in texts)
