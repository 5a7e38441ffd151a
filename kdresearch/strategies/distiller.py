"""The wiring that every strategy stands on: a student, perhaps a teacher, and weighted objectives."""

from __future__ import annotations

import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdresearch.errors import UserError
from kdresearch.evaluation.task import CLASSIFICATION, Task
from kdresearch.models.frozen import FrozenModel
from kdresearch.objectives.objective import Objective
from kdresearch.strategies import binding
from kdresearch.strategies.curves import Curves
from kdresearch.strategies.first_batch import first_batch
from kdresearch.strategies.weights import WeightSchedule
from kdresearch.structures import LOGITS, SAME, Batch, Model, Outputs, Reading, Teacher, as_batch, check_signed

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
_BODY = re.compile(r"(student|peers\.\d+)\.(?!classifier\.)")  # parameters of models that are not their heads'


class Distiller(Curves):
    """Train a student on a weighted sum of named objectives.

    The teacher is frozen, in eval mode whatever Lightning does, and no part of this module's parameters, state dict
    or DDP buckets. Projections and other parameters of the objectives are trained, clipped and checkpointed.

    Batches are any loader's: see ``structures.as_batch``. Objectives are bound to both sides' signatures at once, or,
    where a wrapped module's are not measured yet, by the first batch of the trainer's loader before training.

    Args:
        student: the model that is trained; ``kd.wrap`` makes one of any torch module.
        classes: C, or their names in the order of the logits; None takes what the student knows.
        objectives: the terms by name; the name is the log key ``train/NAME``.
        weights: one number for each objective, by the same name.
        teacher: what answers for the teacher's side of the objectives; a model is frozen for it.
        schedules: how weights change over the updates, by the same names; a ``WeightSchedule`` or its arguments.
        reading: how the tokens of the two sides correspond.
        batch_size: rows of a training batch, to refuse an objective that needs more; None asks nothing.
        telemetry_every: updates between measurements of each objective's gradient at the student; None never.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes the schedule from the optimizer and the number of updates; None keeps the rate.
        head_lr_scale: how many times the learning rate the classifier and the objectives' own parameters train at.
        class_weights: of each class, for every objective on gold labels (``Label``); None weighs rows alike.
        task: what the validation rows are scored by.

    Raises:
        UserError: a model without a signature, a teacher of other classes, a weight that names no objective or an
            objective without a weight, all weights zero, an objective that needs a teacher where there is none, a field
            that a model lacks, more classes, more rows in a batch, tokens that cannot be compared, models that do not
            fit each other, or class weights without a label term.
    """

    labelled_share: float = 0.0
    """What labelled rows are of an epoch's at least, where rows without labels are trained on as well."""

    def __init__(
        self,
        student: Model,
        *,
        classes: int | Sequence[str] | None = None,
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float],
        teacher: Teacher | Model | None = None,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        scheduler: SchedulerFactory | None = None,
        head_lr_scale: float = 1.0,
        schedules: Mapping[str, WeightSchedule | Mapping[str, Any]] | None = None,
        reading: Reading = SAME,
        batch_size: int | None = None,
        telemetry_every: int | None = None,
        class_weights: Sequence[float] | None = None,
        task: Task = CLASSIFICATION,
    ) -> None:
        super().__init__()
        check_signed("student", student)
        assert isinstance(student, nn.Module)
        teacher = binding.as_teacher(teacher, student)
        self.classes = binding.class_names(classes, student, teacher)
        self.weights = binding.check_weights(type(self).__name__, objectives, weights)
        live = {name: term for name, term in objectives.items() if self.weights[name] != 0}
        self.schedules = binding.check_schedules(schedules or {}, objectives)
        if telemetry_every is not None and telemetry_every < 1:
            raise UserError(f"telemetry_every must be a number of updates of at least 1, not {telemetry_every}")
        self.telemetry_every = telemetry_every
        signature = None if teacher is None else teacher.signature
        for name, term in live.items():
            binding.check_objective(name, term, signature, len(self.classes), batch_size)
        if class_weights is not None:
            binding.weigh_classes(live, class_weights)
        self.student = student
        self.student.train()  # pretrained models come in eval mode, and Lightning leaves it so
        self.objectives = nn.ModuleDict(live)
        # Kept out of the module tree: a registered teacher would be trained, saved and put back into train mode.
        self._frozen = (teacher,) if any(term.teacher_needs for term in live.values()) else (None,)
        self.reading, self.bound = reading, False
        if all(side.signature.measured for side in (student, teacher) if side is not None):
            self._bind()
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.head_lr_scale = head_lr_scale
        self.task = task
        self.scores = task.running(len(self.classes))

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:
        """Whether the strategy with these settings, objects or plain data, has an objective that learns from a teacher.

        One that is not among the settings' ``objectives`` is taken to do so.
        """
        objectives = settings.get("objectives") or {}
        weights = settings.get("weights")
        if weights is None:
            default: Any = getattr(inspect.signature(cls).parameters.get("weights"), "default", inspect.Parameter.empty)
            weights = dict.fromkeys(objectives, 1.0) if default is inspect.Parameter.empty else default
        return any(weight and (name not in objectives or _learns(objectives[name])) for name, weight in weights.items())

    @classmethod
    def generations_before(cls, settings: Mapping[str, Any]) -> int:
        """How many earlier generations of the student are trained before it, each the teacher of the next."""
        return 0

    @classmethod
    def assistants_between(cls, settings: Mapping[str, Any]) -> list[list[str]] | None:
        """Recipes of the models that are trained between the teacher and the student; None where there are none."""
        return None

    @property
    def peer_models(self) -> list[nn.Module]:
        """Models that are trained beside the student."""
        return []

    @property
    def student_needs(self) -> frozenset[str]:
        """Fields of ``Outputs`` that the objectives read of the student."""
        return LOGITS.union(*(term.needs for term in self._terms.values()))

    @property
    def teacher_needs(self) -> frozenset[str]:
        """Fields of ``Outputs`` that the objectives read of the teacher."""
        return frozenset[str]().union(*(term.teacher_needs for term in self._terms.values()))

    @property
    def _terms(self) -> dict[str, Objective]:
        return dict(self.objectives.items())  # type: ignore[arg-type]

    def _bind(self) -> None:
        """Let the objectives meet both signatures."""
        teacher = None if self.teacher is None else self.teacher.signature
        for name, term in self._terms.items():
            binding.bind(name, term, self.student.signature, teacher, self.classes, self.reading)
        self.bound = True

    def setup(self, stage: str) -> None:
        """Bind the objectives by the first batch where widths were unknown; UserError for widths that stay so."""
        if self.bound or stage != "fit":
            return
        batch = as_batch(first_batch(self.trainer))
        for side, inputs in ((self.student, batch.student), (self.teacher, batch.teacher)):
            if side is None or side.signature.measured:
                continue
            if side is not self.student and not isinstance(side, FrozenModel):
                raise UserError(f"teacher: the widths of {side.signature.name} are not known: give kd.wrap an example")
            side.look_at(inputs)
            binding.check_number(len(self.classes), "student" if side is self.student else "teacher", side.signature)
        self._bind()

    @property
    def teacher(self) -> Teacher | None:
        """What answers for the teacher's side; None where no objective learns from one."""
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
        """Put the teacher on the student's device."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def forward(self, batch: Any) -> Tensor:
        """The student's logits [B, C]."""
        batch = as_batch(batch)
        logits = self.student(batch.student, LOGITS).logits
        assert logits is not None
        return logits

    def weights_configured(self) -> dict[str, float]:
        """The objectives that this update computes, and their weights before any schedule."""
        return {name: self.weights[name] for name in self.objectives}

    def logged_now(self) -> dict[str, float]:
        """Further values that are logged at this update, by name."""
        return {}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The value of each objective that this update computes, unweighted."""
        live: dict[str, Any] = {name: self.objectives[name] for name in self.weights_configured()}
        student = self.student(batch.student, LOGITS.union(*(term.needs for term in live.values())))
        fields = frozenset[str]().union(*(term.teacher_needs for term in live.values()))
        teacher: Outputs | None = None
        if self.teacher is not None and fields:
            with torch.no_grad():
                teacher = self.teacher(batch, fields)
        values = {}
        for name, term in live.items():
            side = teacher
            if teacher is not None and isinstance(term.member, int):
                assert teacher.members is not None
                side = teacher.members[term.member]
            values[name] = term(student, side, batch)
        return values

    def weights_now(self) -> dict[str, float]:
        """The weights at this update: the configured ones by their schedules' factors."""
        weights = self.weights_configured()
        for name, schedule in self.schedules.items():
            if name in weights:
                weights[name] *= schedule.factor(self.global_step, self.trainer.estimated_stepping_batches)
        return weights

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The weighted sum of the terms, a scalar; see ``structures.as_batch`` for batches."""
        batch = as_batch(batch)
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
            tensors = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            gradients[name] = [x.detach().float() if x is not None else None for x in tensors]

        def _product(first: str, second: str) -> float:
            pairs = zip(gradients[first], gradients[second], strict=True)
            products = [torch.sum(a * b) for a, b in pairs if a is not None and b is not None]
            return float(torch.stack(products).sum()) if products else 0.0

        norms = {name: math.sqrt(_product(name, name)) for name in terms}
        total = sum(weights[name] * norm for name, norm in norms.items())
        measured = {f"telemetry/grad_norm/{name}": norm for name, norm in norms.items()}
        for name, norm in norms.items():
            measured[f"telemetry/share/{name}"] = weights[name] * norm / total if total else 0.0
        for first, second in combinations(terms, 2):
            scale = norms[first] * norms[second]
            measured[f"telemetry/cosine/{first}/{second}"] = _product(first, second) / scale if scale else 0.0
        return measured

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score the student on the labelled rows of a batch."""
        batch = as_batch(batch)
        self.scores.update(self(batch), batch.label)

    def on_validation_epoch_end(self) -> None:
        """Log the task's scores."""
        for name, value in self.scores.compute().items():
            self.log(name, value, prog_bar=name in self.task.shown)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        """``index`` [B], ``label`` [B] and the student's ``logits`` [B, C] in float32."""
        batch = as_batch(batch)
        return {"index": batch.index, "label": batch.label, "logits": self(batch).float()}

    def forget_moments(self) -> None:
        """Clear the optimizer's state; the schedule of its learning rate goes on."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        optimizer.state.clear()

    def configure_optimizers(self) -> Any:
        """The optimizer of all trained parameters and its schedule."""
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


def _learns(objective: Any) -> bool:
    """Whether an objective, its class, or plain data with its ``_target_``, learns from a teacher."""
    if isinstance(objective, Mapping):
        objective = pkgutil.resolve_name(str(objective["_target_"]))
    return bool(objective.teacher_needs)
