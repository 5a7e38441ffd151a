from __future__ import annotations

import builtins
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdresearch.artifacts import Artifact, Store
from kdresearch.commands import store as command
from kdresearch.commands.store import main
from kdresearch.data import corpus
from kdresearch.data.encoding import encoded, fitted
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import WordTokenizer
from kdresearch.errors import UserError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("KDRESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return Store()


def build(store: Store, kind: str, size: int, **key: object) -> Artifact:
    path = store.build(kind, key, lambda folder: (folder / "data.bin").write_bytes(bytes(size)) and None)
    return next(artifact for artifact in store.artifacts(kind) if artifact.path == path)


def terminal(monkeypatch: pytest.MonkeyPatch, answer: str | None = None) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    if answer is not None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(builtins, "input", lambda _: answer)


def names(store: Store) -> set[str]:
    return {artifact.path.name for artifact in store.artifacts()}


def test_path(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["path"]) == 0
    assert capsys.readouterr().out == f"{store.root}\n"


def test_list_of_real_artifacts_says_what_each_is(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    data = corpus.load(Reviews(train=40, test=20, unlabelled=10, seed=3), store)
    tokenizer = WordTokenizer(max_length=32)
    fingerprint = fitted(tokenizer, data, np.arange(40), store)
    encoded(tokenizer, fingerprint, data, np.arange(60), store)
    assert main(["list"]) == 0
    told = capsys.readouterr()
    rows = {tuple(line.split("\t")[:2]): line.split("\t")[2:] for line in told.out.splitlines()}
    what = {key: row[0] for key, row in rows.items()}
    assert what.pop(("corpus", data.fingerprint)) == "reviews polarity seed=3 train=40 test=20 unlabelled=10"
    told_of = what.pop(("tokenizer", fingerprint))
    assert told_of.startswith("word words=") and " size=30000 min_count=2 " in told_of
    assert set(what.values()) == {"reviews polarity: train, read by word", "reviews polarity: test, read by word"}
    files = [file for file in store.root.rglob("*") if file.is_file() and file.name != "artifact.json"]
    total = sum(file.stat().st_size for file in files)
    assert sum(int(row[1]) for row in rows.values()) == total
    assert told.err == f"4 artifacts ({command._size(total)}) in {store.root}\n"


def test_list_of_one_kind(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    build(store, "corpus", 1, source="imdb", labels="polarity", content="ab" * 32)
    build(store, "encoded", 1, part="test")
    assert main(["list", "corpus"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split("\t")[2] == "imdb polarity"
    with pytest.raises(UserError, match=r"'corpsu' \(did you mean 'corpus'\?\); one of: corpus, encoded"):
        main(["list", "corpsu"])


def test_list_in_a_terminal(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    small, large = build(store, "corpus", 500, source="a", n="[red]"), build(store, "corpus", 1_500_000, source="b")
    terminal(monkeypatch)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for artifact, words in ((small, ("a n=[red]", "500 bytes")), (large, ("b", "1.5 MB"))):
        (row,) = (line for line in out.splitlines() if artifact.path.name[:8] in line)
        assert all(word in row for word in words)
    assert out.splitlines()[-1] == f"2 artifacts (1.5 MB) in {store.root}"


def test_an_empty_store(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(monkeypatch)
    assert main(["list"]) == main(["verify"]) == 0
    assert "0 artifacts (0 bytes)" in capsys.readouterr().out
    with pytest.raises(UserError, match="the store is empty"):
        main(["list", "corpus"])


@pytest.mark.parametrize(
    ("kind", "key", "what"),
    [
        ("teacher", {"hub": "org/model", "max_length": 256}, "hub org/model"),
        ("teacher", {"hub": {"config.json": "0", "model.safetensors": "1"}}, "a local folder of 2 files"),
        (
            "teacher",
            {"training": {"student": {"model": {"_target_": "k.models.bilstm.BiLSTM"}}, "data": {"limit": 5000},
                          "strategy": {"_target_": "k.Supervised"}, "seeds": {"init": 7}}},
            "BiLSTM by Supervised, 5,000 rows, seed 7",
        ),
        ("knowledge", {"teacher": "0123456789ab", "precision": "bf16"}, "outputs of teacher 01234567, precision bf16"),
        ("knowledge", {"teacher": "0123456789ab", "precision": "32", "leaves": ["hidden.6.bf16"]},
         "outputs, hidden.6.bf16 of teacher 01234567, precision 32"),
        ("teacher", {"package": "0123456789ab", "max_length": 128}, "package 01234567 with max_length=128"),
        ("answers", {"teacher": "0123456789ab", "field": "qkv", "precision": "32", "rows": "d" * 24},
         "qkv of teacher 01234567, precision 32"),
        ("vectors", {"teacher": "0123456789ab", "tokenizer": "f" * 24, "width": 64},
         "word vectors from teacher 01234567, 64 wide"),
        ("generator", {"rows": "d" * 24, "generator": {"generator": "scratch_lm", "layers": 2}}, "scratch_lm layers=2"),
        ("samples", {"generator": {"generator": "resample"}, "seed": 3, "piece": 7},
         "texts of resample, seed 3, piece 7"),
        ("pool", {"generator": {"generator": "resample"}, "seed": 0, "number": 5000},
         "5,000 texts of resample, seed 0, filtered"),
        ("pool", {"generator": {"generator": "own_texts"}, "seed": 0, "number": None},
         "all texts of own_texts, seed 0, filtered"),
        ("encoded", {"tokenizer": "f" * 24, "corpus": "e" * 24, "part": "test", "rows": "d" * 24},
         "corpus eeeeeeee: test, some rows, read by tokenizer ffffffff"),
        ("encoded", {"format": 9, "unknown": "shape", "name": "c" * 24}, "unknown=shape"),
        ("invented", {"n": 1}, "n=1"),
    ],
)  # fmt: skip
def test_every_kind_in_words(kind: str, key: dict[str, object], what: str, store: Store) -> None:
    assert command.describe(build(store, kind, 1, **key), {}) == what


def test_knowledge_has_its_rows(store: Store) -> None:
    key = {"teacher": "0123456789ab", "precision": "32"}
    store.build("knowledge", key, lambda folder: np.save(folder / "digests.npy", np.zeros(1234, np.uint64)))
    (artifact,) = store.artifacts()
    assert command.describe(artifact, {}) == "outputs of teacher 01234567, 1,234 rows, precision 32"


def test_verify_names_what_is_damaged_and_removes_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    whole, flipped, cut = (build(store, "thing", 100, n=n) for n in range(3))
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == f"3 artifacts (300 bytes) whole in {store.root}\n"
    (flipped.path / "data.bin").write_bytes(bytes(99) + b"x")
    (cut.path / "artifact.json").write_text("{")
    expected = {f"damaged: thing/{flipped.path.name}: data.bin", f"damaged: thing/{cut.path.name}: artifact.json"}
    for _ in range(2):  # it does not mend by itself
        assert main(["verify"]) == 1
        assert set(capsys.readouterr().out.splitlines()) > expected
    assert main(["list"]) == 0  # a damaged store can be listed
    assert "its manifest cannot be read" in capsys.readouterr().out
    assert main(["verify", "--remove"]) == 0
    assert set(capsys.readouterr().out.splitlines()) > expected
    assert names(store) == {whole.path.name}
    assert main(["verify"]) == 0


def test_verify_tells_of_what_dead_processes_left(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    left = build(store, "thing", 1, n=1).path.with_name(f"{'a' * 24}.partial-host-1")
    left.mkdir()
    assert main(["verify"]) == 0
    assert left.name in capsys.readouterr().out
    assert left.exists()
    assert main(["verify", "--remove"]) == 0
    assert not left.exists()


def test_remove_by_name_and_kind(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (build(store, kind, 10, n=n) for kind, n in (("corpus", 1), ("corpus", 2), ("encoded", 3)))
    kept = build(store, "teacher", 10, n=4)
    assert main(["remove", first.path.name[:6], f"encoded/{third.path.name}", "--yes"]) == 0
    assert "removed 2 artifacts (20 bytes)" in capsys.readouterr().out
    assert names(store) == {second.path.name, kept.path.name}
    assert main(["remove", "corpus", second.path.name, "-y"]) == 0  # named twice, removed once
    assert names(store) == {kept.path.name}


def test_remove_refuses_what_is_not_clear(store: Store) -> None:
    # The same key under two kinds has one digest.
    first, second = build(store, "corpus", 1, n=1), build(store, "encoded", 1, n=1)
    name = first.path.name
    assert second.path.name == name
    for asked, message in (
        (name[:8], f"fits 2 artifacts: .*corpus/{name}"),
        (name[:3], "too short"),
        ("0" * 24, "no artifact's name begins with"),
        (f"teacher/{name}", "no artifact's name begins with"),
        ("encodd", r"did you mean 'encoded'\?"),
    ):
        with pytest.raises(UserError, match=message):
            main(["remove", "corpus", asked, "--yes"])
    assert len(list(store.artifacts())) == 2  # all or none
    assert main(["remove", f"encoded/{name[:5]}", "--yes"]) == 0
    assert [artifact.kind for artifact in store.artifacts()] == ["corpus"]


def test_remove_asks(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = build(store, "corpus", 1, source="imdb", labels="stars")
    with pytest.raises(UserError, match=r"1 artifact \(1 byte\) would be removed: confirm with --yes"):
        main(["remove", "corpus"])
    terminal(monkeypatch, "")
    assert main(["remove", "corpus"]) == 1
    assert "imdb stars" in capsys.readouterr().out
    assert names(store) == {artifact.path.name}
    terminal(monkeypatch, "y")
    assert main(["remove", "corpus"]) == 0
    assert names(store) == set()


def test_torch_is_not_needed(store: Store) -> None:
    build(store, "knowledge", 1, teacher="ab", precision="32")
    check = (
        "import sys\nfrom kdresearch.commands.store import main\n"
        "main(['list']); main(['verify']); main(['remove', 'knowledge', '-y'])\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)
