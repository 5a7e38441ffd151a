"""A teacher that runs beside the student."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from kdresearch.errors import UserError, choices
from kdresearch.package import Package
from kdresearch.structures import LOGITS, Batch, Outputs, Signature, Teacher, Tokens

PRECISIONS = ("32", "bf16")


def teacher_signature(model: Signature, classes: tuple[str, ...]) -> Signature:
    """That of a model which runs as a teacher: what it gives, and ``sensitivity`` where it gives ``embeddings``."""
    more = {"sensitivity"} if "embeddings" in model.fields else set()
    return replace(model, fields=model.fields | more, classes=tuple(classes))


class LiveTeacher:
    """A packaged classifier, frozen; it reads ``batch.teacher``.

    A plain object and no module, so that nothing trains it, saves it or puts it back into train mode.

    It provides what its model does, and ``sensitivity`` where that provides ``embeddings``.

    Args:
        package: from ``package.load``.
        precision: ``32``, or ``bf16`` autocast.
    """

    def __init__(self, package: Package, precision: str = "32") -> None:
        if precision not in PRECISIONS:
            raise UserError(f"teacher.precision: {choices(precision, PRECISIONS)}")
        self.model = package.model
        self.model.eval().requires_grad_(False)  # type: ignore[attr-defined]
        self.precision = precision
        self.device = torch.device("cpu")
        self.signature = teacher_signature(self.model.signature, package.classes)

    def to(self, device: torch.device | str) -> Teacher:
        self.device = torch.device(device)
        self.model.to(self.device)  # type: ignore[attr-defined]
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        if batch.teacher is None:
            raise ValueError("a live teacher reads batch.teacher, and this batch has none")
        return self.read(batch.teacher, needs)

    def read(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        """The outputs for tokens of the teacher's own tokenizer, in float32 and out of the graph.

        ``sensitivity`` is the gradient of each row's highest logit with respect to the row's embeddings, 0 on padding.
        Raises ValueError where ``needs`` names what the model does not provide.
        """
        tokens = tokens.to(self.device)
        if "sensitivity" in needs:
            return self._differentiate(tokens, needs)
        with torch.no_grad(), self._autocast():
            return Outputs(*map(_plain, self.model(tokens, needs)))

    def _differentiate(self, tokens: Tokens, needs: frozenset[str]) -> Outputs:
        own = needs - {"sensitivity"}
        # Whatever the caller is in: the distiller asks without gradients, and predictions are made in inference mode.
        with torch.inference_mode(False), torch.enable_grad(), self._autocast():
            answer = self.model(tokens, own | {"logits", "embeddings"})
            assert answer.logits is not None and answer.embeddings is not None
            # Rows do not see each other, so the gradient of the sum is the gradient of each.
            (gradient,) = torch.autograd.grad(answer.logits.max(dim=1).values.sum(), answer.embeddings)
            gradient = gradient.float().masked_fill(~tokens.mask[..., None], 0.0)
        unasked = dict.fromkeys({"logits", "embeddings"} - own)
        return Outputs(*map(_plain, answer._replace(sensitivity=gradient, **unasked)))

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _plain(field: Any) -> Any:
    """A field in float32 and out of the graph, through tuples; None and the mask as they are."""
    if isinstance(field, tuple):
        return tuple(map(_plain, field))
    return field.detach().float() if field is not None and field.is_floating_point() else field
