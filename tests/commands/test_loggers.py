from __future__ import annotations

import csv
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdresearch.cli import main
from kdresearch.commands.loggers import logger_maker
from kdresearch.errors import UserError

RUN = (
    "data.rows={train: 120, test: 30, unlabelled: 0}", "data.validation=30", "trainer=cpu", "threads=1",
    "student=ngram_bag", "student.training.epochs=2", "evaluation.efficiency=false", "trainer.log_every_n_steps=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kdresearch"])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("option", ["none", "csv"])
def test_curves_are_in_the_record_whatever_the_logger(option: str, tmp_path: Path) -> None:
    assert main(["train", *RUN, f"logger={option}", f"hydra.run.dir={tmp_path}"]) == 0
    assert [row["epoch"] for row in rows(tmp_path) if row["val/accuracy"] and row["epoch"]] == ["0", "1"]
    assert sum(bool(row["train/loss"]) for row in rows(tmp_path)) == 4  # 90 rows in batches of 64, twice
    assert not (tmp_path / "wandb").exists() and not (tmp_path / "tensorboard").exists()


def test_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(["train", *RUN, "logger=tensorboard", f"hydra.run.dir={tmp_path}"]) == 0
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/accuracy", "test/accuracy"} <= set(events.Tags()["scalars"])
    test = json.loads((tmp_path / "metrics.json").read_text())["test/accuracy"]
    assert events.Scalars("test/accuracy")[-1].value == pytest.approx(test)
    assert len(events.Scalars("train/loss")) == 4


def log_records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log: blocks of 32 KiB; crc, length and type (1 whole, 2 first, 3 middle, 4 last) before each piece."""
    assert content[:4] == b":W&B"
    place, whole = 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole = (b"" if kind in (1, 2) else whole) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole


def read_wandb(file: Path) -> dict[str, Any]:
    """What an offline run would send: its run record, configuration, last summary and exit."""
    from wandb.proto import wandb_internal_pb2 as pb

    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "artifacts": [], "exit": None}

    def values(items: Any) -> dict[str, Any]:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    for data in log_records(file.read_bytes()):
        record = pb.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= values(record.run.config.update)
        elif kind == "config":
            found["config"] |= values(record.config.update)
        elif kind == "history":
            found["history"].append(values(record.history.item))
        elif kind == "summary":
            found["summary"] |= values(record.summary.update)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
        elif kind in ("artifact", "request") and record.HasField("artifact"):
            found["artifacts"].append(record.artifact)
    return found


def test_each_job_of_a_sweep_is_a_run_of_its_own_in_wandb(tmp_path: Path) -> None:
    """Two good jobs and one that fails, offline, in one process."""
    overrides = (
        "logger=wandb", "strategy=supervised", "study=trial", "tags=[mine]", "seed=1,2",
        "student.training.learning_rate=0.005,1e30", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert main(["train", "-m", *RUN, *overrides]) == 2
    runs = {}
    cells = [cell["name"] for cell in json.loads((tmp_path / "sweep.json").read_text())["cells"]]
    for name in cells:
        (file,) = (tmp_path / name).glob("wandb/offline-run-*/run-*.wandb")
        runs[name] = read_wandb(file)
    facts = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in cells}
    done = [number for number, each in facts.items() if each["status"] == "finished"]
    assert sorted(facts[number]["seed"] for number in done) == [1, 2]
    assert len({each["run"].run_id for each in runs.values()}) == 4
    for number, each in runs.items():
        assert each["run"].project == "trial"
        assert each["run"].job_type == "train"
        assert set(each["run"].tags) == {"reviews", "supervised", "mine"}
        assert each["run"].display_name == facts[number]["name"] == f"ngram_bag supervised seed {facts[number]['seed']}"
        config = each["config"]
        assert config["seed"] == facts[number]["seed"]
        assert config["strategy"]["_target_"].endswith("SupervisedDistiller")
        assert config["cell"]["student"] == "ngram_bag"
        assert config["lineage"]["data"]["fingerprint"] == facts[number]["data"]["fingerprint"]
        assert (each["exit"] == 0) == (number in done)
    # replicates share a group, other settings do not
    groups = {number: each["run"].run_group for number, each in runs.items()}
    rates = {number: each["config"]["student"]["training"]["learning_rate"] for number, each in runs.items()}
    assert len(set(groups.values())) == 2
    assert all((groups[one] == groups[two]) == (rates[one] == rates[two]) for one in groups for two in groups)
    for number in done:
        metrics = json.loads((tmp_path / number / "metrics.json").read_text())
        logged = {key: value for step in runs[number]["history"] for key, value in step.items()}
        assert logged["test/accuracy"] == metrics["test/accuracy"]
        assert sum("train/loss" in step for step in runs[number]["history"]) == 4
        assert sum("val/accuracy" in step for step in runs[number]["history"]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "wandbb"}, r"logger\.kind: 'wandbb' \(did you mean 'wandb'\?\)"),
        ({"kind": "wandb", "mode": "of", "timeout": 1}, r"logger\.mode: 'of'.*auto, online, offline"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        logger_maker(settings, {})
