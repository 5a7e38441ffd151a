"""A strategy's loss as a function of class scores alone, over all rows at once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import LOGITS, Batch, Outputs, Tokens


class ScoreLoss:
    """Σ weights.NAME · objectives.NAME of a whole training set, by its logits [N, C].

    Each objective is a mean over its rows, so that this is what an update minimises in expectation where every batch
    has the same share of labelled rows.

    Args:
        strategy: one that is ``convex``.
        batches: every row once; the teacher is asked here, once.
        epoch: [N] the rows of an epoch, by ``Batch.index``, where some come several times; None takes each once.
    """

    def __init__(self, strategy: Distiller, batches: Iterable[Batch], epoch: np.ndarray | None = None) -> None:
        self.strategy = strategy
        index, label, answers = [], [], []
        for batch in batches:
            index.append(batch.index)
            label.append(batch.label)
            if strategy.teacher is not None:
                with torch.no_grad():
                    answers.append(_scores(strategy.teacher(batch, LOGITS)))
        self.places = None if epoch is None else _places(torch.cat(index).numpy(), epoch)
        nothing = torch.empty(0, dtype=torch.long)
        tokens = Tokens(nothing, nothing.bool())
        self.batch = Batch(self._placed(torch.cat(index)), self._placed(torch.cat(label)), tokens)
        self.teacher = [self._placed(torch.cat(batches)) for batches in zip(*answers, strict=True)]

    def _placed(self, rows: Tensor) -> Tensor:
        return rows if self.places is None else rows[self.places]

    def terms(self, logits: Tensor) -> dict[str, Tensor]:
        """The value of each objective, unweighted."""
        student = Outputs(logits=self._placed(logits))
        values = {}
        for name, term in self.strategy.objectives.items():
            teacher = None
            if self.teacher:
                teacher = Outputs(logits=self.teacher[0 if term.member is None else 1 + int(term.member)])  # type: ignore[arg-type]
            values[name] = term(student, teacher, self.batch)
        return values

    def __call__(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its gradient [N, C]."""
        leaf = torch.from_numpy(logits).requires_grad_()
        weights = self.strategy.weights
        loss = torch.stack([weights[name] * value for name, value in self.terms(leaf).items()]).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient.numpy()


def _places(index: np.ndarray, epoch: np.ndarray) -> Tensor:
    """Where each row of the epoch [N] stands among the distinct ones [M]."""
    order = np.argsort(index)
    return torch.from_numpy(order[np.searchsorted(index[order], epoch)])


def _scores(answer: Outputs) -> list[Tensor]:
    """A teacher's logits, then those of its members."""
    outputs = [answer.logits, *(member.logits for member in answer.members or ())]
    return [logits.float().cpu() for logits in outputs if logits is not None]
