"""Where a run's student starts: with a learning rate of 0, what it ends as is what it began with."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.cli import main

SHAPE = "{{model_type: bert, hidden_size: {width}, num_hidden_layers: {depth}, num_attention_heads: 4, " \
    "intermediate_size: 64, max_position_embeddings: 512}}"  # fmt: skip
BASE = (
    "data.rows={train: 200, test: 40, unlabelled: 0}", "data.validation=40", "trainer=cpu", "threads=1", "logger=none",
    "evaluation.efficiency=false", "strategy=supervised", "student.training.epochs=1",
)  # fmt: skip
ARCHITECTURE = f"student.model.architecture={SHAPE.format(width=32, depth=4)}"
TEACHER = f"['student=transformer', 'student.training.epochs=1', '{ARCHITECTURE}']"
LSTM = ("student=bilstm", "student.model.embedding_dim=16", "student.model.hidden_dim=16")


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


def small(width: int, depth: int = 2) -> tuple[str, str]:
    return "student=transformer", f"student.model.architecture={SHAPE.format(width=width, depth=depth)}"


def train(folder: Path, *overrides: str, teacher: str = TEACHER) -> int:
    taught = ("teacher=transformer", f"teacher.recipe={teacher}")
    return main(["train", *BASE, *taught, "student.training.learning_rate=0", *overrides, f"hydra.run.dir={folder}"])


def student(folder: Path) -> package.Package:
    return package.load(folder / "student")


def taught_by(folder: Path) -> package.Package:
    facts = json.loads((folder / "run.json").read_text())
    return package.load(Path(facts["teacher"]["packages"][0]))


def weights(model: Any, part: str) -> dict[str, Tensor]:
    return {name.removeprefix(part): each for name, each in model.state_dict().items() if name.startswith(part)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("layers", "taken"), [("uniform", [2, 4]), ("first", [1, 2]), ("[3,1]", [3, 1])])
def test_layers(layers: str, taken: list[int], tmp_path: Path) -> None:
    assert train(tmp_path, *small(32), "start.from=layers", f"start.layers={layers}") == 0
    own, theirs = student(tmp_path).model, taught_by(tmp_path).model
    for place, number in enumerate(taken):
        assert equal(weights(own, f"encoder.layers.{place}."), weights(theirs, f"encoder.layers.{number - 1}."))
    assert equal(weights(own, "encoder.embeddings."), weights(theirs, "encoder.embeddings."))
    assert not equal(weights(own, "classifier."), weights(theirs, "classifier."))


def test_embeddings_of_another_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, *small(16), "start.from=embeddings") == 0
    (kept,) = re.findall(r"the teacher's embeddings: ([\d.]+)% of their variance", capsys.readouterr().err)
    assert 50 < float(kept) < 100
    own, theirs = (
        each.model.get_submodule("encoder").get_input_embeddings().weight.detach()
        for each in (student(tmp_path), taught_by(tmp_path))
    )
    assert own.shape == (len(theirs), 16)
    # which words are near each other is the teacher's, up to what 16 of 32 dimensions leave out
    mine, others = ((part - part.mean(0))[2:] for part in (own, theirs))
    angles = torch.stack([torch.nn.functional.cosine_similarity(part[:-1], part[1:]) for part in (mine, others)])
    assert torch.corrcoef(angles)[0, 1] > 0.6


def test_word_vectors_are_distilled_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "one", *LSTM, "start.from=vectors") == 0
    assert "word vectors: asking the teacher about" in capsys.readouterr().err
    assert train(tmp_path / "two", *LSTM, "start.from=vectors", "seed=2") == 0
    assert "asking the teacher about" not in capsys.readouterr().err
    assert len(list(Store().artifacts("vectors"))) == 1
    one, two = (student(tmp_path / name).model.embedding.weight.detach() for name in ("one", "two"))
    torch.testing.assert_close(one[2:] / one[2:].std(), two[2:] / two[2:].std())
    assert one[2:].std(0).min() > 0
    assert train(tmp_path / "random", *LSTM) == 0
    random = student(tmp_path / "random").model.embedding.weight.detach()
    assert not torch.isclose(random[2:], one[2:]).any(1).all()
    # as widely spread as random ones, whatever the teacher's scale was
    assert float(one[2:].std()) == pytest.approx(float(random[2:].std()), rel=0.2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["start.from=layer", *small(32)], ["start.from", "'layer' (did you mean 'layers'?)"]),
        (["start.from=layers", *LSTM], ["BiLSTM has no layers like a teacher's", "start.from=vectors"]),
        (["start.from=vectors", *small(32)], ["Transformer has no table of word vectors", "start.from=embeddings"]),
        (
            ["start.from=layers", *small(32), "teacher=none", "teacher.recipe=null"],
            ["start.from=layers takes a teacher", "NAME"],
        ),
    ],
)
def test_starts_that_cannot_be_are_refused_before_a_teacher_is_trained(
    overrides: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *overrides) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("kdresearch train: ") and all(part in last for part in said), last
    assert not list(Store().artifacts("teacher"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["start.from=layers", *small(16)], ["hidden_size is 16", "the teacher's 32"]),
        (["start.from=layers", *small(32), "start.layers=middle"], ["'middle'", "uniform, first, last"]),
        (["start.from=layers", *small(32), "start.layers=[5,1]"], ["[5, 1]", "layers 1 to 4"]),
        (["start.from=embeddings", *LSTM, "student.tokenizer.size=50"], ["ids do not mean", "start.from=vectors"]),
    ],
)
def test_starts_that_do_not_fit_the_teacher(
    overrides: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *overrides) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("kdresearch train: ") and all(part in last for part in said), last
