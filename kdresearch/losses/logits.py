"""Losses between class scores: rows of logits [B, C].

Scores by token [B, T, C] are rows after ``logits.flatten(0, -2)``, or ``logits[mask]`` of the real tokens alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdresearch.losses import checks

DIVERGENCES = ("forward", "reverse", "jsd")
SOFT_LABEL_CONVENTIONS = ("house", "mean", "textbrewer")
LOGIT_MSE_CONVENTIONS = ("house", "textbrewer")
STANDARDISED_CONVENTIONS = ("house", "published")
WEIGHTED_CONVENTIONS = ("house", "published")
BETA = 0.5


def soft_label(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = BETA,
    convention: str = "house",
) -> Tensor:
    """τ²·(1/B)·Σ_b KL(p_t‖p_s), p = softmax(z/τ) (Hinton et al. 2015, §2).

    Args:
        student, teacher: logits [B, C].
        temperature: τ.
        divergence: ``forward`` KL(p_t‖p_s); ``reverse`` KL(p_s‖p_t); ``jsd``, the generalised Jensen-Shannon
            divergence β·KL(p_t‖m) + (1−β)·KL(p_s‖m) with m = β·p_t + (1−β)·p_s (Agarwal et al. 2024, eq. 1),
            which is defined as forward KL at β = 0 and as reverse KL at β = 1.
        convention: ``house``; ``mean`` divides by B·C (as published code for PKD and TAKD does); ``textbrewer`` is
            the cross-entropy −Σ_c p_t log p_s with no τ².

    Raises:
        ValueError: shapes that differ or are empty, a temperature that is not positive, an unknown option, a β that
            the divergence does not have.
    """
    student, teacher = checks.logits(student, teacher)
    checks.positive("temperature", temperature)
    checks.one_of("divergence", divergence, DIVERGENCES)
    checks.one_of("convention", convention, SOFT_LABEL_CONVENTIONS)
    checks.fraction("beta", beta)
    if beta != BETA and divergence != "jsd":
        raise ValueError(f"beta={beta} is of divergence='jsd', and {divergence!r} has none: leave it at {BETA}")
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    if convention == "textbrewer":
        if divergence != "forward":
            raise ValueError(f"convention 'textbrewer' is a forward cross-entropy; divergence={divergence!r} has none")
        return -(log_t.exp() * log_s).sum(1).mean()
    if divergence == "forward" or (divergence == "jsd" and beta == 0):
        rows = _kl(log_t, log_s)
    elif divergence == "reverse" or (divergence == "jsd" and beta == 1):
        rows = _kl(log_s, log_t)
    else:
        log_m = (log_t + math.log(beta)).logaddexp(log_s + math.log1p(-beta))
        rows = beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)
    value = rows.mean() * temperature**2
    return value / student.shape[1] if convention == "mean" else value


def pseudo_label(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, hard: bool = False) -> Tensor:
    """−τ²·(1/B)·Σ_b Σ_c p_t log p_s, p = softmax(z/τ), over pseudo-samples (He et al. 2022, GAL; Ye et al. 2022).

    A cross-entropy, as the formula is published: ``soft_label`` plus τ²·H(p_t), which does not depend on the student,
    so that the gradients are the same and the values are not to be compared.

    Args:
        student, teacher: logits [B, C].
        temperature: τ, of the soft labels.
        hard: −(1/B)·Σ_b log p_s(ŷ), ŷ the teacher's class, instead; the temperature does not enter it.

    Raises:
        ValueError: shapes that differ or are empty, a temperature that is not positive.
    """
    student, teacher = checks.logits(student, teacher)
    checks.positive("temperature", temperature)
    if hard:
        return F.cross_entropy(student, teacher.argmax(1))
    return F.cross_entropy(student / temperature, F.softmax(teacher / temperature, 1)) * temperature**2


def logit_mse(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, convention: str = "house") -> Tensor:
    """Mean over B and C of (z_s − z_t)² (Ba & Caruana 2014; Tang et al. 2019).

    Args:
        student, teacher: logits [B, C].
        temperature: τ of the ``textbrewer`` convention, which compares z/τ.

    Raises:
        ValueError: shapes that differ or are empty, a temperature that is not positive, or other than 1 under the
            house convention, an unknown convention.
    """
    student, teacher = checks.logits(student, teacher)
    checks.positive("temperature", temperature)
    checks.one_of("convention", convention, LOGIT_MSE_CONVENTIONS)
    if convention == "house" and temperature != 1:
        raise ValueError(
            f"temperature={temperature}: the house convention compares the logits as they are; 'textbrewer' has one"
        )
    return F.mse_loss(student / temperature, teacher / temperature)


def decoupled(
    student: Tensor,
    teacher: Tensor,
    *,
    label: Tensor,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    nontarget_weight: float = 8.0,
) -> Tensor:
    """τ²·(α·TCKD + β·NCKD), each a mean over the labelled rows (Zhao et al. 2022, §3).

    TCKD = KL(b_t‖b_s) with b = (p_y, 1 − p_y), p = softmax(z/τ) and y the label; NCKD = KL(p̂_t‖p̂_s) with p̂ the
    softmax over the other classes only. Weighting NCKD of each row by 1 − p_t,y gives ``soft_label`` back. With two
    classes NCKD is identically 0.

    Args:
        student, teacher: logits [B, C], C ≥ 2.
        label: y [B] integers; rows of −1 (unlabelled) are skipped, and a batch with no label gives 0.
        temperature: τ.
        target_weight, nontarget_weight: α and β. The paper and its code: α = 1, β = 8, τ = 4 (CIFAR-100) and a
            linear warm-up of the whole term over 20 epochs, which is the caller's.

    Raises:
        ValueError: shapes that differ or are empty, one class, a label outside [−1, C), a temperature that is not
            positive, a weight below 0.
    """
    student, teacher = checks.logits(student, teacher)
    checks.positive("temperature", temperature)
    checks.not_negative("target_weight", target_weight)
    checks.not_negative("nontarget_weight", nontarget_weight)
    classes = student.shape[1]
    if classes < 2:
        raise ValueError("decoupled needs two classes or more: there is no class beside the label's")
    keep = checks.labelled(label, student)
    target = F.one_hot(label[keep].long(), classes).bool()
    binary, nontarget = [], []
    for logits in (student[keep] / temperature, teacher[keep] / temperature):
        rest = logits[~target].view(-1, classes - 1)
        split = torch.cat([logits[target].unsqueeze(1), rest.logsumexp(1, keepdim=True)], 1)
        binary.append(F.log_softmax(split, 1))
        nontarget.append(F.log_softmax(rest, 1))
    rows = target_weight * _kl(binary[1], binary[0]) + nontarget_weight * _kl(nontarget[1], nontarget[0])
    return rows.sum() / max(len(rows), 1) * temperature**2


def correlation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> Tensor:
    """τ²·(β·mean_b(1 − ρ(p_s[b], p_t[b])) + γ·mean_c(1 − ρ(p_s[:, c], p_t[:, c]))) (DIST, Huang et al. 2022).

    ρ is Pearson's correlation and p = softmax(z/τ): the first term compares a row's classes, the second a class over
    the batch. Computed as 1 − ρ = ½‖û − v̂‖² of the centred and normalised vectors, which is exactly 0 at equality. A
    constant vector (a uniform row; any class at B = 1) has no direction: it counts 0 against another constant one and
    ½ else, with no gradient; published code gives 1. The two-class row term has no gradient.

    Args:
        student, teacher: logits [B, C].
        temperature: τ.
        inter_weight, intra_weight: β (between classes) and γ (within a class).

    The second term is about the batch as a whole: averaging two halves does not give the value of the whole.

    Raises:
        ValueError: shapes that differ or are empty, a temperature that is not positive, a weight below 0.
    """
    student, teacher = checks.logits(student, teacher)
    checks.positive("temperature", temperature)
    checks.not_negative("inter_weight", inter_weight)
    checks.not_negative("intra_weight", intra_weight)
    p_s, p_t = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    inter = _uncorrelated(p_s, p_t, 1).mean()
    intra = _uncorrelated(p_s, p_t, 0).mean()
    return (inter_weight * inter + intra_weight * intra) * temperature**2


def standardised(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, convention: str = "house") -> Tensor:
    """``soft_label`` of the standardised logits (z − mean) / std, over the classes of a row (Sun et al. 2024).

    The loss does not change when either side's row is shifted, or scaled by a positive number.

    Args:
        student, teacher: logits [B, C]. Rows of equal logits standardise to 0, with no gradient. With two classes
            there is no gradient at all: every row becomes (1, −1) or (−1, 1).
        temperature: the base temperature τ.
        convention: ``house`` divides by the population standard deviation √(Σ(z − mean)²/C); ``published``, as the
            authors' code does, by the sample's √(Σ(z − mean)²/(C − 1)) + 1e-7.

    Raises:
        ValueError: shapes that differ or are empty, one class, a temperature that is not positive, an unknown
            convention.
    """
    student, teacher = checks.logits(student, teacher)
    checks.one_of("convention", convention, STANDARDISED_CONVENTIONS)
    if student.shape[1] < 2:
        raise ValueError("standardised needs two classes or more: one logit has no spread")
    if convention == "published":
        student, teacher = ((z - z.mean(1, True)) / (z.std(1, keepdim=True) + 1e-7) for z in (student, teacher))
    else:
        student, teacher = (math.sqrt(z.shape[1]) * checks.centred_unit(z) for z in (student, teacher))
    return soft_label(student, teacher, temperature=temperature)


def weighted_soft_label(
    student: Tensor, teacher: Tensor, *, label: Tensor, temperature: float = 2.0, convention: str = "house"
) -> Tensor:
    """τ²·mean_b w_b·KL(p_t‖p_s) with w_b = 1 − exp(−CE_s/CE_t), detached (Zhou et al. 2021).

    CE is each side's cross-entropy with the label at temperature 1 (CE_t plus 1e-7, as the authors' code has it):
    where the teacher knows much better than the student the weight goes to 1, where it is the one in error to 0.

    Args:
        student, teacher: logits [B, C].
        label: [B] integers; rows of −1 (unlabelled) are skipped, the mean is over the others, and a batch with no
            label gives 0.
        temperature: τ. The authors use τ = 2 and a weight of 2.5 on the whole.
        convention: ``house``; ``published``, as the authors' code does, has the cross-entropy −Σ_c p_t log p_s in
            place of KL, which has the same gradient.

    Raises:
        ValueError: shapes that differ or are empty, a label outside [−1, C), a temperature that is not positive, an
            unknown convention.
    """
    student, teacher = checks.logits(student, teacher)
    checks.positive("temperature", temperature)
    checks.one_of("convention", convention, WEIGHTED_CONVENTIONS)
    keep = checks.labelled(label, student)
    student, teacher, label = student[keep], teacher[keep], label[keep].long()
    wrong = F.cross_entropy(student.detach(), label, reduction="none")
    weight = 1 - (-wrong / (F.cross_entropy(teacher, label, reduction="none") + 1e-7)).exp()
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    rows = _kl(log_t, log_s) if convention == "house" else -(log_t.exp() * log_s).sum(1)
    return (weight * rows).sum() / max(len(rows), 1) * temperature**2


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    """(1/B)·Σ_b ½·Σ_c |p_t(c) − p_s(c)|, p = softmax(z) (the total variation distance of Wen et al. 2023, "f-Divergence
    Minimization for Sequence-Level Knowledge Distillation", ACL; here of one distribution a row).

    Symmetric, in [0, 1]. It has no τ and no τ²: the source has none.

    Args:
        student, teacher: logits [B, C].

    Raises:
        ValueError: shapes that differ or are empty.
    """
    student, teacher = checks.logits(student, teacher)
    return (F.softmax(teacher, 1) - F.softmax(student, 1)).abs().sum(1).mean() / 2


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) of each row [B], from log-probabilities [B, C]."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def _uncorrelated(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 − Pearson's correlation of a and b along ``dim``."""
    return (checks.centred_unit(a, dim) - checks.centred_unit(b, dim)).square().sum(dim) / 2
