from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdresearch.errors import UserError
from kdresearch.generation.generator import Preparation
from kdresearch.generation.lm_training import END, PLAIN, Training, pack
from kdresearch.generation.scratch_lm import ScratchLm

NOUNS = ("cat", "dog", "film", "song", "tree", "house")
SAID = (("bad", "dull", "poor"), ("good", "fine", "great"))
GRAMMAR = [{f"the {noun} is {said}" for noun in NOUNS for said in of_class} for of_class in SAID]
CLASSES = ("negative", "positive")
SMALL: dict[str, Any] = {"layers": 1, "width": 32, "heads": 2, "context": 16, "vocabulary": 300, "batch_size": 16}


def corpus(number: int) -> tuple[list[str], np.ndarray]:
    """Sentences of the grammar, a sixth of them without their label."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, number)
    texts = [f"the {random.choice(NOUNS)} is {random.choice(SAID[label])}" for label in labels]
    return texts, np.where(np.arange(number) % 6 == 0, -1, labels)


def prepared(folder: Path, said: list[str] | None = None, number: int = 120, **settings: Any) -> ScratchLm:
    generator = ScratchLm(**SMALL | {"max_steps": 12} | settings)
    folder.mkdir(exist_ok=True)
    generator.prepare(Preparation(*corpus(number), CLASSES, folder, "cpu", (said if said is not None else []).append))
    return generator


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScratchLm, Path]:
    folder = tmp_path_factory.mktemp("lm")
    settings = {"epochs": 100, "max_steps": 300, "learning_rate": 1e-2, "dropout": 0.0}
    return prepared(folder, number=600, **settings), folder


def test_it_learns_a_grammar(learned: tuple[ScratchLm, Path]) -> None:
    texts = learned[0].generate(200, 1, 0)
    assert np.mean([text in GRAMMAR[0] | GRAMMAR[1] for text in texts]) > 0.95
    assert len(set(texts)) > 25  # of 36
    positive = np.mean([text in GRAMMAR[1] for text in texts])
    assert 0.35 < positive < 0.65


def test_a_class_has_its_words(learned: tuple[ScratchLm, Path]) -> None:
    generator = learned[0]
    labels = generator.labels
    for label in (0, 1):
        generator.labels = np.array([label])
        texts = generator.generate(100, 2, 0)
        assert np.mean([text in GRAMMAR[label] for text in texts]) > 0.95
    generator.labels = labels


def test_the_perplexity_on_held_out_texts_is_near_that_of_the_grammar(learned: tuple[ScratchLm, Path]) -> None:
    record = json.loads((learned[1] / "lm.json").read_text())
    assert record["held_out"] == 30 and record["texts"] == 570 and record["steps"] == 300
    assert record["perplexity"] == pytest.approx(np.exp(record["nats_per_token"]))
    # six nouns, and three words of a class or six without one
    nats = np.log(6) + 5 / 6 * np.log(3) + 1 / 6 * np.log(6)
    tokens = np.mean([len(learned[0].tokenizer.encode(text).ids) + 1 for text in GRAMMAR[0] | GRAMMAR[1]])
    assert 0.95 < record["nats_per_token"] / (nats / tokens) < 1.15


def test_a_finished_training_is_read_and_not_repeated(learned: tuple[ScratchLm, Path]) -> None:
    generator, folder = learned
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert set(before) == {"lm.json", "tokenizer.json", "model.safetensors"}
    said: list[str] = []
    again = prepared(folder, said, number=600, max_steps=300)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert again.generate(8, 3, 0) == generator.generate(8, 3, 0) != generator.generate(8, 4, 0)
    assert len(said) == 1 and "perplexity" in said[0] and "held out" in said[0]


def test_no_text_of_a_block_looks_into_another() -> None:
    training = Training(ScratchLm(**SMALL)._architecture(50), PLAIN + 3, 10, 1e-3, 0, print).eval()
    first, second, third = [PLAIN, 9, 8, 7, END], [PLAIN + 1, 20, 21, END], [PLAIN + 2, 30, END]
    together = torch.tensor([first + second + third + [PLAIN] * 4], dtype=torch.int32)
    total, count = training.nats(together)
    apart = [training.nats(torch.tensor([row])) for row in (first, second, third)]
    torch.testing.assert_close(total, torch.stack([each for each, _ in apart]).sum())
    assert count == sum(number for _, number in apart) == 9
    # by hand, as the first text is read when it is written
    with torch.no_grad():
        shares = training.model(input_ids=torch.tensor([first])).logits[0].log_softmax(dim=-1)
    torch.testing.assert_close(apart[0][0], -sum(shares[place, token] for place, token in enumerate(first[1:])))


def test_texts_are_packed_whole_and_in_order(learned: tuple[ScratchLm, Path]) -> None:
    tokenizer = learned[0].tokenizer
    texts = ["the cat is bad", "a text that says <|end|> and <|plain|>\n", "é"]
    blocks = pack(tokenizer, texts, [PLAIN, PLAIN + 1, PLAIN + 2], 16)
    flat = blocks.flatten().tolist()
    assert blocks.shape[1] == 16 and flat.count(END) == 3
    ends = [place for place, token in enumerate(flat) if token == END]
    starts = [0, *(end + 1 for end in ends)]
    assert [flat[start] for start in starts[:3]] == [PLAIN, PLAIN + 1, PLAIN + 2]
    assert [tokenizer.decode(flat[start:end]) for start, end in zip(starts, ends, strict=False)] == texts
    assert set(flat[starts[3] :]) <= {PLAIN} and len(flat) - starts[3] < 16


def test_without_classes_no_text_says_one(tmp_path: Path) -> None:
    generator = prepared(tmp_path, conditional=False)
    assert (generator.labels == -1).all()
    assert len(generator.generate(5, 0, 0)) == 5
    labels = np.full(120, -1)
    plain = ScratchLm(**SMALL, max_steps=12, conditional=False)
    (tmp_path / "unlabelled").mkdir()
    plain.prepare(Preparation(corpus(120)[0], labels, CLASSES, tmp_path / "unlabelled"))
    assert plain.generate(5, 0, 0) == generator.generate(5, 0, 0)


# It dies before the step that is asked for; checkpoints are made every five.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from kdresearch.generation import lm_training, scratch_lm
step, record = lm_training.Training.training_step, scratch_lm._write
def dies(self, batch, number):
    if self.global_step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, number)
def dies_too(file, text):
    if file.name == "lm.json":
        os.kill(os.getpid(), signal.SIGKILL)
    record(file, text)
lm_training.Training.training_step, scratch_lm._write = dies, dies_too
import importlib.util
spec = importlib.util.spec_from_file_location("these_tests", sys.argv[3])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.prepared(Path(sys.argv[1]), **tests.RESUMED)
"""
RESUMED: dict[str, Any] = {"max_steps": 20, "checkpoint_every": 5, "dropout": 0.3, "epochs": 9, "number": 100}


@pytest.mark.parametrize(("dies", "saved"), [(13, 10), (99, 20)], ids=["middle", "last"])
def test_a_killed_training_ends_as_if_it_had_not_been(dies: int, saved: int, tmp_path: Path) -> None:
    """Killed between two checkpoints, and after the last update, before the record is written."""
    folder = tmp_path / "killed"
    given = [sys.executable, "-c", KILLED, str(folder), str(dies), __file__]
    killed = subprocess.run(given, capture_output=True, timeout=120, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (folder / "last.ckpt").exists() and not (folder / "lm.json").exists()

    said: list[str] = []
    torch.manual_seed(dies)
    prepared(folder, said, **RESUMED)
    assert f"going on from step {saved} of 20" in said
    prepared(tmp_path / "whole", **RESUMED)
    assert (folder / "lm.json").read_text() == (tmp_path / "whole" / "lm.json").read_text()
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_leaves_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    prepared(tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads: a width of 32 does not divide into 3 heads"),
        (
            {"conditional": False, "balance": "train"},
            "balance is of classes, and generator.conditional=false draws none",
        ),
        ({"context": 4}, "context must be at least 8, not 4"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"vocabulary": 259}, "vocabulary must be at least 260, not 259"),
        ({"top_p": -0.1}, r"top_p must be between 0 and 1, not -0\.1"),
        ({"balance": "trian"}, r"balance: 'trian' \(did you mean 'train'\?\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, **settings)


def test_rows_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    generator = ScratchLm(**SMALL)
    with pytest.raises(UserError, match="no row has a label to draw a class from"):
        generator.prepare(Preparation(["a", "b"], np.array([-1, -1]), CLASSES, tmp_path))
    with pytest.raises(UserError, match="cannot be trained on 1 texts"):
        generator.prepare(Preparation(["a", " "], np.array([0, 1]), CLASSES, tmp_path))


def test_the_key_is_the_settings() -> None:
    key = ScratchLm().key()
    assert json.loads(json.dumps(key)) == key != ScratchLm(training_seed=1).key()


def test_sampling_is_no_part_of_what_is_learned() -> None:
    trained = ScratchLm().preparation_key()
    other = ScratchLm(temperature=0.5, top_p=0.5, balance="train", sample_batch_size=1, checkpoint_every=1)
    assert other.preparation_key() == trained and other.key() != ScratchLm().key()
    for setting in ({"max_steps": 3}, {"conditional": False}, {"dropout": 0.0}, {"training_seed": 1}):
        assert ScratchLm(**setting).preparation_key() != trained
