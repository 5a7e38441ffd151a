"""The finished student against validation and test rows, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from kdresearch.bench.knowledge import Knowledge
from kdresearch.bench.plan import Plan
from kdresearch.bench.schema import SplitPredictions
from kdresearch.data.datamodule import TextDataModule
from kdresearch.errors import Diverged
from kdresearch.evaluation.efficiency import efficiency
from kdresearch.strategies.distiller import Distiller
from kdresearch.teachers.ask import logits_of, member_accuracies

_BATCH = 32  # rows of a batch by which throughput is measured


@dataclass
class Scores:
    """Everything that was measured, and the outputs that it was measured on."""

    metrics: dict[str, float] = field(default_factory=dict)
    predictions: list[SplitPredictions] = field(default_factory=list)
    members: list[float] | None = None  # test accuracy of each of a teacher's members


def evaluate(plan: Plan, module: Distiller, data: TextDataModule, knowledge: Knowledge | None) -> Scores:
    """Score the student, and its teacher beside it, on the validation and test rows.

    Raises:
        Diverged: logits that are not finite.
    """
    data.trainer = None  # one device reads each row once, whatever the training ran on
    predictor = _predictor(plan)
    scores = Scores()
    splits = [("validation", "val", data.split.validation)]
    if plan.evaluation.test:
        splits.append(("test", "test", data.split.test))
    for name, short, index in splits:
        logits = _predict(predictor, module, data, index)
        label = torch.from_numpy(data.labels[index])
        scores.metrics |= {f"{short}/{key}": value for key, value in module.task.score(logits, label).items()}
        teacher = None if knowledge is None else logits_of(knowledge.evaluation, data, index)
        if teacher is not None:
            compared = module.task.compare(logits, teacher, label)
            scores.metrics |= {f"{short}/{key}": value for key, value in compared.items()}
            scores.metrics |= {f"teacher/{short}_{key}": v for key, v in module.task.score(teacher, label).items()}
        scores.predictions.append(SplitPredictions(name, data.corpus.ids(index), label, logits, teacher))
    if knowledge is not None and plan.evaluation.test:
        scores.members = member_accuracies(knowledge.evaluation, data, data.split.test)
    return scores


def measure_cost(plan: Plan, student: Any, data: TextDataModule) -> dict[str, float]:
    """Latency and rows per second on one thread; empty where they are not wanted."""
    if not plan.evaluation.efficiency:
        return {}
    rows = (data.split.test if plan.evaluation.test else data.split.validation)[: plan.evaluation.rows]
    batches = [data.student_rows.tokens(rows[first : first + _BATCH]) for first in range(0, len(rows), _BATCH)]
    measured = efficiency(student, batches)
    return {
        "latency/p50_ms": measured["latency_p50_ms"],
        "latency/p95_ms": measured["latency_p95_ms"],
        "rows_per_second": measured["rows_per_second"],
    }


def _predictor(plan: Plan) -> pl.Trainer:
    return pl.Trainer(
        accelerator=plan.trainer.get("accelerator", "auto"),
        devices=1,
        precision=plan.trainer.get("precision", "32-true"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _predict(predictor: pl.Trainer, module: Distiller, data: TextDataModule, index: np.ndarray) -> torch.Tensor:
    """The student's logits [N, C] on corpus-wide rows [N]."""
    logits = torch.empty(len(index), len(data.classes))
    place = {int(row): position for position, row in enumerate(index)}
    for batch in predictor.predict(module, data.evaluation(index)) or []:
        logits[[place[int(row)] for row in batch["index"]]] = batch["logits"].cpu()  # type: ignore[call-overload]
    if not logits.isfinite().all():
        raise Diverged("the student diverged: its logits are not finite; lower student.training.learning_rate")
    return logits
