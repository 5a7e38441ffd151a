"""Losses between class scores, against hand-computed constants and loops in NumPy."""

import math

import numpy as np
import pytest
import torch

from kdresearch.losses import (
    correlation,
    decoupled,
    logit_mse,
    pseudo_label,
    soft_label,
    standardised,
    weighted_soft_label,
)

LABEL = torch.tensor([2, 0, -1, 3, 1])


def rows(seed, b=5, c=4):
    return 2 * torch.randn(b, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, T = rows(0), rows(1)


def softmax(z):
    e = np.exp(np.asarray(z) - np.max(z))
    return e / e.sum()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive_soft_label(s, t, temperature=1.0, divergence="forward", beta=0.5, convention="house"):
    total = 0.0
    for z_s, z_t in zip(s, t, strict=True):
        p, q = softmax(z_t / temperature), softmax(z_s / temperature)
        if convention == "textbrewer":
            total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / temperature**2
        elif divergence == "forward":
            total += kl(p, q)
        elif divergence == "reverse":
            total += kl(q, p)
        else:
            m = beta * p + (1 - beta) * q
            total += beta * kl(p, m) + (1 - beta) * kl(q, m)
    value = temperature**2 * total / len(s)
    return value / s.shape[1] if convention == "mean" else value


def naive_pseudo_label(s, t, temperature=1.0, hard=False):
    if hard:
        return -sum(math.log(softmax(z_s)[np.argmax(z_t)]) for z_s, z_t in zip(s, t, strict=True)) / len(s)
    return temperature**2 * naive_soft_label(s, t, temperature, convention="textbrewer")


def naive_logit_mse(s, t, temperature=1.0, convention="house"):
    scale = temperature if convention == "textbrewer" else 1.0
    return sum(((a - b) / scale) ** 2 for a, b in zip(s.ravel(), t.ravel(), strict=True)) / s.size


def naive_decoupled(s, t, label, temperature, target_weight, nontarget_weight):
    terms = []
    for z_s, z_t, y in zip(s, t, label, strict=True):
        if y < 0:
            continue
        p, q = softmax(z_t / temperature), softmax(z_s / temperature)
        target = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        rest = [c for c in range(len(p)) if c != y]
        nontarget = kl([p[c] / (1 - p[y]) for c in rest], [q[c] / (1 - q[y]) for c in rest])
        terms.append(target_weight * target + nontarget_weight * nontarget)
    return temperature**2 * sum(terms) / len(terms)


def pearson(a, b):
    a, b = np.asarray(a) - np.mean(a), np.asarray(b) - np.mean(b)
    return (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())


def naive_correlation(s, t, temperature, inter_weight, intra_weight):
    p, q = (np.array([softmax(z / temperature) for z in x]) for x in (s, t))
    inter = sum(1 - pearson(p[i], q[i]) for i in range(len(p))) / len(p)
    intra = sum(1 - pearson(p[:, c], q[:, c]) for c in range(p.shape[1])) / p.shape[1]
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def naive_standardised(s, t, temperature, convention="house"):
    def standard(x):
        if convention == "published":
            return np.array([(z - z.mean()) / (z.std(ddof=1) + 1e-7) for z in x])
        return np.array([(z - z.mean()) / math.sqrt(sum((v - z.mean()) ** 2 for v in z) / len(z)) for z in x])

    return naive_soft_label(standard(s), standard(t), temperature)


def naive_weighted(s, t, label, temperature, convention="house"):
    terms = []
    for z_s, z_t, y in zip(s, t, label, strict=True):
        if y < 0:
            continue
        weight = 1 - math.exp(math.log(softmax(z_s)[y]) / -math.log(softmax(z_t)[y]))
        p, q = softmax(z_t / temperature), softmax(z_s / temperature)
        cross = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        terms.append(weight * (kl(p, q) if convention == "house" else cross))
    return temperature**2 * sum(terms) / len(terms)


DKD = {"temperature": 3.0, "target_weight": 1.5, "nontarget_weight": 4.0}
DIST = {"temperature": 2.0, "inter_weight": 2.0, "intra_weight": 0.5}
CASES = [
    (soft_label, naive_soft_label, {"temperature": 3.0}, ()),
    (soft_label, naive_soft_label, {"temperature": 3.0, "convention": "mean"}, ()),
    (soft_label, naive_soft_label, {"temperature": 3.0, "convention": "textbrewer"}, ()),
    (soft_label, naive_soft_label, {"temperature": 2.0, "divergence": "reverse"}, ()),
    (soft_label, naive_soft_label, {"temperature": 2.0, "divergence": "jsd", "beta": 0.3}, ()),
    (pseudo_label, naive_pseudo_label, {}, ()),
    (pseudo_label, naive_pseudo_label, {"temperature": 3.0}, ()),
    (pseudo_label, naive_pseudo_label, {"hard": True}, ()),
    (logit_mse, naive_logit_mse, {}, ()),
    (logit_mse, naive_logit_mse, {"temperature": 3.0, "convention": "textbrewer"}, ()),
    (decoupled, naive_decoupled, DKD, ("label",)),
    (correlation, naive_correlation, DIST, ()),
    (standardised, naive_standardised, {"temperature": 2.0}, ()),
    (standardised, naive_standardised, {"temperature": 2.0, "convention": "published"}, ()),
    (weighted_soft_label, naive_weighted, {"temperature": 2.0}, ("label",)),
    (weighted_soft_label, naive_weighted, {"temperature": 2.0, "convention": "published"}, ("label",)),
]
cases = pytest.mark.parametrize(("loss", "naive", "options", "labels"), CASES)


@cases
def test_equals_the_loops(loss, naive, options, labels):
    expected = naive(S.numpy(), T.numpy(), **options, **({"label": LABEL.tolist()} if labels else {}))
    got = loss(S, T, **options, **({"label": LABEL} if labels else {}))
    assert got.item() == pytest.approx(expected, rel=1e-6)


@cases
def test_identities(loss, naive, options, labels, identities):
    extra = {"label": LABEL} if labels else {}
    zero = options.get("convention") != "textbrewer" or loss is logit_mse
    zero &= loss is not pseudo_label  # a cross-entropy: an entropy is left
    zero &= loss is not weighted_soft_label or options.get("convention") is None
    identities(lambda s, t: loss(s, t, **options, **extra), S, T, zero=zero)


@cases
def test_order_of_rows_does_not_matter(loss, naive, options, labels):
    order = torch.tensor([3, 0, 4, 1, 2])
    one = loss(S, T, **options, **({"label": LABEL} if labels else {}))
    other = loss(S[order], T[order], **options, **({"label": LABEL[order]} if labels else {}))
    torch.testing.assert_close(one, other)


@cases
def test_halves_average_to_the_whole(loss, naive, options, labels):
    s, t, label = torch.cat([S, rows(2)]), torch.cat([T, rows(3)]), torch.cat([LABEL, LABEL])
    whole, *halves = (
        loss(s[part], t[part], **options, **({"label": label[part]} if labels else {}))
        for part in (slice(None), slice(5), slice(5, None))
    )
    if loss is correlation:  # a class is correlated over the batch: there are more pairs in the whole
        assert abs(whole - sum(halves) / 2) > 1e-3
        halves = [
            correlation(s[part], t[part], **{**options, "intra_weight": 0.0}) for part in (slice(5), slice(5, None))
        ]
        whole = correlation(s, t, **{**options, "intra_weight": 0.0})
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_constants_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])  # p_s = (½, ½), p_t = (¾, ¼)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert soft_label(student, teacher).item() == pytest.approx(forward)
    assert soft_label(student, teacher, divergence="reverse").item() == pytest.approx(reverse)
    assert soft_label(2 * student, 2 * teacher, temperature=2.0).item() == pytest.approx(4 * forward)
    assert soft_label(student, teacher, convention="mean").item() == pytest.approx(forward / 2)
    assert soft_label(student, teacher, convention="textbrewer").item() == pytest.approx(math.log(2))
    assert logit_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 0.0]])).item() == 6.5

    # p_t = (½, ¼, ¼), p_s = ⅓ each: the target is ½ against ⅓, the others are ½ against ½
    student, teacher = torch.zeros(1, 3), torch.tensor([[math.log(2), 0.0, 0.0]])
    label = torch.tensor([0])
    target = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    options = {"temperature": 1.0, "target_weight": 1.0, "nontarget_weight": 8.0}
    assert decoupled(student, teacher, label=label, **options).item() == pytest.approx(target)
    # label 1: target ¼ against ⅓; others (⅔, ⅓) against (½, ½)
    target = 0.25 * math.log(0.75) + 0.75 * math.log(9 / 8)
    others = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert decoupled(student, teacher, label=label + 1, **options).item() == pytest.approx(target + 8 * others)

    # CE_s = log 3, CE_t = log 2
    kl = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    weight = 1 - math.exp(-math.log(3) / math.log(2))
    assert weighted_soft_label(student, teacher, label=label, temperature=1.0).item() == pytest.approx(weight * kl)

    # (0, 1, 2) and (2, 1, 0) standardise to ∓(−a, 0, a), a = √1.5: KL of a softmax and its mirror image
    a, rising = math.sqrt(1.5), torch.tensor([[0.0, 1.0, 2.0]])
    mirrored = 2 * a * (math.exp(a) - math.exp(-a)) / (1 + math.exp(a) + math.exp(-a))
    assert standardised(5 * rising + 7, rising.flip(1)).item() == pytest.approx(mirrored)

    # two rows that swap their two classes: every correlation is −1, so 1 − ρ = 2, times β + γ
    swapped = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert correlation(swapped, swapped.flip(1), inter_weight=2.0, intra_weight=3.0).item() == pytest.approx(10.0)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_high_temperature_is_squared_error_of_centred_logits(divergence):
    centred = (S - S.mean(1, True)) - (T - T.mean(1, True))
    limit = centred.square().sum(1).mean() / (2 * S.shape[1])
    torch.testing.assert_close(soft_label(S, T, temperature=1e4, divergence=divergence), limit, rtol=1e-3, atol=0)
    two = ((S[:, 0] - S[:, 1]) - (T[:, 0] - T[:, 1])).square().mean() / 8
    torch.testing.assert_close(soft_label(S[:, :2], T[:, :2], temperature=1e4), two, rtol=1e-3, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_pseudo_labels_are_soft_labels_and_an_entropy(temperature):
    p = torch.softmax(T / temperature, 1)
    entropy = temperature**2 * torch.special.entr(p).sum(1).mean()
    s = S.clone().requires_grad_()
    cross, kl = (loss(s, T, temperature=temperature) for loss in (pseudo_label, soft_label))
    torch.testing.assert_close(cross, kl + entropy)
    gradients = [torch.autograd.grad(value, s)[0] for value in (cross, kl)]
    torch.testing.assert_close(*gradients)


def test_hard_pseudo_labels_are_the_limit_of_a_certain_teacher():
    torch.testing.assert_close(pseudo_label(S, T, hard=True), pseudo_label(S, 1e4 * T))
    assert pseudo_label(S, T, hard=True, temperature=3.0) == pseudo_label(S, T, hard=True)


def test_jsd_ends_in_forward_and_reverse():
    for beta, name in ((0.0, "forward"), (1.0, "reverse")):
        assert torch.equal(soft_label(S, T, divergence="jsd", beta=beta), soft_label(S, T, divergence=name))


def test_decoupled_recomposes_soft_label():
    for row in range(5):
        s, t, y = S[row : row + 1], T[row : row + 1], torch.tensor([row % 4])
        rest = 1 - torch.softmax(t / 2, 1)[0, row % 4].item()
        whole = decoupled(s, t, label=y, temperature=2.0, target_weight=1.0, nontarget_weight=rest)
        torch.testing.assert_close(whole, soft_label(s, t, temperature=2.0))


def test_two_classes_leave_decoupled_its_binary_term():
    s, t, y = S[:, :2], T[:, :2], torch.tensor([0, 1, 0, 1, 1])
    torch.testing.assert_close(decoupled(s, t, label=y, temperature=2.0), soft_label(s, t, temperature=2.0))


@pytest.mark.parametrize("loss", [decoupled, weighted_soft_label])
def test_unlabelled_rows_are_skipped(loss):
    keep = LABEL >= 0
    torch.testing.assert_close(loss(S, T, label=LABEL), loss(S[keep], T[keep], label=LABEL[keep]))
    s = S.clone().requires_grad_()
    value = loss(s, T, label=torch.full((5,), -1))
    assert value == 0
    value.backward()
    assert torch.equal(s.grad, torch.zeros_like(S))


def test_weights_of_soft_labels_carry_no_gradient():
    def gradient(loss):
        s = S.clone().requires_grad_()
        loss(s).backward()
        return s.grad

    house = gradient(lambda s: weighted_soft_label(s, T, label=LABEL))
    published = gradient(lambda s: weighted_soft_label(s, T, label=LABEL, convention="published"))
    torch.testing.assert_close(house, published)  # an entropy times an undetached weight would tell them apart


def test_a_certain_teacher_gives_finite_weights():
    t = torch.tensor([[100.0, 0.0, 0.0]])
    for s in (t.clone(), torch.zeros(1, 3), -t):
        assert weighted_soft_label(s, t, label=torch.tensor([0])).isfinite()
        assert decoupled(s, t, label=torch.tensor([0])).isfinite()


def test_correlation_sees_no_shift_or_scale_of_probabilities():
    s = torch.softmax(S, 1)
    mixed = 0.5 * s + 0.5 / 4  # a positive affine map of every row and of every class
    torch.testing.assert_close(correlation(mixed.log(), T), correlation(S, T))


def test_correlation_of_constants_is_finite():
    s = torch.zeros(3, 4, requires_grad=True)
    for t in (torch.zeros(3, 4), T[:3].float()):
        value = correlation(s, t, temperature=4.0)
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()
    assert correlation(torch.zeros(3, 4), torch.zeros(3, 4)) == 0
    one = correlation(S[:1], T[:1], intra_weight=5.0)
    torch.testing.assert_close(one, correlation(S[:1], T[:1], intra_weight=0.0))  # no batch, no correlation over it


@pytest.mark.parametrize("convention", ["house", "published"])
def test_standardised_sees_no_shift_or_scale(convention):
    scaled = 3.0 * S + torch.arange(5.0).unsqueeze(1)
    torch.testing.assert_close(
        standardised(scaled, T, convention=convention), standardised(S, T, convention=convention)
    )
    flat = torch.ones(2, 3, requires_grad=True)
    value = standardised(flat, rows(4, 2, 3), convention=convention)
    value.backward()
    assert value.isfinite()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_label(S, T[:, :3]), r"student \[5, 4\], teacher \[5, 3\]"),
        (lambda: soft_label(S[0], T[0]), r"\[B, C\]"),
        (lambda: soft_label(S[:0], T[:0]), r"\[B, C\]"),
        (lambda: soft_label(S, T, temperature=0.0), "temperature"),
        (lambda: soft_label(S, T, temperature=float("nan")), "temperature"),
        (lambda: soft_label(S, T, divergence="forwards"), "forward, reverse, jsd"),
        (lambda: soft_label(S, T, beta=1.5), "beta"),
        (lambda: soft_label(S, T, beta=0.3), "beta=0.3 is of divergence='jsd', and 'forward' has none"),
        (lambda: soft_label(S, T, beta=0.3, divergence="reverse"), "'reverse' has none"),
        (lambda: logit_mse(S, T, temperature=2.0), "temperature=2.0: the house convention .* 'textbrewer' has one"),
        (lambda: soft_label(S, T, convention="texbrewer"), "house, mean, textbrewer"),
        (lambda: soft_label(S, T, convention="textbrewer", divergence="reverse"), "textbrewer"),
        (lambda: logit_mse(S, T, convention="mean"), "house, textbrewer"),
        (lambda: decoupled(S, T, label=LABEL[:4]), "label"),
        (lambda: decoupled(S, T, label=LABEL.float()), "label"),
        (lambda: decoupled(S, T, label=LABEL + 1), r"\[-1, 3\]: found 0 to 4"),
        (lambda: decoupled(S, T, label=LABEL, nontarget_weight=-1.0), "nontarget_weight"),
        (lambda: decoupled(S[:, :1], T[:, :1], label=LABEL * 0), "two classes"),
        (lambda: correlation(S, T, intra_weight=-1.0), "intra_weight"),
        (lambda: correlation(S, T, temperature=-1.0), "temperature"),
        (lambda: standardised(S, T, convention="sample"), "house, published"),
        (lambda: standardised(S[:, :1], T[:, :1]), "two classes"),
        (lambda: standardised(S, T, temperature=0.0), "temperature"),
        (lambda: weighted_soft_label(S, T, label=LABEL - 1), r"\[-1, 3\]"),
        (lambda: weighted_soft_label(S, T, label=LABEL, convention="mean"), "house, published"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
