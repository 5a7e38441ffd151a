"""Stages in one run: layers first and then scores (TinyBERT, Jiao et al. 2020), gradual unfreezing (ULMFiT, 2018)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, pairwise
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdresearch.errors import UserError, choices
from kdresearch.objectives.objective import Objective
from kdresearch.strategies.combined import CombinedDistiller
from kdresearch.strategies.schedules import in_phases
from kdresearch.structures import Model

TRAINED = ("all", "head")


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        share: of all updates.
        weights: of the objectives that it computes; one that is not named has none.
        learning_rate: what the configured rate is multiplied by.
        train: which of the student's parameters move: ``all``; the ``head`` (``classifier.*``); a list of patterns of
            parameter names (``*`` stands for anything); or ``{last_layers: n}``, with whatever lies above them.
            Parameters of the objectives always do.
    """

    share: float
    weights: Mapping[str, float]
    learning_rate: float = 1.0
    train: str | Sequence[str] | Mapping[str, int] = "all"


class StagedDistiller(CombinedDistiller):
    """Stages, one after the other, each with its own weights, learning rate and trained parameters.

    The learning-rate schedule and the optimizer's moments begin anew in each stage, as in TinyBERT, whose stages are
    trainings of their own. What a stage does not train keeps its value to the bit, and what it does not weigh is not
    computed. A stage leaves some parameters without a gradient, which DDP has to be
    told: ``trainer.strategy=ddp_find_unused_parameters_true``.

    Args:
        objectives: by names of your choosing, which are the weights' names and the log keys.
        stages: ``Stage``s or their arguments; their shares sum to 1.
        fresh_optimizer: False carries the moments of one stage over into the next.

    Raises:
        UserError: a stage that names no objective, weighs none or trains no parameter; shares that do not sum to 1;
            and whatever any stage's objectives refuse.
    """

    def __init__(
        self,
        student: Model,
        *,
        objectives: Mapping[str, Objective],
        stages: Sequence[Stage | Mapping[str, Any]],
        fresh_optimizer: bool = True,
        **wiring: Any,
    ) -> None:
        self.fresh_optimizer = fresh_optimizer
        self.stages = [_stage(number, stage, objectives) for number, stage in enumerate(stages)]
        if not math.isclose(sum(stage.share for stage in self.stages), 1, abs_tol=1e-6):
            shares = " + ".join(f"{stage.share:g}" for stage in self.stages)
            raise UserError(f"strategy.stages: the shares must sum to 1, not {shares or 'to nothing'}")
        weights = {name: max(float(stage.weights.get(name, 0)) for stage in self.stages) for name in objectives}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
        self.make_stage_scheduler, self.make_scheduler = self.make_scheduler, self._scheduler
        self.still = [_still(number, stage.train, student) for number, stage in enumerate(self.stages)]

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:
        """Whether any stage's objectives learn from a teacher."""
        objectives = settings.get("objectives", {})
        weights = [stage.weights if isinstance(stage, Stage) else stage["weights"] for stage in settings["stages"]]
        return any(
            super(StagedDistiller, cls).needs_teacher({"objectives": objectives, "weights": of_stage})
            for of_stage in weights
        )

    def on_fit_start(self) -> None:
        """Fix the updates at which stages begin; UserError for a stage without an update."""
        super().on_fit_start()
        self.milestones = self._last_updates(self.updates)[:-1]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Clear the optimizer's state at a stage's first update."""
        super().on_train_batch_start(batch, batch_idx)
        if self.fresh_optimizer and self.global_step in self.milestones:
            self.forget_moments()

    @property
    def convex(self) -> bool:
        """False."""
        return False  # each stage minimises something else

    @property
    def stage(self) -> int:
        """The stage of this update, from 0."""
        return bisect_right(self.milestones, self.global_step)

    def weights_configured(self) -> dict[str, float]:
        """Those of the present stage."""
        weights = self.stages[self.stage].weights
        return {name: float(weights[name]) for name in self.objectives if weights.get(name)}

    def logged_now(self) -> dict[str, float]:
        """The stage, from 1."""
        return {"stage": float(self.stage + 1)}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Drop the gradients of what the stage does not train."""
        # Without a gradient an optimizer passes a parameter over: no momentum, no decay; and DDP knows them as ever.
        for name in self.still[self.stage]:
            self.student.get_parameter(name).grad = None

    def _last_updates(self, updates: int) -> tuple[int, ...]:
        """The update after the last of each stage."""
        limits = tuple(round(share * updates) for share in accumulate(stage.share for stage in self.stages))
        for number, (start, end) in enumerate(pairwise((0, *limits))):
            if start == end:
                raise UserError(f"strategy.stages.{number}: of {updates} updates none is left for it")
        return limits

    def _scheduler(self, optimizer: Optimizer, updates: int) -> LambdaLR:
        lengths = [end - start for start, end in pairwise((0, *self._last_updates(updates)))]
        return in_phases(self.make_stage_scheduler, optimizer, lengths, [stage.learning_rate for stage in self.stages])


def _stage(number: int, settings: Stage | Mapping[str, Any], objectives: Mapping[str, Objective]) -> Stage:
    key = f"strategy.stages.{number}"
    try:
        stage = settings if isinstance(settings, Stage) else Stage(**settings)
    except TypeError as error:
        raise UserError(f"{key}: {error}") from error
    if not 0 < stage.share <= 1:
        raise UserError(f"{key}.share must lie in (0, 1], not {stage.share}")
    if not 0 < stage.learning_rate < math.inf:
        raise UserError(f"{key}.learning_rate is a factor and must be positive, not {stage.learning_rate}")
    for name, weight in stage.weights.items():
        if name not in objectives:
            raise UserError(f"{key}.weights: there is no objective {choices(name, objectives)}")
        if not 0 <= weight < math.inf:
            raise UserError(f"{key}.weights.{name} must be a number of at least 0, not {weight}")
    if not any(stage.weights.values()):
        raise UserError(f"{key}.weights: all are 0, there is nothing to learn")
    return stage


def _still(number: int, train: str | Sequence[str] | Mapping[str, int], student: Model) -> frozenset[str]:
    """The student's parameters that a stage does not train."""
    assert isinstance(student, nn.Module)
    key, names = f"strategy.stages.{number}.train", [name for name, _ in student.named_parameters()]
    if train == "all":
        return frozenset()
    if isinstance(train, Mapping):
        return _below(key, train, student)
    if isinstance(train, str) and train != "head":
        raise UserError(f"{key}: {choices(train, TRAINED)}, a list of patterns, or {{last_layers: n}}")
    trained: set[str] = set()
    for pattern in ("classifier.*",) if train == "head" else train:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise UserError(
                f"{key}: {student.signature.name} has no parameter {pattern!r}; its first and last are "
                f"{', '.join(names[:3])}, ..., {', '.join(names[-3:])}"
            )
        trained |= matches
    if not trained:
        raise UserError(f"{key} is empty: nothing would be trained")
    return frozenset(names) - trained


def _below(key: str, train: Mapping[str, int], student: Model) -> frozenset[str]:
    """The embeddings and all layers but the last: parameters in the order in which the text passes them."""
    for name in train:
        if name != "last_layers":
            raise UserError(f"{key}: {choices(name, ('last_layers',))}")
    depth, number = student.signature.depth, train.get("last_layers")
    assert isinstance(student, nn.Module)
    lists = [name for name, part in student.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    layers = {f"{name}.{place}.": place for name in lists for place in range(depth)}
    if not layers:
        raise UserError(f"{key}: {student.signature.name} has no list of layers; name patterns of its parameters")
    if not isinstance(number, int) or not 0 <= number <= depth:
        raise UserError(f"{key}.last_layers must lie between 0 and the student's {depth} layers, not {number}")
    still: set[str] = set()
    reached = False
    for name, _ in student.named_parameters():
        place = next((place for prefix, place in layers.items() if name.startswith(prefix)), None)
        reached = reached or place is not None
        if not reached or (place is not None and place < depth - number):
            still.add(name)
    return frozenset(still)
