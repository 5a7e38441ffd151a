"""A student that is solved for instead of trained by updates."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from kdresearch.bench.context import Context
from kdresearch.bench.fit import Fitted
from kdresearch.bench.plan import Plan
from kdresearch.bench.record import Record
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.tokenizers import NgramTokenizer
from kdresearch.errors import UserError
from kdresearch.evaluation.metrics import task_metrics
from kdresearch.models.ngram import NgramLinear, sparse_rows
from kdresearch.models.solver import Optima, Solver, Step
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.scores import ScoreLoss
from kdresearch.structures import UNLABELLED
from kdresearch.teachers.calibrated import fitted_temperature

_BY_UPDATES = ("student.training.", "optimizer", "scheduler", "trainer.max_", "trainer.gradient_clip_val")
"""How overrides begin that say how updates are made."""


def build_solver(plan: Plan, strategy: Distiller, data: TextDataModule, context: Context) -> Solver | None:
    """What solves this run's student; None where it is trained by updates.

    Raises:
        UserError: a strategy that ``solver.method=lbfgs`` cannot solve, or settings that only updates read.
    """
    if plan.student.solver is None or not isinstance(strategy.student, NgramLinear):
        return None
    solver: Solver = plan.student.solver.build("student.solver")
    if solver.method == "none":
        return None
    if not strategy.convex:
        reason = f"{type(strategy).__name__} has, with these settings, no convex loss of each row's class scores"
        if solver.method == "lbfgs":
            raise UserError(f"student.solver.method=lbfgs: {reason}: leave it to auto, which trains by updates then")
        context.say(f"trained by updates: {reason}")
        return None
    if unread := _unread(plan, data):
        raise UserError(
            f"{', '.join(unread)}: this student is solved, and makes no updates; leave them out, or train it by "
            "updates with student.solver.method=none"
        )
    return solver


def _unread(plan: Plan, data: TextDataModule) -> list[str]:
    """The settings that were chosen for this run and that only updates read."""
    typed = [part for part in plan.overrides if part.lstrip("+").startswith(_BY_UPDATES)]
    values = {
        "selection.patience": plan.selection.patience,
        "selection.stop_after": plan.selection.stop_after,
        "telemetry_every": plan.telemetry_every,
    }
    typed += [f"{name}={value}" for name, value in values.items() if value is not None]
    return [*typed, "generator.fresh_every"] if data.slices > 1 else typed


def solve(
    plan: Plan, solver: Solver, module: Distiller, data: TextDataModule, record: Record, context: Context
) -> Fitted:
    """Give the student the optimum of its strategy's loss on the rows of an epoch.

    The strength of regularisation, and the weighting of features where it is left open, are those of the lowest NLL of
    the validation rows after calibration, which tells more than the accuracy of few rows; by ``selection.monitor``
    where it names neither accuracy nor NLL, the lower NLL among equals. ``metrics.csv`` has a row for each.

    Returns:
        The iterations that all of them took, and which was kept, from 1.
    """
    student = module.student
    assert isinstance(student, NgramLinear)
    shutil.rmtree(record.draft / "checkpoints", ignore_errors=True)  # it is begun again where it was killed
    record.write(status="running")
    started = time.perf_counter()
    epoch = data.epoch_rows()
    trained = np.unique(epoch)
    rows, label = sparse_rows(data.evaluation(trained), student.signature.vocabulary or 0)
    validation_rows, validation_label = sparse_rows(
        data.evaluation(data.split.validation), student.signature.vocabulary or 0
    )
    loss = ScoreLoss(module, data.evaluation(trained), epoch if len(epoch) > len(trained) else None)
    lengths = data.tokenizer.lengths if isinstance(data.tokenizer, NgramTokenizer) else None
    path = Optima(solver, student, rows, label, validation_rows, loss, lengths)
    truth = torch.from_numpy(validation_label)
    best, optimum, score, iterations = 0, None, (-np.inf, -np.inf), 0
    for number, step in enumerate(path, 1):
        metrics = task_metrics(torch.from_numpy(step.logits), truth)
        iterations += step.solution.iterations
        metrics["calibrated_nll"] = _calibrated_nll(torch.from_numpy(step.logits), truth)
        _log(record.loggers, number, iterations, step, metrics)
        if (quality := _quality(plan, metrics)) > score:
            best, optimum, score = number, step, quality
    if optimum is None:
        raise UserError("the student diverged: no optimum has finite scores on the validation rows")
    optimum = path.finish(optimum)
    iterations += optimum.solution.iterations
    temperature = _calibrate(student, torch.from_numpy(optimum.logits), truth) if solver.calibrate else None
    record.facts["solver"] = _facts(optimum, temperature, iterations)
    seconds = time.perf_counter() - started
    context.say(
        f"solved in {iterations} iterations, {seconds:.1f} s: weighting {optimum.weighting}, "
        f"strength {optimum.strength:g}" + (f", temperature {temperature:.3g}" if temperature is not None else "")
    )
    return Fitted(iterations, best)


def _facts(optimum: Step, temperature: float | None, iterations: int) -> dict[str, Any]:
    """The facts of a solution that a record keeps."""
    return {
        "method": "lbfgs",
        "weighting": optimum.weighting,
        "strength": optimum.strength,
        "temperature": temperature,
        "iterations": iterations,
        "loss": optimum.solution.loss,
        "gradient": optimum.solution.gradient,
    }


def _quality(plan: Plan, metrics: dict[str, float]) -> tuple[float, float]:
    """By what, and then by what, one optimum is better than another; the larger is."""
    nll, monitor = metrics["calibrated_nll"], plan.selection.monitor
    if monitor in ("val/accuracy", "val/nll"):
        return -nll, -nll
    return metrics[monitor.removeprefix("val/")] * (1 if plan.selection.mode == "max" else -1), -nll


def _temperature(logits: Tensor, label: Tensor) -> float:
    """The temperature that labelled rows ask for; 1 where all are right.

    These would ask for certainty, and say nothing about rows that it gets wrong.
    """
    labelled = label != UNLABELLED
    if bool((logits[labelled].argmax(1) == label[labelled]).all()):
        return 1.0
    return fitted_temperature(logits, label)


def _calibrated_nll(logits: Tensor, label: Tensor) -> float:
    """The NLL of labelled rows at the temperature that they ask for."""
    return task_metrics(logits / _temperature(logits, label), label)["nll"]


def _calibrate(student: NgramLinear, logits: Tensor, label: Tensor) -> float:
    """Divide weights and biases by the temperature that the validation rows ask for, which is returned."""
    temperature = _temperature(logits, label)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.div_(temperature)
    return temperature


def _log(loggers: Sequence[Logger], number: int, iterations: int, step: Step, metrics: dict[str, float]) -> None:
    row: dict[str, Any] = {f"val/{name}": metrics[name] for name in ("accuracy", "macro_f1", "nll")}
    row |= {"epoch": number - 1, "train/loss": step.solution.loss, "solver/strength": step.strength}
    row |= {"solver/gradient": step.solution.gradient, "solver/nb": float(step.weighting.startswith("nb"))}
    row["solver/calibrated_nll"] = metrics["calibrated_nll"]
    for logger in loggers:
        logger.log_metrics(row, step=iterations)
