from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

import kdresearch
from kdresearch.artifacts import Store
from kdresearch.bench import schema
from kdresearch.bench.context import Context, silent
from kdresearch.bench.record import Phases, Record
from kdresearch.bench.schema import SplitPredictions, write_json, write_predictions
from kdresearch.bench.settings import resolve_settings
from kdresearch.bench.surroundings import git
from kdresearch.commands.compose import Composition, compose_overrides, needs_teacher, plan_of
from kdresearch.commands.train import keep_configuration
from kdresearch.conf_path import config_dir


def composed(*overrides: str) -> Composition:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose_overrides(overrides)


def recorded(folder: Path, *overrides: str) -> Record:
    """A record of its settings, as a run has it once its data are read."""
    folder.mkdir(exist_ok=True)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        plan = plan_of(compose_overrides(["data.rows={train: 60, test: 20, unlabelled: 10}", *overrides]))
    record = Record(plan, folder, list(overrides))
    record.identify(resolve_settings(plan, Context(Store(folder.parent / "home"))))
    return record


def test_phases_count_inner_time_once() -> None:
    phases = Phases()
    started = time.perf_counter()
    with phases("outer"):
        time.sleep(0.02)
        with phases("inner"):
            time.sleep(0.05)
    with phases("outer"):
        time.sleep(0.02)
    whole = time.perf_counter() - started
    assert phases.seconds["inner"] >= 0.05
    assert phases.seconds["outer"] >= 0.04
    assert sum(phases.seconds.values()) == pytest.approx(whole, abs=0.01)


def test_a_phase_that_fails_is_counted() -> None:
    phases = Phases()
    with pytest.raises(RuntimeError), phases("fit"):
        raise RuntimeError
    assert "fit" in phases.seconds


def test_json_is_strict_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics.json"
    write_json(file, {"nll": math.inf, "list": [math.nan, 1.5, (-math.inf,)], 3: "é"})
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == {
        "nll": None,
        "list": [None, 1.5, [None]],
        "3": "é",
    }
    before = file.read_text()

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(schema.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_json(file, {})
    assert file.read_text() == before


def test_predictions(tmp_path: Path) -> None:
    student = torch.tensor([[0.25, -1.5], [2.0, 3.0]])
    splits = [
        SplitPredictions("validation", ["a", "b"], torch.tensor([1, 0]), student, None),
        SplitPredictions("test", ["c"], torch.tensor([1]), student[:1], student[1:]),
    ]
    write_predictions(tmp_path / "p.parquet", splits)
    assert pq.read_table(tmp_path / "p.parquet").to_pylist() == [
        {"split": "validation", "id": "a", "label": 1, "student_logits": [0.25, -1.5], "teacher_logits": None},
        {"split": "validation", "id": "b", "label": 0, "student_logits": [2.0, 3.0], "teacher_logits": None},
        {"split": "test", "id": "c", "label": 1, "student_logits": [0.25, -1.5], "teacher_logits": [2.0, 3.0]},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["strategy=supervised"], False),
        (["strategy=soft_label"], True),
        (["strategy=soft_label", "strategy.weights.soft_label=0"], False),
        (["strategy=soft_label", "strategy.weights.label=0"], True),
    ],
)
def test_needs_teacher(overrides: list[str], expected: bool) -> None:
    assert needs_teacher(composed(*overrides).cfg) is expected


def test_replicates_share_a_cell_and_a_group(tmp_path: Path) -> None:
    soft = ("strategy=soft_label", "strategy.temperature=4")
    one = recorded(tmp_path / "1", *soft, "seed=1", "name=first", "logger=none", "tags=[x]", "threads=1")
    two = recorded(tmp_path / "2", "logger=csv", "seed=2", *reversed(soft), "study=other")
    assert one.cell == two.cell
    assert one.group == two.group
    assert one.facts["method"] == two.facts["method"] and one.facts["identity"] != two.facts["identity"]
    assert one.facts["settings"]["strategy"]["temperature"] == 4
    assert (one.name, two.name) == ("first", "bilstm soft_label seed 2")
    others = [
        recorded(tmp_path / "3", "strategy=soft_label"),
        recorded(tmp_path / "4", *soft, "data.limit=100"),
        recorded(tmp_path / "5", *soft, "student=textcnn"),
        recorded(tmp_path / "6", *soft, "teacher=ngram"),
        recorded(tmp_path / "7", *soft, "data.transfer=unlabelled"),
        recorded(tmp_path / "8", *soft, "data.labels=stars"),
    ]
    assert len({each.facts["method"] for each in [one, *others]}) == 7
    assert len({each.group for each in [one, *others]}) == 7
    # W&B takes 128 characters: what differs at the end of a long name still differs
    many = [f"strategy.temperature={number}" for number in range(1, 8)]
    long = [
        recorded(tmp_path / f"long{number}", "strategy=soft_label", *many, f"trainer.max_steps={number}").group
        for number in (1, 2)
    ]
    assert long[0] != long[1] and max(map(len, long)) <= 128
    assert recorded(tmp_path / "10", "strategy=supervised", "teacher=ngram").cell["teacher"] is None
    assert recorded(tmp_path / "11", "strategy=self", "teacher=ngram").cell["teacher"] is None


def test_a_record_that_ran_before_is_cleared_or_gone_on_with(tmp_path: Path) -> None:
    first = recorded(tmp_path, "seed=1")
    assert first.checkpoint_to_resume(silent) is None
    first.write("running")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"callbacks": {"BestCheckpoint": {"best_model_path": ""}}}, tmp_path / "checkpoints" / "last.ckpt")
    for left in ("metrics.json", "metrics.csv", "predictions.parquet"):
        (tmp_path / left).touch()
    # the same settings, whatever it is called and however it is logged
    again = recorded(tmp_path, "seed=1", "name=other", "logger=none")
    assert again.checkpoint_to_resume(silent) == tmp_path / "checkpoints" / "last.ckpt"
    assert (tmp_path / "metrics.csv").exists()
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "predictions.parquet").exists()
    # others begin anew
    assert recorded(tmp_path, "seed=1", "resume=false").checkpoint_to_resume(silent) is None
    assert not (tmp_path / "metrics.csv").exists()
    for other in (("seed=2",), ("seed=1", "strategy=soft_label"), ("seed=1", "data.limit=9")):
        recorded(tmp_path, "seed=1").write("running")
        assert recorded(tmp_path, *other).checkpoint_to_resume(silent) is None
    # and so does what was finished, or cannot be read
    recorded(tmp_path, "seed=1").write("finished")
    assert recorded(tmp_path, "seed=1").checkpoint_to_resume(silent) is None
    (tmp_path / "run.json").write_text("{")
    assert recorded(tmp_path, "seed=1").checkpoint_to_resume(silent) is None


def test_the_configuration_is_kept_where_hydra_did_not(tmp_path: Path) -> None:
    keep_configuration(composed("seed=7").cfg, tmp_path)
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").seed == 7
    (tmp_path / ".hydra" / "config.yaml").write_text("mine: 1\n")
    keep_configuration(composed("seed=8").cfg, tmp_path)
    assert (tmp_path / ".hydra" / "config.yaml").read_text() == "mine: 1\n"


def test_git_names_the_checkout_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True)

    (tmp_path / "kdresearch").mkdir()
    (tmp_path / "kdresearch" / "__init__.py").touch()
    monkeypatch.setattr(kdresearch, "__file__", str(tmp_path / "kdresearch" / "__init__.py"))
    assert git() is None  # no repository
    run("init", "--quiet")
    run("add", ".")
    run("commit", "--quiet", "--message", "one")
    first = git()
    assert first is not None and len(first["commit"]) == 40 and first["dirty"] is False
    (tmp_path / "kdresearch" / "__init__.py").write_text("x = 1")
    assert git() == {**first, "dirty": True}
    # installed into an environment inside some other repository
    inside = tmp_path / "lib" / "kdresearch"
    inside.mkdir(parents=True)
    monkeypatch.setattr(kdresearch, "__file__", str(inside / "__init__.py"))
    assert git() is None
