"""The tensors that are stored of a teacher: which of its outputs, how much of them, and by what numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdresearch.objectives.pairing import attention, states, word_members
from kdresearch.structures import RECORDED, Extract, Outputs, Signature, Tokens

NUMBERS = ("bf16", "int8")
"""What token-level knowledge may be stored as; int8 has one float32 scale for each vector (its largest value / 127)."""
_STORED = {"bf16": np.uint16, "int8": np.int8}  # numpy knows no bfloat16: these are its bits


@dataclass(frozen=True)
class Leaf:
    """One tensor of ``Outputs``, for each row with as many lines as it has tokens (or words), in a form of its own.

    Args:
        field, place: the tensor; see ``Extract.places``.
        first, average, words: see ``Extract``.
        numbers: one of ``NUMBERS``.
    """

    field: str
    place: int
    first: bool = False
    average: bool = False
    words: bool = False
    numbers: str = "bf16"

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        forms = [form for form in ("average", "first", "words") if getattr(self, form)]
        return ".".join([self.field, str(self.place), *forms, self.numbers])

    @property
    def dtype(self) -> Any:
        """Of its values in numpy; those of bf16 are their bits."""
        return _STORED[self.numbers]

    def shape(self, teacher: Signature, tokens: int) -> tuple[int, ...]:
        """The shape of a row of so many tokens, or words."""
        if self.field == "attention":
            return 1 if self.average else teacher.heads, 1 if self.first or _pools(teacher) else tokens, tokens
        width = {"hidden": teacher.width_of(self.place), "qkv": teacher.width}
        return 1 if self.first else tokens, width.get(self.field, teacher.embedding_width)

    def bytes(self, teacher: Signature, lengths: np.ndarray) -> np.ndarray:
        """What rows [N] of so many tokens take on disk [N]."""
        distinct, place = np.unique(lengths, return_inverse=True)
        shapes = [self.shape(teacher, int(tokens)) for tokens in distinct]
        scales = 4 if self.numbers == "int8" else 0
        item = np.dtype(self.dtype).itemsize
        return np.array([prod(shape) * item + prod(shape[:-1]) * scales for shape in shapes])[place]

    def take(self, outputs: Outputs, members: Tensor | None) -> Tensor:
        """Its part of a teacher's outputs, in its form.

        Args:
            members: [B, N, T] of the words; see ``pairing.word_members``.
        """
        tensor = tensors(getattr(outputs, self.field))[self.place]
        if self.field == "attention":
            tensor = tensor[:, :, :1] if self.first else tensor
            return attention(tensor.mean(1, keepdim=True) if self.average else tensor, members)
        return states(tensor[:, :1] if self.first else tensor, None if self.first else members)

    def encode(self, row: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """A row's values as they are stored, flat, and its scales where it has any."""
        if self.numbers == "bf16":
            return row.bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(-1), None
        scale = row.abs().amax(-1, keepdim=True) / 127 if row.numel() else row.new_zeros(*row.shape[:-1], 1)
        values = (row / scale.clamp(min=torch.finfo(scale.dtype).tiny)).round().to(torch.int8)
        return values.numpy().reshape(-1), scale.numpy().reshape(-1)

    def decode(self, values: np.ndarray, scales: np.ndarray | None) -> Tensor:
        """Float32 of stored values, and of the scales [..., 1] that belong to them."""
        if scales is None:
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(values).float() * torch.from_numpy(scales)


def leaves_of(extracts: Mapping[str, Extract], teacher: Signature, numbers: str, *, words: bool) -> list[Leaf]:
    """The tensors that hold what is read of a teacher, beside class scores and sentence vectors.

    Args:
        words: whether both sides read other tokens of the same words. They are stored by word where every field is
            compared so.
    """
    inside = {field: extract for field, extract in extracts.items() if field not in RECORDED}
    words = words and all(extract.words for extract in inside.values())
    return [
        Leaf(field, place, extract.first, extract.average, words, numbers)
        for field, extract in sorted(inside.items())
        for place in sorted(range(_count(field, teacher)) if extract.places is None else extract.places)
    ]


def members_of(tokens: Tokens, leaves: Iterable[Leaf]) -> Tensor | None:
    """[B, N, T] of the rows' words, where leaves are by word."""
    if not any(leaf.words for leaf in leaves):
        return None
    assert tokens.words is not None
    return word_members(tokens.words)[0]


def tensors(field: Any) -> list[Tensor]:
    """The tensors of a field, counted through."""
    return [field] if isinstance(field, Tensor) else [tensor for group in field for tensor in tensors(group)]


def assembled(field: str, teacher: Signature, stored: Mapping[int, Tensor]) -> Any:
    """A field of ``Outputs`` from its tensors by place; None stands for those that are not stored."""
    entries = [stored.get(place) for place in range(_count(field, teacher))]
    if field == "qkv":
        return tuple(tuple(entries[first : first + 3]) for first in range(0, len(entries), 3))
    return tuple(entries) if field in ("hidden", "attention") else entries[0]


def _count(field: str, teacher: Signature) -> int:
    """How many tensors a field has."""
    if field == "attention":
        return 1 if _pools(teacher) else teacher.depth
    return {"hidden": teacher.depth + 1, "qkv": 3 * teacher.depth}.get(field, 1)


def _pools(teacher: Signature) -> bool:
    """Whether its attention is one query's, whatever the number of tokens."""
    return teacher.heads == 1 and "qkv" not in teacher.fields
