"""The run record: what a run leaves, complete by itself."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

import kdresearch
from kdresearch import __version__
from kdresearch.apps.config import plain
from kdresearch.bench import identity
from kdresearch.errors import UserError

_PACKAGES = (
    "torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "wandb", "torchtext", "transformers", "tokenizers",
    "numpy", "pyarrow",
)  # fmt: skip


class Phases:
    """Wall seconds by phase; the time of a phase within another counts in the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            own = whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole
            self.seconds[name] = round(self.seconds.get(name, 0.0) + own, 3)


def write_json(path: Path, content: Any) -> None:
    """Replace a file by JSON, whole or not at all; numbers that JSON lacks become null."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_finite(content), indent=1, ensure_ascii=False))
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_predictions(path: Path, splits: list[dict[str, Any]]) -> None:
    """Write ``predictions.parquet``.

    Args:
        splits: for each split its name, ids, labels [N], student logits [N, C] and teacher logits [N, C] or None.
    """
    tables = []
    for split in splits:
        teacher = split["teacher"]
        tables.append(
            pa.table(
                {
                    "split": pa.array([split["name"]] * len(split["ids"]), pa.string()),
                    "id": pa.array(split["ids"], pa.string()),
                    "label": pa.array(split["labels"].numpy(), pa.int64()),
                    "student_logits": _rows(split["student"]),
                    "teacher_logits": _rows(teacher)
                    if teacher is not None
                    else pa.nulls(len(split["ids"]), pa.list_(pa.float32())),
                }
            )
        )
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.concat_tables(tables), partial, compression="zstd")
    os.replace(partial, path)


def _rows(logits: torch.Tensor) -> pa.Array:
    values = pa.array(logits.float().contiguous().flatten().numpy(), pa.float32())
    offsets = pa.array(range(0, logits.numel() + 1, logits.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "kdresearch": kdresearch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"torch": str(torch.__version__)}  # says which build it is, and the metadata may not


def hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "platform": platform.platform(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def git() -> dict[str, Any] | None:
    """The commit of the checkout that the package runs from, and whether it was changed since; None elsewhere."""
    folder = Path(kdresearch.__file__).parent
    if shutil.which("git") is None:
        return None

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")) != folder.parent.resolve():
            return None
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except subprocess.CalledProcessError:
        return None


class Chosen(NamedTuple):
    """What a configuration was composed from."""

    options: dict[str, Any]  # the option of each group
    overrides: list[str]  # as given on the command line


class Record:
    """``run.json`` while it grows."""

    def __init__(self, cfg: DictConfig, folder: Path, chosen: Chosen) -> None:
        self.folder = folder
        self.cell = _cell(cfg, chosen)
        self.name = str(cfg.name or f"{self.cell['student']} {self.cell['strategy']} seed {cfg.seed}")
        self.phases = Phases()
        self.loggers: list[Any] = []
        self._before = _read_json(folder / "run.json")
        self._resume, self._resumable = bool(cfg.resume), False
        self.facts: dict[str, Any] = {
            "kdresearch": __version__,
            "name": self.name,
            "cell": self.cell,
            "identity": self._before.get("identity"),  # the checkpoints are that run's until this one is identified
            "method": None,
            "settings": None,
            "seed": cfg.seed,
            "seeds": plain(cfg.seeds),
            "command": sys.argv[1:],
            "git": git(),
            "versions": versions(),
            "hardware": hardware(),
            "data": None,
            "teacher": None,
            "student": None,
        }
        if not cfg.evaluation.test:
            self.facts["untested"] = True
        # A record is whole or not there: what an earlier run left in this folder goes first.
        for left in ("metrics.json", "predictions.parquet"):
            (folder / left).unlink(missing_ok=True)
        if not (folder / ".hydra" / "config.yaml").exists():  # a teacher's, which Hydra did not start
            (folder / ".hydra").mkdir(exist_ok=True)
            OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")

    def identify(self, settings: dict[str, Any]) -> None:
        """Say what the run is; an unfinished run of the same identity in this folder is gone on with."""
        name = identity.identity(settings)
        self.facts |= {"identity": name, "method": identity.method(settings), "settings": settings}
        unfinished = self._before.get("status") != "finished"
        self._resumable = self._resume and unfinished and self._before.get("identity") == name
        if not self._resumable:
            for left in ("metrics.csv", "run.json"):
                (self.folder / left).unlink(missing_ok=True)

    @property
    def group(self) -> str:
        """One name for all replicates of this run; 128 characters at most, as W&B takes them."""
        kinds = ("data", "student", "strategy", "teacher", "generator", "transfer")
        name = "/".join(str(self.cell[kind]) for kind in kinds if self.cell.get(kind) not in (None, "none"))
        return f"{name[:107]}~{str(self.facts['method'])[:12]}"

    def checkpoint_to_resume(self) -> Path | None:
        last = self.folder / "checkpoints" / "last.ckpt"
        return last if self._resumable and last.exists() else None

    def write(self, status: str) -> None:
        write_json(self.folder / "run.json", {"status": status, **self.facts, "seconds": self.phases.seconds})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content


def _cell(cfg: DictConfig, chosen: Chosen) -> dict[str, Any]:
    """What the options of a run are called, for names; what they say is in its settings."""
    generator = chosen.options["generator"]
    taught = needs_teacher(cfg) or cfg.start["from"] is not None
    return {
        **({"generator": generator} if generator != "none" else {}),
        "data": chosen.options["data"],
        "labels": cfg.data.get("labels"),
        "student": chosen.options["student"],
        "strategy": chosen.options["strategy"],
        "teacher": chosen.options["teacher"] if taught and "generations" not in cfg.strategy else None,
        "transfer": cfg.data.transfer,
        "experiment": chosen.options["experiment"],
    }


def needs_teacher(cfg: DictConfig) -> bool:
    """Whether the strategy, with these settings, takes a teacher."""
    try:
        kind: Any = get_class(cfg.strategy._target_)
    except (ImportError, ValueError) as error:
        raise UserError(f"strategy: {error}") from error
    needs: bool = kind.needs_teacher(cfg.strategy)
    return needs
