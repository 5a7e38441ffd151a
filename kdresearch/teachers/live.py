"""A teacher that runs beside the student."""

from __future__ import annotations

from kdresearch.models.frozen import PRECISIONS, FrozenModel, teacher_signature
from kdresearch.package import Package
from kdresearch.structures import LOGITS, Batch, Outputs

__all__ = ["PRECISIONS", "LiveTeacher", "teacher_signature"]


class LiveTeacher(FrozenModel):
    """A packaged classifier, frozen; it reads ``batch.teacher``, the text by its own tokenizer.

    Args:
        package: from ``package.load``.
        precision: ``32``, or ``bf16`` autocast.
    """

    def __init__(self, package: Package, precision: str = "32") -> None:
        super().__init__(package.model, package.classes, precision)

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        if batch.teacher is None:
            raise ValueError("a live teacher reads batch.teacher, and this batch has none")
        return self.read(batch.teacher, needs)
