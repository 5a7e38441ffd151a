"""``kdresearch predict``: the classes of texts, by a trained student."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from kdresearch import package
from kdresearch.errors import UserError

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("table", "tsv", "csv", "jsonl")
EXAMPLES = """examples:
  kdresearch predict runs/floor "a fine film" "dull and long"
  kdresearch predict runs/floor --file reviews.txt --format csv > classes.csv
  cat reviews.txt | kdresearch predict runs/floor - | cut -f 1 | sort | uniq -c
  kdresearch predict runs/stars --top 3 -- "-1 out of 10"     (-- before a text that begins with a dash)
"""
_CHUNK = 64  # batches that are read, sorted by length and answered together: bounds the memory


class Text(NamedTuple):
    """A text and where it stands: the line of the input, or which argument it is."""

    line: int
    text: str


class Prediction(NamedTuple):
    """The classes of a text with their probabilities, the most probable first."""

    line: int
    text: str
    ranked: list[tuple[str, float]]


def main(argv: list[str]) -> int:
    """Run the command.

    Raises UserError where there is no text, a text is empty or not UTF-8, or RUN holds no finished run.
    """
    parser = argparse.ArgumentParser(
        prog="kdresearch predict",
        description="Classify texts with a trained student.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's folder, or a package: a run's student/")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what to classify; - reads standard input")
    parser.add_argument("--file", metavar="F", help="one text per line, UTF-8, blank lines left out; - as above")
    parser.add_argument(
        "--format", choices=FORMATS,
        help="table (default in a terminal); tsv (default elsewhere): class, probability, text; csv: the same under "
        "a header; jsonl: text, label and the probability of every class. What came from a file or standard input has "
        "its line in table, csv and jsonl",
    )  # fmt: skip
    parser.add_argument("--batch-size", metavar="N", type=_positive, default=64, help="default: %(default)s")
    parser.add_argument(
        "--top", metavar="K", type=_positive, help="the K most probable classes (default: 1; jsonl: every class)"
    )
    arguments = parser.parse_intermixed_args(argv)

    stream, name = _stream(arguments.texts, arguments.file)
    texts = _lines(stream, name) if stream is not None else iter(_of_arguments(arguments.texts))
    folder = package.located(arguments.run)
    first = next(texts, None)  # what is wrong with the input is said before anything heavy is loaded
    if first is None:
        raise UserError(f"{name} holds no text")
    texts = chain([first], texts)

    import numpy as np

    student = package.load(folder)
    form = arguments.format or ("table" if sys.stdout.isatty() else "tsv")
    write = _writer(form, student.classes, numbered=stream is not None)
    top = min(arguments.top or (len(student.classes) if form == "jsonl" else 1), len(student.classes))
    while chunk := list(islice(texts, _CHUNK * arguments.batch_size)):
        answers = student.probabilities([text for _, text in chunk], arguments.batch_size)
        order = _best(answers, top)
        best = answers[np.arange(len(answers))[:, None], order].tolist()  # plain numbers: rows of numpy's are slow
        write([
            Prediction(line, text, list(zip([student.classes[place] for place in places], values, strict=True)))
            for (line, text), places, values in zip(chunk, order.tolist(), best, strict=True)
        ])  # fmt: skip
        sys.stdout.flush()
    return 0


def _best(answers: np.ndarray, top: int) -> np.ndarray:
    """The most probable classes [N, top] of probabilities [N, C], the earlier of two that are equal first."""
    return answers.argmax(1)[:, None] if top == 1 else (-answers).argsort(1, kind="stable")[:, :top]


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return number


def _stream(texts: list[str], file: str | None) -> tuple[BinaryIO | None, str]:
    """Where lines are to be read from, if not from the arguments, and its name in messages."""
    if ("-" in texts and len(texts) > 1) or (texts and file is not None):
        raise UserError("give texts, or --file F, or - for standard input: one of them")
    if file == "-" or texts == ["-"] or (not texts and file is None and not sys.stdin.isatty()):
        return sys.stdin.buffer, "standard input"
    if file is not None:
        try:
            return Path(file).expanduser().open("rb"), file
        except OSError as error:
            raise UserError(f"--file {file}: {error.strerror}") from error
    if not texts:
        raise UserError("no text given: give texts, or --file F, or - for standard input")
    return None, "arguments"


def _of_arguments(texts: list[str]) -> list[Text]:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"text {number} is empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"text {number} is not UTF-8 ({text!r})") from error
    return [Text(number, text) for number, text in enumerate(texts, 1)]


def _lines(stream: BinaryIO, name: str) -> Iterator[Text]:
    """The lines that are not blank, by their number; UserError names the byte where they cease to be UTF-8."""
    offset = 0
    for number, raw in enumerate(stream, 1):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            place = offset + error.start
            raise UserError(f"{name} is not UTF-8: byte {place:,} (line {number:,}): {error.reason}") from error
        offset += len(raw)
        text = text.removeprefix("\ufeff").rstrip("\r\n") if number == 1 else text.rstrip("\r\n")
        if text.strip():
            yield Text(number, text)


def _writer(form: str, classes: tuple[str, ...], numbered: bool) -> Callable[[list[Prediction]], None]:
    """What writes predictions, chunk by chunk."""
    if form == "table":
        return _Table(classes, numbered)
    if form == "csv":
        return _Csv(numbered)
    return partial(_jsonl, numbered=numbered) if form == "jsonl" else _tsv


def _tsv(predictions: list[Prediction]) -> None:
    plain = {label: _plain(label) for _, _, ranked in predictions for label, _ in ranked}
    lines = []
    for _, text, ranked in predictions:
        answers = "\t".join([f"{plain[label]}\t{probability:.4f}" for label, probability in ranked])
        lines.append(f"{answers}\t{_plain(text)}\n")
    print("".join(lines), end="")


def _jsonl(predictions: list[Prediction], numbered: bool) -> None:
    lines = []
    for line, text, ranked in predictions:
        place = {"line": line} if numbered else {}
        answer = {**place, "text": text, "label": ranked[0][0], "probabilities": dict(ranked)}
        lines.append(json.dumps(answer, ensure_ascii=False) + "\n")
    print("".join(lines), end="")


class _Csv:
    def __init__(self, numbered: bool) -> None:
        self.numbered, self.header = numbered, True

    def __call__(self, predictions: list[Prediction]) -> None:
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        if self.header:
            ranks = range(2, len(predictions[0].ranked) + 1)
            names = ["label", "probability", *(f"{name}_{n}" for n in ranks for name in ("label", "probability"))]
            table.writerow([*(["line"] if self.numbered else []), *names, "text"])
            self.header = False
        for line, text, ranked in predictions:
            answers = [value for label, probability in ranked for value in (label, f"{probability:.6f}")]
            table.writerow([*([line] if self.numbered else []), *answers, text])
        print(lines.getvalue(), end="")


class _Table:
    """One table in as many pieces as there are chunks: fixed widths, a head on the first."""

    def __init__(self, classes: tuple[str, ...], numbered: bool) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)
        self.numbered, self.header = numbered, True
        self.width = min(30, max(5, *(len(_plain(name)) for name in classes)))

    def __call__(self, predictions: list[Prediction]) -> None:
        from rich.table import Table
        from rich.text import Text as Shown

        table = Table(box=None, show_header=self.header, expand=True, pad_edge=False)
        self.header = False
        if self.numbered:
            table.add_column("line", width=7, justify="right", style="dim")
        table.add_column("class", width=self.width, no_wrap=True, style="bold")
        table.add_column("probability", width=11, justify="right")
        table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
        for line, text, ranked in predictions:
            table.add_row(
                *([str(line)] if self.numbered else []),
                Shown("\n".join(_plain(label) for label, _ in ranked), overflow="ellipsis"),
                "\n".join(f"{probability:.4f}" for _, probability in ranked),
                Shown(_plain(text), overflow="ellipsis"),
            )
        self.console.print(table)


def _plain(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join([letter if letter.isprintable() else " " for letter in line])
