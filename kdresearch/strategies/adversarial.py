"""Adversarial distillation (after Xu et al. 2018): a student whose scores are not to be told from its teacher's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from kdresearch.errors import UserError
from kdresearch.objectives.adversarial import Adversarial
from kdresearch.strategies.manual import ends_accumulation, step_by_hand
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label, soft_label
from kdresearch.structures import Model, as_batch


def _adversarial(reads: str = "logits", hidden_dim: int = 64, discriminator_smoothing: float = 0.1) -> Adversarial:
    return Adversarial(reads, hidden_dim, discriminator_smoothing)


class AdversarialDistiller(NamedDistiller):
    """weights.label · CE(y, p_s) + weights.soft_label · τ²·KL(p_t‖p_s) + weights.adversarial · −log D(student).

    After Xu et al. 2018, "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with
    Conditional Adversarial Networks", §3: labels, a discriminator D in the place of a hand-made distance, and a term
    that keeps the student near the teacher. Theirs differs in two things: D also guesses the label of the row, which
    both sides are trained by, and the last term is the L1 distance of the logits where this one is soft labels. It is
    not KDGAN (Wang et al. 2018): there the teacher is trained as well, it and the classifier learn from each other, and
    both sample labels, relaxed by Gumbel noise, for a discriminator of (row, label) pairs.

    The discriminator D learns on the same rows, by its own optimizer (Adam); both sides step at the same updates, and
    only the student's count. Clipping, accumulation and the schedule are the student's as ever; D's gradient is
    accumulated and clipped likewise. Logged: ``train/discriminator`` (its loss), ``train/discriminator_accuracy``.

    Args:
        reads, hidden_dim: see ``objectives.adversarial.Adversarial``.
        discriminator_learning_rate: of D, constant.
        discriminator_smoothing: ε of D's labels.
        temperature: τ of the soft labels.
        label_smoothing: ε of the first term.
        weights: ``label``, ``soft_label`` and ``adversarial``.

    Raises:
        UserError: bad settings, or weights.adversarial = 0.
    """

    composition: ClassVar[Composition] = {
        "label": Term(label, 0.5),
        "soft_label": Term(soft_label, 0.5),
        "adversarial": Term(_adversarial, 0.1),
    }

    def __init__(self, student: Model, *, discriminator_learning_rate: float = 1e-3, **settings: Any) -> None:
        if not discriminator_learning_rate > 0:
            raise UserError(f"strategy.discriminator_learning_rate must be positive, not {discriminator_learning_rate}")
        super().__init__(student, **settings)
        if "adversarial" not in self.objectives:
            raise UserError("strategy.weights.adversarial is 0 and there is no adversary: use strategy=soft_label")
        self.discriminator_learning_rate = discriminator_learning_rate

    @property
    def adversary(self) -> Adversarial:
        """The objective that owns the discriminator."""
        term = self.objectives["adversarial"]
        assert isinstance(term, Adversarial)
        return term

    def setup(self, stage: str) -> None:
        """Bind the objectives, and take the steps of both sides by hand."""
        super().setup(stage)
        step_by_hand(self, stage)

    def configure_optimizers(self) -> Any:
        """The student's optimizer with its schedule, then D's."""
        student = super().configure_optimizers()
        discriminator = torch.optim.Adam(
            self.adversary.discriminator.parameters(), lr=self.discriminator_learning_rate, betas=(0.5, 0.999)
        )
        return student if isinstance(student, dict) else {"optimizer": student}, {"optimizer": discriminator}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The student's loss; both sides' gradients, and their steps where an accumulation ends."""
        loss = super().training_step(batch, batch_idx)
        accumulated = self.trainer.accumulate_grad_batches
        self.manual_backward(loss / accumulated)
        self._discriminate(accumulated, len(as_batch(batch).label))
        if ends_accumulation(self, batch_idx):
            self._update()
        return loss

    def _discriminate(self, accumulated: int, rows: int) -> None:
        """Gather D's gradient. It has one here alone, so that neither the student's loss nor DDP ever sees it."""
        discriminator = self.adversary.discriminator.requires_grad_(True)
        loss, accuracy = self.adversary.discrimination()
        (loss / accumulated).backward()  # type: ignore[no-untyped-call]
        discriminator.requires_grad_(False)
        self.log_values({"discriminator": loss, "discriminator_accuracy": accuracy}, rows)

    def _update(self) -> None:
        """One step of either side."""
        student = self.optimizers()[0]  # type: ignore[index]
        student.step()  # by Lightning, which counts it
        student.zero_grad()
        discriminator = self.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
        for parameter in self.adversary.discriminator.parameters():
            parameter.grad = self.trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        self.clip_gradients(discriminator)
        discriminator.step()
        discriminator.zero_grad()
        schedule = self.lr_schedulers()
        if schedule is not None:
            schedule.step()  # type: ignore[union-attr]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the student's gradient."""
        self.clip_gradients(optimizer)  # once gradients have their true scale
