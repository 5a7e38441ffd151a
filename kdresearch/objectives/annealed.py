"""The objective of annealed distillation."""

from __future__ import annotations

from torch import Tensor

from kdresearch import losses
from kdresearch.errors import UserError, choices
from kdresearch.objectives.objective import Objective
from kdresearch.structures import Batch, Outputs

ANNEALED_LOSSES = ("mse", "soft_label")


class Annealed(Objective):
    """Class scores at a temperature that the strategy lowers.

    ``mse`` is mean (z_s − Φ(T)·z_t)² with Φ(T) = 1 − (T − 1)/T_max (Jafari et al. 2021, "Annealing Knowledge
    Distillation", eq. 5-6); ``soft_label`` is ``losses.soft_label`` at T.

    Args:
        loss: either.
        max_temperature: T_max.

    Attributes:
        temperature: T, from T_max down to 1.

    Raises:
        UserError: an unknown loss, or a highest temperature that is no whole number of at least 1.
    """

    def __init__(self, loss: str = "mse", max_temperature: int = 10) -> None:
        super().__init__()
        if loss not in ANNEALED_LOSSES:
            raise UserError(f"loss: {choices(loss, ANNEALED_LOSSES)}")
        if not isinstance(max_temperature, int) or isinstance(max_temperature, bool) or max_temperature < 1:
            raise UserError(f"max_temperature must be a whole number of at least 1, not {max_temperature}")
        self.loss, self.max_temperature = loss, max_temperature
        self.temperature = max_temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of logits [B, C] at the present ``temperature``."""
        assert student.logits is not None and teacher is not None and teacher.logits is not None
        if self.loss == "soft_label":
            return losses.soft_label(student.logits, teacher.logits, temperature=self.temperature)
        scale = 1 - (self.temperature - 1) / self.max_temperature
        return losses.logit_mse(student.logits, scale * teacher.logits)
