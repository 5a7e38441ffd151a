"""Losses between token states, against hand-computed constants and loops in NumPy."""

import math

import numpy as np
import pytest
import torch

from kdresearch.losses import cosine, fsp, gram, hidden_mse, jacobian, nst, patient, semantic, soft_label


def states(seed, b=4, t=5, d=3):
    return torch.randn(b, t, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, T, WIDE = states(0), states(1), states(2, d=6)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
LAYERS_S, LAYERS_T = [S, states(3), states(4)], [T, states(5), states(6)]


def valid(s, t, mask):
    """(row, token) pairs that count."""
    return [(b, i) for b in range(len(s)) for i in range(s.shape[1]) if mask[b, i]]


def naive_hidden_mse(s, t, mask):
    where = valid(s, t, mask)
    return sum((s[b, i, d] - t[b, i, d]) ** 2 for b, i in where for d in range(s.shape[2])) / (len(where) * s.shape[2])


def naive_tinybert(s, t, mask):
    return ((s - t) ** 2).sum() / s.size


def naive_cosine(s, t, mask):
    where = valid(s, t, mask)
    cosines = [sum(s[w] * t[w]) / math.sqrt(sum(s[w] ** 2) * sum(t[w] ** 2)) for w in where]
    return sum(1 - c for c in cosines) / len(where)


def naive_patient(s, t, mask):
    first = [(a[0] / math.sqrt(sum(a[0] ** 2)), b[0] / math.sqrt(sum(b[0] ** 2))) for a, b in zip(s, t, strict=True)]
    return sum(sum((a - b) ** 2) for a, b in first) / len(first)


def naive_pkd(s, t, mask):
    return naive_patient(s, t, mask) / s.shape[2]


def naive_matrices(first, second, mask):
    """F₁ᵀF₂ by entry, of each row."""
    found = []
    for b in range(len(first)):
        tokens = [i for i in range(first.shape[1]) if mask[b, i]]
        found.append(
            [
                [sum(first[b, i, d] * second[b, i, e] for i in tokens) / len(tokens) for e in range(second.shape[2])]
                for d in range(first.shape[2])
            ]
        )
    return np.array(found)


def naive_between(s, t, mask, convention):
    """Of two layers of either side."""
    g_s, g_t = naive_matrices(*s, mask), naive_matrices(*t, mask)
    rows = [((a - b) ** 2).sum() for a, b in zip(g_s, g_t, strict=True)]
    sizes = {"house": [(b**2).sum() for b in g_t], "published": [1.0] * len(rows), "mean": [g_t[0].size] * len(rows)}
    return sum(row / size for row, size in zip(rows, sizes[convention], strict=True)) / len(rows)


def naive_gram(s, t, mask):
    return naive_between((s, s), (t, t), mask, "house")


def naive_gram_published(s, t, mask):
    return naive_between((s, s), (t, t), mask, "published")


def naive_gram_mean(s, t, mask):
    return naive_between((s, s), (t, t), mask, "mean")


def naive_nst(s, t, mask):
    """The kernel over all pairs of neurons, as the paper has it."""
    total = 0.0
    for b in range(len(s)):
        neurons = []
        for x in (s, t):
            courses = [x[b, mask[b], d] for d in range(x.shape[2])]
            neurons.append([c / math.sqrt(sum(c**2)) for c in courses])
        (f, g) = neurons

        def kernel(a, b):
            return sum(sum(x * y) ** 2 for x in a for y in b) / (len(a) * len(b))

        total += kernel(f, f) + kernel(g, g) - 2 * kernel(f, g)
    return total / len(s)


def naive_nst_textbrewer(s, t, mask):
    total, count = 0.0, 0
    for b in range(len(s)):
        for i in np.flatnonzero(mask[b]):
            for j in np.flatnonzero(mask[b]):
                total += (sum(s[b, i] * s[b, j]) / s.shape[2] - sum(t[b, i] * t[b, j]) / t.shape[2]) ** 2
                count += 1
    return total / count


def naive_jacobian(s, t, mask):
    total = 0.0
    for b in range(len(s)):
        n_s, n_t = ([math.sqrt(sum(x[b, i] ** 2)) for i in range(x.shape[1]) if mask[b, i]] for x in (s, t))
        length_s, length_t = (math.sqrt(sum(v**2 for v in n)) for n in (n_s, n_t))
        total += sum((v / length_s - w / length_t) ** 2 for v, w in zip(n_s, n_t, strict=True))
    return total / len(s)


# loss, loops, options, teacher, whether halves with different token counts still average to the whole
CASES = [
    (hidden_mse, naive_hidden_mse, {}, T, False),
    (hidden_mse, naive_tinybert, {"convention": "tinybert"}, T, True),
    (cosine, naive_cosine, {}, T, False),
    (patient, naive_patient, {}, T, True),
    (patient, naive_pkd, {"convention": "pkd"}, T, True),
    (gram, naive_gram, {}, T, True),
    (gram, naive_gram_published, {"convention": "published"}, T, True),
    (gram, naive_gram_mean, {"convention": "mean"}, T, True),
    (nst, naive_nst, {}, T, True),
    (nst, naive_nst, {}, WIDE, True),
    (nst, naive_nst_textbrewer, {"convention": "textbrewer"}, WIDE, False),
    (jacobian, naive_jacobian, {}, T, True),
    (jacobian, naive_jacobian, {}, WIDE, True),
    (jacobian, naive_cosine, {"distance": "cosine"}, T, False),
]
cases = pytest.mark.parametrize(("loss", "naive", "options", "teacher", "by_row"), CASES)
masked = [case for case in CASES if case[2].get("convention") != "tinybert"]
masked_cases = pytest.mark.parametrize(("loss", "naive", "options", "teacher", "by_row"), masked)


@cases
def test_equals_the_loops(loss, naive, options, teacher, by_row):
    for mask in (MASK, torch.ones_like(MASK)):
        expected = naive(S.numpy(), teacher.numpy(), mask.numpy())
        assert loss(S, teacher, mask=mask, **options).item() == pytest.approx(expected, rel=1e-9)
    assert loss(S, teacher, **options).item() == pytest.approx(expected, rel=1e-9)  # no mask: every token counts


@cases
def test_identities(loss, naive, options, teacher, by_row, identities):
    identities(lambda s, t: loss(s, t, mask=MASK, **options), S, teacher)


@masked_cases
def test_padding_does_not_matter(loss, naive, options, teacher, by_row):
    one = S.clone().requires_grad_()
    loss(one, teacher, mask=MASK, **options).backward()
    junk = MASK.unsqueeze(2).logical_not()
    longer = torch.cat([S.masked_fill(junk, math.nan), torch.full((4, 3, 3), math.inf, dtype=S.dtype)], 1)
    longer.requires_grad_()
    padding = torch.full((4, 3, teacher.shape[2]), math.nan, dtype=S.dtype)
    mask = torch.cat([MASK, torch.zeros(4, 3, dtype=torch.bool)], 1)
    value = loss(longer, torch.cat([teacher.masked_fill(junk, -math.inf), padding], 1), mask=mask, **options)
    torch.testing.assert_close(value, loss(S, teacher, mask=MASK, **options))
    value.backward()
    torch.testing.assert_close(longer.grad[:, :5], one.grad)
    assert torch.equal(longer.grad[~mask], torch.zeros_like(longer.grad[~mask]))


@cases
def test_order_of_rows_does_not_matter(loss, naive, options, teacher, by_row):
    order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(
        loss(S[order], teacher[order], mask=MASK[order], **options), loss(S, teacher, mask=MASK, **options)
    )


@cases
def test_halves_average_to_the_whole(loss, naive, options, teacher, by_row):
    def average(mask):
        return sum(loss(S[p], teacher[p], mask=mask[p], **options) for p in (slice(2), slice(2, None))) / 2

    even = torch.ones_like(MASK)
    torch.testing.assert_close(average(even), loss(S, teacher, mask=even, **options))
    # means over tokens weight a half by its tokens, 8 and 6 here; means over rows do not
    same = torch.isclose(average(MASK), loss(S, teacher, mask=MASK, **options))
    assert same == by_row


@masked_cases
def test_no_valid_token_gives_zero(loss, naive, options, teacher, by_row):
    s = S.clone().requires_grad_()
    value = loss(s, teacher, mask=torch.zeros_like(MASK), **options)
    assert value == 0
    value.backward()
    assert torch.equal(s.grad, torch.zeros_like(S))


@masked_cases
def test_an_empty_row_does_not_count(loss, naive, options, teacher, by_row):
    mask = MASK.clone()
    mask[1] = False
    keep = torch.tensor([0, 2, 3])
    torch.testing.assert_close(
        loss(S, teacher, mask=mask, **options), loss(S[keep], teacher[keep], mask=mask[keep], **options)
    )


@cases
def test_zero_states_are_finite(loss, naive, options, teacher, by_row):
    for other in (torch.zeros_like(S), teacher):
        s = torch.zeros_like(S).requires_grad_()
        value = loss(s, other, mask=MASK, **options)
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()
        assert s.grad.abs().max() < 100


def test_constants_by_hand():
    s = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
    t = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True, False]])
    assert hidden_mse(s, t, mask=mask).item() == pytest.approx((16 + 1 + 4) / 4)
    assert hidden_mse(s, t, convention="tinybert").item() == pytest.approx((16 + 1 + 4 + 162) / 6)
    assert cosine(s, t, mask=mask).item() == pytest.approx((0.4 + 1) / 2)
    assert patient(s, t, mask=mask).item() == pytest.approx(0.8)  # (.6, .8) against (1, 0)
    assert patient(s, t, mask=mask, convention="pkd").item() == pytest.approx(0.4)
    assert jacobian(s, t, mask=mask, distance="cosine").item() == pytest.approx(0.7)
    # norms (5, 1) and (3, 2): 2 − 2·cos
    assert jacobian(s, t, mask=mask).item() == pytest.approx(2 - 2 * 17 / math.sqrt(26 * 13))
    # G_s = ((10, 12), (12, 16)) / 2, G_t = ((9, 0), (0, 4)) / 2
    assert gram(s, t, mask=mask, convention="published").item() == pytest.approx((1 + 144 + 144 + 144) / 4)
    assert gram(s, t, mask=mask, convention="mean").item() == pytest.approx((1 + 144 + 144 + 144) / 16)
    assert gram(s, t, mask=mask).item() == pytest.approx((1 + 144 + 144 + 144) / (81 + 16))
    # between the layers s and 2s: twice those; of the teacher between t and its columns exchanged: ((0, 9), (4, 0)) / 2
    layers = {"student": [s, 2 * s], "teacher": [t, t.flip(2)], "mask": mask}
    expected = (20 - 0) ** 2 + (24 - 9) ** 2 + (24 - 4) ** 2 + 32**2
    assert fsp(**layers, convention="published").item() == pytest.approx(expected / 4)
    assert fsp(**layers, convention="mean").item() == pytest.approx(expected / 16)
    assert fsp(**layers).item() == pytest.approx(expected / (81 + 16))
    # courses: student (3, 1)/√10 and (1, 0); teacher (1, 0) and (0, 1)
    expected = (1 + 1 + 2 * 0.9) / 4 + 2 / 4 - 2 * (0.9 + 0.1 + 1 + 0) / 4
    assert nst(s, t, mask=mask).item() == pytest.approx(expected)
    kl = math.log(2 / math.sqrt(3))  # of (½, ½) from (¾, ¼)
    z_s, z_t = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    options = {"student_hidden": [s, s], "teacher_hidden": [t, s], "mask": mask, "weight": 0.25}
    assert semantic(z_s, z_t, **options).item() == pytest.approx(0.25 * kl + 0.75 * 5.25 / 2)
    assert semantic(z_s, z_t, **options, convention="norm").item() == pytest.approx(0.25 * kl + 0.75 * 10.5 / 2)


@pytest.mark.parametrize(
    ("loss", "options"),
    [(hidden_mse, {}), (cosine, {}), (patient, {}), (patient, {"convention": "pkd"}), (gram, {}), (nst, {})],
)
def test_layers_are_averaged(loss, options):
    each = [loss(s, t, mask=MASK, **options) for s, t in zip(LAYERS_S, LAYERS_T, strict=True)]
    torch.testing.assert_close(loss(LAYERS_S, LAYERS_T, mask=MASK, **options), sum(each) / 3)
    assert torch.equal(loss(tuple(LAYERS_S[:1]), LAYERS_T[:1], mask=MASK, **options), each[0])


def test_tinybert_sums_its_layers():
    each = [((s - t) ** 2).mean() for s, t in zip(LAYERS_S, LAYERS_T, strict=True)]
    torch.testing.assert_close(hidden_mse(LAYERS_S, LAYERS_T, mask=MASK, convention="tinybert"), sum(each))


@pytest.mark.parametrize("loss", [hidden_mse, cosine, patient])
def test_sentence_vectors_are_one_token(loss):
    assert torch.equal(loss(S[:, 0], T[:, 0]), loss(S[:, :1], T[:, :1]))
    assert torch.equal(loss([S[:, 0], T[:, 1]], [T[:, 0], T[:, 2]]), loss([S[:, :1], T[:, 1:2]], [T[:, :1], T[:, 2:3]]))


def test_patient_reads_the_first_token_only():
    other = torch.cat([S[:, :1], states(9)[:, 1:]], 1)
    assert torch.equal(patient(other, T, mask=MASK), patient(S, T, mask=MASK))


@pytest.mark.parametrize("convention", ["house", "published", "mean"])
def test_fsp_is_between_consecutive_layers(convention):
    """Eq. 1 and 2 of Yim et al. 2017; three layers of other widths make two matrices."""
    s, t = [S, states(3, d=2), states(4, d=6)], [T, states(5, d=2), states(6, d=6)]
    expected = [
        naive_between([x.numpy() for x in s[i : i + 2]], [x.numpy() for x in t[i : i + 2]], MASK.numpy(), convention)
        for i in range(2)
    ]
    found = fsp(s, t, mask=MASK, convention=convention)
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-9)
    beyond = [x.masked_fill(~MASK.unsqueeze(2), math.inf) for x in s]
    torch.testing.assert_close(fsp(beyond, t, mask=MASK, convention=convention), found)
    assert found.item() != pytest.approx(gram(s, t, mask=MASK, convention=convention).item(), rel=0.01)


def test_fsp_of_the_house_is_one_for_a_student_that_says_nothing(identities):
    for scale in (1e-2, 1.0, 30.0):
        teacher = [scale * layer for layer in LAYERS_T]
        assert fsp([0 * layer for layer in LAYERS_S], teacher, mask=MASK).item() == pytest.approx(1.0)
    assert fsp(LAYERS_S, [0 * layer for layer in LAYERS_T], mask=MASK).isfinite()
    identities(lambda s, t: fsp([s, s.roll(1, 2)], [t, t.roll(1, 2)], mask=MASK), S, T)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_semantic_mixes_both_terms(divergence, weight):
    z_s, z_t = states(7)[:, 0], states(8)[:, 0]
    options = {"weight": weight, "temperature": 2.0, "divergence": divergence}
    value = semantic(z_s, z_t, student_hidden=LAYERS_S, teacher_hidden=LAYERS_T, mask=MASK, **options)
    kl = soft_label(z_s, z_t, temperature=2.0, divergence=divergence)
    naive = np.mean(
        [naive_hidden_mse(s.numpy(), t.numpy(), MASK.numpy()) for s, t in zip(LAYERS_S, LAYERS_T, strict=True)]
    )
    torch.testing.assert_close(value, weight * kl + (1 - weight) * naive)


def test_semantic_identities(identities):
    z = states(7)[:, 0]
    identities(
        lambda s, t: semantic(s, t, student_hidden=S.to(s), teacher_hidden=S.to(s), mask=MASK), z, states(8)[:, 0]
    )
    identities(lambda s, t: semantic(z.to(s), z.to(s), student_hidden=s, teacher_hidden=t, mask=MASK), S, T)


@pytest.mark.parametrize(("loss", "options"), [(cosine, {}), (patient, {}), (nst, {}), (jacobian, {})])
def test_scale_does_not_matter(loss, options):
    torch.testing.assert_close(loss(7 * S, T / 3, mask=MASK, **options), loss(S, T, mask=MASK, **options))


def test_nst_sees_no_scale_and_no_order_of_features():
    scaled = S * torch.tensor([2.0, -0.5, 10.0])
    torch.testing.assert_close(nst(scaled, T, mask=MASK), nst(S, T, mask=MASK))
    torch.testing.assert_close(nst(S[:, :, [2, 0, 1]], T, mask=MASK), nst(S, T, mask=MASK))


def test_jacobian_trains_through_the_gradient():
    layer = torch.nn.Linear(3, 1, dtype=torch.float64)
    x = S.clone().requires_grad_()
    (sensitivity,) = torch.autograd.grad(layer(x.square()).sum(), x, create_graph=True)
    jacobian(sensitivity, T, mask=MASK).backward()
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hidden_mse(S, WIDE), r"student \[4, 5, 3\], teacher \[4, 5, 6\]"),
        (lambda: hidden_mse(S, T[:, :4]), r"\[B, T, D\]"),
        (lambda: hidden_mse(S[:, 0], T[:, 0], mask=MASK), r"\[B, D\] without a mask"),
        (lambda: hidden_mse(S, T, mask=MASK[:, :4]), r"bool \[4, 5\]"),
        (lambda: hidden_mse(S, T, mask=MASK.long()), "torch.int64"),
        (lambda: hidden_mse(S, T, convention="fitnets"), "house, tinybert"),
        (lambda: hidden_mse(LAYERS_S, LAYERS_T[:2]), "3 of the student, 2 of the teacher"),
        (lambda: hidden_mse([], []), "0 of the student"),
        (lambda: hidden_mse(S, [T]), "sequence of layers"),
        (lambda: hidden_mse(S, T[:, :4], convention="tinybert"), r"\[B, T, D\]"),
        (lambda: cosine(S, WIDE), r"\[B, T, D\]"),
        (lambda: cosine(LAYERS_S[:1], LAYERS_T), "1 of the student, 3 of the teacher"),
        (lambda: patient(S, T, convention="tinybert"), "house, pkd"),
        (
            lambda: semantic(S[:, 0], T[:, 0], student_hidden=LAYERS_S, teacher_hidden=LAYERS_T[1:]),
            "3 of the student, 2",
        ),
        (lambda: semantic(S[:, 0], T[:, 0], student_hidden=S, teacher_hidden=T, weight=1.5), "weight"),
        (lambda: semantic(S[:, 0], T[:, 0], student_hidden=S, teacher_hidden=T, divergence="jsd"), "forward, reverse"),
        (lambda: semantic(S[:, 0], T[:, 0], student_hidden=S, teacher_hidden=T, convention="sum"), "house, norm"),
        (lambda: gram(S, WIDE), r"\[B, T, D\]"),
        (lambda: gram(S[:, 0], T[:, 0]), r"\[B, T, D\]"),
        (lambda: fsp(S, T), "two layers"),
        (lambda: fsp([S, S[:, :4]], [T, T[:, :4]]), "same tokens"),
        (lambda: fsp(LAYERS_S, LAYERS_T, convention="sum"), "house, published, mean"),
        (lambda: gram(S, T, convention="sum"), "house, published, mean"),
        (lambda: nst(S, T[:3]), "same rows"),
        (lambda: nst(S, T, convention="mean"), "house, textbrewer"),
        (lambda: jacobian(S, T, distance="euclid"), "norm, cosine"),
        (lambda: jacobian(S, WIDE, distance="cosine"), r"\[B, T, D\]"),
        (lambda: jacobian(S, T, mask=MASK.float()), "bool"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
