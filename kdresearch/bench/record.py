"""The record of a run while it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from kdresearch import __version__
from kdresearch.bench import identity
from kdresearch.bench.plan import Plan
from kdresearch.bench.schema import METRICS, PREDICTIONS, RUN, SCHEMA, read_json, write_json
from kdresearch.bench.surroundings import git, hardware, versions

LAST = Path("checkpoints") / "last.ckpt"
_KINDS = ("data", "student", "strategy", "teacher", "generator", "transfer")


class Phases:
    """Wall seconds by phase; the time of a phase within another counts in the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, name: str, counts: bool = True) -> Iterator[None]:
        if not counts:  # there is nothing to do in it
            yield
            return
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            exclusive = elapsed - self._inner.pop()
            if self._inner:
                self._inner[-1] += elapsed
            self.seconds[name] = round(self.seconds.get(name, 0.0) + exclusive, 3)


class Record:
    """``run.json`` in a folder, from the first phase to the last.

    Args:
        command: what was typed, or what stands for it.
    """

    def __init__(self, plan: Plan, folder: Path, command: list[str]) -> None:
        self.plan, self.folder = plan, folder
        self.cell = describe_cell(plan)
        self.name = str(plan.name or f"{self.cell['student']} {self.cell['strategy']} seed {plan.seeds.init}")
        self.phases = Phases()
        self.metrics: dict[str, float] = {}
        self.loggers: list[Logger] = []  # where curves go
        self._before = read_json(folder / RUN)
        self._resumable = False
        self.facts: dict[str, Any] = {
            "schema": SCHEMA,
            "kdresearch": __version__,
            "name": self.name,
            "cell": self.cell,
            "identity": self._before.get("identity"),  # the checkpoints are that run's until this one is identified
            "method": None,
            "settings": None,
            "seed": plan.seeds.init,
            "seeds": vars(plan.seeds),
            "command": command,
            "git": git(),
            "versions": versions(),
            "hardware": hardware(),
            "data": None,
            "teacher": None,
            "student": None,
        }
        if not plan.evaluation.test:
            self.facts["untested"] = True
        for name in (METRICS, PREDICTIONS):  # a record is whole or not there: what an earlier run left goes first
            (folder / name).unlink(missing_ok=True)

    def identify(self, settings: dict[str, Any]) -> None:
        """Say what the run is; an unfinished run of the same identity in this folder is gone on with."""
        name = identity.identity(settings)
        self.facts |= {"identity": name, "method": identity.method(settings), "settings": settings}
        unfinished = self._before.get("status") != "finished"
        self._resumable = self.plan.resume and unfinished and self._before.get("identity") == name
        if not self._resumable:
            for file in ("metrics.csv", RUN):
                (self.folder / file).unlink(missing_ok=True)

    @property
    def group(self) -> str:
        """One name for all replicates of this run; 128 characters at most, as W&B takes them."""
        name = "/".join(str(self.cell[kind]) for kind in _KINDS if self.cell.get(kind) not in (None, "none"))
        return f"{name[:107]}~{str(self.facts['method'])[:12]}"

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint that the run goes on from, if it does."""
        last = self.folder / LAST
        return last if self._resumable and last.exists() else None

    def log_metrics(self) -> None:
        """Put the scores of the finished run after its curves, whose last validation has its own."""
        for logger in self.loggers:
            logger.log_metrics({name: value for name, value in self.metrics.items() if not name.startswith("val/")})
            logger.save()

    def write(self, status: str) -> None:
        """Put the record on disk as it stands."""
        write_json(self.folder / RUN, {"status": status, **self.facts, "seconds": self.phases.seconds})


def describe_cell(plan: Plan) -> dict[str, Any]:
    """What the parts of a run are called, for names; what they are is in its settings."""
    options, labels = plan.options, plan.data.source.settings.get("labels")
    return {
        **({"generator": plan.samples.name} if plan.samples is not None else {}),
        "data": plan.data.name,
        "labels": labels if isinstance(labels, str) else None,
        "student": plan.student.name,
        "strategy": options.get("strategy", plan.strategy.target.rpartition(".")[2]),
        "teacher": None if plan.teacher is None or not plan.teacher.name else plan.teacher.name,
        "transfer": plan.data.carving.get("transfer", "none"),
        "experiment": options.get("experiment"),
    }
