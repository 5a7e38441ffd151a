from __future__ import annotations

import csv
import gc
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from kdresearch import package
from kdresearch.artifacts import Store
from kdresearch.bench.identity import identity, method
from kdresearch.cli import main
from kdresearch.data.corpus import load
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import NgramTokenizer
from kdresearch.evaluation.metrics import fidelity_metrics, task_metrics
from kdresearch.models.ngram import NgramLinear
from kdresearch.strategies.distiller import Distiller

ROWS = {"train": 240, "test": 60, "unlabelled": 100}
BASE = (
    "data.rows={train: 240, test: 60, unlabelled: 100}", "data.validation=40", "trainer=cpu", "logger=none",
    "threads=1", "evaluation.efficiency=false",
)  # fmt: skip
STUDENT = (
    "student=bilstm", "student.model.embedding_dim=12", "student.model.hidden_dim=8", "student.tokenizer.max_length=24",
    "student.training.epochs=2",
)  # fmt: skip
TEACHER = (
    "teacher=ngram",
    "teacher.recipe=['student=ngram']",
)  # fmt: skip
TASK = {"accuracy", "macro_f1", "nll", "brier", "ece"}
FIDELITY = {"agreement", "kl_to_teacher", "js_to_teacher", "agreement_on_teacher_errors"}


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


def train(folder: Path, *overrides: str, base: tuple[str, ...] = BASE + STUDENT) -> int:
    return main(["train", *base, *overrides, f"hydra.run.dir={folder}"])


def sweep(folder: Path, *overrides: str) -> int:
    return main(["train", "-m", *BASE, *STUDENT, *overrides, f"hydra.sweep.dir={folder}"])


def cells(folder: Path) -> list[Path]:
    """The folders of a sweep's cells, in the order of the command."""
    return [folder / cell["name"] for cell in read(folder, "sweep.json")["cells"]]


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def made(kind: str) -> list[Any]:
    return list(Store().artifacts(kind))


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the last command ended with; what it said while it worked comes with the time."""
    told = capsys.readouterr()
    *before, last = told.err.splitlines()
    assert told.out == ""
    assert last.startswith("kdresearch train: "), told.err
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in before), told.err
    return last


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of soft labels, with rows that have no label, measured too."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRESEARCH_HOME", str(root / "home"))
        patch.setattr(sys, "argv", ["kdresearch"])
        extra = (
            "strategy=soft_label",
            "data.transfer=unlabelled",
            "evaluation.efficiency=true",
            "seed=3",
            "tags=[one]",
        )
        assert train(root / "run", *TEACHER, *extra, "trainer.log_every_n_steps=2", "evaluation.rows=32") == 0
    return root / "run"


def test_the_record_is_complete(run: Path) -> None:
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert there >= {
        ".hydra/config.yaml", "run.json", "metrics.json", "metrics.csv", "predictions.parquet", "checkpoints/best.ckpt",
        "checkpoints/last.ckpt", "student/config.json", "student/model.safetensors", "student/tokenizer/words.json",
    }  # fmt: skip
    assert not [name for name in there if "partial" in name]


def test_run_json(run: Path) -> None:
    facts = read(run, "run.json")
    assert facts["status"] == "finished"
    assert facts["name"] == "bilstm soft_label seed 3"
    assert facts["seeds"] == {"init": 3, "order": 3, "split": 0, "teacher": 0}
    assert {"kdresearch", "command", "git", "versions", "hardware", "identity", "best_epoch"} <= set(facts)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["hardware"]["threads"] == 1
    assert facts["data"]["name"] == "reviews"
    assert facts["data"]["synthetic"] is True
    assert facts["data"]["classes"] == ["negative", "positive"]
    counts = facts["data"]["counts"]
    dropped = facts["data"]["duplicates_dropped"]
    assert (counts["validation"], counts["test"]) == (40, 60)
    assert counts["train"] == 200 - dropped["train_in_test"] - dropped["within_train"]
    assert 0 < counts["transfer"] <= 100
    assert facts["updates"] == 2 * math.ceil((counts["train"] + counts["transfer"]) / 32)
    assert facts["best_epoch"] in (1, 2)
    assert set(facts["seconds"]) == {"data", "teacher", "knowledge", "student", "fit", "evaluate"}
    assert all(value >= 0 for value in facts["seconds"].values())
    cell = facts["cell"]
    assert (cell["data"], cell["student"], cell["strategy"], cell["teacher"]) == (
        "reviews", "bilstm", "soft_label", "ngram"
    )  # fmt: skip
    assert cell["transfer"] == "unlabelled"
    assert facts["settings"]["student"]["training"]["epochs"] == 2
    assert (facts["identity"], facts["method"]) == (identity(facts["settings"]), method(facts["settings"]))

    student = package.load(run)
    sizes = sum(parameter.numel() for parameter in student.model.parameters())
    assert facts["student"]["parameters"] == sizes
    assert facts["student"]["fingerprint"] == student.fingerprint
    teacher = facts["teacher"]
    assert teacher["fingerprint"] == package.fingerprint(Path(teacher["packages"][0]))
    assert teacher["classes"] == ["negative", "positive"]
    assert 0.5 < teacher["validation_accuracy"] <= 1


def test_metrics_json_is_what_the_predictions_say(run: Path) -> None:
    metrics, table = read(run, "metrics.json"), pq.read_table(run / "predictions.parquet")
    assert table.schema.names == ["split", "id", "label", "student_logits", "teacher_logits"]
    expected: dict[str, float] = {}
    for name, short in (("validation", "val"), ("test", "test")):
        rows = [row for row in table.to_pylist() if row["split"] == name]
        assert len({row["id"] for row in rows}) == len(rows) == {"validation": 40, "test": 60}[name]
        student, teacher = (torch.tensor([row[f"{side}_logits"] for row in rows]) for side in ("student", "teacher"))
        label = torch.tensor([row["label"] for row in rows])
        expected |= {f"{short}/{key}": value for key, value in task_metrics(student, label).items()}
        expected |= {f"{short}/{key}": value for key, value in fidelity_metrics(student, teacher, label).items()}
        expected |= {f"teacher/{short}_{key}": value for key, value in task_metrics(teacher, label).items()}
    assert set(metrics) - set(expected) == {"latency/p50_ms", "latency/p95_ms", "rows_per_second"}
    assert {name: metrics[name] for name in expected} == expected
    assert {f"test/{name}" for name in TASK | FIDELITY - {"agreement_on_teacher_errors"}} <= set(expected)
    assert 0 < metrics["latency/p50_ms"] <= metrics["latency/p95_ms"]
    assert metrics["rows_per_second"] > 0
    assert expected["teacher/val_accuracy"] > 0.5


def test_predictions_are_of_the_named_rows(run: Path) -> None:
    """The package that the run left, on the texts and labels of the corpus by their ids."""
    source = Reviews(**ROWS)
    given = {row.id: row for row in source.rows()}
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    assert {given[row["id"]].part for row in rows if row["split"] == "test"} == {"test"}
    assert {given[row["id"]].part for row in rows if row["split"] == "validation"} == {"train"}
    assert all(source.classes[row["label"]] == given[row["id"]].label for row in rows)
    for side, folder in (("student", run), ("teacher", Path(read(run, "run.json")["teacher"]["packages"][0]))):
        found = package.load(folder).probabilities([given[row["id"]].text for row in rows])
        told = torch.tensor([row[f"{side}_logits"] for row in rows]).softmax(1).numpy()
        np.testing.assert_allclose(found, told, atol=1e-5)


def test_curves(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = [row for row in rows if row["val/accuracy"] and row["epoch"]]
    assert [int(row["epoch"]) for row in epochs] == [0, 1]
    assert any(row["train/soft_label"] and row["train/label"] and row["train/loss"] for row in rows)
    assert any(row["lr-AdamW/pg1"] for row in rows if "lr-AdamW/pg1" in row)
    best = max(float(row["val/accuracy"]) for row in epochs)
    assert read(run, "metrics.json")["val/accuracy"] == pytest.approx(best)  # the kept epoch is the best one
    assert float(epochs[read(run, "run.json")["best_epoch"] - 1]["val/accuracy"]) == best


def test_nothing_of_the_teacher_is_in_the_checkpoint(run: Path) -> None:
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"student"}
    kept = package.load(run).model.state_dict()
    assert all(torch.equal(value, kept[name.removeprefix("student.")]) for name, value in state.items())


def test_the_configuration_of_a_run_runs_again(run: Path) -> None:
    assert OmegaConf.load(run / ".hydra" / "config.yaml").strategy.temperature == 2.0


def results(folder: Path) -> tuple[dict[str, Any], Any]:
    table = pq.read_table(folder / "predictions.parquet")
    return read(folder, "metrics.json"), table


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, from an empty store each time: corpus, vocabulary, teacher, its outputs and the student."""
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        monkeypatch.setenv("KDRESEARCH_HOME", str(tmp_path / f"{name}-home"))
        assert train(tmp_path / name, *TEACHER, "strategy=soft_label", f"seed={seed}") == 0
    one, two, other = (results(tmp_path / name) for name in ("one", "two", "other"))
    assert one[0] == two[0]
    assert one[1].equals(two[1])
    facts = [read(tmp_path / name, "run.json") for name in ("one", "two", "other")]
    assert facts[0]["student"]["fingerprint"] == facts[1]["student"]["fingerprint"]
    # another seed is another student of the same teacher on the same rows
    assert facts[0]["student"]["fingerprint"] != facts[2]["student"]["fingerprint"]
    assert one[0]["test/nll"] != other[0]["test/nll"]
    assert facts[0]["teacher"]["fingerprint"] == facts[2]["teacher"]["fingerprint"]
    assert (
        one[1]
        .select(["split", "id", "label", "teacher_logits"])
        .equals(other[1].select(["split", "id", "label", "teacher_logits"]))
    )


def test_a_sweep_pays_for_its_teacher_once_and_keeps_no_model(tmp_path: Path) -> None:
    assert sweep(tmp_path, *TEACHER, "strategy=supervised,soft_label", "seed=1,2") == 0
    jobs = [read(folder, "run.json") for folder in cells(tmp_path)]
    assert [(job["cell"]["strategy"], job["seed"]) for job in jobs] == [
        ("supervised", 1), ("supervised", 2), ("soft_label", 1), ("soft_label", 2)
    ]  # fmt: skip
    assert len(made("teacher")) == 1
    pieces = made("knowledge")
    assert len(pieces) == 2  # the validation rows, then the rest
    assert sum(len(np.load(piece.path / "digests.npy")) for piece in pieces) <= 300
    assert [job["teacher"] is None for job in jobs] == [True, True, False, False]
    assert [job["cell"]["teacher"] for job in jobs] == [None, None, "ngram", "ngram"]
    assert jobs[2]["teacher"]["fingerprint"] == jobs[3]["teacher"]["fingerprint"]
    assert jobs[3]["seconds"]["teacher"] < jobs[2]["seconds"]["teacher"]
    assert len({job["student"]["fingerprint"] for job in jobs}) == 4
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Distiller)]


def test_supervised_builds_no_teacher(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "strategy=supervised", "teacher=checkpoint", "teacher.path=/nowhere") == 0
    assert made("teacher") == made("knowledge") == []
    facts, metrics = read(tmp_path / "run", "run.json"), read(tmp_path / "run", "metrics.json")
    assert facts["teacher"] is None
    assert set(metrics) == {f"{split}/{name}" for split in ("val", "test") for name in TASK}
    table = pq.read_table(tmp_path / "run" / "predictions.parquet")
    assert table["teacher_logits"].null_count == len(table) == 100
    # weights of 0 are no teacher either
    weights = ("strategy=soft_label", "strategy.weights.soft_label=0", "strategy.weights.label=1")
    assert train(tmp_path / "zero", *weights) == 0
    assert made("teacher") == []
    zero = read(tmp_path / "zero", "metrics.json")
    assert zero == metrics  # the same student, to the last bit


def write_teacher(folder: Path, classes: tuple[str, ...], good: bool) -> Path:
    """A teacher of ours: trained to nothing, or as good as counting words can be."""
    corpus = load(Reviews(**ROWS), Store())
    tokenizer = NgramTokenizer(orders=1, min_count=1)
    tokenizer.fit(corpus.texts(np.arange(240)))
    model = NgramLinear(tokenizer.size, 2)
    if good:
        label = corpus.parts_by_name["train"].labels
        ids, lengths = tokenizer.encode([text for chunk in corpus.texts(np.arange(240)) for text in chunk])
        for row, target in zip(np.split(ids, np.cumsum(lengths)[:-1]), label, strict=True):
            model.weight.weight.data[np.unique(row)] += 1.0 if target else -1.0
    package.save(folder, model, tokenizer, classes)
    return folder


def test_a_teacher_of_other_class_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_teacher(tmp_path / "teacher", ("neg", "pos"), good=True)
    capsys.readouterr()
    given = ("teacher=checkpoint", f"teacher.path={folder}", "strategy=soft_label")
    for mode in ("recorded", "live"):
        assert train(tmp_path / "wrong", *given, f"teacher.mode={mode}") == 2
        told = refused(capsys)
        assert "neg, pos" in told and "negative, positive" in told and "teacher.class_map" in told
    assert made("knowledge") == []  # nothing was computed
    assert read(tmp_path / "wrong", "run.json")["status"] == "failed"

    assert train(tmp_path / "right", *given, "teacher.class_map={neg: negative, pos: positive}") == 0
    assert read(tmp_path / "right", "metrics.json")["teacher/val_accuracy"] > 0.8
    assert train(tmp_path / "swapped", *given, "teacher.class_map={neg: positive, pos: negative}") == 2
    assert "no better than chance" in refused(capsys)


def test_a_teacher_no_better_than_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_teacher(tmp_path / "teacher", ("negative", "positive"), good=False)
    capsys.readouterr()
    assert train(tmp_path / "run", "teacher=checkpoint", f"teacher.path={folder}", "strategy=soft_label") == 2
    told = refused(capsys)
    assert "no better than chance" in told and "accuracy 0.5" in told
    (piece,) = made("knowledge")
    assert len(np.load(piece.path / "digests.npy")) == 40  # the validation rows, and no more
    assert not (tmp_path / "run" / "student").exists()


def test_live_and_recorded_train_the_same_student(tmp_path: Path) -> None:
    """The teacher reads other tokens than the student; to rounding, it says the same either way."""
    folder = write_teacher(tmp_path / "teacher", ("negative", "positive"), good=True)
    for mode in ("recorded", "live"):
        extra = ("teacher=checkpoint", f"teacher.path={folder}", "strategy=logit_mse", f"teacher.mode={mode}")
        assert train(tmp_path / mode, *extra) == 0
    recorded, live = (results(tmp_path / mode)[1] for mode in ("recorded", "live"))
    for side in ("teacher_logits", "student_logits"):
        one, two = (np.array(table[side].to_pylist()) for table in (recorded, live))
        np.testing.assert_allclose(one, two, atol=1e-4, rtol=1e-3)
    assert np.ptp(one, axis=0).max() > 0.01
    assert len(made("knowledge")) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["student=bilstn"], ["student='bilstn' (did you mean 'bilstm'?)", "textcnn"]),
        (["student/tokenizer=wrod"], ["'wrod' (did you mean 'word'?)"]),
        (["techer=ngram"], ["'techer' (did you mean 'teacher'?)"]),
        (["strategy=soft_label", "strategy.temprature=2"], ["strategy", "'temprature' (did you mean 'temperature'?)"]),
        (["sed=1"], ["'sed' (did you mean 'seed'?)"]),
        (["student.model.hiden_dim=3"], ["student.model", "'hiden_dim' (did you mean 'hidden_dim'?)"]),
        (["seed"], ["seed"]),
        (["teacher=checkpoint", "strategy=soft_label"], ["teacher=checkpoint names none", "teacher.path=..."]),
        (["teacher=checkpoint", "strategy=soft_label", "teacher.path=/no/where"], ["/no/where does not exist"]),
        (["+strategy.foo=1"], ["strategy", "SupervisedDistiller has no option 'foo'", "label_smoothing"]),
        (["+student.model.foo=1"], ["student.model", "BiLSTM has no option 'foo'"]),
        (["+student.tokenizer.foo=1"], ["student.tokenizer", "WordTokenizer has no option 'foo'"]),
        (["+data.source.foo=1"], ["data", "Reviews has no option 'foo'"]),
        (["+optimizer.foo=1"], ["optimizer", "AdamW has no option 'foo'"]),
        (["+scheduler.foo=1"], ["scheduler", "linear has no option 'foo'"]),
        (["+trainer.foo=1"], ["trainer", "foo"]),
        (["trainer.precision=48"], ["trainer", "48"]),
        (["student.training.learning_rate=-1"], ["student.training.learning_rate", "-1"]),
        (["scheduler.warmup=-1"], ["scheduler.warmup", "-1"]),
        (["strategy=soft_label", "strategy.temperature=-1"], ["temperature", "-1"]),
        (["strategy=soft_label", "strategy.weights.soft_label=-1"], ["strategy.weights.soft_label", "-1"]),
        (
            ["strategy=soft_label", "strategy.weights={label: 0, soft_label: 0}"],
            ["strategy.weights", "nothing to learn"],
        ),
        (["strategy=soft_label", "teacher=none"], ["strategy=soft_label needs a teacher", "teacher=NAME"]),
        (["strategy=soft_label", "teacher.mode=lvie"], ["teacher.mode", "'lvie' (did you mean 'live'?)"]),
        (["strategy=soft_label", "teacher.precision=16"], ["teacher.precision", "32, bf16"]),
        (["strategy=soft_label", "teacher.path=/tmp"], ["exactly one of", "recipe", "path"]),
        (["strategy=supervised", "data.transfer=unlabelled"], ["data.transfer=unlabelled", "SupervisedDistiller"]),
        (["selection.monitor=val/acc"], ["selection.monitor", "'val/acc' (did you mean 'val/accuracy'?)"]),
        (["selection.mode=least"], ["selection.mode", "min, max"]),
        (["logger.kind=wandbb"], ["logger.kind", "wandb"]),
        (["student.training.epochs=1", "student.training.learning_rate=1e30"], ["diverged", "learning_rate"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    overrides: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *overrides) == 2
    told = refused(capsys)
    assert all(part in told for part in said), told
    assert made("teacher") == []  # before anything is paid for
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data=files"], ["data.train=...", "data.test=..."]),
        (["data=files", "data.train=/no/a.csv", "data.test=/no/b.csv"], ["/no/a.csv"]),
        (["data=imdb", "data.path=/no/where"], ["/no/where"]),
        (["student=pretrained", "student.path=/no/model"], ["/no/model"]),
        (["teacher.recipe=[student=ngram]"], ["[student="]),
        (["--config-name", "trian"], ["--config-name", "trian"]),
    ],
)
def test_mistakes_in_what_to_read(
    arguments: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, f"hydra.run.dir={tmp_path}/run", "logger=none"]) == 2
    told = refused(capsys)
    assert all(part in told for part in said), told


def test_the_command_itself_refuses_before_the_teacher_is_trained(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from kdresearch.cli import main; sys.exit(main())"]
    bad = [*BASE, *STUDENT, *TEACHER, "strategy=soft_label", "strategy.temperature=-1", f"hydra.run.dir={tmp_path}/run"]
    answer = subprocess.run([*command, "train", *bad], capture_output=True, text=True, timeout=120, env=os.environ)
    assert answer.returncode == 2
    assert answer.stdout == ""
    *before, last = answer.stderr.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in before), answer.stderr  # no noise of libraries
    assert last.startswith("kdresearch train: ") and "temperature" in last and "-1" in last
    assert made("teacher") == []


def test_a_failing_job_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, "student.model.pooling=max,sum,mean") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("kdresearch train: 2 done, 1 failed of 3 cells")
    assert "pooling_sum" in told[-2] and "pooling is 'sum'" in told[-2]  # which job it was, and why
    assert [line for line in told if "pooling_sum" in line and " failed: " in line]
    facts = [read(folder, "run.json") for folder in cells(tmp_path)]
    assert [each["status"] for each in facts] == ["finished", "failed", "finished"]
    assert "pooling" in facts[1]["reason"]
    assert [(folder / "metrics.json").exists() for folder in cells(tmp_path)] == [True, False, True]


def test_a_run_without_a_good_outcome_leaves_no_old_one(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "strategy=supervised") == 0
    assert train(tmp_path / "run", "strategy=supervised", "student.training.learning_rate=1e30") == 2
    assert read(tmp_path / "run", "run.json")["status"] == "diverged"
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "predictions.parquet").exists()


def test_word_vectors_reach_the_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"film": 0.5, "the": -0.5}
    (tmp_path / "v.txt").write_text("".join(f"{word} {' '.join([str(value)] * 12)}\n" for word, value in words.items()))
    vectors = ("student/tokenizer=torchtext", f"student.tokenizer.vectors={tmp_path / 'v.txt'}")
    frozen = ("student.training.learning_rate=1e-12", "student.training.epochs=1")
    assert train(tmp_path / "run", *vectors, *frozen) == 0
    student = package.load(tmp_path / "run")
    for word, value in words.items():
        (row,) = student.tokenizer.encode([word])[0]
        assert torch.allclose(student.model.embedding.weight[row], torch.full((12,), value), atol=1e-6)
    capsys.readouterr()
    own = ("student=ngram", "student/tokenizer=torchtext", f"student.tokenizer.vectors={tmp_path / 'v.txt'}")
    assert train(tmp_path / "none", *own, base=BASE) == 2
    assert "NgramLinear has no word embeddings" in capsys.readouterr().err.splitlines()[-1]


def test_early_stopping_and_selection(tmp_path: Path) -> None:
    """A rate so small that nothing changes: the first epoch is the best one, and two more are waited for."""
    slow = ("student.training.learning_rate=1e-12", "student.training.epochs=9", "student.training.weight_decay=0")
    assert train(tmp_path / "run", *slow, "selection.patience=2") == 0
    facts = read(tmp_path / "run", "run.json")
    assert facts["best_epoch"] == 1
    assert facts["updates"] == 3 * math.ceil(facts["data"]["counts"]["train"] / 32)


def test_steps_that_end_before_the_first_validation(tmp_path: Path) -> None:
    assert train(tmp_path, "strategy=supervised", "trainer.max_steps=2") == 0
    assert read(tmp_path, "run.json")["updates"] == 2
    assert {file.name for file in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert 0 <= read(tmp_path, "metrics.json")["test/accuracy"] <= 1


def test_a_divergence_is_told_where_it_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the first epoch of many; and nothing goes on from what it left."""
    bad = ("student.training.epochs=50", "student.training.learning_rate=1e30")
    for _ in range(2):
        assert train(tmp_path / "run", *bad) == 2
        said = capsys.readouterr().err
        assert "diverged: in epoch 1" in said.splitlines()[-1]
        assert "going on from" not in said


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_of_no_numbers_is_one_line(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_teacher(tmp_path / "teacher", ("negative", "positive"), good=True)
    package_of = package.load(folder)
    package_of.model.bias.data.fill_(value)
    package.save(folder, package_of.model, package_of.tokenizer, package_of.classes)
    capsys.readouterr()
    assert train(tmp_path / "run", "teacher=checkpoint", f"teacher.path={folder}", "strategy=soft_label") == 2
    assert "the teacher teacher cannot teach" in refused(capsys)


def test_a_row_longer_than_the_positions_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = (
        "student=transformer", "student.tokenizer.max_length=null", "student.training.epochs=1",
        "student.model.architecture.max_position_embeddings=8", "student.model.architecture.num_hidden_layers=1",
    )  # fmt: skip
    assert train(tmp_path / "run", *small, *TEACHER, "strategy=soft_label", base=BASE) == 2
    assert "student.tokenizer.max_length=8" in refused(capsys)
    assert made("teacher") == []
