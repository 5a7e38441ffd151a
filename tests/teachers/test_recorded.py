from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.data.corpus import Corpus, Row, load
from kdresearch.data.encoding import encoded, fitted
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import WordTokenizer
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramLinear
from kdresearch.package import Package
from kdresearch.structures import Batch, Tokens
from kdresearch.teachers import recorded
from kdresearch.teachers.live import LiveTeacher
from kdresearch.teachers.recorded import RecordedTeacher, record

CLASSES = ("negative", "positive")
BOTH = frozenset({"logits", "pooled"})


class Texts:
    """A source of rows given as (part, text, class)."""

    name, synthetic, classes = "texts", True, CLASSES

    def __init__(self, *rows: tuple[str, str]) -> None:
        self.given = rows

    def key(self) -> dict[str, object]:
        return {"rows": self.given}

    def rows(self) -> Any:
        for number, (part, text) in enumerate(self.given):
            yield Row(part, str(number), text, CLASSES[number % 2])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load(Reviews(train=40, test=14, unlabelled=10), Store(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def saved(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = WordTokenizer(min_count=1, max_length=40)
    tokenizer.fit(corpus.texts(np.arange(30)))
    torch.manual_seed(5)
    model = BiLSTM(tokenizer.size, 2, embedding_dim=8, hidden_dim=7, dropout=0.5)
    folder = tmp_path_factory.mktemp("teacher")
    package.save(folder, model, tokenizer, CLASSES)
    return folder


class Counted:
    """A package that counts the rows that its model reads, and can be made to break."""

    def __init__(self, folder: Path, breaks_after: int | None = None) -> None:
        self.package = package.load(folder)
        self.rows = self.calls = self.opened = 0
        self.breaks_after = breaks_after
        self.package.model.register_forward_pre_hook(self._count)

    def _count(self, _: object, arguments: tuple[Tokens, ...]) -> None:
        self.calls += 1
        self.rows += len(arguments[0].ids)
        if self.breaks_after is not None and self.rows > self.breaks_after:
            raise RuntimeError("out of memory")

    def open(self) -> Package:
        self.opened += 1
        return self.package


def taught(teacher: Counted, corpus: Corpus, rows: Any, store: Store, **settings: Any) -> list[Path]:
    settings = {"batch_size": 4} | settings
    return record(teacher.package.fingerprint, teacher.open, corpus, np.asarray(rows), store, **settings)


def batch(index: Any, teacher: Tokens | None = None) -> Batch:
    index = torch.as_tensor(index)
    empty = Tokens(torch.zeros(len(index), 1, dtype=torch.long), torch.ones(len(index), 1, dtype=torch.bool))
    return Batch(index, torch.full((len(index),), -1), empty, teacher)


@pytest.mark.parametrize("piece", [7, 4096])
def test_recorded_is_live(
    saved: Path, corpus: Corpus, store: Store, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(recorded, "PIECE", piece)
    teacher = Counted(saved)
    everything = np.arange(len(corpus))
    pieces = taught(teacher, corpus, everything, store)
    assert len(pieces) == -(-len(np.unique(corpus.digests(everything))) // piece)
    told = RecordedTeacher(pieces, corpus, everything, CLASSES)
    assert (told.signature.classes, told.signature.fields, told.signature.width, told.signature.embedding_width) == (
        CLASSES,
        BOTH,
        14,
        0,
    )

    live = LiveTeacher(package.load(saved))
    tokens = encoded(package.load(saved).tokenizer, "any", corpus, everything, store)
    generator = np.random.default_rng(0)
    for size in (1, 5, 16, len(corpus)):
        index = generator.permutation(everything)[:size]  # across parts, in any order
        expected = live(batch(index, tokens.tokens(index)), BOTH)
        answer = told(batch(index), BOTH)
        assert torch.allclose(answer.logits, expected.logits, atol=1e-6)
        assert torch.allclose(answer.pooled, expected.pooled, atol=1e-6, rtol=2**-10)  # float16
        assert answer.logits.dtype == answer.pooled.dtype == torch.float32
    assert told(batch([3])).pooled is None
    assert told(batch([3]), frozenset({"pooled"})).logits is None
    assert answer.logits.std() > 0.001  # else anything would do


def test_a_row_that_was_not_recorded(saved: Path, corpus: Corpus, store: Store) -> None:
    pieces = taught(Counted(saved), corpus, range(10), store)
    told = RecordedTeacher(pieces, corpus, np.arange(5), CLASSES)
    with pytest.raises(KeyError, match="row 7 was not recorded"):  # it is in the pieces, and not what was asked about
        told(batch([0, 7, 2]))
    with pytest.raises(KeyError, match="2 of 12 rows were not recorded"):
        RecordedTeacher(pieces, corpus, np.arange(12), CLASSES)
    with pytest.raises(KeyError, match="3 of 3 rows were not recorded"):
        RecordedTeacher([], corpus, np.arange(3), CLASSES)


def test_only_missing_rows_are_computed(saved: Path, corpus: Corpus, store: Store) -> None:
    first = Counted(saved)
    taught(first, corpus, range(10, 20), store)
    assert (first.rows, first.calls, first.opened) == (10, 3, 1)
    subset = Counted(saved)
    taught(subset, corpus, [19, 12, 11], store)
    assert (subset.rows, subset.opened) == (0, 0)  # not even loaded
    superset = Counted(saved)
    pieces = taught(superset, corpus, range(25), store)
    assert superset.rows == 15
    assert len(pieces) == 2
    alone = taught(Counted(saved), corpus, range(25), Store(store.root.parent / "other"))
    told, expected = (RecordedTeacher(each, corpus, np.arange(25), CLASSES) for each in (pieces, alone))
    assert torch.allclose(told(batch(range(25))).logits, expected(batch(range(25))).logits, atol=1e-6)


def test_what_was_done_when_it_broke_is_kept(
    saved: Path, corpus: Corpus, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "PIECE", 8)
    broken = Counted(saved, breaks_after=18)  # in the third piece
    with pytest.raises(RuntimeError, match="out of memory"):
        taught(broken, corpus, range(30), store)
    assert len(list(store.artifacts("knowledge"))) == 2
    again = Counted(saved)
    pieces = taught(again, corpus, range(30), store)
    assert again.rows == 30 - 16
    whole = taught(Counted(saved), corpus, range(30), Store(store.root.parent / "other"))
    told, expected = (RecordedTeacher(each, corpus, np.arange(30), CLASSES) for each in (pieces, whole))
    assert torch.allclose(told(batch(range(30))).logits, expected(batch(range(30))).logits, atol=1e-6)


def test_precision_and_teacher_are_part_of_the_key(saved: Path, corpus: Corpus, store: Store, tmp_path: Path) -> None:
    taught(Counted(saved), corpus, range(8), store)
    half = Counted(saved)
    pieces = taught(half, corpus, range(8), store, precision="bf16")
    assert half.rows == 8
    assert len(pieces) == 1
    opened = package.load(saved)
    opened.model.classifier.bias.data += 1.0
    package.save(tmp_path / "other", opened.model, opened.tokenizer, CLASSES)
    other = Counted(tmp_path / "other")
    taught(other, corpus, range(8), store)
    assert other.rows == 8
    # neither the size of a batch nor the device changes what is known
    same = Counted(saved)
    taught(same, corpus, range(8), store, batch_size=3)
    assert same.rows == 0


def test_rows_are_joined_by_text(saved: Path, store: Store) -> None:
    texts = ["a fine film", "a dull film", "the plot is thin", "the acting is superb", "I left early"]
    one = load(Texts(*[("train", text) for text in texts[:4]], ("test", texts[4])), store)
    other = load(Texts(("train", texts[4]), ("train", "never seen"), ("test", texts[2]), ("test", texts[0])), store)
    told = RecordedTeacher(taught(Counted(saved), one, range(5), store), one, np.arange(5), CLASSES)
    again = Counted(saved)
    pieces = taught(again, other, range(4), store)
    assert again.rows == 1
    moved = RecordedTeacher(pieces, other, np.arange(4), CLASSES)
    expected, answer = told(batch([4, 2, 0]), BOTH), moved(batch([0, 2, 3]), BOTH)
    assert torch.equal(answer.logits, expected.logits)
    assert torch.equal(answer.pooled, expected.pooled)
    assert len(set(expected.logits[:, 0].tolist())) == 3


def test_copies_of_a_text_are_computed_once(saved: Path, store: Store) -> None:
    rows = [("train", "a fine film"), ("train", "a dull film"), ("train", "a fine film"), ("test", "a fine film")]
    twins = load(Texts(*rows), store)
    teacher = Counted(saved)
    told = RecordedTeacher(taught(teacher, twins, range(4), store), twins, np.arange(4), CLASSES)
    assert teacher.rows == 2
    logits = told(batch([0, 2, 3, 1])).logits
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[3])


def test_a_teacher_of_logits_alone(corpus: Corpus, store: Store, tmp_path: Path) -> None:
    tokenizer = WordTokenizer(min_count=1)
    fitted(tokenizer, corpus, np.arange(30), store)
    package.save(tmp_path / "floor", NgramLinear(tokenizer.size, 2), tokenizer, CLASSES)
    told = RecordedTeacher(taught(Counted(tmp_path / "floor"), corpus, range(6), store), corpus, np.arange(6), CLASSES)
    assert (told.signature.fields, told.signature.width) == ({"logits"}, 0)


RECORDER = """
import sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.data.corpus import load
from kdresearch.data.reviews import Reviews
from kdresearch.teachers.recorded import record

folder, home = Path(sys.argv[1]), Path(sys.argv[2])
corpus = load(Reviews(train=40, test=14, unlabelled=10), Store(home))
opened, read = package.load(folder), 0

def count(model, arguments):
    global read
    read += len(arguments[0].ids)
    time.sleep(0.1)

opened.model.register_forward_pre_hook(count)
print("ready", flush=True)
sys.stdin.readline()
said = []
pieces = record(opened.fingerprint, lambda: opened, corpus, np.arange(40), Store(home), batch_size=4, say=said.append)
print(read, len(pieces), sum("waiting" in line for line in said))
"""


def test_of_two_processes_one_waits(saved: Path, store: Store) -> None:
    command = [sys.executable, "-c", RECORDER, str(saved), str(store.root)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0].split() for process in both]
    assert sorted(told) == [["0", "1", "1"], ["40", "1", "0"]]
