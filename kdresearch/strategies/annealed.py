"""Annealed distillation (Jafari et al. 2021): the teacher's scores from faint to full, then the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdresearch.errors import UserError, choices
from kdresearch.objectives.annealed import Annealed
from kdresearch.objectives.logits import Label
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import Batch, Model

LABELS = ("after", "throughout")


class AnnealedDistiller(Distiller):
    """First weights.annealed · the teacher's scores at a falling temperature, then weights.label · CE(y, p_s).

    T falls from T_max to 1 in T_max steps of (nearly) as many updates each; it is logged as ``temperature``.

    Args:
        loss: ``mse`` with scores scaled by Φ(T), as in the paper (eq. 5-7); or ``soft_label`` at temperature T.
        max_temperature: T_max, a whole number.
        share: of all updates, in which T falls; the rest is for the labels alone.
        labels: learned ``after`` that (the paper's second phase), or ``throughout``.
        label_smoothing: ε of the labels' term.
        weights: ``label`` and ``annealed``.

    Raises:
        UserError: a bad setting, or a phase in which nothing is learned.
    """

    def __init__(
        self,
        student: Model,
        *,
        loss: str = "mse",
        max_temperature: int = 10,
        share: float = 0.7,
        labels: str = "after",
        label_smoothing: float = 0.0,
        weights: Mapping[str, float],
        **wiring: Any,
    ) -> None:
        if not 0 < share <= 1:
            raise UserError(f"strategy.share must lie in (0, 1], not {share}")
        if labels not in LABELS:
            raise UserError(f"strategy.labels: {choices(labels, LABELS)}")
        self.share, self.labels = share, labels
        objectives = {"label": Label(label_smoothing), "annealed": Annealed(loss, max_temperature)}
        super().__init__(student, objectives=objectives, weights=weights, **wiring)
        if "annealed" not in self.objectives:
            raise UserError("strategy.weights.annealed is 0 and nothing is annealed: use strategy=supervised")
        if share < 1 and "label" not in self.objectives:
            raise UserError(
                f"strategy.share={share} leaves the rest to labels, and strategy.weights.label is 0: share=1"
            )
        if share == 1 and labels == "after" and "label" in self.objectives:
            raise UserError("strategy.share=1 leaves nothing for the labels: labels=throughout, or weights.label=0")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.milestones = (max(1, round(self.share * self.updates)),)

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
        phase = {"annealed"} if self.global_step < self.milestones[0] else {"label"}
        if self.labels == "throughout":
            phase.add("label")
        return {name: weight for name, weight in super().weights_configured().items() if name in phase}

    def logged_now(self) -> dict[str, float]:
        return {"temperature": float(self.temperature)}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        self._annealed.temperature = self.temperature
        return super().terms(batch)
