"""Tokens side by side: as they are where both sides read the same, pooled to words where they do not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdresearch.structures import Batch, Outputs, Tokens


class Pairing(NamedTuple):
    """Where both sides have something to compare, and what it is made of."""

    mask: Tensor  # [B, N] bool
    student: Tensor | None = (
        None  # [B, N, T] float: 1 where a token is part of a word; None takes the tokens themselves
    )
    teacher: Tensor | None = None


def pair(batch: Batch, student: Outputs, teacher: Outputs) -> Pairing:
    """The N tokens, or the words of the text, that both sides read.

    Words are compared where ``batch`` says which word each token belongs to. Those that one side does not have
    (truncated differently) and tokens that belong to none (special tokens) are left out.

    Raises:
        ValueError: tokens that differ, in a batch that says nothing of words.
    """
    assert student.mask is not None and teacher.mask is not None
    student_words, teacher_words = (
        inputs.words if isinstance(inputs, Tokens) else None for inputs in (batch.student, batch.teacher)
    )
    if student_words is None or teacher_words is None:
        if student.mask.shape != teacher.mask.shape:
            raise ValueError(
                f"the student reads {list(student.mask.shape)} tokens and the teacher {list(teacher.mask.shape)}: "
                "both must read the same, or the batch must say which words they belong to"
            )
        return Pairing(student.mask & teacher.mask)
    members = word_members(student_words, teacher_words)
    return Pairing(members[0].any(2), *members)


def word_members(*sides: Tensor) -> list[Tensor]:
    """For the words [B, T] of the tokens of each side, members [B, N, T] of the N words that all sides have, in order.

    They are floats, 1 where a token is part of a word; a row of fewer words has none in the last ones.
    """
    size = int(torch.stack([words.max() for words in sides]).max()) + 1
    common = torch.stack([_present(words, size) for words in sides]).all(0)
    place = common.cumsum(1).masked_fill(~common, 0)  # 1.. for the words of all sides; 0 for the rest
    number = int(place.max()) if place.numel() else 0
    slots = torch.arange(1, max(1, number) + 1, device=place.device)
    places = torch.cat([place.new_zeros(len(place), 1), place], 1)
    slot = [places.gather(1, words + 1) for words in sides]  # -1 falls into slot 0
    return [(numbers.unsqueeze(1) == slots[:, None]).float() for numbers in slot]


def states(hidden: Tensor, member: Tensor | None) -> Tensor:
    """Token states [B, T, D] as they are, or the mean over each word's tokens [B, N, D]."""
    if member is None:
        return hidden
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    member = member.to(hidden.dtype)
    share = member / member.sum(2, keepdim=True).clamp(min=1)
    with torch.autocast(hidden.device.type, enabled=False):
        return share @ hidden


def attention(maps: Tensor, member: Tensor | None) -> Tensor:
    """Attention probabilities [B, H, Q, T] as they are, or from word to word [B, H, Q or N, N].

    What a word attends to is the mean over its tokens; what is paid to it is their sum (Clark et al. 2019, §4.1). A
    single query (Q = 1 < T, pooling attention) stays one. Rows are renormalised over the words compared.
    """
    if member is None:
        return maps
    maps = maps if maps.dtype == torch.float64 else maps.float()
    member = member.to(maps.dtype).unsqueeze(1)
    with torch.autocast(maps.device.type, enabled=False):
        maps = maps @ member.transpose(2, 3)
        if maps.shape[2] == member.shape[3]:
            maps = member @ maps  # their sum, which the next line makes the mean
    return maps / maps.sum(3, keepdim=True).clamp(min=1e-12)


def _present(words: Tensor, size: int) -> Tensor:
    """[B, size] bool: which words a side has a token of."""
    there = torch.zeros(len(words), size + 1, dtype=torch.bool, device=words.device)
    return there.scatter(1, words + 1, True)[:, 1:]
