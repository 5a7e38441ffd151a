"""Objectives on attention maps, and on the queries, keys and values that they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kdresearch import losses
from kdresearch.errors import UserError, choices
from kdresearch.objectives.layers import LayerMap, layer_pairs
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.pairing import attention, pair, states
from kdresearch.structures import Batch, Extract, Outputs, Reading, Signature

MAP_LOSSES = ("attention_kl", "attention_mse")
INPUTS = ("probabilities", "scores")
HEADS = ("auto", "match", "mean")
RELATIONS = ("q", "k", "v")
PADDED = -1e4  # what BERT's code adds to the scores of padding; published losses know it by that


class AttentionMaps(Objective):
    """The attention of mapped layers, by ``losses.attention_kl`` or ``losses.attention_mse``.

    Where a side pools by attention (one learned query, as in a BiLSTM), the other gives what its first token attends
    to, mean over its heads; a named layer map then pairs the last maps only.

    Args:
        loss: ``attention_kl`` or ``attention_mse``.
        inputs: ``probabilities``, as the models give them (after attention dropout, if any); or ``scores`` QKᵀ/√d,
            for which the models keep their fast attention. Scores do not add up by word.
        layers: see ``layer_pairs``; without 0, because embeddings have no attention.
        heads: ``match`` compares head by head; ``mean`` the means over heads; ``auto`` the first where both sides have
            as many.
        temperature: τ of ``attention_kl``.
        convention: a published variant of the loss; see there.
        member: of an ensemble, the teacher that it learns from, from 0.
    """

    needs_shared_tokens = True

    def __init__(
        self,
        loss: str = "attention_kl",
        inputs: str = "probabilities",
        layers: LayerMap = "uniform",
        heads: str = "auto",
        temperature: float = 1.0,
        convention: str = "house",
        member: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("loss", loss, MAP_LOSSES), ("inputs", inputs, INPUTS), ("heads", heads, HEADS)):
            if value not in allowed:
                raise UserError(f"{name}: {choices(value, allowed)}")
        if loss == "attention_mse" and temperature != 1:
            raise UserError(f"temperature={temperature} is for attention_kl; attention_mse has none: leave it at 1")
        of_kl = {"temperature": temperature, "inputs": inputs} if loss == "attention_kl" else {}
        self.loss: Callable[..., Tensor] = partial(getattr(losses, loss), convention=convention, **of_kl)
        self.loss(torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 0.5))  # raises ValueError for bad settings
        self.inputs, self.layers, self.heads, self.member = inputs, layers, heads, member
        self.needs = self.teacher_needs = frozenset({"qkv" if inputs == "scores" else "attention"})
        self.pairs: list[tuple[int, int]] = []
        self.counts = (0, 0)  # heads of student and teacher
        self.average = self.pooling = False

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Pair the layers; UserError where heads, tokens or pooling of the two models rule the settings out."""
        if teacher is None:
            return  # refused by the strategy, which knows the objective's name
        pools = {"student": pools_by_attention(student), "teacher": pools_by_attention(teacher)}
        if self.inputs == "scores":
            if reading.kind == "words":
                raise UserError(
                    "inputs=scores: student and teacher read different tokens of the same words, and scores do not "
                    "add up by word: use inputs=probabilities"
                )
            for side in (side for side, pooled in pools.items() if pooled):
                raise UserError(f"inputs=scores: the {side} pools by attention and has none: use inputs=probabilities")
        if not self.needs <= student.fields & teacher.fields:
            return
        depths = [1 if pools[side] else model.depth for side, model in (("student", student), ("teacher", teacher))]
        self.pairs = _with_attention(layer_pairs(self.layers, *depths))
        self.pooling = any(pools.values())
        if self.pooling and isinstance(self.layers, str):
            self.pairs = self.pairs[-1:]
        self.counts = (student.heads, teacher.heads)
        differ = student.heads != teacher.heads
        if self.heads == "match" and differ:
            raise UserError(
                f"heads=match: attention heads differ, {student.heads} of the student ({student.name}), "
                f"{teacher.heads} of the teacher: use heads=mean"
            )
        self.average = differ or self.heads == "mean" or self.pooling
        layers = [layer - 1 for _, layer in self.pairs]
        if self.inputs == "scores":
            self.teacher_extracts = {"qkv": _roles(layers, (0, 1))}
        else:
            self.teacher_extracts = {"attention": Extract(frozenset(layers), self.pooling, self.average)}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of the paired maps [B, H, N, N]."""
        assert teacher is not None
        pairing = pair(batch, student, teacher)
        student_maps = [self._map(student, i, self.counts[0], pairing.mask, pairing.student) for i, _ in self.pairs]
        teacher_maps = [self._map(teacher, j, self.counts[1], pairing.mask, pairing.teacher) for _, j in self.pairs]
        return self.loss(student_maps, teacher_maps, mask=pairing.mask)

    def _map(self, outputs: Outputs, layer: int, heads: int, mask: Tensor, member: Tensor | None) -> Tensor:
        """One layer's map [B, H or 1, N or 1, N]."""
        if self.inputs == "scores":
            assert outputs.qkv is not None
            query, key, _ = outputs.qkv[layer - 1]
            maps = _scores(query, key, heads).masked_fill(~mask[:, None, None], PADDED)
            return maps.mean(1, keepdim=True) if self.average else maps
        assert outputs.attention is not None
        maps = _full(outputs.attention[layer - 1])
        if self.pooling:
            maps = maps[:, :, :1]
        # Heads before words: one that attends to special tokens alone carries little about the words.
        return attention(maps.mean(1, keepdim=True) if self.average else maps, member)


class ValueRelation(Objective):
    """Attention and value relation of the last layers (MiniLM, Wang et al. 2020, §3.1-3.2).

    Both sides need as many heads; ``RelationHeads`` does without.

    Args:
        member: of an ensemble, the teacher that it learns from, from 0.
    """

    needs = teacher_needs = frozenset({"attention", "qkv"})
    needs_shared_tokens = True

    def __init__(self, member: int | None = None) -> None:
        super().__init__()
        self.member = member
        self.heads = 0

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Take the number of heads; UserError where the two models differ in it."""
        if teacher is None or not self.needs <= student.fields & teacher.fields:
            return  # refused by the strategy
        if student.heads != teacher.heads:
            raise UserError(
                f"values are compared head by head, and attention heads differ: {student.heads} of the student "
                f"({student.name}), {teacher.heads} of the teacher: use relation_heads, which regroups them"
            )
        self.heads = student.heads
        last = teacher.depth - 1
        self.teacher_extracts = {"attention": Extract(frozenset({last})), "qkv": _roles([last], (2,))}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of the last maps [B, H, N, N] and values [B, N, D]."""
        assert teacher is not None
        pairing = pair(batch, student, teacher)
        maps, values = [], []
        for side, member in ((student, pairing.student), (teacher, pairing.teacher)):
            assert side.attention is not None and side.qkv is not None
            maps.append(attention(side.attention[-1], member))
            values.append(_by_head(states(side.qkv[-1][2], member), self.heads))
        return losses.attention_kl(*maps, mask=pairing.mask) + losses.value_relation(*values, mask=pairing.mask)


class RelationHeads(Objective):
    """Relations among the queries, keys and values of one layer (MiniLMv2, Wang et al. 2021, §3.1).

    Args:
        heads: relation heads, a divisor of both widths; more of them compare more finely.
        layers: one pair [student, teacher]; None the last with the last. The paper prefers an upper middle layer of a
            large teacher (21 of BERT's 24).
        relations: some of ``q``, ``k`` and ``v``.
        member: of an ensemble, the teacher that it learns from, from 0.
    """

    needs = teacher_needs = frozenset({"qkv"})
    needs_shared_tokens = True

    def __init__(
        self,
        heads: int,
        layers: Sequence[int] | None = None,
        relations: Sequence[str] = RELATIONS,
        member: int | None = None,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise UserError(f"heads must be 1 or more, not {heads}")
        if layers is not None and (not isinstance(layers, Sequence) or [type(layer) for layer in layers] != [int, int]):
            raise UserError(f"layers must be one pair [student, teacher], not {layers}")
        for name in relations:
            if name not in RELATIONS:
                raise UserError(f"relations: {choices(name, RELATIONS)}")
        if not relations:
            raise UserError(f"relations: at least one of {', '.join(RELATIONS)}")
        self.heads, self.layers, self.member = heads, layers, member
        self.places = [RELATIONS.index(name) for name in relations]
        self.pair = (0, 0)

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Pair the layers; UserError for a layer that a side lacks, or a width that the heads do not divide."""
        if teacher is None or not self.needs <= student.fields & teacher.fields:
            return  # refused by the strategy
        layers = [self.layers] if self.layers is not None else [(student.depth, teacher.depth)]
        (self.pair,) = _with_attention(layer_pairs(layers, student.depth, teacher.depth))
        if student.width % self.heads or teacher.width % self.heads:
            raise UserError(
                f"{self.heads} relation heads do not divide the widths, {student.width} of the student "
                f"({student.name}) and {teacher.width} of the teacher: choose a divisor of "
                f"{math.gcd(student.width, teacher.width)}"
            )
        self.teacher_extracts = {"qkv": _roles([self.pair[1] - 1], self.places)}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of queries, keys and values [B, N, D] of the paired layers."""
        assert teacher is not None and student.qkv is not None and teacher.qkv is not None
        pairing = pair(batch, student, teacher)
        student_qkv, teacher_qkv = student.qkv[self.pair[0] - 1], teacher.qkv[self.pair[1] - 1]
        return losses.relation_heads(
            [states(student_qkv[place], pairing.student) for place in self.places],
            [states(teacher_qkv[place], pairing.teacher) for place in self.places],
            heads=self.heads,
            mask=pairing.mask,
        )


def pools_by_attention(model: Signature) -> bool:
    """Whether a model's attention is one learned query over the tokens [B, 1, 1, T], and not from token to token."""
    return model.heads == 1 and "attention" in model.fields and "qkv" not in model.fields


def _roles(layers: Sequence[int], places: Sequence[int]) -> Extract:
    """Queries (0), keys (1) or values (2) of layers that are counted from 0."""
    return Extract(frozenset(3 * layer + place for layer in layers for place in places))


def _with_attention(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if any(0 in layers for layers in pairs):
        raise UserError("layers: 0 is the embeddings, which have no attention: layers count from 1")
    return pairs


def _scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """QKᵀ/√d [B, H, T, T] of [B, T, D], in full precision."""
    query, key = _by_head(query, heads), _by_head(key, heads)
    with torch.autocast(query.device.type, enabled=False):
        return query @ key.transpose(2, 3) / math.sqrt(query.shape[3])


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[B, T, D], heads side by side, to [B, H, T, D / H] in full precision."""
    return _full(x).reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _full(x: Tensor) -> Tensor:
    """Float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()
