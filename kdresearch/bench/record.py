"""The record of a run while it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from kdresearch import __version__
from kdresearch.bench import identity
from kdresearch.bench.checkpoints import checkpoint_to_resume
from kdresearch.bench.contents import CHECKPOINTS, CURVES, ENDS, FINISHED, damage, file_sums, place_of_record, settle
from kdresearch.bench.plan import Plan
from kdresearch.bench.schema import METRICS, PREDICTIONS, RUN, SCHEMA, read_json, write_record
from kdresearch.bench.surroundings import git, hardware, versions

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

    Attributes:
        folder: of the run.
        draft: where its files grow: in ``folder``, or beside the record of a finished run there until this one ends.
    """

    def __init__(self, plan: Plan, folder: Path, command: list[str]) -> None:
        self.plan, self.folder, self.draft = plan, folder, place_of_record(folder)
        self.draft.mkdir(exist_ok=True)
        self.cell = describe_cell(plan)
        self.name = str(plan.name or f"{self.cell['student']} {self.cell['strategy']} seed {plan.seeds.init}")
        self.phases = Phases()
        self.metrics: dict[str, float] = {}
        self.loggers: list[Logger] = []  # where curves go
        self._before = read_json(self.draft / RUN)
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
            (self.draft / name).unlink(missing_ok=True)

    def adopt(self, settings: dict[str, Any], say: Callable[[str], None]) -> bool:
        """Take over the finished record of the same run in this folder; whether there is one.

        Args:
            settings: of this run; see ``identify``.
            say: is called with why one that is there does not do.
        """
        facts = read_json(self.folder / RUN)
        if not self.plan.resume or facts.get("status") != FINISHED:
            return False
        tuning = json.loads(json.dumps(self.facts.get("tuning")))  # as it reads once it was written
        if facts.get("identity") != identity.identity(settings) or facts.get("tuning") != tuning:
            return False
        if (reason := damage(self.folder, facts)) is not None:
            say(f"{self.name}: {self.folder} has a finished record, but {reason}: the run is done again")
            return False
        metrics, evaluation = read_json(self.folder / METRICS), self.plan.evaluation
        unmeasured = evaluation.efficiency and "latency/p50_ms" not in metrics
        if unmeasured or evaluation.test == bool(facts.get("untested")):
            return False
        with suppress(OSError):  # one that was interrupted may lie there
            self.draft.rmdir()
        self.facts, self.metrics, self.draft = facts, metrics, self.folder
        return True

    def identify(self, settings: dict[str, Any]) -> None:
        """Say what the run is; an unfinished run of the same identity is gone on with."""
        name = identity.identity(settings)
        self.facts |= {"identity": name, "method": identity.method(settings), "settings": settings}
        unfinished = self._before.get("status") not in ENDS
        self._resumable = self.plan.resume and unfinished and self._before.get("identity") == name
        if not self._resumable:
            for file in (CURVES, RUN):
                (self.draft / file).unlink(missing_ok=True)

    @property
    def group(self) -> str:
        """One name for all replicates of this run; 128 characters at most, as W&B takes them."""
        name = "/".join(str(self.cell[kind]) for kind in _KINDS if self.cell.get(kind) not in (None, "none"))
        return f"{name[:107]}~{str(self.facts['method'])[:12]}"

    def checkpoint_to_resume(self, say: Callable[[str], None]) -> Path | None:
        """The checkpoint that the run goes on from, if it does; ``say`` is told of those that are damaged."""
        return checkpoint_to_resume(self.draft / CHECKPOINTS, say) if self._resumable else None

    def log_metrics(self) -> None:
        """Put the scores of the finished run after its curves, whose last validation has its own."""
        for logger in self.loggers:
            logger.log_metrics({name: value for name, value in self.metrics.items() if not name.startswith("val/")})
            logger.save()

    def write(self, status: str) -> None:
        """Put the record on disk as it stands; that of a run with an outcome takes the place of an earlier one."""
        content = {"status": status, **self.facts, "seconds": self.phases.seconds}
        if status in ENDS:
            content["files"] = file_sums(self.draft)
        write_record(self.draft / RUN, content)
        if self.draft != self.folder and status in ENDS:
            settle(self.folder)
            self.draft = self.folder


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
