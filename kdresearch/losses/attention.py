"""Losses between attention maps [B, H, Q, K] and between the relations of queries, keys or values.

``mask`` [B, T] bool is True where both sides have a real token; without one every token counts. Q = K = T in
self-attention; Q = 1 is a pooling attention, whose one query is valid where the row has a token. A side is one tensor
or a sequence of layers, paired strictly. All are means over the valid queries (or pairs) of the batch, so that two
halves average to the whole where they hold as many.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdresearch.losses import checks
from kdresearch.losses.checks import Layers

ATTENTION_MSE_CONVENTIONS = ("house", "textbrewer", "textbrewer_sum", "tinybert")
ATTENTION_KL_CONVENTIONS = ("house", "textbrewer", "textbrewer_mean")
INPUTS = ("probabilities", "scores")


def attention_mse(student: Layers, teacher: Layers, *, mask: Tensor | None = None, convention: str = "house") -> Tensor:
    """Σ M_q·M_k·(A_s − A_t)² / Σ_{b,h} (valid queries · valid keys), mean over layers.

    (TinyBERT, Jiao et al. 2020, eq. 7.)

    Args:
        student, teacher: attention [B, H, T, T] (or [B, H, 1, T]), probabilities or scores before the softmax (as
            TinyBERT has it), both sides the same; or layers of them.
        mask: [B, T] bool.
        convention: ``house``, which TextBrewer's ``attention_mse`` with a mask is as well (``textbrewer``; without a
            mask that one sets all scores below −.001 to 0, which is not reproduced); ``textbrewer_sum``, its
            ``attention_mse_sum``: maps summed over the heads first; ``tinybert``, as its code does: scores of −100 and
            below set to 0, the plain mean over all positions, summed over layers.

    Raises:
        ValueError: shapes or head counts that differ, layers that do not pair, a mask that is not [B, T] bool, an
            unknown convention.
    """
    checks.one_of("convention", convention, ATTENTION_MSE_CONVENTIONS)
    values = []
    for s, t in checks.layers(student, teacher):
        s, t, queries, keys = _maps(s, t, mask)
        if convention == "tinybert":
            s, t = (x.masked_fill(x <= -100.0, 0.0) for x in (s, t))
            values.append((s - t).square().mean())
            continue
        if convention == "textbrewer_sum":
            s, t = s.sum(1, keepdim=True), t.sum(1, keepdim=True)
        s, t, valid = _blank(s, t, queries, keys)
        values.append(checks.mean((s - t).square(), valid))
    total = torch.stack(values)
    return total.sum() if convention == "tinybert" else total.mean()


def attention_kl(
    student: Layers,
    teacher: Layers,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    inputs: str = "probabilities",
    convention: str = "house",
) -> Tensor:
    """τ²·mean over heads and valid queries of KL(A_t‖A_s), keys renormalised over the valid ones.

    (MiniLM, Wang et al. 2020, §3.1, which has τ = 1.)

    Args:
        student, teacher: attention [B, H, T, T] (or [B, H, 1, T]); or layers of them, over which the mean is taken.
        mask: [B, T] bool.
        temperature: τ on the attention's logits: A^(1/τ), renormalised.
        inputs: ``probabilities``, or ``scores`` before the softmax; the value is the same for both.
        convention: ``house``; ``textbrewer`` (its ``attention_ce``, for scores only): cross-entropy in place of KL,
            each softmax over all the keys given, then masked; no τ²; ``textbrewer_mean`` (its ``attention_ce_mean``)
            the same of the scores' mean over heads.

    Raises:
        ValueError: shapes or head counts that differ, layers that do not pair, a mask that is not [B, T] bool, a
            temperature that is not positive, an unknown option, TextBrewer's conventions with probabilities (they
            would go through a second softmax).
    """
    checks.positive("temperature", temperature)
    checks.one_of("inputs", inputs, INPUTS)
    checks.one_of("convention", convention, ATTENTION_KL_CONVENTIONS)
    if convention != "house" and inputs != "scores":
        raise ValueError(
            f"convention {convention!r} takes a softmax of scores: give inputs='scores', not probabilities"
        )
    values = []
    for s, t in checks.layers(student, teacher):
        s, t, queries, keys = _maps(s, t, mask)
        if convention == "house":
            s, t, _ = _blank(s, t, queries, keys)
        if convention == "textbrewer_mean":
            s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
        if inputs == "probabilities":
            s, t = s.clamp(min=1e-30).log(), t.clamp(min=1e-30).log()
        s, t = s / temperature, t / temperature
        if convention != "house":
            entropy = -(F.softmax(t, -1) * F.log_softmax(s, -1)).masked_fill(~keys[:, None, None], 0.0).sum(-1)
            values.append(checks.mean(entropy, queries.unsqueeze(1)))
        else:
            values.append(_masked_kl(s, t, queries, keys) * temperature**2)
    return torch.stack(values).mean()


def value_relation(student: Layers, teacher: Layers, *, mask: Tensor | None = None) -> Tensor:
    """Mean over heads and valid queries of KL(R_t‖R_s), R = softmax(VVᵀ/√d) (MiniLM, Wang et al. 2020, §3.2).

    Args:
        student, teacher: values per head [B, H, T, d_s] and [B, H, T, d_t]; MiniLM reads the last layer's. The head
            widths may differ, the head counts may not. Or layers of them, over which the mean is taken.
        mask: [B, T] bool; keys are renormalised over the valid ones.

    Raises:
        ValueError: rows, heads or tokens that differ, layers that do not pair, a mask that is not [B, T] bool.
    """
    values = []
    for s, t in checks.layers(student, teacher):
        if s.dim() != 4 or t.dim() != 4 or s.shape[:3] != t.shape[:3] or not s.numel() or not t.numel():
            raise ValueError(f"values per head must be [B, H, T, d] of the same B, H and T: {checks.sides(s, t)}")
        valid = checks.real(mask, s.shape[0], s.shape[2], s.device)
        s, t = (x.masked_fill(~valid[:, None, :, None], 0.0) for x in checks.ready(s, t))
        values.append(_masked_kl(_relation(s), _relation(t), valid, valid))
    return torch.stack(values).mean()


def relation_heads(student: Layers, teacher: Layers, *, heads: int, mask: Tensor | None = None) -> Tensor:
    """Mean over heads and valid queries of KL(R_t‖R_s), R = softmax(XXᵀ/√d) per relation head.

    (MiniLMv2, Wang et al. 2021, §3.1.)

    Both sides are cut into ``heads`` relation heads, whatever their own head counts and widths. Given the queries,
    keys and values of a layer as a sequence, the mean of QQᵀ, KKᵀ and VVᵀ is taken: the paper's α of ⅓ each.

    Args:
        student, teacher: queries, keys or values [B, T, D_s] and [B, T, D_t], heads side by side; or a sequence.
        heads: A_r, a divisor of both widths. The paper has 48 for base-size and 64 for large-size teachers.
        mask: [B, T] bool; keys are renormalised over the valid ones.

    Raises:
        ValueError: rows or tokens that differ, a width that ``heads`` does not divide, sequences that do not pair, a
            mask that is not [B, T] bool.
    """
    if heads < 1:
        raise ValueError(f"heads must be 1 or more, not {heads}")
    values = []
    for s, t in checks.layers(student, teacher):
        s, t, valid = checks.states(s, t, mask, same_width=False)
        if s.shape[2] % heads or t.shape[2] % heads:
            raise ValueError(f"{heads} heads do not divide the widths: student {s.shape[2]}, teacher {t.shape[2]}")
        s, t = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (s, t))
        values.append(_masked_kl(_relation(s), _relation(t), valid, valid))
    return torch.stack(values).mean()


def _blank(student: Tensor, teacher: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both maps, 0 where query or key is not real (whatever stood there has no effect), and the pairs [B, 1, Q, K]."""
    valid = (queries.unsqueeze(2) & keys.unsqueeze(1)).unsqueeze(1)
    return student.masked_fill(~valid, 0.0), teacher.masked_fill(~valid, 0.0), valid


def _relation(x: Tensor) -> Tensor:
    """Scores x·xᵀ/√d [B, H, T, T] of x [B, H, T, d]."""
    return checks.product(x, x.transpose(2, 3)) / math.sqrt(x.shape[3])


def _masked_kl(student: Tensor, teacher: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Mean over heads and ``queries`` [B, Q] of KL between softmaxes over ``keys`` [B, K] of scores [B, H, Q, K]."""
    floor = torch.finfo(student.dtype).min / 2  # finite, where −inf would make the products NaN
    padding = ~keys[:, None, None]
    log_s, log_t = (F.log_softmax(x.clamp(min=floor).masked_fill(padding, floor), -1) for x in (student, teacher))
    rows = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    return checks.mean(rows, queries.unsqueeze(1))


def _maps(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sides' maps [B, H, Q, K], and which queries [B, Q] and keys [B, K] are real."""
    square = student.dim() == 4 and student.shape[2] in (1, student.shape[3])
    if not square or student.shape != teacher.shape or not student.numel():
        raise ValueError(
            f"attention must be [B, H, T, T] (or [B, H, 1, T]) and alike: {checks.sides(student, teacher)}"
        )
    rows, _, query_count, key_count = student.shape
    keys = checks.real(mask, rows, key_count, student.device)
    queries = keys if query_count == key_count else keys.any(1, keepdim=True)
    student, teacher = checks.ready(student, teacher)
    return student, teacher, queries, keys
