"""Annealed distillation (Jafari et al. 2021): the teacher's scores from faint to full, then the labels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdresearch.errors import UserError, choices
from kdresearch.objectives.annealed import Annealed
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label
from kdresearch.strategies.schedules import in_phases
from kdresearch.structures import Batch, Model

LABELS = ("after", "throughout")
_BEST = "annealed_best"  # of a checkpoint


class AnnealedDistiller(NamedDistiller):
    """First weights.annealed · the teacher's scores at a falling temperature, then weights.label · CE(y, p_s).

    T falls from T_max to 1 in T_max steps of (nearly) as many updates each; it is logged as ``temperature``. The second
    phase is a training of its own (their §3, algorithm 1): it starts from the epoch of the first that did best on the
    validation rows, with fresh moments of the optimizer and the learning-rate schedule anew. Where there are several
    epochs it begins with one. Without an epoch's end in the first phase it goes on from where that ended.

    Args:
        loss: ``mse`` with scores scaled by Φ(T), as in the paper (eq. 5-7); or ``soft_label`` at temperature T.
        max_temperature: T_max, a whole number.
        share: of all updates, in which T falls; the rest is for the labels alone.
        labels: learned ``after`` that (the paper's second phase), or ``throughout``.
        label_learning_rate: what the learning rate is multiplied by in the second phase.
        monitor, mode: the validation metric by which the first phase's best epoch is known, and whether it is to be
            ``max`` or ``min``; None takes the task's.
        label_smoothing: ε of the labels' term.
        weights: ``label`` and ``annealed``.

    Raises:
        UserError: a bad setting, or a phase in which nothing is learned.
    """

    composition: ClassVar[Composition] = {"label": Term(label, 1.0), "annealed": Term(Annealed, 1.0)}

    def __init__(
        self,
        student: Model,
        *,
        share: float = 0.7,
        labels: str = "after",
        label_learning_rate: float = 1.0,
        monitor: str | None = None,
        mode: str | None = None,
        **settings: Any,
    ) -> None:
        if not 0 < share <= 1:
            raise UserError(f"strategy.share must lie in (0, 1], not {share}")
        if labels not in LABELS:
            raise UserError(f"strategy.labels: {choices(labels, LABELS)}")
        if mode not in (None, "max", "min"):
            raise UserError(f"strategy.mode: {choices(mode, ('max', 'min'))}")
        if not 0 < label_learning_rate < math.inf:
            raise UserError(f"strategy.label_learning_rate must be positive, not {label_learning_rate}")
        if share == 1 and label_learning_rate != 1:
            raise UserError("strategy.share=1 leaves no second phase for strategy.label_learning_rate")
        self.share, self.labels, self.label_learning_rate = share, labels, label_learning_rate
        super().__init__(student, **settings)
        self.monitor = self.task.monitor if monitor is None else monitor
        self.mode = self.task.monitors.get(self.monitor, "max") if mode is None else mode
        if "annealed" not in self.objectives:
            raise UserError("strategy.weights.annealed is 0 and nothing is annealed: use strategy=supervised")
        if share < 1 and "label" not in self.objectives:
            raise UserError(
                f"strategy.share={share} leaves the rest to labels, and strategy.weights.label is 0: share=1"
            )
        if share == 1 and labels == "after" and "label" in self.objectives:
            raise UserError("strategy.share=1 leaves nothing for the labels: labels=throughout, or weights.label=0")
        self.make_phase_scheduler, self.make_scheduler = self.make_scheduler, self._scheduler
        self._best: tuple[float, dict[str, Tensor]] | None = None  # of the first phase, until the second begins

    def on_fit_start(self) -> None:
        """Fix the update at which the second phase begins."""
        super().on_fit_start()
        self.milestones = (self._first_phase(self.updates),)

    def _first_phase(self, updates: int) -> int:
        """Its updates: whole epochs where there are several."""
        if math.isinf(self.trainer.num_training_batches):
            self.trainer.fit_loop.setup_data()  # where the length is one of updates nobody has counted the batches
        epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        if self.share == 1 or updates <= epoch:
            return max(1, round(self.share * updates))
        return epoch * min(max(1, round(self.share * updates / epoch)), math.ceil(updates / epoch) - 1)

    def _scheduler(self, optimizer: Optimizer, updates: int) -> LambdaLR:
        first = self._first_phase(updates)
        factors = (1.0, self.label_learning_rate)
        return in_phases(self.make_phase_scheduler, optimizer, (first, updates - first), factors)

    def on_validation_epoch_end(self) -> None:
        """Keep the student of the first phase's best epoch; UserError for a monitor that is not logged."""
        super().on_validation_epoch_end()
        fitting = self.milestones and not self.trainer.sanity_checking
        if not fitting or self.share == 1 or self.global_step > self.milestones[0]:
            return
        metrics = self.trainer.callback_metrics
        if self.monitor not in metrics:
            raise UserError(f"strategy.monitor: {choices(self.monitor, [name for name in metrics if '/' in name])}")
        score = float(metrics[self.monitor]) * (1 if self.mode == "max" else -1)
        if self._best is None or score > self._best[0]:
            self._best = score, {name: value.detach().clone() for name, value in self.student.state_dict().items()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin the second phase at its first update, from the best epoch of the first."""
        super().on_train_batch_start(batch, batch_idx)
        if self.share < 1 and self.global_step in self.milestones:
            if self._best is not None:
                self.student.load_state_dict(self._best[1])
                self._best = None
            self.forget_moments()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the best student of the first phase."""
        if self._best is not None:
            checkpoint[_BEST] = {"score": self._best[0], "student": self._best[1]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the best student of the first phase."""
        if (best := checkpoint.get(_BEST)) is not None:
            self._best = best["score"], best["student"]

    @property
    def temperature(self) -> int:
        """T at this update: T_max at the first, 1 from the last step of the annealing on."""
        highest = self._annealed.max_temperature
        return max(1, highest - self.global_step * highest // self.milestones[0])

    @property
    def _annealed(self) -> Annealed:
        term = self.objectives["annealed"]
        assert isinstance(term, Annealed)
        return term

    def weights_configured(self) -> dict[str, float]:
        """Those of the present phase."""
        phase = {"annealed"} if self.global_step < self.milestones[0] else {"label"}
        if self.labels == "throughout":
            phase.add("label")
        return {name: weight for name, weight in super().weights_configured().items() if name in phase}

    def logged_now(self) -> dict[str, float]:
        """The temperature."""
        return {"temperature": float(self.temperature)}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The terms at the present temperature."""
        self._annealed.temperature = self.temperature
        return super().terms(batch)
