"""Every ``convention`` against torch's own functions as the published code calls them, on small cases."""

import pytest
import torch
from torch.nn import functional as F

from kdresearch import losses

T, B, C, D = 4.0, 6, 5, 3


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, Z = draw(0, B, C), draw(1, B, C)  # logits
V, W = draw(2, B, D), draw(3, B, D)  # sentence vectors
LABEL = torch.tensor([0, 4, 2, 2, 1, 3])


def equal(found, expected, rel=1e-6):
    assert float(found) == pytest.approx(float(expected), rel=rel)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
def test_pkd_and_takd_divide_by_the_classes():
    """KLDivLoss as it comes (``mean``), times τ²; PKD's hidden loss is mse_loss of normalised first tokens."""
    expected = F.kl_div(F.log_softmax(S / T, 1), F.softmax(Z / T, 1), reduction="mean") * T * T
    equal(losses.soft_label(S, Z, temperature=T, convention="mean"), expected)
    states = [(draw(s, B, 2, D), draw(s + 9, B, 2, D)) for s in (4, 5)]
    pair = [torch.stack([F.normalize(each[side][:, 0], dim=1) for each in states], 1) for side in (0, 1)]
    student, teacher = zip(*states, strict=True)
    equal(losses.patient(student, teacher, convention="pkd"), F.mse_loss(*pair))  # over B·L·D


def test_textbrewers_scores():
    equal(losses.soft_label(S, Z, temperature=T, convention="textbrewer"), F.cross_entropy(S / T, F.softmax(Z / T, 1)))
    equal(losses.logit_mse(S, Z, temperature=T, convention="textbrewer"), F.mse_loss(S / T, Z / T))


def test_textbrewers_attention():
    """One row without padding: mse_loss over all heads, and the cross-entropy of every query of every head."""
    s, t = draw(4, 1, 3, 4, 4), draw(5, 1, 3, 4, 4)
    equal(losses.attention_mse(s, t, convention="textbrewer"), F.mse_loss(s, t))
    equal(losses.attention_mse(s, t, convention="textbrewer_sum"), F.mse_loss(s.sum(1), t.sum(1)))
    each = F.cross_entropy(s.reshape(-1, 4), t.softmax(-1).reshape(-1, 4))
    equal(losses.attention_kl(s, t, inputs="scores", convention="textbrewer"), each)
    mean = F.cross_entropy(s.mean(1).view(-1, 4), t.mean(1).softmax(-1).view(-1, 4))
    equal(losses.attention_kl(s, t, inputs="scores", convention="textbrewer_mean"), mean)
    # a second row of one real token weighs by its squared length: 16 and 1 of 17, in all three heads
    s, t = (torch.cat([x, x.flip(2)]) for x in (s, t))
    mask = torch.tensor([[True] * 4, [True] + [False] * 3])
    squares = (s - t).square()
    expected = (squares[0].sum() + squares[1, :, 0, 0].sum()) / (3 * 17)
    equal(losses.attention_mse(s, t, mask=mask, convention="textbrewer"), expected)


def test_textbrewers_states():
    s, t = draw(4, 1, 4, D), draw(5, 1, 4, D)
    u, v = draw(6, 1, 4, D), draw(7, 1, 4, D)
    equal(losses.fsp([s, u], [t, v], convention="mean"), F.mse_loss(s.mT @ u / 4, t.mT @ v / 4))
    equal(losses.nst(s, t, convention="textbrewer"), F.mse_loss(s @ s.mT / D, t @ t.mT / D))
    equal(losses.hidden_mse(s, t), F.mse_loss(s, t))
    equal(losses.cosine(s, t), F.cosine_embedding_loss(s[0], t[0], torch.ones(4)))


def test_tinyberts_sums_over_layers():
    layers = [(draw(s, 2, 4, D), draw(s + 9, 2, 4, D)) for s in range(3)]
    student, teacher = zip(*layers, strict=True)
    expected = sum(F.mse_loss(s, t) for s, t in layers)
    mask = torch.tensor([[True] * 4, [True] + [False] * 3])  # padding counts
    equal(losses.hidden_mse(student, teacher, mask=mask, convention="tinybert"), expected)
    maps = [(draw(s, 2, 3, 4, 4), draw(s + 9, 2, 3, 4, 4)) for s in range(2)]
    student, teacher = zip(*maps, strict=True)
    equal(
        losses.attention_mse(student, teacher, mask=mask, convention="tinybert"), sum(F.mse_loss(s, t) for s, t in maps)
    )


def test_nst_is_the_distance_of_neurons_under_a_squared_kernel():
    """RepDistiller's form: features are neurons, their course over tokens is normalised, kernels are means."""
    s, t = draw(4, 2, 4, D), draw(5, 2, 4, 7)

    def kernel(a, b):
        return torch.einsum("btd,bte->bde", F.normalize(a, dim=1), F.normalize(b, dim=1)).square().mean()

    equal(losses.nst(s, t), kernel(s, s) + kernel(t, t) - 2 * kernel(s, t))


def test_rkd_of_park_et_al():
    def distances(x):
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        return d / d[d > 0].mean()

    def angles(x):
        arms = F.normalize(x[None] - x[:, None], dim=2)
        return torch.bmm(arms, arms.mT).flatten()

    equal(losses.rkd_distance(V, W, convention="published"), F.smooth_l1_loss(distances(V), distances(W)))
    equal(losses.rkd_angle(V, W, convention="published"), F.smooth_l1_loss(angles(V), angles(W)))


def test_similarities_of_tung_and_mori_and_of_passalis_and_tefas():
    equal(
        losses.similarity_preserving(V, W),
        (F.normalize(V @ V.T, dim=1) - F.normalize(W @ W.T, dim=1)).square().sum() / B**2,
    )

    def near(x):
        kernel = (F.cosine_similarity(x[None], x[:, None], dim=2) + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    expected = (near(W) * (near(W) / near(V)).log()).mean()
    equal(losses.pkt(V, W, convention="published"), expected, rel=1e-4)  # theirs adds 1e-7 to either


def test_decoupled_of_zhao_et_al():
    """Two KLDivLosses over the batch: of (target, rest), and of the others with the target pushed out."""
    target = F.one_hot(LABEL, C).bool()
    binary, others = [], []
    for z in (S / T, Z / T):
        p = z.softmax(1)
        binary.append(torch.stack([p[target], p.masked_fill(target, 0).sum(1)], 1))
        others.append((z - 1000.0 * target).softmax(1).clamp(min=1e-300))
    terms = [F.kl_div(pair[0].log(), pair[1], reduction="batchmean") * T**2 for pair in (binary, others)]
    equal(losses.decoupled(S, Z, label=LABEL, temperature=T), terms[0] + 8 * terms[1])


def test_standardised_and_weighted_soft_labels_of_their_authors():
    def standard(z):
        return (z - z.mean(1, keepdim=True)) / (1e-7 + z.std(1, keepdim=True)) / T

    expected = F.kl_div(standard(S).log_softmax(1), standard(Z).softmax(1), reduction="batchmean") * T**2
    equal(losses.standardised(S, Z, temperature=T, convention="published"), expected)
    ratio = F.cross_entropy(S, LABEL, reduction="none") / (F.cross_entropy(Z, LABEL, reduction="none") + 1e-7)
    rows = F.cross_entropy(S / T, (Z / T).softmax(1), reduction="none") * T**2
    found = losses.weighted_soft_label(S, Z, label=LABEL, temperature=T, convention="published")
    equal(found, ((1 - (-ratio).exp()) * rows).mean())
