"""A search over a real, tiny run: equal points, no test part, nothing done twice, and a record that says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kdresearch.bench import run
from kdresearch.cli import main
from kdresearch.errors import UserError

TINY = (
    "data=reviews", "data.rows={train: 80, test: 30, unlabelled: 0}", "data.validation=20", "student=ngram_bag",
    "student.model.embedding_dim=4", "strategy=supervised,soft_label", "teacher=ngram", "trainer=cpu", "logger=none",
    "tune.shared.student.training.epochs.low=1", "tune.shared.student.training.epochs.high=2", "threads=1",
    "teacher.recipe=['student=ngram', 'student.solver.method=none', 'student.training.epochs=1']",
    "student.training.epochs=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch tune"])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_control_and_method_are_tuned_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDRESEARCH_HOME", str(tmp_path / "home"))
    command = ["tune", *TINY, "trials=3", "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "ngram_bag · soft_label" in printed and "| trials |" in printed
    searches = {}
    for method in ("supervised", "soft_label"):
        trials = [read(tmp_path / "sweep" / "trials" / method / f"{number:02d}") for number in range(3)]
        scores = []
        for number, trial in enumerate(trials):
            folder = tmp_path / "sweep" / "trials" / method / f"{number:02d}"
            assert trial["untested"] is True
            assert set(pq.read_table(folder / "predictions.parquet")["split"].to_pylist()) == {"validation"}
            metrics = json.loads((folder / "metrics.json").read_text())
            assert not any("test" in name for name in metrics)
            scores.append(metrics["val/accuracy"])
        finals = [read(tmp_path / "sweep" / f"{method}-seed{seed}") for seed in (1, 2)]
        tuning = finals[0]["tuning"]
        assert tuning == finals[1]["tuning"] and tuning["trials"] == 3 and tuning["validation"] == scores
        assert scores[tuning["trial"]] == max(scores)
        best = trials[tuning["trial"]]
        assert finals[0]["method"] == best["method"] and finals[0]["seed"] == 1  # the settings that were chosen
        searches[method] = [trial["settings"]["student"]["training"] for trial in trials]
    assert searches["supervised"] == searches["soft_label"]  # the same points of what both have
    assert len({json.dumps(each) for each in searches["supervised"]}) == 3

    def fails(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(run, "run", fails)
    assert main(command) == 0  # all of it is there


def test_a_misspelt_setting_is_refused_and_one_that_the_student_lacks_is_not(tmp_path: Path) -> None:
    from hydra import initialize_config_dir

    from kdresearch.commands import tune
    from kdresearch.conf_path import config_dir

    def space(*overrides: str) -> list[str]:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            cfg, _ = tune._composed(["+tune=default", "student=ngram_bag", *overrides])
        return [each.key for each in tune._space(cfg, tune._known_keys([]))]

    assert "student.model.dropout" in space()
    with pytest.raises(UserError, match=r"did you mean 'student\.model\.dropout'"):
        space("+tune.shared.student.model.dropuot={low: 0, high: 1}")
    with pytest.raises(UserError, match=r"tune\.trials: a whole number"):
        space("tune.trials=0")
