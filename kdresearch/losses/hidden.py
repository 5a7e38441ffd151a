"""Losses between token states [B, T, D], layer by layer, and between input sensitivities.

``mask`` [B, T] bool is True where both sides have a real token; without one every token counts. A side is one tensor
or a sequence of layers, paired strictly; widths must agree unless said otherwise. Token-level losses are means over
the valid tokens of the batch, so that two halves average to the whole where they hold as many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kdresearch.losses import checks
from kdresearch.losses.checks import Layers
from kdresearch.losses.logits import soft_label

HIDDEN_MSE_CONVENTIONS = ("house", "tinybert")
PATIENT_CONVENTIONS = ("house", "pkd")
SEMANTIC_DIVERGENCES = ("forward", "reverse")
SEMANTIC_CONVENTIONS = ("house", "norm")
GRAM_CONVENTIONS = ("house", "published", "mean")
NST_CONVENTIONS = ("house", "textbrewer")
ATTENTION_TRANSFER_CONVENTIONS = ("house", "published")
DISTANCES = ("norm", "cosine")

States = tuple[Tensor, Tensor, Tensor]
"""Both sides' states of a layer, and where they are real."""


def hidden_mse(student: Layers, teacher: Layers, *, mask: Tensor | None = None, convention: str = "house") -> Tensor:
    """Σ M·(h_s − h_t)² / (ΣM·D), mean over layers.

    (FitNets, Romero et al. 2015, §2.2; TinyBERT, Jiao et al. 2020, eq. 8.)

    Args:
        student, teacher: token states [B, T, D], or sentence vectors [B, D] without a mask; or layers of them.
        mask: [B, T] bool.
        convention: ``house``; ``tinybert``, as its code does: the plain mean over all positions, padding included,
            summed over the layers.

    Raises:
        ValueError: shapes that differ, layers that do not pair, a mask that is not [B, T] bool, an unknown convention.
    """
    checks.one_of("convention", convention, HIDDEN_MSE_CONVENTIONS)
    values = []
    for s, t in checks.layers(student, teacher):
        if convention == "tinybert":
            checks.states(s, t, mask, sentences=True)
            s, t = checks.ready(s, t)
            values.append((s - t).square().mean())
        else:
            s, t, valid = checks.states(s, t, mask, sentences=True)
            values.append(checks.mean((s - t).square(), valid.unsqueeze(2)))
    total = torch.stack(values)
    return total.sum() if convention == "tinybert" else total.mean()


def cosine(student: Layers, teacher: Layers, *, mask: Tensor | None = None) -> Tensor:
    """Mean over valid tokens of 1 − cos(h_s, h_t), mean over layers (DistilBERT, Sanh et al. 2019, §2).

    Computed as ½‖ĥ_s − ĥ_t‖², which is exactly 0 at equality. A zero vector has no direction: it counts 0 against
    another zero vector and ½ else, with no gradient. Scaling either side's states changes nothing.

    Args:
        student, teacher: token states [B, T, D], or sentence vectors [B, D] without a mask; or layers of them.
        mask: [B, T] bool.

    Raises:
        ValueError: shapes that differ, layers that do not pair, a mask that is not [B, T] bool.
    """
    values = []
    for s, t in checks.layers(student, teacher):
        s, t, valid = checks.states(s, t, mask, sentences=True)
        values.append(checks.mean((checks.unit(s) - checks.unit(t)).square().sum(2) / 2, valid))
    return torch.stack(values).mean()


def patient(student: Layers, teacher: Layers, *, mask: Tensor | None = None, convention: str = "house") -> Tensor:
    """‖ĥ_s − ĥ_t‖² of the first token, ĥ = h/‖h‖: mean over B, mean over layers (PKD, Sun et al. 2019, §3).

    Args:
        student, teacher: token states [B, T, D], of which the first token is read, or vectors [B, D] without a mask;
            or layers of them.
        mask: [B, T] bool; rows whose first token is not real do not count.
        convention: ``house``; ``pkd``, as its code does, is the mean over B·L·D (its weights are 10 to 1000).

    Raises:
        ValueError: shapes that differ, layers that do not pair, a mask that is not [B, T] bool, an unknown convention.
    """
    checks.one_of("convention", convention, PATIENT_CONVENTIONS)
    values = []
    for s, t in checks.layers(student, teacher):
        s, t, valid = checks.states(s, t, mask, sentences=True)
        value = checks.mean((checks.unit(s[:, 0]) - checks.unit(t[:, 0])).square().sum(1), valid[:, 0])
        values.append(value / s.shape[2] if convention == "pkd" else value)
    return torch.stack(values).mean()


def semantic(
    student: Tensor,
    teacher: Tensor,
    *,
    student_hidden: Layers,
    teacher_hidden: Layers,
    mask: Tensor | None = None,
    weight: float = 0.5,
    temperature: float = 1.0,
    divergence: str = "forward",
    convention: str = "house",
) -> Tensor:
    """w·KL + (1 − w)·(1/N)·Σ_i ‖h_s^i − h_t^i‖² over N layers, KL being ``soft_label``.

    Args:
        student, teacher: logits [B, C].
        student_hidden, teacher_hidden: N layers of token states [B, T, D] (or of vectors [B, D], without a mask).
        mask: [B, T] bool.
        weight: w, in [0, 1].
        temperature: τ of the KL term.
        divergence: ``forward`` KL(p_t‖p_s) or ``reverse`` KL(p_s‖p_t).
        convention: ``house`` is ``hidden_mse``, the mean over valid tokens and D; ``norm`` sums over D as the formula
            has it, which makes the layer term D times larger.

    Raises:
        ValueError: shapes that differ, layers that do not pair, a weight outside [0, 1], an unknown option.
    """
    checks.fraction("weight", weight)
    checks.one_of("divergence", divergence, SEMANTIC_DIVERGENCES)
    checks.one_of("convention", convention, SEMANTIC_CONVENTIONS)
    values = []
    for s, t in checks.layers(student_hidden, teacher_hidden):
        value = hidden_mse(s, t, mask=mask)
        values.append(value * s.shape[-1] if convention == "norm" else value)
    kl = soft_label(student, teacher, temperature=temperature, divergence=divergence)
    return weight * kl + (1 - weight) * torch.stack(values).mean()


def fsp(student: Layers, teacher: Layers, *, mask: Tensor | None = None, convention: str = "house") -> Tensor:
    """Mean over B of ‖G_s − G_t‖_F² / ‖G_t‖_F², G = F₁ᵀF₂ / (valid tokens) [D₁, D₂] (FSP, Yim et al. 2017, eq. 1-2).

    F₁ and F₂ are consecutive layers of one network; tokens stand where the paper has positions of an image. Divided by
    the size of the teacher's, it is 1 for a student that says nothing, whatever the widths: G has D₁·D₂ entries, each
    a product of two features, and its square alone can be thousands or thousandths.

    Args:
        student, teacher: two or more layers [B, T, D_i], D_i alike on both sides; the mean over consecutive pairs.
        mask: [B, T] bool; rows with no valid token do not count.
        convention: ``house``; ``published`` is ‖G_s − G_t‖_F², as in the paper; ``mean`` its mean over the entries, as
            the code of RepDistiller and TextBrewer has it.

    Raises:
        ValueError: shapes that differ, layers that do not pair, fewer than two of them or of other tokens, a mask that
            is not [B, T] bool, an unknown convention.
    """
    pairs = [checks.states(s, t, mask) for s, t in checks.layers(student, teacher)]
    if len(pairs) < 2:
        raise ValueError("fsp takes two layers or more: its matrices are between consecutive ones")
    if any(valid.shape != pairs[0][2].shape for _, _, valid in pairs):
        raise ValueError("fsp takes layers of the same tokens")
    return _between(list(pairwise(pairs)), convention)


def gram(student: Layers, teacher: Layers, *, mask: Tensor | None = None, convention: str = "house") -> Tensor:
    """``fsp`` of each layer with itself: Gram matrices FᵀF / (valid tokens), which features go together.

    The style matrices of Gatys et al. 2016, eq. 3; not FSP, which is between two layers.

    Args:
        student, teacher: token states [B, T, D], or layers of them, over which the mean is taken.
        mask, convention: see ``fsp``.

    Raises:
        ValueError: shapes that differ, layers that do not pair, a mask that is not [B, T] bool, an unknown convention.
    """
    pairs = [checks.states(s, t, mask) for s, t in checks.layers(student, teacher)]
    return _between(list(zip(pairs, pairs, strict=True)), convention)


def _between(pairs: Sequence[tuple[States, States]], convention: str) -> Tensor:
    """Mean over B and pairs of layers of the distance between the two sides' F₁ᵀF₂."""
    checks.one_of("convention", convention, GRAM_CONVENTIONS)
    values = []
    for first, second in pairs:
        valid = first[2]
        count = valid.sum(1).clamp(min=1)[:, None, None]
        g_s, g_t = (checks.product(a.transpose(1, 2), b) / count for a, b in zip(first[:2], second[:2], strict=True))
        rows = (g_s - g_t).square().sum((1, 2))
        if convention == "house":
            size = g_t.square().sum((1, 2))
            rows = rows / torch.where(size > 0, size, 1.0)
        elif convention == "mean":
            rows = rows / g_s[0].numel()
        values.append(checks.mean(rows, valid.any(1)))
    return torch.stack(values).mean()


def nst(student: Layers, teacher: Layers, *, mask: Tensor | None = None, convention: str = "house") -> Tensor:
    """Squared MMD, polynomial kernel (aᵀb)², between the two sides' neurons, mean over B and layers.

    (NST, Huang & Wang 2017.) A neuron is one feature's ℓ2-normalised course over the row's valid tokens. Summing
    the kernel over all pairs of neurons gives ‖F_sF_sᵀ/D_s − F_tF_tᵀ/D_t‖_F² over token pairs, which is what is
    computed: never negative, and widths may differ. Scaling a feature changes nothing.

    Args:
        student, teacher: token states [B, T, D_s] and [B, T, D_t], or layers of them.
        mask: [B, T] bool; rows with no valid token do not count.
        convention: ``house``, as published; ``textbrewer`` (its ``mmd_loss``): no normalisation, and the mean over
            the valid token pairs of the batch.

    Raises:
        ValueError: rows or tokens that differ, layers that do not pair, a mask that is not [B, T] bool, an unknown
            convention.
    """
    checks.one_of("convention", convention, NST_CONVENTIONS)
    values = []
    for s, t in checks.layers(student, teacher):
        s, t, valid = checks.states(s, t, mask, same_width=False)
        if convention == "house":
            s, t = checks.unit(s, 1), checks.unit(t, 1)
        g_s, g_t = (checks.product(x, x.transpose(1, 2)) / x.shape[2] for x in (s, t))
        difference = (g_s - g_t).square()
        if convention == "house":
            values.append(checks.mean(difference.sum((1, 2)), valid.any(1)))
        else:
            values.append(checks.mean(difference, valid.unsqueeze(1) & valid.unsqueeze(2)))
    return torch.stack(values).mean()


def attention_transfer(
    student: Layers, teacher: Layers, *, mask: Tensor | None = None, convention: str = "house"
) -> Tensor:
    """Σ_t (q_s − q_t)², mean over B and layers; q = Q / ‖Q‖₂ over the row's positions, Q = Σ_d h_d².

    (AT, Zagoruyko & Komodakis 2017, eq. 1-2, with F²_sum.) Which positions of an image, or which tokens, a layer is
    strong at; widths may differ. The paper has the norm itself, its code the square, as here.

    Args:
        student, teacher: states [B, T, D_s] and [B, T, D_t], or layers of them; T may be the H·W places of a map.
        mask: [B, T] bool; rows with no valid token do not count.
        convention: ``house``; ``published`` is the authors' code: the mean over positions too, summed over layers,
            without the factor β / 2 that they weight it by.

    Raises:
        ValueError: rows or tokens that differ, layers that do not pair, a mask that is not [B, T] bool, an unknown
            convention.
    """
    checks.one_of("convention", convention, ATTENTION_TRANSFER_CONVENTIONS)
    values = []
    for s, t in checks.layers(student, teacher):
        s, t, valid = checks.states(s, t, mask, same_width=False)
        rows = (checks.unit(s.square().sum(2)) - checks.unit(t.square().sum(2))).square()
        if convention == "published":
            values.append(checks.mean(rows, valid))
        else:
            values.append(checks.mean(rows.sum(1), valid.any(1)))
    total = torch.stack(values)
    return total.sum() if convention == "published" else total.mean()


def jacobian(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, distance: str = "norm") -> Tensor:
    """Distance between two sides' sensitivities ∂(logit of the teacher's class)/∂(input embeddings).

    (Srinivas & Fleuret 2018; Czarnecki et al. 2017, Sobolev training.)

    Args:
        student, teacher: gradients [B, T, D] by token, or pooled by word. The student's must have been computed with
            ``create_graph=True`` to train it.
        mask: [B, T] bool.
        distance: ``norm``: ‖n̂_s − n̂_t‖², where n is the row's vector of gradient norms, one per valid token, and n̂ =
            n/‖n‖; mean over the rows that have a token; widths may differ. ``cosine``: mean over valid tokens of
            1 − cos(g_s, g_t), as ``cosine``; widths must agree. Neither sees the scale of a side's gradients; a
            gradient of 0 has no direction and gets no gradient.

    Raises:
        ValueError: shapes that differ, a mask that is not [B, T] bool, an unknown distance.
    """
    checks.one_of("distance", distance, DISTANCES)
    if distance == "cosine":
        return cosine(student, teacher, mask=mask)
    student, teacher, valid = checks.states(student, teacher, mask, same_width=False)
    n_s, n_t = (checks.unit(torch.linalg.vector_norm(x, dim=2)) for x in (student, teacher))
    return checks.mean((n_s - n_t).square().sum(1), valid.any(1))
