"""Losses between the relations of a batch's sentence vectors: distances, angles, similarities, contrasts.

Vectors are [B, D_s] and [B, D_t]; but for ``contrastive`` the widths may differ. All speak of the batch as a whole:
averaging two halves does not give the value of the whole, and a batch too small to have the relation gives 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdresearch.losses import checks

CONVENTIONS = ("house", "published")
ANCHORS = ("student", "teacher")


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """‖Ĝ_s − Ĝ_t‖_F² / B², Ĝ being XXᵀ with ℓ2-normalised rows (Tung & Mori 2019).

    Args:
        student, teacher: sentence vectors [B, D_s] and [B, D_t]. At B = 1 both sides are 1 and the loss is 0.

    Raises:
        ValueError: vectors that are not [B, D], or of different rows.
    """
    student, teacher = checks.vectors(student, teacher)
    g_s, g_t = (checks.unit(checks.product(x, x.T), floor=1e-18) for x in (student, teacher))
    return (g_s - g_t).square().sum() / len(student) ** 2


def pkt(student: Tensor, teacher: Tensor, *, convention: str = "house") -> Tensor:
    """(1/B)·Σ_j KL(p_t(·|j)‖p_s(·|j)), p(i|j) = K(i, j) / Σ_{k≠j} K(k, j), K = (1 + cos)/2 (Passalis & Tefas 2018).

    Args:
        student, teacher: sentence vectors [B, D_s] and [B, D_t]. Fewer than three rows have one neighbour each, or
            none, and give 0.
        convention: ``house`` leaves each row's similarity to itself out, as the paper does, and is a mean over rows;
            ``published``, as the authors' code does, keeps it and is the mean over B².

    Raises:
        ValueError: vectors that are not [B, D], or of different rows; an unknown convention.
    """
    student, teacher = checks.vectors(student, teacher)
    checks.one_of("convention", convention, CONVENTIONS)
    kernels = []
    for x in (student, teacher):
        direction = checks.unit(x)
        kernels.append(((1 + checks.product(direction, direction.T)) / 2).clamp(min=1e-7))
    if convention == "published":
        p_s, p_t = (k / k.sum(1, keepdim=True) for k in kernels)
        return (p_t * ((p_t + 1e-7) / (p_s + 1e-7)).log()).mean()
    size = len(student)
    neighbours = ~torch.eye(size, dtype=torch.bool, device=student.device)
    log_s, log_t = (F.log_softmax(k.log()[neighbours].view(size, size - 1), 1) for k in kernels)
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True) / size


def rkd_distance(student: Tensor, teacher: Tensor, *, convention: str = "house") -> Tensor:
    """Mean over pairs of Huber(ψ_s − ψ_t), ψ = ‖x_i − x_j‖ / its mean over the batch's pairs.

    (RKD-D, Park et al. 2019, §3.2.) Huber has δ = 1. Scaling or shifting either side's vectors changes nothing. Pairs
    at distance 0 count, with no gradient; a side whose vectors are all equal has distances 0.

    Args:
        student, teacher: sentence vectors [B, D_s] and [B, D_t]; B = 1 has no pairs and gives 0.
        convention: ``house`` is the mean over pairs of different rows; ``published``, as the authors' code does, over
            all B², the B zeros of rows with themselves included. The authors' weights are 25 (and 50 for the angle)
            on metric learning of images, and 1 (and 2) on classification.

    Raises:
        ValueError: vectors that are not [B, D], or of different rows; an unknown convention.
    """
    student, teacher = checks.vectors(student, teacher)
    checks.one_of("convention", convention, CONVENTIONS)
    size = len(student)
    psi_s, psi_t = (_relative(F.pdist(x)) for x in (student, teacher))
    total = F.smooth_l1_loss(psi_s, psi_t, reduction="sum")
    pairs = size * (size - 1) / 2 if convention == "house" else size**2 / 2
    return total / max(pairs, 0.5)


def rkd_angle(student: Tensor, teacher: Tensor, *, convention: str = "house") -> Tensor:
    """Mean over triplets of Huber(ψ_s − ψ_t), ψ = cos∠x_i x_j x_k at the corner x_j (RKD-A, Park et al. 2019, §3.2).

    Huber has δ = 1. Scaling, shifting or rotating either side's vectors changes nothing. Equal vectors have no
    direction between them: their cosine is 0, with no gradient. Memory grows with B²·D and B³.

    Args:
        student, teacher: sentence vectors [B, D_s] and [B, D_t]; fewer than three rows have no triplets and give 0.
        convention: ``house`` is the mean over triplets of different rows; ``published``, as the authors' code does,
            over all B³, those with a row twice included, which add 0.

    Raises:
        ValueError: vectors that are not [B, D], or of different rows; an unknown convention.
    """
    student, teacher = checks.vectors(student, teacher)
    checks.one_of("convention", convention, CONVENTIONS)
    size = len(student)
    cosines = []
    for x in (student, teacher):
        direction = checks.unit(x.unsqueeze(0) - x.unsqueeze(1))  # [j, i, D]
        cosines.append(checks.product(direction, direction.transpose(1, 2)))  # [j, i, k]
    same = torch.eye(size, dtype=torch.bool, device=student.device)
    angles = F.smooth_l1_loss(cosines[0], cosines[1], reduction="none").masked_fill(same, 0.0)  # i = k is no angle
    triplets = size * (size - 1) * (size - 2) if convention == "house" else size**3
    return angles.sum() / max(triplets, 1)


def contrastive(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.07,
    anchor: str = "student",
    batch_mask: Tensor | None = None,
    queue: Tensor | None = None,
    queue_mask: Tensor | None = None,
    in_batch: bool = True,
) -> Tensor:
    """Mean over B of −log( e^(s·t/τ) / (e^(s·t/τ) + Σ e^(s·n/τ)) ), InfoNCE of unit vectors (Oord et al. 2018, eq. 4).

    The positive t is the teacher's vector of the same row; the negatives n are the teacher's vectors of other rows, of
    the queue, or of both; with ``anchor="teacher"`` the sides change places, and the gradient is the student's all the
    same. It needs no labels. It is not 0 at equality, but never negative; it sees directions only.

    Args:
        student, teacher: sentence vectors [B, D] of one width.
        temperature: τ.
        anchor: the side whose vectors are the anchors.
        batch_mask: [B, B] bool, True where the row of the second place is a negative of the first's; the diagonal is
            the positives and does not count. None takes all other rows.
        queue: further negatives [K, D], vectors of the side that is not the anchor; detached. K must not exceed what
            the data has, or negatives repeat.
        queue_mask: [B, K] bool, True where an entry of the queue is a negative of the row; None takes all.
        in_batch: whether the batch's other rows are negatives at all.

    Raises:
        ValueError: vectors that are not [B, D] and alike, an unknown anchor, a queue that is not [K, D], a mask that is
            not bool and of its shape or has no queue, no negatives at all (``in_batch=False`` without a queue), a
            temperature that is not positive.
    """
    student, teacher = checks.vectors(student, teacher, same_width=True)
    checks.positive("temperature", temperature)
    checks.one_of("anchor", anchor, ANCHORS)
    mask = _in_batch_mask(student, batch_mask, in_batch)
    _check_queue(student, queue, queue_mask, in_batch)
    vectors = [checks.unit(student), checks.unit(teacher)]
    anchors, candidates = vectors if anchor == "student" else reversed(vectors)
    scores = checks.product(anchors, candidates.T).masked_fill(~mask, -torch.inf)
    if queue is not None:
        further = checks.product(anchors, checks.unit(queue.detach().to(anchors.dtype)).T)
        scores = torch.cat([scores, further if queue_mask is None else further.masked_fill(~queue_mask, -torch.inf)], 1)
    return -F.log_softmax(scores / temperature, 1)[:, : len(student)].diagonal().mean()


def _in_batch_mask(student: Tensor, batch_mask: Tensor | None, in_batch: bool) -> Tensor:
    """[B, B] bool: the positives, and the rows of the batch that are negatives."""
    size = len(student)
    if batch_mask is not None and (batch_mask.dtype != torch.bool or list(batch_mask.shape) != [size, size]):
        raise ValueError(f"batch_mask must be bool {[size, size]}, not {batch_mask.dtype} {list(batch_mask.shape)}")
    positives = torch.eye(size, dtype=torch.bool, device=student.device)
    if not in_batch:
        return positives
    return torch.ones_like(positives) if batch_mask is None else positives | batch_mask


def _check_queue(student: Tensor, queue: Tensor | None, mask: Tensor | None, in_batch: bool) -> None:
    """Raise ValueError unless the queue is [K, D] where there is one, and its mask bool [B, K]."""
    if queue is None and not in_batch:
        raise ValueError("in_batch=False leaves no negatives: give a queue")
    if queue is not None and (queue.dim() != 2 or queue.shape[1] != student.shape[1]):
        raise ValueError(f"queue must be [K, {student.shape[1]}], not {list(queue.shape)}")
    if mask is not None:
        shape = [len(student), 0 if queue is None else len(queue)]
        if queue is None or mask.dtype != torch.bool or list(mask.shape) != shape:
            raise ValueError(f"queue_mask must be bool {shape}, not {mask.dtype} {list(mask.shape)}")


def noise_contrastive(
    positive: Tensor, negative: Tensor, *, normaliser: Tensor | float, rows: int, temperature: float = 0.07
) -> Tensor:
    """−mean_b( log h(x⁺) + Σ_k log(1 − h(x⁻_k)) ) with h(x) = P(x) / (P(x) + K/N), P(x) = e^(x/τ) / Z.

    NCE as CRD and its authors' code have it (Tian et al. 2020): whether a similarity is of a pair, or one of K drawn
    from N rows. The gradient goes to both sides, because CRD trains the teacher's projection as well.

    Args:
        positive: cosines of the anchors with their own rows [B].
        negative: cosines of the anchors with K others [B, K].
        normaliser: Z; the authors' code fixes it at the first batch, at N times the mean of e^(x/τ).
        rows: N, of the data.
        temperature: τ.

    Raises:
        ValueError: cosines that are not [B] and [B, K], K or N of 0, a temperature or a Z that is not positive.
    """
    if positive.dim() != 1 or negative.dim() != 2 or len(negative) != len(positive) or not negative.numel():
        raise ValueError(
            f"cosines must be [B] of positives and [B, K] of negatives, not {list(positive.shape)} and "
            f"{list(negative.shape)}"
        )
    checks.positive("temperature", temperature)
    checks.positive("rows", rows)
    checks.positive("normaliser", float(normaliser))
    # h is the logistic function of log P − log(K/N).
    shift = math.log(float(normaliser)) + math.log(negative.shape[1] / rows)
    pairs, negatives = (x if x.dtype == torch.float64 else x.float() for x in (positive, negative))
    return (F.softplus(shift - pairs / temperature) + F.softplus(negatives / temperature - shift).sum(1)).mean()


def _relative(distances: Tensor) -> Tensor:
    """Distances by their mean; as they are where all are 0."""
    mean = distances.sum() / max(len(distances), 1)
    return distances / torch.where(mean > 0, mean, 1.0)
