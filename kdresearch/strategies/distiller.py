"""The wiring that every strategy stands on: a student, perhaps a teacher, and weighted objectives."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from kdresearch.errors import UserError, choices
from kdresearch.objectives.logits import Label
from kdresearch.objectives.objective import Objective
from kdresearch.strategies.curves import Curves
from kdresearch.strategies.weights import WeightSchedule
from kdresearch.structures import LOGITS, RECORDED, SAME, UNLABELLED, Batch, Model, Outputs, Reading, Teacher

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
VALIDATION_METRICS = {"val/accuracy": "max", "val/macro_f1": "max", "val/nll": "min"}
"""What an epoch may be selected by, and where it is best."""
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
_BODY = re.compile(r"(student|peers\.\d+)\.(?!classifier\.)")  # parameters of models that are not their heads'


class Distiller(Curves):
    """Train a student on a weighted sum of named objectives.

    The teacher is frozen, in eval mode whatever Lightning does, and no part of this module's parameters, state dict
    or DDP buckets. Projections and other parameters of the objectives are trained, clipped and checkpointed.

    Args:
        student: the model that is trained.
        classes: C names.
        objectives: the terms by name; the name is the log key ``train/NAME``.
        weights: one number for each objective, by the same name.
        teacher: what answers for the teacher's side of the objectives.
        schedules: how weights change over the updates, by the same names; a ``WeightSchedule`` or its arguments.
        reading: how the tokens of the two sides correspond.
        batch_size: rows of a training batch, to refuse an objective that needs more; None asks nothing.
        telemetry_every: updates between measurements of each objective's gradient at the student; None never.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes the schedule from the optimizer and the number of updates; None keeps the rate.
        head_lr_scale: how many times the learning rate the classifier and the objectives' own parameters train at.
        class_weights: of each class, for every objective on gold labels (``Label``); None weighs rows alike.

    Raises:
        UserError: a weight that names no objective or an objective without a weight, all weights zero, an objective
            that needs a teacher where there is none, a field that a model lacks, more classes, more rows in a batch,
            tokens that cannot be compared, models that do not fit each other, or class weights without a label term.
    """

    labelled_share: float = 0.0
    """What labelled rows are of an epoch's at least, where rows without labels are trained on as well."""

    def __init__(
        self,
        student: Model,
        *,
        classes: tuple[str, ...],
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float],
        teacher: Teacher | None = None,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        scheduler: SchedulerFactory | None = None,
        head_lr_scale: float = 1.0,
        schedules: Mapping[str, WeightSchedule | Mapping[str, Any]] | None = None,
        reading: Reading = SAME,
        batch_size: int | None = None,
        telemetry_every: int | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.weights = _checked_weights(type(self).__name__, objectives, weights)
        live = {name: term for name, term in objectives.items() if self.weights[name] != 0}
        self.schedules = _checked_schedules(schedules or {}, objectives)
        if telemetry_every is not None and telemetry_every < 1:
            raise UserError(f"telemetry_every must be a number of updates of at least 1, not {telemetry_every}")
        self.telemetry_every = telemetry_every
        for name, term in live.items():
            _bind(name, term, student, teacher, len(self.classes), reading, batch_size)
        if class_weights is not None:
            _weigh_classes(live, class_weights)
        assert isinstance(student, nn.Module)
        self.student = student
        self.student.train()  # pretrained models come in eval mode, and Lightning leaves it so
        self.objectives = nn.ModuleDict(live)
        # Kept out of the module tree: a registered teacher would be trained, saved and put back into train mode.
        self._frozen = (teacher,) if any(term.teacher_needs for term in live.values()) else (None,)
        self.student_needs = LOGITS.union(*(term.needs for term in live.values()))
        self.teacher_needs = frozenset[str]().union(*(term.teacher_needs for term in live.values()))
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.head_lr_scale = head_lr_scale
        number = len(self.classes)
        self.val_accuracy = MulticlassAccuracy(number, average="micro")
        self.val_macro_f1 = MulticlassF1Score(number, average="macro")
        self.val_nll = MeanMetric()

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:
        """Whether these settings of the strategy take a teacher: objectives other than the label's learn from one."""
        return any(name != "label" and weight for name, weight in settings["weights"].items())

    @property
    def teacher(self) -> Teacher | None:
        return self._frozen[0]

    @property
    def learns_from_unlabelled(self) -> bool:
        """Whether a row without a label teaches the student anything."""
        return any(not term.needs_labels for term in self.objectives.values())

    @property
    def convex(self) -> bool:
        """Whether it minimises one convex function of the rows' class scores, the same at every update."""
        return not self.schedules and all(term.convex for term in self.objectives.values())

    @property
    def compares_tokens(self) -> bool:
        """Whether an objective speaks of tokens, so that both sides' must correspond."""
        return any(term.needs_shared_tokens for term in self.objectives.values())

    @property
    def updates(self) -> int:
        """How many this fit has; UserError where it has no end."""
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise UserError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        return int(total)

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.device)

    def forward(self, batch: Batch) -> Tensor:
        """The student's logits [B, C]."""
        logits = self.student(batch.student, LOGITS).logits
        assert logits is not None
        return logits

    def weights_configured(self) -> dict[str, float]:
        """The objectives that this update computes, and their weights before any schedule."""
        return {name: self.weights[name] for name in self.objectives}

    def logged_now(self) -> dict[str, float]:
        """What is logged beside the terms."""
        return {}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The value of each objective that this update computes, unweighted."""
        live: dict[str, Any] = {name: self.objectives[name] for name in self.weights_configured()}
        student = self.student(batch.student, LOGITS.union(*(term.needs for term in live.values())))
        asks = frozenset[str]().union(*(term.teacher_needs for term in live.values()))
        teacher: Outputs | None = None
        if self.teacher is not None and asks:
            with torch.no_grad():
                teacher = self.teacher(batch, asks)
        values = {}
        for name, term in live.items():
            asked = teacher
            if teacher is not None and isinstance(term.member, int):
                assert teacher.members is not None
                asked = teacher.members[term.member]
            values[name] = term(student, asked, batch)
        return values

    def weights_now(self) -> dict[str, float]:
        """The weights at this update: the configured ones by their schedules' factors."""
        weights = self.weights_configured()
        for name, schedule in self.schedules.items():
            if name in weights:
                weights[name] *= schedule.factor(self.global_step, self.trainer.estimated_stepping_batches)
        return weights

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms, weights = self.terms(batch), self.weights_now()
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        scheduled = {f"weight/{name}": weights[name] for name in self.schedules if name in weights}
        self.log_step(batch, {"loss": loss} | terms, scheduled | self.logged_now())
        if self.telemetry_every is not None and self.global_step % self.telemetry_every == 0:
            measured = self.telemetry(terms, weights)
            for logger in self.loggers:  # whatever the trainer's own interval is
                logger.log_metrics(measured, step=self.global_step)
        return loss

    def telemetry(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
        """What each objective asks of the student's parameters.

        Returns:
            ``telemetry/grad_norm/NAME`` of the unweighted objective; ``telemetry/share/NAME``, its weighted norm by
            the sum of all; ``telemetry/cosine/NAME/OTHER`` between two gradients (0 where one is zero).
        """
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        gradients = {}
        for name, value in terms.items():
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            gradients[name] = [each.detach().float() if each is not None else None for each in found]

        def product(name: str, other: str) -> float:
            pairs = zip(gradients[name], gradients[other], strict=True)
            parts = [torch.sum(a * b) for a, b in pairs if a is not None and b is not None]
            return float(torch.stack(parts).sum()) if parts else 0.0

        norms = {name: math.sqrt(product(name, name)) for name in terms}
        total = sum(weights[name] * norm for name, norm in norms.items())
        measured = {f"telemetry/grad_norm/{name}": norm for name, norm in norms.items()}
        for name, norm in norms.items():
            measured[f"telemetry/share/{name}"] = weights[name] * norm / total if total else 0.0
        for name, other in combinations(terms, 2):
            scale = norms[name] * norms[other]
            measured[f"telemetry/cosine/{name}/{other}"] = product(name, other) / scale if scale else 0.0
        return measured

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch).float()
        counted = batch.label != UNLABELLED
        logits, label = logits[counted], batch.label[counted]
        if not len(label):
            return
        self.val_accuracy.update(logits, label)
        self.val_macro_f1.update(logits, label)
        self.val_nll.update(nn.functional.cross_entropy(logits, label, reduction="none"))

    def on_validation_epoch_end(self) -> None:
        metrics = (self.val_accuracy, self.val_macro_f1, self.val_nll)
        for name, metric in zip(VALIDATION_METRICS, metrics, strict=True):
            self.log(name, metric.compute(), prog_bar=name != "val/macro_f1")
            metric.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"index": batch.index, "label": batch.label, "logits": self(batch).float()}

    def forget_moments(self) -> None:
        """Let the optimizer begin anew, at the rate where its schedule is."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        optimizer.state.clear()

    def configure_optimizers(self) -> Any:
        return self.optimization(self.parameter_groups())

    def optimization(self, groups: list[dict[str, Any]]) -> Any:
        """The optimizer of these parameter groups and its schedule, as Lightning wants them."""
        optimizer = self.make_optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_scale")
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer, self.updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights decay, vectors (biases, normalisation) do not; a group trains at ``lr_scale`` times the rate."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                head = _BODY.match(name) is None
                groups.setdefault((head, parameter.dim() > 1), []).append(parameter)
        return [
            {"params": members, "lr_scale": self.head_lr_scale if head else 1.0}
            | ({} if decays else {"weight_decay": 0.0})
            for (head, decays), members in groups.items()
        ]


def _checked_weights(
    strategy: str, objectives: Mapping[str, Objective], weights: Mapping[str, float]
) -> dict[str, float]:
    for name in weights:
        if name not in objectives:
            raise UserError(f"strategy.weights: {strategy} has no objective {choices(name, objectives)}")
    for name in objectives:
        if name not in weights:
            raise UserError(f"strategy.weights: {strategy} needs a weight for {name!r} (it has {', '.join(weights)})")
    checked = {name: float(weight) for name, weight in weights.items()}
    for name, weight in checked.items():
        if not math.isfinite(weight) or weight < 0:
            raise UserError(f"strategy.weights.{name} must be a number of at least 0, not {weight}")
    if not any(checked.values()):
        raise UserError(f"strategy.weights: all of {', '.join(checked)} are 0, there is nothing to learn")
    return checked


def _checked_schedules(
    schedules: Mapping[str, WeightSchedule | Mapping[str, Any]], objectives: Mapping[str, Objective]
) -> dict[str, WeightSchedule]:
    checked = {}
    for name, schedule in schedules.items():
        if name not in objectives:
            raise UserError(f"strategy.schedules: {choices(name, objectives)}")
        try:
            checked[name] = schedule if isinstance(schedule, WeightSchedule) else WeightSchedule(**schedule)
        except TypeError as error:
            raise UserError(f"strategy.schedules.{name}: {error}") from error
    return checked


def _weigh_classes(objectives: Mapping[str, Objective], weights: Sequence[float]) -> None:
    on_labels = [term for term in objectives.values() if isinstance(term, Label)]
    if not on_labels:
        raise UserError(
            f"student.training.class_weights: none of {', '.join(objectives)} is the cross-entropy with gold labels: "
            "strategy.weights.label must be above 0"
        )
    for term in on_labels:
        term.class_weights = torch.tensor(weights, dtype=torch.float32)


def _bind(
    name: str,
    term: Objective,
    student: Model,
    teacher: Teacher | None,
    classes: int,
    reading: Reading,
    batch_size: int | None,
) -> None:
    """Let an objective meet its models; refuse in words what cannot be."""
    if classes < term.min_classes:
        raise UserError(
            f"objective {name} is dead on {classes} classes: it needs at least {term.min_classes}; on fewer, "
            "strategy=soft_label says all there is to say"
        )
    if batch_size is not None and batch_size < term.min_batch:
        raise UserError(
            f"objective {name} relates the rows of a batch and needs at least {term.min_batch}: "
            f"student.training.batch_size is {batch_size}"
        )
    asked = teacher
    if teacher is not None and term.member is not None:
        members = getattr(teacher, "members", None)
        if members is None or not 0 <= term.member < len(members):
            having = f"an ensemble of {len(members)}" if members is not None else "no ensemble (teacher=ensemble)"
            raise UserError(f"objective {name} learns from member {term.member} (from 0), and the teacher is {having}")
        asked = members[term.member]
    if term.teacher_needs and asked is None:
        raise UserError(f"objective {name} needs a teacher: choose one with teacher=NAME")
    between = f"objective {name}, of {_called(student)}"
    if asked is not None:
        between += f" with {_called(asked)} as its teacher"
    try:
        term.bind(student, asked, reading)
    except UserError as error:
        raise UserError(f"{between}: {error}") from error
    sides: list[tuple[str, Model | Teacher, frozenset[str]]] = [("student", student, term.needs)]
    if asked is not None:
        sides.append(("teacher", asked, term.teacher_needs))
    for side, model, needs in sides:
        if missing := sorted(needs - model.provides):
            raise UserError(
                f"{between}: needs {', '.join(missing)} of the {side}, which provides only "
                f"{', '.join(sorted(model.provides))}; {_instead(model, needs)}"
            )
    if term.needs_shared_tokens and asked is not None and reading.kind == "apart":
        raise UserError(
            f"{between}: compares tokens, and the two read different ones"
            f"{reading.why and f' ({reading.why})'}: choose tokenizers with character offsets (word, pretrained), or "
            "compare sentence vectors (strategy=feature strategy.level=sentence) or class scores (strategy=soft_label)"
        )


def _instead(model: Model | Teacher, needs: frozenset[str]) -> str:
    """What would do where a model lacks a field."""
    if getattr(model, "recorded", False) and not needs <= RECORDED:
        return "of a recorded teacher no more is kept: teacher.mode=live"
    if "pooled" in model.provides:
        return "choose a model with layers, or compare sentence vectors (strategy=feature) or class scores (soft_label)"
    return "choose a model with sentence vectors, or compare class scores (strategy=soft_label)"


def _called(model: Model | Teacher) -> str:
    """The model's own name, within whatever wraps it."""
    return str(getattr(model, "name", type(model).__name__))
