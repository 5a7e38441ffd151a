"""Where curves go beside metrics.csv: Weights & Biases, TensorBoard."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from kdresearch.bench.record import Record
from kdresearch.commands.console import say
from kdresearch.errors import UserError, choices

KINDS = ("wandb", "csv", "tensorboard", "none")
MODES = ("auto", "online", "offline")


def logger_maker(settings: dict[str, Any], config: dict[str, Any]) -> Callable[[Record], list[Logger]]:
    """What makes a run's loggers from its record.

    Args:
        settings: the ``logger`` group.
        config: the whole resolved configuration.

    Raises:
        UserError: an unknown kind or mode.
    """
    kind = settings["kind"]
    if kind not in KINDS:
        raise UserError(f"logger.kind: {choices(kind, KINDS)}")
    if kind == "wandb" and settings["mode"] not in MODES:
        raise UserError(f"logger.mode: {choices(settings['mode'], MODES)}")

    def make(record: Record) -> list[Logger]:
        if kind == "tensorboard":
            try:
                return [TensorBoardLogger(str(record.folder), name="", version="tensorboard")]
            except ModuleNotFoundError as error:
                raise UserError("logger=tensorboard needs it: pip install 'kdresearch[tensorboard]'") from error
        return [_wandb(settings, record, config)] if kind == "wandb" else []

    return make


def _wandb(settings: dict[str, Any], record: Record, config: dict[str, Any]) -> Logger:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    mode = settings["mode"]
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    facts, plan = record.facts, record.plan
    lineage = {"data": facts["data"], "teacher": facts["teacher"]}
    lineage |= {"generation": facts["generation"]} if "generation" in facts else {}
    arguments: dict[str, Any] = {
        "project": plan.study,
        "name": record.name,
        "group": record.group,
        "job_type": "train" if facts["teacher"] is None else "distill",
        "tags": [facts["data"]["name"], str(record.cell["strategy"]), *plan.tags],
        "config": {**config, "cell": record.cell, "lineage": lineage},
        "dir": str(record.folder),
        "settings": wandb.Settings(init_timeout=float(settings["timeout"]), console="off"),
    }
    try:
        run = wandb.init(mode=mode, **arguments)
    except wandb.errors.CommError as error:
        say(f"W&B does not answer ({error}): this run is logged offline, `wandb sync` sends it later")
        run = wandb.init(mode="offline", **arguments)
    return WandbLogger(experiment=run)


def log_results(record: Record) -> None:
    """Put the finished run's scores and its student, as an artifact that names its teacher and data, into W&B."""
    if "wandb" not in sys.modules:
        return
    import wandb

    if wandb.run is None:
        return
    student = record.facts["student"]
    metadata = {"teacher": record.facts["teacher"], "data": record.facts["data"]}
    artifact = wandb.Artifact(f"student-{student['fingerprint']}", "model", metadata=metadata)
    artifact.add_reference(f"file://{(record.folder / 'student').absolute()}", checksum=False)
    wandb.run.log_artifact(artifact)
    wandb.run.summary.update({f"student/{key}": value for key, value in student.items()})


def close_wandb(failed: bool = False) -> None:
    """End the live W&B run: otherwise the next job of a sweep in this process would go on in it."""
    if "wandb" in sys.modules:
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=1 if failed else 0)
