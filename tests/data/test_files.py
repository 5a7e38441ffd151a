from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdresearch.data.corpus import Row
from kdresearch.data.files import Files
from kdresearch.errors import UserError

TEST = "text,label\nfine,pos\nbad,neg\n"


def write(folder: Path, **files: str | bytes) -> dict[str, Path]:
    """Files train.csv, test.csv, ... by part."""
    paths = {}
    for part, content in files.items():
        paths[part] = folder / f"{part}.csv"
        paths[part].write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


def refusal(*needles: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        list(Files(**options).rows())
    for needle in needles:
        assert needle in str(caught.value)


ROWS = [
    ('comma, "quote"', "01"),
    ("two\nlines\r\nand a tab\t.", "1.0"),
    ("NA", "NA"),
    ("2011-01-01", "-1"),
    ("ü🙂\u2028x", "é"),
]


def save(path: Path, format: str) -> Path:
    if format in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="," if format == "csv" else "\t")
            writer.writerows([("other", "label", "text"), *((9, label, text) for text, label in ROWS)])
    elif format == "jsonl":
        lines = [json.dumps({"text": text, "other": [1], "label": label}, ensure_ascii=False) for text, label in ROWS]
        path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    else:
        texts, labels = zip(*ROWS, strict=True)
        pq.write_table(pa.table({"other": [0] * len(ROWS), "text": texts, "label": labels}), path)
    return path


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_rows_that_were_written(tmp_path: Path, format: str) -> None:
    train, test = save(tmp_path / f"a.{format}", format), save(tmp_path / f"b.{format}", format)
    files = Files(train=train, test=test)
    expected = [Row(part, f"{part}/{i}", *row) for part in ("train", "test") for i, row in enumerate(ROWS)]
    assert list(files.rows()) == expected
    assert files.classes == tuple(sorted(label for _, label in ROWS))
    assert files.name == tmp_path.name and not files.synthetic


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
def test_compressed_and_marked_files_read_like_plain_ones(tmp_path: Path, format: str) -> None:
    plain = save(tmp_path / f"a.{format}", format)
    packed = tmp_path / f"b.{format}.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain.read_bytes()))
    files = Files(train=plain, test=packed)
    assert [row[2:] for row in files.rows() if row.part == "test"] == ROWS


def test_a_format_overrides_the_suffix(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part, "jsonl")
    refusal("data.train", "suffix", ".parquet", "data.format=", train=tmp_path / "train", test=tmp_path / "test")
    assert Files(train=tmp_path / "train", test=tmp_path / "test", format="jsonl").classes == (
        "-1",
        "01",
        "1.0",
        "NA",
        "é",
    )
    refusal("data.format", "'json'", "jsonl", train=tmp_path / "train", test=tmp_path / "test", format="json")


def test_paths_may_be_relative_or_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, train=TEST, test=TEST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    files = Files(train="train.csv", test="~/test.csv")
    assert len(list(files.rows())) == 4 and files.name == tmp_path.name


def test_integer_names_sort_by_number_and_others_by_name(tmp_path: Path) -> None:
    numbers = "text,label\n" + "".join(f"x,{label}\n" for label in ("10", "9", "-1", "09"))
    paths = write(tmp_path, train=numbers, test="text,label\nx,9\n")
    assert Files(**paths).classes == ("-1", "09", "9", "10")
    paths = write(tmp_path, train=numbers + "y,10a\n")
    assert Files(**paths, test=tmp_path / "test.csv").classes == ("-1", "09", "10", "10a", "9")


def test_numbers_and_truth_values_become_strings(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": 2}', '{"text": "b", "label": 1.0}', '{"text": "c", "label": true}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"text": ["d", "e"], "label": pa.array([2, 2], pa.int8())}), tmp_path / "test.parquet")
    files = Files(train=tmp_path / "train.jsonl", test=tmp_path / "test.parquet")
    assert [row.label for row in files.rows()] == ["2", "1.0", "True", "2", "2"]


def test_unlabelled_rows_need_no_label_and_lose_one_that_is_there(tmp_path: Path) -> None:
    paths = write(tmp_path, train=TEST, test=TEST, validation=TEST, unlabelled="text\nfree\n")
    files = Files(**paths)
    assert Counter(row.part for row in files.rows()) == {"train": 2, "validation": 2, "test": 2, "unlabelled": 1}
    assert list(files.rows())[-1] == Row("unlabelled", "unlabelled/0", "free", None)
    paths = write(tmp_path, unlabelled="text,label\nfree,other\n")
    assert list(Files(train=tmp_path / "train.csv", test=tmp_path / "test.csv", **paths).rows())[-1].label is None


def test_key_moves_with_content_and_options_not_with_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = write(tmp_path, train=TEST, test=TEST), write(tmp_path / "elsewhere", train=TEST, test=TEST)
    key = Files(**here).key()
    assert key == Files(**there).key() == json.loads(json.dumps(key))
    assert hashlib.sha256(TEST.encode()).hexdigest() in json.dumps(key)
    assert Files(**here, quoted=False).key() != key
    assert Files(**here, validation=save(tmp_path / "v.csv", "csv")).key() != key
    write(tmp_path, test=TEST + "new,pos\n")
    assert Files(**here).key() != key


def test_missing_paths_name_what_is_there(tmp_path: Path) -> None:
    paths = write(tmp_path, train=TEST, test=TEST, zebra=TEST)
    refusal(
        "data.train", "trian.csv does not exist", "holds train.csv", train=tmp_path / "trian.csv", test=paths["test"]
    )
    refusal("data.test", "nor does the folder", "gone", train=paths["train"], test=tmp_path / "gone" / "test.csv")
    refusal("is a folder", "zebra.csv", train=tmp_path, test=paths["test"])
    refusal("data.test", "required", train=paths["train"], test=None)
    refusal(
        "data.train and data.test are the same", train=paths["train"], test=paths["train"].parent / "." / "train.csv"
    )
    refusal("same column", **write(tmp_path, train=TEST, test=TEST), text="label")


@pytest.mark.parametrize(
    ("train", "needles"),
    [
        ("", ["no rows"]),
        ("text,label\n\n", ["no rows"]),
        ("text;label\na;b\n", ["no column 'text'", "text;label"]),
        ("Text,label\na,b\n", ["no column 'text' (did you mean 'Text'?)"]),
        ("text,text,label\na,b,c\n", ["2 columns named 'text'"]),
        ("text,label\na,pos\n ,pos\nb,neg\n,neg\n", ["2 rows", "empty", "train/1, train/3"]),
        ("text,label\na,pos\nb, \nc,neg\n", ["1 row ", "no label", "train/1"]),
        ("text,label\na,pos\nb,pos\n", ["one class only, 'pos'"]),
        ('text,label\n"a\nb",pos\nb,neg,x\nc,pos\n', ["line 4", "3 fields", "header has 2"]),
        ("text,label\na,pos\nb\n", ["line 3", "1 fields"]),
        ('text,label\na,pos\n"b,neg\nc,pos\n', ["line 3", "quoted=false"]),
        ('text,label\na,pos\n"Hi" he said,neg\n', ["line 3", "quoted=false"]),
        (b"text,label\na,pos\nb\xe9,neg\n", ["not UTF-8", "0xe9", "offset 18", "line 3"]),
        (b"\xef\xbb\xbftext,label\na,pos\nb\xe9,neg\n", ["not UTF-8", "0xe9", "offset 21", "line 3"]),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_said(tmp_path: Path, train: str | bytes, needles: list[str]) -> None:
    paths = write(tmp_path, train=train, test=TEST)
    refusal(str(paths["train"]), *needles, **paths)


@pytest.mark.parametrize(
    ("train", "needles"),
    [
        ('{"text": "a", "label": "x"}\n\n{"text": "b", "label"\n', ["line 3"]),
        ('[{"text": "a", "label": "x"}]', ["line 1", "a list"]),
        ('{"text": "a", "labels": "x"}\n', ["no column 'label'", "labels"]),
        ('{"text": "a", "label": "x"}\n{"text": null, "label": "y"}\n{"label": "y"}\n', ["2 rows", "train/1, train/2"]),
        ('{"text": "a", "label": NaN}\n{"text": "b"}\n', ["2 rows", "no label", "train/0, train/1"]),
        ('{"text": "a", "label": ["x"]}\n{"text": "b", "label": "x"}\n', ["neither a string nor a number", "train/0"]),
        ('{"text": 5, "label": "x"}\n{"text": "\\ud83d", "label": "y"}\n', ["2 rows", "no valid string"]),
    ],
)
def test_what_is_wrong_in_a_json_lines_file_is_said(tmp_path: Path, train: str, needles: list[str]) -> None:
    (tmp_path / "train.jsonl").write_text(train)
    refusal("train.jsonl", *needles, train=tmp_path / "train.jsonl", **write(tmp_path, test=TEST))


def test_files_that_are_not_what_their_suffix_says(tmp_path: Path) -> None:
    test = write(tmp_path, test=TEST)["test"]
    for name, needle in {"a.parquet": "no readable Parquet", "a.csv.gz": "not a complete gzip"}.items():
        (tmp_path / name).write_bytes(b"text,label\n")
        refusal(name, needle, train=tmp_path / name, test=test)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(TEST.encode() * 99)[:-12])
    refusal("not a complete gzip", train=tmp_path / "a.csv.gz", test=test)
    save(tmp_path / "b.parquet", "parquet")
    refusal("no column 'body'", "other, text, label", train=tmp_path / "b.parquet", test=test, text="body")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_label_that_train_lacks_is_refused(tmp_path: Path, part: str) -> None:
    paths = write(tmp_path, **{"train": TEST, "validation": TEST, "test": TEST, part: TEST + "so so,Neg\n"})
    refusal(f"data.{part}", f"{part}/2", "'Neg' (did you mean 'neg'?)", "neg, pos", **paths)


def test_a_stray_quotation_mark_never_swallows_rows(tmp_path: Path) -> None:
    """Two rows that begin with a mark would read as one, without the row between them."""
    content = 'text\tlabel\n"Jaws was\tpos\nthe middle\tneg\n"Alien" is\tpos\n'
    for part in ("train", "test"):
        (tmp_path / f"{part}.tsv").write_text(content)
    paths = {part: tmp_path / f"{part}.tsv" for part in ("train", "test")}
    refusal("line 2", "data.quoted=false", **paths)
    texts = [row.text for row in Files(**paths, quoted=False).rows() if row.part == "train"]
    assert texts == ['"Jaws was', "the middle", '"Alien" is']


def test_long_texts_are_read_whole(tmp_path: Path) -> None:
    """The field limit of the standard library is 131,072 characters."""
    long = "word " * 60_000 + "end"
    files = Files(**write(tmp_path, train=TEST + f"{long},pos\n", test=TEST))
    assert [row.text for row in files.rows()][2] == long


shared = Path(os.environ.get("KDRESEARCH_DATA", "no folder"))
needs_shared = pytest.mark.skipif(not shared.is_dir(), reason="KDRESEARCH_DATA names no folder")


@needs_shared
def test_published_files() -> None:
    trec = Files(train=shared / "trec/train.csv", test=shared / "trec/test.csv")
    assert Counter(row.part for row in trec.rows()) == {"train": 5452, "test": 500}
    assert trec.classes == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM") and trec.name == "trec"
    sst = Files(
        **{
            part: shared / f"sst5/{file}.csv"
            for part, file in zip(("train", "validation", "test"), ("train", "dev", "test"), strict=True)
        }
    )
    assert Counter(row.part for row in sst.rows()) == {"train": 8544, "validation": 1101, "test": 2210}
    assert len(sst.classes) == 5
    with (shared / "sst5/train.csv").open(newline="", encoding="utf-8") as file:
        expected = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    assert [row[2:] for row in sst.rows() if row.part == "train"] == expected


@needs_shared
def test_the_published_trec_file_is_not_utf8() -> None:
    raw, test = shared / "trec/TREC.train", shared / "trec/test.csv"
    refusal("suffix", train=raw, test=test)
    refusal("not UTF-8", "0xf0 at offset 3695, line 66", train=raw, test=test, format="tsv")
    assert raw.read_bytes()[3695] == 0xF0 and b"\xf0" in raw.read_bytes().split(b"\n")[65]


@pytest.mark.parametrize(
    ("line", "needle"),
    [
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "line 1"),
        ("[" * 100_000 + "]" * 100_000, "line 1"),
        ('{"text": "a", "label": "\\ud800"}', "neither a string nor a number"),
    ],
    ids=["digits", "depth", "surrogate"],
)
def test_json_that_python_makes_nothing_of_is_refused(tmp_path: Path, line: str, needle: str) -> None:
    (tmp_path / "train.jsonl").write_text(f'{line}\n{{"text": "b", "label": "x"}}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "b", "label": "x"}\n')
    refusal("data.train", needle, train=tmp_path / "train.jsonl", test=tmp_path / "test.jsonl")


def test_label_names_of_thousands_of_digits_are_names(tmp_path: Path) -> None:
    long = "9" * 5000
    paths = write(tmp_path, train=f"text,label\na,{long}\nb,1\n", test=f"text,label\nc,{long}\n")
    assert Files(**paths).classes == ("1", long)


@pytest.mark.parametrize(
    "column",
    [
        pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")),
        pa.array([2**62], pa.timestamp("us")),
    ],
    ids=["utf8", "year"],
)
def test_parquet_values_that_python_has_none_for_are_refused(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"text": column, "label": ["x"]}), tmp_path / "a.parquet")
    paths = write(tmp_path, test=TEST)
    refusal("no readable Parquet", train=tmp_path / "a.parquet", test=paths["test"])
