"""A model as a teacher: frozen, and run beside the student."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdresearch.errors import UserError, choices
from kdresearch.structures import LOGITS, Batch, Model, Outputs, Signature, Teacher, Tokens, check_signed

PRECISIONS = ("32", "bf16")


def teacher_signature(model: Signature, classes: tuple[str, ...] | None) -> Signature:
    """That of a model which runs as a teacher: what it gives, and ``sensitivity`` where it gives ``embeddings``."""
    extra = {"sensitivity"} if "embeddings" in model.fields else set()
    return replace(model, fields=model.fields | extra, classes=None if classes is None else tuple(classes))


class FrozenModel:
    """A model that answers batches: in eval mode, without gradient, in float32.

    A plain object and no module, so that nothing trains it, saves it or puts it back into train mode. It reads
    ``batch.teacher``, or what the student reads where there is nothing of its own.

    It provides what its model does, and ``sensitivity`` where that provides ``embeddings``.

    Args:
        model: its parameters stop requiring gradients.
        classes: names of its logits; None takes those of its signature, which may have none.
        precision: ``32``, or ``bf16`` autocast.

    Raises:
        UserError: a module without a signature, or an unknown precision.
    """

    def __init__(self, model: Model, classes: tuple[str, ...] | None = None, precision: str = "32") -> None:
        if precision not in PRECISIONS:
            raise UserError(f"teacher.precision: {choices(precision, PRECISIONS)}")
        check_signed("teacher", model)
        assert isinstance(model, nn.Module)
        model.eval().requires_grad_(False)
        self.model: Any = model
        self.classes = classes
        self.precision = precision
        self.device = torch.device("cpu")

    @property
    def signature(self) -> Signature:
        """The model's, as a teacher."""
        signature: Signature = self.model.signature
        return teacher_signature(signature, self.classes if self.classes is not None else signature.classes)

    def look_at(self, inputs: Any) -> None:
        """See ``structures.Model``."""
        self.model.look_at(inputs)

    def to(self, device: torch.device | str) -> Teacher:
        """Move the model to ``device``; returns itself."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        return self.read(batch.student if batch.teacher is None else batch.teacher, needs)

    def read(self, inputs: Any, needs: frozenset[str] = LOGITS) -> Outputs:
        """The outputs for inputs of the model's own, in float32 and out of the graph.

        ``sensitivity`` is the gradient of each row's highest logit with respect to the row's embeddings, 0 on padding.
        Raises ValueError where ``needs`` names what the model does not provide.
        """
        if isinstance(inputs, Tokens):
            inputs = inputs.to(self.device)
        if "sensitivity" in needs:
            return self._differentiate(inputs, needs)
        with torch.no_grad(), self._autocast():
            return Outputs(*map(_plain, self.model(inputs, needs)))

    def _differentiate(self, inputs: Any, needs: frozenset[str]) -> Outputs:
        fields = needs - {"sensitivity"}
        # Whatever the caller's mode: the distiller calls without gradients, and predictions are made in inference mode.
        with torch.inference_mode(False), torch.enable_grad(), self._autocast():
            outputs = self.model(inputs, fields | {"logits", "embeddings"})
            assert outputs.logits is not None and outputs.embeddings is not None and outputs.mask is not None
            # Rows do not see each other, so the gradient of the sum is the gradient of each.
            (gradient,) = torch.autograd.grad(outputs.logits.max(dim=1).values.sum(), outputs.embeddings)
            gradient = gradient.float().masked_fill(~outputs.mask[..., None], 0.0)
        unneeded = dict.fromkeys({"logits", "embeddings"} - fields)
        return Outputs(*map(_plain, outputs._replace(sensitivity=gradient, **unneeded)))

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _plain(field: Any) -> Any:
    """A field in float32 and out of the graph, through tuples; None and the mask as they are."""
    if isinstance(field, tuple):
        return tuple(map(_plain, field))
    return field.detach().float() if field is not None and field.is_floating_point() else field
