"""A teacher that answers every row by models that were not trained on it (out-of-fold outputs)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdresearch.errors import UserError, choices
from kdresearch.structures import LOGITS, Batch, Outputs, Signature, Teacher, Tokens, index_of
from kdresearch.teachers.ensemble import AVERAGES


class CrossFittedTeacher:
    """k models of one recipe, each trained on all folds of the training rows but its own.

    A row is answered by the mean of the models that have not seen it: a training row by exactly one, any other by all.
    No model is ever asked about a row that it has seen.

    Args:
        models: at least two, of the same classes.
        trained_on: [N, k] bool: which models were trained on a row, by its corpus-wide index.
        average: ``probabilities``, whose logits are the log of the mean probability (of one model, too, so that all
            rows are told alike), or ``logits``.

    Raises:
        UserError: an unknown average, models that do not fit each other, or a row that every model has seen.
    """

    def __init__(self, models: Sequence[Teacher], trained_on: Tensor, average: str = "probabilities") -> None:
        if average not in AVERAGES:
            raise UserError(f"teacher.average: {choices(average, AVERAGES)}")
        names = [model.signature.classes for model in models]
        if len(models) < 2 or len(set(names)) > 1:
            raise UserError(f"teacher.folds: needs models of the same classes, not {names}")
        if trained_on.shape[1:] != (len(models),) or trained_on.all(1).any():
            raise UserError("teacher.folds: there are rows that every model was trained on")
        self.models, self.average = list(models), average
        self._unseen = ~trained_on
        self.signature = Signature(LOGITS, classes=names[0], name=type(self).__name__, recorded=True)

    def to(self, device: torch.device | str) -> Teacher:
        """Move the models to a device."""
        for model in self.models:
            model.to(device)
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        if needs - LOGITS:
            raise ValueError(f"a cross-fitted teacher gives logits, not {', '.join(sorted(needs - LOGITS))}")
        rows_of_data = index_of(batch, "a cross-fitted teacher")
        device, mean_of_logits = rows_of_data.device, self.average == "logits"
        unseen = self._unseen[rows_of_data.cpu()]  # [B, k]
        classes = len(self.signature.classes or ())
        scores = torch.full((*unseen.shape, classes), 0.0 if mean_of_logits else -torch.inf, device=device)
        for number, model in enumerate(self.models):
            rows = unseen[:, number].nonzero()[:, 0].to(device)
            if len(rows):
                logits = model(_part(batch, rows), LOGITS).logits
                assert logits is not None
                scores[rows, number] = logits if mean_of_logits else F.log_softmax(logits, 1)
        count = unseen.sum(1, keepdim=True).to(device)
        return Outputs(logits=scores.sum(1) / count if mean_of_logits else scores.logsumexp(1) - count.log())


def _part(batch: Batch, rows: Tensor) -> Batch:
    teacher = None if batch.teacher is None else _tokens(batch.teacher, rows)
    return Batch(batch.index[rows], batch.label[rows], _tokens(batch.student, rows), teacher)


def _tokens(tokens: Tokens, rows: Tensor) -> Tokens:
    words = None if tokens.words is None else tokens.words[rows]
    return Tokens(tokens.ids[rows], tokens.mask[rows], words)
