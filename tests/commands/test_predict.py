from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdresearch import package
from kdresearch.commands import predict
from kdresearch.commands.predict import main
from kdresearch.data.tokenizers import NgramTokenizer, WordTokenizer
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramLinear

WORDS = ["good", "bad", "so", "long"]
CLASSES = ("[b]neg[/b]", "neu", "pos")
SCORES = {"good": (-2.0, 0.0, 2.0), "bad": (3.0, 0.5, -1.0), "so": (0.0, 1.0, 0.0), "long": (0.5, 0.0, 0.0)}


def softmax(*words: str) -> list[float]:
    """By hand: the classes of a text whose distinct words score as above."""
    odds = [math.exp(sum(SCORES[word][place] for word in words)) for place in range(3)]
    return [value / sum(odds) for value in odds]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run whose student adds up what its four words score."""
    tokenizer = NgramTokenizer(orders=1, min_count=1)
    tokenizer.fit([WORDS])
    model = NgramLinear(tokenizer.size, 3, weighting="none")
    for word, score in SCORES.items():
        model.weight.weight.data[int(tokenizer.encode([word])[0][0])] = torch.tensor(score)
    folder = tmp_path_factory.mktemp("run")
    package.save(folder / "student", model, tokenizer, CLASSES)
    return str(folder)


@pytest.fixture
def lines(tmp_path: Path) -> str:
    (tmp_path / "in.txt").write_bytes("\ufeffgood\r\n\r\n  \nso bad, \tso\n\nlong".encode())
    return str(tmp_path / "in.txt")


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes, terminal: bool = False) -> None:
    stream = io.TextIOWrapper(io.BytesIO(content))
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stream)


def test_jsonl_has_the_probability_of_every_class(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, "good", "so bad bad", "--format", "jsonl", "unseen"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["good", "so bad bad", "unseen"]
    assert [row["label"] for row in rows][:2] == ["pos", "[b]neg[/b]"]
    for row, expected in zip(rows, (softmax("good"), softmax("so", "bad"), softmax()), strict=True):
        assert set(row) == {"text", "label", "probabilities"}
        assert [row["probabilities"][name] for name in CLASSES] == pytest.approx(expected, rel=1e-5)


def test_tsv_is_the_plain_way_out(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, "so\tbad,\nso", "good"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"[b]neg[/b]\t{softmax('so', 'bad')[0]:.4f}\tso bad, so",
        f"pos\t{softmax('good')[2]:.4f}\tgood",
    ]


def test_csv_of_a_file_keeps_texts_and_line_numbers(run: str, lines: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, "--file", lines, "--format", "csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["line"], row["text"], row["label"]) for row in rows] == [
        ("1", "good", "pos"), ("4", "so bad, \tso", "[b]neg[/b]"), ("6", "long", "[b]neg[/b]")
    ]  # fmt: skip
    second = softmax("so", "bad")[1]
    assert (rows[1]["label_2"], float(rows[1]["probability_2"])) == ("neu", pytest.approx(second, abs=1e-6))


def test_top_ranks_and_is_bounded_by_the_classes(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([run, "good", "--format", "jsonl", "--top", "2"])
    assert list(json.loads(capsys.readouterr().out)["probabilities"]) == ["pos", "neu"]
    main([run, "good", "--format", "jsonl", "--top", "9"])
    assert list(json.loads(capsys.readouterr().out)["probabilities"]) == ["pos", "neu", "[b]neg[/b]"]


def test_table_shortens_texts_and_obeys_nothing_in_them(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(predict, "_CHUNK", 1)  # several pieces of one table
    (tmp_path / "in").write_text("good " * 40 + "\n\x1b[31m bad\nso\n")
    assert main([run, "--file", str(tmp_path / "in"), "--format", "table", "--batch-size", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["line", "class", "probability", "text"]
    assert len(rows) == 3
    assert all(len(row) <= 60 for row in rows)
    assert rows[0].rstrip().endswith("…")
    assert "\x1b" not in rows[1]
    assert rows[1].split()[:3] == ["2", "[b]neg[/b]", f"{softmax('bad')[0]:.4f}"]
    assert {row.index("0.") for row in rows} == {rows[0].index("0.")}  # the pieces line up


@pytest.mark.parametrize("arguments", [["-"], ["--file", "-"], []])
def test_standard_input(
    arguments: list[str], run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b"\ngood\nbad\n")
    assert main([run, *arguments]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["pos", "[b]neg[/b]"]


def test_a_text_may_begin_with_a_dash(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, "--top", "1", "--", "-bad", "--top"]) == 0
    assert [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines()] == ["-bad", "--top"]


@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 1), (3, 2), (64, 64)])
def test_order_and_answers_do_not_depend_on_batches(
    batch_size: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 30, 50)]
    tokenizer = WordTokenizer(min_count=1, max_length=20)
    tokenizer.fit([texts])
    torch.manual_seed(0)
    package.save(tmp_path / "net", BiLSTM(tokenizer.size, 3, embedding_dim=8, hidden_dim=8), tokenizer, CLASSES)
    student = package.load(tmp_path / "net")
    alone = np.concatenate([student.probabilities([text]) for text in texts])
    assert np.ptp(alone, axis=0).max() > 0.01

    monkeypatch.setattr(predict, "_CHUNK", chunk)
    (tmp_path / "in").write_text("\n".join(texts))
    main([str(tmp_path / "net"), "--file", str(tmp_path / "in"), "--format", "jsonl", "--batch-size", str(batch_size)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row["line"] for row in rows] == list(range(1, 51))
    found = [[row["probabilities"][name] for name in CLASSES] for row in rows]
    np.testing.assert_allclose(found, alone, atol=1e-6)


def test_input_is_answered_before_it_ends(run: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(predict, "_CHUNK", 1)
    stdin(monkeypatch, "good\nbäd\nso".encode() + b"\xff\n")
    with pytest.raises(UserError, match=r"standard input is not UTF-8: byte 12 \(line 3\)"):
        main([run, "--batch-size", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "good", " \t"], "text 2 is empty"),
        (["RUN", ""], "text 1 is empty"),
        (["RUN", "a\udcff"], "text 1 is not UTF-8"),
        (["RUN", "good", "--file", "in"], "one of them"),
        (["RUN", "good", "-"], "one of them"),
        (["RUN", "--file", "/no/such/file"], "/no/such/file: No such file"),
        (["RUN", "--file", "/"], "--file /: Is a directory"),
        (["RUN"], "no text given"),
        (["/no/run", "good"], "/no/run does not exist"),
        (["/", "good"], "/ holds no finished run"),
    ],
)
def test_mistakes(arguments: list[str], message: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"", terminal=True)
    with pytest.raises(UserError, match=message):
        main([run if argument == "RUN" else argument for argument in arguments])


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_input_without_a_text(content: bytes, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, content)
    with pytest.raises(UserError, match="standard input holds no text"):
        main([run])


@pytest.mark.parametrize("option", [["--batch-size", "0"], ["--top", "-1"], ["--top", "x"], ["--format", "xml"]])
def test_options_out_of_range(option: list[str], run: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([run, "good", *option])
    assert stopped.value.code == 2
    assert option[1] in capsys.readouterr().err


def test_a_student_that_diverged_is_said(tmp_path: Path) -> None:
    tokenizer = NgramTokenizer(orders=1, min_count=1)
    tokenizer.fit([WORDS])
    model = NgramLinear(tokenizer.size, 2)
    model.bias.data.fill_(math.nan)
    package.save(tmp_path, model, tokenizer, ("a", "b"))
    with pytest.raises(UserError, match="NaN"):
        main([str(tmp_path), "good"])


def test_mistakes_are_found_before_torch_is_loaded(tmp_path: Path) -> None:
    check = (
        "import sys\nfrom kdresearch.commands.predict import main\n"
        "for arguments in (['/no/run', 'x'], ['/no/run', ''], ['/no/run', '--file', '/no/file']):\n"
        "    try:\n        main(arguments)\n    except ValueError:\n        print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", check], text=True).split() == ["False"] * 3
