"""Pseudo-samples as a run has them, and the command that shows them; everything is real and small."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.cli import main
from kdresearch.data.corpus import text_digest
from kdresearch.data.reviews import Reviews

ROWS = {"train": 240, "test": 60, "unlabelled": 100}
BASE = (
    "data.rows={train: 240, test: 60, unlabelled: 100}", "data.validation=40", "trainer=cpu", "threads=1",
    "student=ngram_bag", "student.training.batch_size=32",
)  # fmt: skip
TEACHER = (
    "teacher=ngram",
    "teacher.recipe=['student=ngram']",
)  # fmt: skip
RESAMPLE = ("generator=resample", "generator.chunk=64")
TRAINING = ("student.training.epochs=2", "logger=none", "evaluation.efficiency=false")


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


def train(folder: Path, *overrides: str) -> int:
    return main(["train", *BASE, *TEACHER, *TRAINING, *overrides, f"hydra.run.dir={folder}"])


def generate(*overrides: str) -> int:
    return main(["generate", *BASE, *overrides])


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def kept(kind: str) -> list[Any]:
    return list(Store().artifacts(kind))


def refused(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """The one line that a command ended with."""
    told = capsys.readouterr()
    *before, last = told.err.splitlines()
    assert told.out == "" and last.startswith(f"kdresearch {command}: "), told.err
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in before), told.err
    return last


def test_a_run_on_pseudo_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("strategy=generative", *RESAMPLE, "generator.filters.min_confidence=0.75", "generator.ratio=1.5")
    assert train(tmp_path / "one", *given) == 0
    said = capsys.readouterr().err
    facts, first = read(tmp_path / "one", "run.json"), read(tmp_path / "one", "metrics.json")
    counts, made = facts["data"]["counts"], facts["generation"]
    (pool,) = kept("pool")
    texts = pq.read_table(pool.path / "texts.parquet")["text"].to_pylist()
    assert len(texts) == round(1.5 * counts["train"])
    teacher = package.load(Path(facts["teacher"]["packages"][0]))
    confident = int((teacher.probabilities(texts).max(1) >= 0.75).sum())
    assert 0 < confident < len(texts)
    assert made["counts"]["confidence"] == len(texts) - confident
    assert made["counts"]["kept"] == counts["generated"] == confident
    assert list(made["counts"])[-3:] == ["confidence", "entropy", "kept"]
    assert (made["pool"], made["generator"]["generator"]) == (pool.path.name, "resample")
    assert made["samples_per_second"] == pytest.approx(made["made"] / made["seconds"])
    assert facts["updates"] == 2 * -(-(max(counts["train"], confident) + confident) // 32)
    assert facts["cell"]["generator"] == "resample" and "generate" in facts["seconds"]
    assert f"by the teacher: {confident} kept of {len(texts)}; thrown away: confidence {len(texts) - confident}" in said
    # what is evaluated on is as it would be without, and nothing of it was learned from
    held_out = {text_digest(row.text) for row in Reviews(**ROWS).rows() if row.part == "test"}
    assert not held_out & set(map(text_digest, texts))

    # again: nothing is made, asked or encoded twice, and the numbers are the same
    before = {kind: len(kept(kind)) for kind in ("samples", "pool", "knowledge", "encoded", "teacher", "tokenizer")}
    assert train(tmp_path / "two", *given) == 0
    assert {kind: len(kept(kind)) for kind in before} == before
    assert read(tmp_path / "two", "metrics.json") == first
    assert read(tmp_path / "two", "run.json")["generation"] == made


def test_the_tokenizer_and_the_rows_are_those_of_a_run_without(tmp_path: Path) -> None:
    assert train(tmp_path / "without", "strategy=soft_label") == 0
    assert train(tmp_path / "with", "strategy=soft_label", *RESAMPLE, "generator.number=50") == 0
    assert len(kept("tokenizer")) == 2  # the student's, and the teacher's
    one, two = (read(tmp_path / name, "run.json") for name in ("without", "with"))
    assert one["data"]["counts"] == {key: n for key, n in two["data"]["counts"].items() if key != "generated"}
    assert two["data"]["counts"]["generated"] == 50 and "generation" not in one and "generator" not in one["cell"]
    ids = [pq.read_table(tmp_path / name / "predictions.parquet")["id"].to_pylist() for name in ("without", "with")]
    assert ids[0] == ids[1]
    assert one["student"]["fingerprint"] != two["student"]["fingerprint"]


def test_a_live_teacher_judges_too(tmp_path: Path) -> None:
    given = ("strategy=generative", *RESAMPLE, "generator.number=60", "generator.filters.max_entropy=0.7")
    for mode in ("recorded", "live"):
        assert train(tmp_path / mode, *given, f"teacher.mode={mode}") == 0
    one, two = (read(tmp_path / mode, "run.json") for mode in ("recorded", "live"))
    assert one["generation"]["counts"] == two["generation"]["counts"] and 0 < one["data"]["counts"]["generated"] < 60
    assert (one["teacher"]["mode"], two["teacher"]["mode"]) == ("recorded", "live")
    tables = [pq.read_table(tmp_path / mode / "predictions.parquet")["student_logits"] for mode in ("recorded", "live")]
    np.testing.assert_allclose(*(np.array(table.to_pylist()) for table in tables), atol=1e-4)


def test_the_users_own_texts_without_real_rows(tmp_path: Path) -> None:
    rows = list(Reviews(**ROWS).rows())
    own = [row.text for row in rows if row.part == "unlabelled"]
    test = next(row.text for row in rows if row.part == "test")
    (tmp_path / "own.txt").write_text("\n".join([*own, test, test.upper()]) + "\n")
    given = ("generator=texts", f"generator.path={tmp_path / 'own.txt'}", "data.transfer_share=1.0")
    assert train(tmp_path / "run", "strategy=generative", *given) == 0
    facts = read(tmp_path / "run", "run.json")
    counts = facts["generation"]["counts"]
    assert counts["leakage"] >= 1 and counts["duplicate"] >= 1 and sum(counts.values()) == len(own) + 2
    (pool,) = kept("pool")
    assert test not in pq.read_table(pool.path / "texts.parquet")["text"].to_pylist()
    assert facts["updates"] == 2 * -(-counts["kept"] // 32)
    assert "own.txt" not in json.dumps(facts["settings"])  # where it lies is no part of a method


def test_unlabelled_rows_in_the_place_of_pseudo_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The control: real texts under the same losses."""
    assert train(tmp_path, "strategy=generative", "data.transfer=unlabelled", "data.transfer_limit=60") == 0
    facts = read(tmp_path, "run.json")
    assert facts["data"]["counts"]["transfer"] == 60 and "generator" not in facts["cell"]
    assert facts["updates"] == 2 * -(-(facts["data"]["counts"]["train"] + 60) // 32)
    losses = re.findall(r"train/generative (\S+)", capsys.readouterr().err)
    assert len(losses) == 2 and all(float(loss) > 0 for loss in losses)


def test_fresh_samples_and_a_share_of_them(tmp_path: Path) -> None:
    given = ("strategy=generative", *RESAMPLE, "generator.number=40", "generator.fresh_every=1")
    assert train(tmp_path / "run", *given, "data.transfer_share=0.4", "student.training.epochs=3") == 0
    facts = read(tmp_path / "run", "run.json")
    assert facts["data"]["counts"]["generated"] == 120
    assert facts["updates"] == 3 * -(-100 // 32)  # 40 of 100 rows


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy=generative"], ["generator=none makes none", "generator=NAME", "data.transfer=unlabelled"]),
        (["strategy=supervised", "generator=resample"], ["generator=resample adds rows", "labels only"]),
        (
            ["strategy=supervised", "generator=resample", "data.transfer=unlabelled"],
            ["data.transfer=unlabelled and generator=resample", "data.transfer=none generator=none"],
        ),
        (["strategy=soft_label", "data.transfer_share=0.5"], ["data.transfer_share=0.5", "no rows without labels"]),
        (["strategy=soft_label", "generator=resmple"], ["generator='resmple' (did you mean 'resample'?)"]),
        (["strategy=soft_label", "generator=causal_lm"], ["still to be given: generator.path=..."]),
        (["strategy=soft_label", "generator=texts", "generator.path=/no/file"], ["generator.path", "/no/file"]),
        (["strategy=soft_label", "generator=resample", "generator.p_mask=2"], ["generator.p_mask", "2"]),
        (["strategy=soft_label", "generator=resample", "generator.ratio=0"], ["generator.ratio must be above 0"]),
        (["strategy=soft_label", "generator=resample", "generator.ratio=null"], ["generator.ratio are both null"]),
        (["strategy=soft_label", "generator=resample", "generator.number=0"], ["generator.number must be at least 1"]),
        (["strategy=soft_label", "generator=resample", "generator.fresh_every=0"], ["generator.fresh_every", "0"]),
        (
            ["strategy=soft_label", "generator=resample", "generator.fresh_every=1", "trainer.max_epochs=null"],
            ["generator.fresh_every=1", "trainer.max_epochs"],
        ),
        (
            ["strategy=soft_label", "generator=resample", "generator.filters.min_words=0"],
            ["generator.filters.min_words", "0"],
        ),
        (["strategy=soft_label", "generator=resample", "+generator.foo=1"], ["Resample has no option 'foo'"]),
        (["strategy=soft_label", "generator=resample", "+generator.filters.foo=1"], ["Filters has no option 'foo'"]),
        (["strategy=soft_label", "generator=resample", "data.transfer_share=3"], ["data.transfer_share", "3"]),
    ],
    ids=lambda value: " ".join(value)[:70],
)
def test_mistakes_are_one_line_before_anything_is_paid_for(
    overrides: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *overrides) == 2
    told = refused(capsys, "train")
    assert all(part in told for part in said), told
    assert kept("teacher") == kept("samples") == []


def test_filters_that_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("strategy=generative", *RESAMPLE, "generator.number=30", "generator.filters.max_entropy=0.0001")
    assert train(tmp_path / "run", *given) == 2
    assert "leave no pseudo-sample: 0 kept of 30" in refused(capsys, "train")


# It dies in the third piece, or before the update that is asked for.
KILLED = """
import os, signal, sys
from kdresearch.cli import main
from kdresearch.generation.resample import Resample
from kdresearch.strategies.generative import GenerativeDistiller

step, generate, where = GenerativeDistiller.training_step, Resample.generate, sys.argv.pop(1)

def dies(self, batch, number):
    if where == "training" and self.global_step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, number)

def dies_too(self, number, seed, start):
    if where == "generation" and start == 128:
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(self, number, seed, start)

GenerativeDistiller.training_step, Resample.generate = dies, dies_too
main(sys.argv[1:])
"""


def test_a_run_killed_twice_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of generation, then in the middle of the second epoch, which has fresh samples."""
    given = ("strategy=generative", *RESAMPLE, "generator.fresh_every=1", "data.transfer_share=0.5")
    folder = tmp_path / "killed"
    arguments = ["train", *BASE, *TEACHER, *TRAINING, *given, "checkpoint_every=6", f"hydra.run.dir={folder}"]
    for where, pieces, pools in (("generation", 2, 0), ("training", 7, 1)):
        command = [sys.executable, "-c", KILLED, where, *arguments]
        killed = subprocess.run(command, capture_output=True, timeout=120, env=os.environ)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert (len(kept("samples")), len(kept("pool"))) == (pieces, pools)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 18
    assert main(arguments) == 0
    monkeypatch.setenv("KDRESEARCH_HOME", str(tmp_path / "other home"))
    assert train(tmp_path / "whole", *given) == 0
    assert read(folder, "metrics.json") == read(tmp_path / "whole", "metrics.json")
    one, two = (read(each, "run.json") for each in (folder, tmp_path / "whole"))
    assert one["student"]["fingerprint"] == two["student"]["fingerprint"]
    assert one["generation"]["pool"] == two["generation"]["pool"]


def test_another_generator_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was left unfinished is not gone on with under other samples."""
    identities = []
    for seed in (0, 1):
        given = ("strategy=generative", *RESAMPLE, "generator.number=40", f"generator.seed={seed}")
        assert train(tmp_path / str(seed), *given) == 0
        identities.append(read(tmp_path / str(seed), "run.json")["identity"])
    assert identities[0] != identities[1]


def test_the_command_shows_samples_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (*TEACHER, *RESAMPLE, "generator.filters.min_confidence=0.75", "number=70", "show=4")
    assert generate(*given, f"out={tmp_path / 'samples.parquet'}") == 0
    told = capsys.readouterr()
    table = pq.read_table(tmp_path / "samples.parquet")
    assert table.schema.names == ["text", "p(negative)", "p(positive)", "verdict"]
    rows = table.to_pylist()
    (teacher,) = kept("teacher")
    found = package.load(package.located(teacher.path)).probabilities([row["text"] for row in rows])
    np.testing.assert_allclose([[row["p(negative)"], row["p(positive)"]] for row in rows], found, atol=1e-5)
    assert [row["verdict"] for row in rows] == ["kept" if max(row) >= 0.75 else "confidence" for row in found]
    good = sum(row["verdict"] == "kept" for row in rows)
    *shown, counts, wrote = told.out.splitlines()
    assert len(shown) == 8 and wrote == f"70 rows -> {tmp_path / 'samples.parquet'}"
    for number, row in enumerate(rows[:4]):
        likeliest = max(("positive", "negative"), key=lambda name: row[f"p({name})"])
        assert shown[2 * number].split()[:3] == [str(number), likeliest, f"{row[f'p({likeliest})']:.3f}"]
        assert shown[2 * number].endswith(row["verdict"])
        assert " ".join(row["text"].split())[:60] in shown[2 * number + 1]
    assert f"{good} kept of " in counts and f"confidence {70 - good}" in counts

    before = len(kept("samples")), len(kept("pool")), len(kept("knowledge"))
    assert train(tmp_path / "run", "strategy=soft_label", *RESAMPLE, "generator.number=70") == 0
    assert (len(kept("samples")), len(kept("pool"))) == before[:2]  # the run finds what was looked at


def test_the_command_without_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples.parquet"
    assert generate("teacher=none", *RESAMPLE, "number=20", "show=2", f"out={out}") == 0
    assert kept("teacher") == [] and pq.read_table(out).schema.names == ["text", "verdict"]
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4 and "20 kept of" in shown[2]


def test_the_command_finds_options_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my conf" / "generator").mkdir(parents=True)
    (tmp_path / "my conf" / "generator" / "faint.yaml").write_text(
        "defaults: [resample, _self_]\np_mask: 1.0\np_replace: 0.0\np_ng: 0.0\nmask: XYZ\nfilters: {max_run: 999, "
        "max_repetition: 1.0}\n"
    )
    given = ("generator=faint", "teacher=none", "number=2", "generator.n_iter=1")
    for flag in (["--config-dir", str(tmp_path / "my conf")], [f"--config-dir={tmp_path / 'my conf'}"]):
        assert generate(*flag, *given) == 0
        assert re.search(r"^  0  XYZ XYZ", capsys.readouterr().out, re.M)
    assert generate(*given) == 2  # without the folder


def test_the_command_and_a_language_model_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "generator=scratch_lm", "generator.layers=1", "generator.width=16", "generator.heads=2", "generator.context=32",
        "generator.vocabulary=300", "generator.max_steps=8", "generator.batch_size=4", "generator.chunk=8",
    ]  # fmt: skip
    state = torch.get_rng_state()
    assert generate("teacher=none", *small, "number=6") == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert generate("teacher=none", *small, "number=6", "generator.top_p=0.5") == 0
    assert len(kept("generator")) == 1 and len(kept("pool")) == 2  # trained once, sampled from twice
    assert capsys.readouterr().err.count("training a BPE tokenizer") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "generator=none makes no samples: choose one with generator=NAME"),
        (["generator=resmple"], "generator='resmple' (did you mean 'resample'?)"),
        (["generator=resample", "number=many"], "number=many: a number from 1 up"),
        (["generator=resample", "show=-1"], "show=-1: a number from 0 up"),
        (["generator=resample", "out=/no/where/s.parquet"], "there is no folder /no/where"),
        (["generator=resample", "generator.p_msk=1"], "generator has no option 'p_msk' (did you mean 'p_mask'?)"),
        (["generator=resample", "teacher=checkpoint"], "teacher=checkpoint names none"),
        (["generator=resample", "data=files"], "data.train=..."),
        (["--wrong"], "--wrong"),
        (["generator=resample", "--config-dir", "/no/where"], "--config-dir: there is no folder '/no/where'"),
        (["generator=resample", "--config-dir"], "--config-dir: there is no folder ''"),
    ],
    ids=" ".join,
)
def test_mistakes_of_the_command(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *arguments]) == 2
    assert said in refused(capsys, "generate")
    assert kept("samples") == []
