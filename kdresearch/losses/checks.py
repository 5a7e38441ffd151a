"""What every loss does to its arguments: shapes checked, float32 (float64 stays), the teacher detached.

Errors are plain ``ValueError``: losses know tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Layers = Tensor | Sequence[Tensor]
"""One tensor, or one per layer."""


def positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` > 0."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, not {value}")


def not_negative(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` ≥ 0."""
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, not {value}")


def fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 ≤ ``value`` ≤ 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], not {value}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError, naming the options, unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} {value!r}; one of: {', '.join(allowed)}")


def logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides' logits [B, C], ready to compute with; ValueError, naming the shapes, for any others."""
    if student.dim() != 2 or student.shape != teacher.shape or not student.numel():
        flatten = "; make rows of class scores by token first: logits.flatten(0, -2)" if student.dim() > 2 else ""
        raise ValueError(f"logits must be [B, C] and alike: {sides(student, teacher)}{flatten}")
    return ready(student, teacher)


def labelled(label: Tensor, classes: Tensor) -> Tensor:
    """Which rows [B] of ``classes`` [B, C] have a label; −1 says that there is none."""
    if label.shape != classes.shape[:1] or label.is_floating_point() or label.dtype == torch.bool:
        raise ValueError(f"label must be [B] integers: {label.dtype} {list(label.shape)}, logits {list(classes.shape)}")
    if ((label < -1) | (label >= classes.shape[1])).any():
        raise ValueError(f"labels must lie in [-1, {classes.shape[1] - 1}]: found {label.min()} to {label.max()}")
    return label >= 0


def vectors(student: Tensor, teacher: Tensor, *, same_width: bool = False) -> tuple[Tensor, Tensor]:
    """Both sides' sentence vectors [B, D], ready to compute with; widths may differ unless ``same_width``."""
    alike = student.shape[:1] == teacher.shape[:1] and (not same_width or student.shape == teacher.shape)
    if student.dim() != 2 or teacher.dim() != 2 or not alike or not student.numel() or not teacher.numel():
        raise ValueError(f"sentence vectors must be [B, D]{_same(same_width)}: {sides(student, teacher)}")
    return ready(student, teacher)


def states(
    student: Tensor, teacher: Tensor, mask: Tensor | None, *, same_width: bool = True, sentences: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides' token states [B, T, D], zero where ``mask`` [B, T] is False, and the mask.

    Zeros are filled in, not multiplied in, so that whatever stands on padding (inf and NaN too) has no effect.
    With ``sentences``, vectors [B, D] pass as one token each.
    """
    if sentences and mask is None and student.dim() == 2 and teacher.dim() == 2:
        student, teacher = student.unsqueeze(1), teacher.unsqueeze(1)
    alike = student.shape[:2] == teacher.shape[:2] and (not same_width or student.shape == teacher.shape)
    if student.dim() != 3 or teacher.dim() != 3 or not alike or not student.numel() or not teacher.numel():
        also = " (or [B, D] without a mask)" if sentences else ""
        raise ValueError(f"token states must be [B, T, D]{also}{_same(same_width)}: {sides(student, teacher)}")
    mask = real(mask, student.shape[0], student.shape[1], student.device)
    student, teacher = ready(student, teacher)
    padding = ~mask.unsqueeze(2)
    return student.masked_fill(padding, 0.0), teacher.masked_fill(padding, 0.0), mask


def real(mask: Tensor | None, rows: int, tokens: int, device: torch.device) -> Tensor:
    """``mask`` if it is [rows, tokens] bool; all True if it is None."""
    if mask is None:
        return torch.ones(rows, tokens, dtype=torch.bool, device=device)
    if mask.dtype != torch.bool or mask.shape != (rows, tokens):
        raise ValueError(f"mask must be bool [{rows}, {tokens}], not {mask.dtype} {list(mask.shape)}")
    return mask


def layers(student: Layers, teacher: Layers) -> list[tuple[Tensor, Tensor]]:
    """Student and teacher layer by layer; two plain tensors are one layer."""
    if isinstance(student, Tensor) != isinstance(teacher, Tensor):
        raise ValueError("one side is a tensor and the other a sequence of layers: both must be one or the other")
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return [(student, teacher)]
    if len(student) != len(teacher) or not len(student):
        raise ValueError(f"layers must pair one to one: {len(student)} of the student, {len(teacher)} of the teacher")
    return list(zip(student, teacher, strict=True))


def ready(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 (float64 stays), the teacher without gradient."""
    student = student if student.dtype == torch.float64 else student.float()
    return student, teacher.detach().to(student.dtype)


def mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` where ``valid`` (broadcast to them) is True; a 0 with a gradient path if it is nowhere."""
    valid = valid.expand_as(values)
    return values.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


def unit(x: Tensor, dim: int = -1, floor: Tensor | float = 1e-12) -> Tensor:
    """x / ‖x‖ along ``dim``; 0 with no gradient where ‖x‖ ≤ ``floor``, because a zero vector has no direction."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    there = norm > floor
    return torch.where(there, x / torch.where(there, norm, 1.0), 0.0)


def centred_unit(x: Tensor, dim: int = -1) -> Tensor:
    """(x − mean) / ‖x − mean‖ along ``dim``; 0 with no gradient where x is constant up to rounding."""
    floor = 4 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=dim, keepdim=True)
    return unit(x - x.mean(dim, keepdim=True), dim, floor)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the precision of its inputs, also where autocast would take bf16."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _same(width: bool) -> str:
    return " and alike" if width else " of the same rows"


def sides(student: Tensor, teacher: Tensor) -> str:
    """The shapes of both sides, for messages."""
    return f"student {list(student.shape)}, teacher {list(teacher.shape)}"
