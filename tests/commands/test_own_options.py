"""What the documentation says of components outside the repository, as it stands there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from kdresearch import __file__ as kdresearch
from kdresearch.cli import main

BASE = (
    "data.rows={train: 120, test: 40, unlabelled: 0}", "data.validation=40", "trainer=cpu", "threads=1", "logger=none",
    "evaluation.efficiency=false", "student=ngram_bag", "student.training.epochs=1",
    "teacher=ngram", "teacher.recipe=['student=ngram']",
)  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who followed docs/strategies.md."""
    text = Path(kdresearch).parents[1].joinpath("docs", "strategies.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, re.S)
    for name, content in blocks:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert {name for name, _ in blocks} == {"mylab/strategies.py", "options/strategy/absolute.yaml"}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdresearch"])
    return tmp_path


def test_a_strategy_of_ones_own(lab: Path) -> None:
    options = ("--config-dir", str(lab / "options"))
    assert main(["train", *options, *BASE, "strategy=absolute", f"hydra.run.dir={lab / 'run'}"]) == 0
    facts = json.loads((lab / "run" / "run.json").read_text())
    assert (facts["status"], facts["cell"]["strategy"], facts["cell"]["teacher"]) == ("finished", "absolute", "ngram")
    assert facts["updates"] == 2


def test_without_its_folder_the_known_ones_are_named(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *BASE, "strategy=absolute", f"hydra.run.dir={lab / 'run'}"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("kdresearch train: strategy='absolute'") and "soft_label" in last


def test_an_objective_of_ones_own(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = "+strategy.objectives.mine={_target_: kdresearch.objectives.logits.LogitsObjective, loss: {_target_: " \
        "hydra.utils.get_method, path: mylab.strategies.absolute}}"  # fmt: skip
    given = ("strategy=combined", mine, "+strategy.weights.mine=1", f"hydra.run.dir={lab / 'run'}")
    assert main(["train", *BASE, *given]) == 0
    (loss,) = re.findall(r"epoch 1 .*train/mine (\S+)", capsys.readouterr().err)
    assert float(loss) > 0
