"""A teacher's inside in whole runs: recorded once for all rows that are trained on, or refused without room for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.cli import main
from kdresearch.data.encoding import pad
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import WordTokenizer
from kdresearch.models.bilstm import BiLSTM

BASE = (
    "data.rows={train: 120, test: 30, unlabelled: 0}", "data.validation=40", "trainer=cpu", "threads=1", "logger=none",
    "student=bilstm", "student.model.hidden_dim=8", "student.model.embedding_dim=8", "student.training.epochs=1",
    "evaluation.efficiency=false", "teacher=checkpoint",
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained BiLSTM of two layers."""
    tokenizer, rows = WordTokenizer(min_count=1), list(Reviews(train=400, test=2, unlabelled=0).rows())
    tokenizer.fit([[row.text for row in rows]])
    ids, lengths = tokenizer.encode([row.text for row in rows])
    texts = np.split(ids, np.cumsum(lengths)[:-1])
    labels = torch.tensor([row.label == "positive" for row in rows]).long()
    torch.manual_seed(0)
    model = BiLSTM(tokenizer.size, 2, embedding_dim=16, hidden_dim=7, layers=2, pooling="mean", dropout=0.0)
    optimizer, generator = torch.optim.Adam(model.parameters(), 0.02), np.random.default_rng(0)
    for _ in range(100):
        chunk = generator.permutation(len(rows))[:32]
        loss = F.cross_entropy(model(pad([texts[row] for row in chunk], 0)).logits, labels[chunk])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("teacher")
    package.save(folder, model, tokenizer, ("negative", "positive"))
    return folder


def train(folder: Path, teacher: Path, *overrides: str) -> int:
    return main(["train", *BASE, f"teacher.path={teacher}", *overrides, f"hydra.run.dir={folder}"])


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def recorded_rows(pattern: str = "digests.npy") -> int:
    return sum(len(np.load(path)) for path in Store().root.glob(f"knowledge/*/{pattern}"))


def test_pseudo_samples_are_recorded_as_well(tmp_path: Path, teacher: Path) -> None:
    options = ("strategy=feature", "teacher.keep=true", "generator=resample", "generator.number=30")
    assert train(tmp_path / "run", teacher, *options) == 0
    counts = read(tmp_path / "run", "run.json")["data"]["counts"]
    assert counts["generated"] == 30
    assert recorded_rows("lengths.npy") == counts["train"] + 30
    leaves = {path.name for path in Store().root.glob("knowledge/*/*.bin")}
    assert leaves in ({"hidden.2.bf16.bin"}, {"hidden.2.words.bf16.bin"})  # the last layer alone


@pytest.mark.parametrize(("keep", "tolerance"), [("true", 0.002), ("int8", 0.01)])
def test_a_run_learns_as_from_the_live_teacher(tmp_path: Path, teacher: Path, keep: str, tolerance: float) -> None:
    for name, value in (("live", "false"), ("recorded", keep)):
        assert train(tmp_path / name, teacher, "strategy=feature", f"teacher.keep={value}") == 0
    live, recorded = (read(tmp_path / name, "metrics.json") for name in ("live", "recorded"))
    assert recorded["val/nll"] == pytest.approx(live["val/nll"], abs=tolerance)
    assert (read(tmp_path / "live", "run.json")["identity"] == read(tmp_path / "recorded", "run.json")["identity"]) == (
        keep == "true"
    )
    rows = recorded_rows()
    assert train(tmp_path / "again", teacher, "strategy=feature", f"teacher.keep={keep}") == 0
    assert read(tmp_path / "again", "metrics.json")["val/nll"] == recorded["val/nll"] and recorded_rows() == rows


def test_where_it_has_no_room(tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("strategy=feature", "teacher.keep=true", "store.limit=300kB")
    assert train(tmp_path / "run", teacher, *options) != 0
    line = capsys.readouterr().err.splitlines()[-1]
    for words in (
        "teacher.keep: recording hidden.2", "of 80 rows takes", "store.limit=300kB leaves", "data.limit=",
        "teacher.keep=int8 takes", "teacher.keep=false takes nothing",
    ):  # fmt: skip
        assert words in line
    assert not list(Store().root.glob("knowledge/*/*.bin"))
    assert train(tmp_path / "run", teacher, "strategy=feature", "teacher.keep=true", "store.limit=much") != 0
    assert "store.limit: a number of bytes, as 20GB or 500MB, not 'much'" in capsys.readouterr().err
    assert train(tmp_path / "run", teacher, "strategy=feature", "teacher.keep=int4") != 0
    assert "teacher.keep" in capsys.readouterr().err


def test_test_rows_that_are_left_alone_are_not_recorded(tmp_path: Path, teacher: Path) -> None:
    assert train(tmp_path / "run", teacher, "strategy=soft_label", "evaluation.test=false") == 0
    assert recorded_rows() == 80 + 40


def test_a_folds_model_does_not_read_the_test_rows(tmp_path: Path, teacher: Path) -> None:
    folds = ("teacher=ngram", "teacher.recipe=['student=ngram']", "teacher.folds=2", "strategy=soft_label")
    overrides = [each for each in BASE if each != "teacher=checkpoint"]
    assert main(["train", *overrides, *folds, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    metrics = [json.loads(path.read_text()) for path in Store().root.glob("teacher/*/metrics.json")]
    assert len(metrics) == 2
    assert not [name for each in metrics for name in each if "test" in name]
