"""The command, and the files it leaves: text, numbers, LaTeX, page and plots."""

from __future__ import annotations

import base64
import csv
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdresearch.commands.report import main
from kdresearch.errors import UserError
from kdresearch.reporting import table
from kdresearch.reporting.comparison import compare
from kdresearch.reporting.records import find

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def pipes(markdown: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("| ").split(" | ")] for line in markdown.splitlines() if line[:1] == "|"]


def test_the_command_writes_every_file_and_names_the_page_last(study: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "a" / "report"
    assert main([str(study), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(out / "index.html")
    assert (out / "table.md").read_text() in printed  # whole lines when no terminal reads them
    assert {path.name for path in out.iterdir()} == {"table.md", "table.csv", "table.tex", "index.html", "plots"}
    assert {path.name for path in (out / "plots").iterdir()} == {
        f"imdb-{name}.png" for name in ("score", "curves", "reliability", "agreement", "size")
    }


def test_the_same_runs_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        main([str(study), "-o", str(out)])
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 9
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_text_rounds_what_the_csv_holds(study: Path, tmp_path: Path) -> None:
    main([str(study), "-o", str(tmp_path), "--no-plots"])
    headings, _, *rows = pipes((tmp_path / "table.md").read_text())
    numbers = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == len(numbers) == 6
    for cells, values in zip(rows, numbers, strict=True):
        shown = dict(zip(headings, cells, strict=True))
        assert shown["method"] == values["method"]
        sd = f" ± {100 * float(values['sd']):.2f}" if values["sd"] else ""
        assert shown["accuracy (%)"] == f"{100 * float(values['mean']):.2f}{sd}"
        if values["difference"]:
            found = re.match(r"(\S+) \[(\S+), (\S+)\](.*)", shown["Δ to alone"].replace("−", "-"))
            assert found is not None
            for text, key in zip(found.groups()[:3], ("difference", "low", "high"), strict=True):
                assert text == f"{100 * float(values[key]):+.2f}"
            assert (found[4] == " within noise") == (values["within_noise"] == "True")
        else:
            assert shown["Δ to alone"] == "–"
    assert not (tmp_path / "plots").exists()


def test_a_column_appears_only_where_a_row_fills_it(record: Make, tmp_path: Path) -> None:
    folder = record(student="ngram")
    (folder / "metrics.json").write_text("{}")
    (comparison,) = compare(find([tmp_path]).finished)
    headings = [column.heading for column in table.columns(comparison)]
    assert headings == [
        "method", "seeds", "M parameters / without embeddings", "MB", "accuracy (%)", "NLL", "ECE (%)", "updates",
    ]  # fmt: skip
    assert table.caption(comparison) == ""


def test_the_metric_in_the_main_column_is_not_shown_twice(study: Path) -> None:
    (comparison,) = compare(find([study]).finished, "nll")
    headings = [column.heading for column in table.columns(comparison)]
    assert headings.count("NLL") == 1
    assert "p (Holm)" in headings
    (comparison,) = compare(find([study]).finished, "ece")
    assert "means over rows" in table.caption(comparison)


def test_latex_escapes_what_latex_reads(study: Path) -> None:
    text = table.latex(compare(find([study]).finished))
    assert "bilstm $\\cdot$ soft\\_label" in text
    assert not re.search(r"(?<!\\)[_#]|(?<!\\)%(?! needs|\n)", text.replace("%\n", "\n"))
    assert set(text) < {chr(i) for i in range(128)}
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    columns = len(re.search(r"begin\{tabular\}\{(\w+)\}", text)[1])  # type: ignore[index]
    assert {line.count("&") for line in body.splitlines() if line.endswith("\\\\")} == {columns - 1}


class Page(HTMLParser):
    """What a browser would fetch, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_beside_it(study: Path, tmp_path: Path) -> None:
    main([str(study), "-o", str(tmp_path)])
    page = Page((tmp_path / "index.html").read_text())
    assert not page.open
    pictures = {path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in page.fetched)
    assert {base64.b64decode(source.removeprefix(prefix)) for source in page.fetched} == pictures
    for words in ("imdb", "bilstm · soft_label", "torch 2.13.0", "AMD EPYC", "init 1, 2, 3", "13 of 5 methods"):
        assert words in page.text


def test_names_from_a_record_are_text_on_the_page(record: Make, tmp_path: Path) -> None:
    record(data="<script>alert(1)</script>")
    main([str(tmp_path), "-o", str(tmp_path), "--no-plots"])
    assert "<script" not in (tmp_path / "index.html").read_text()


def test_runs_that_do_not_count_are_counted_and_named(record: Make, tmp_path: Path, capsys: Capture) -> None:
    record()
    running, broken = record(status="running", seed=2), record(seed=3)
    (broken / "metrics.json").write_text('{"test/acc')
    main([str(tmp_path), "-o", str(tmp_path / "out"), "--no-plots"])
    warned = capsys.readouterr().err
    page = Page((tmp_path / "out" / "index.html").read_text()).text
    for text in (warned, page, (tmp_path / "out" / "table.md").read_text()):
        assert "2 of 3 runs left out: 1 running, 1 unreadable" in text
        assert f"{broken}: metrics.json is damaged" in text
        assert f"{running}: running" in text


def test_nothing_finished_is_refused_in_words(record: Make, tmp_path: Path) -> None:
    record(status="failed")
    with pytest.raises(UserError, match=r"no finished run .*1 failed"):
        main([str(tmp_path), "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(study: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        main([str(study), "-o", str(study / "00" / "run.json")])


def test_plots_draw_only_what_has_data(record: Make, tmp_path: Path) -> None:
    (record() / "metrics.csv").unlink()
    main([str(tmp_path), "-o", str(tmp_path / "out")])
    drawn = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert drawn == {"imdb-score.png", "imdb-reliability.png"}  # no curve, no teacher, one size


def test_other_metrics_and_more_classes_are_drawn_too(record: Make, tmp_path: Path) -> None:
    record()
    record(strategy="soft_label", teacher="minilm", updates=7820)
    for metric in ("macro_f1", "brier", "ece"):
        out = tmp_path / metric
        main([str(tmp_path / "runs"), "-o", str(out), "--metric", metric])
        assert (out / "plots" / "imdb-score.png").stat().st_size > 5_000


def test_a_terminal_shows_the_same_table(study: Path) -> None:
    from rich.console import Console

    (comparison,) = compare(find([study]).finished)
    console = Console(width=250, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    console.print(table.terminal(comparison))
    shown = console.export_text()
    _, rows = table.cells(comparison)
    assert all(cell in shown for row in rows for cell in row)


def test_help_shows_examples_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom kdresearch.commands.report import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n"
        "    heavy = {'torch', 'matplotlib', 'pandas', 'wandb', 'pyarrow'} & set(sys.modules)\n"
        "    sys.exit(str(heavy) if heavy or stop.code else 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert "kdresearch report sweeps --metric macro_f1" in run.stdout
    assert "usage: kdresearch report" in run.stdout
