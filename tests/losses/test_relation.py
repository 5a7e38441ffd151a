"""Losses between the relations of sentence vectors, against hand-computed constants and loops in NumPy."""

import math

import pytest
import torch

from kdresearch.losses import contrastive, noise_contrastive, pkt, rkd_angle, rkd_distance, similarity_preserving


def vectors(seed, b=6, d=4):
    return torch.randn(b, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, T, WIDE, QUEUE = vectors(0), vectors(1), vectors(2, d=9), vectors(3, b=7)


def length(x):
    return math.sqrt(sum(v * v for v in x))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def naive_similarity(s, t):
    total, n = 0.0, len(s)
    for i in range(n):
        g_s, g_t = [dot(s[i], s[j]) for j in range(n)], [dot(t[i], t[j]) for j in range(n)]
        total += sum((a / length(g_s) - b / length(g_t)) ** 2 for a, b in zip(g_s, g_t, strict=True))
    return total / n**2


def naive_pkt(s, t, convention="house"):
    n, total = len(s), 0.0
    kernels = [[[(1 + dot(a, b) / length(a) / length(b)) / 2 for b in x] for a in x] for x in (s, t)]
    for j in range(n):
        others = range(n) if convention == "published" else [i for i in range(n) if i != j]
        q, p = ([k[j][i] / sum(k[j][o] for o in others) for i in others] for k in kernels)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / (n**2 if convention == "published" else n)


def naive_distance(s, t, convention="house"):
    n = len(s)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    d_s, d_t = ([length(x[i] - x[j]) for i, j in pairs] for x in (s, t))
    m_s, m_t = sum(d_s) / len(pairs), sum(d_t) / len(pairs)
    total = sum(huber(a / m_s - b / m_t) for a, b in zip(d_s, d_t, strict=True))
    return total / (n**2 if convention == "published" else len(pairs))


def naive_angle(s, t, convention="house"):
    n = len(s)
    triplets = [(i, j, k) for i in range(n) for j in range(n) for k in range(n) if len({i, j, k}) == 3]

    def angle(x, i, j, k):
        return dot(x[i] - x[j], x[k] - x[j]) / length(x[i] - x[j]) / length(x[k] - x[j])

    total = sum(huber(angle(s, *c) - angle(t, *c)) for c in triplets)
    return total / (n**3 if convention == "published" else len(triplets))


def naive_contrastive(s, t, temperature=0.07, queue=None, in_batch=True):
    def similar(a, b):
        return math.exp(dot(a, b) / length(a) / length(b) / temperature)

    total = 0.0
    for i in range(len(s)):
        negatives = [t[j] for j in range(len(t)) if j != i] if in_batch else []
        negatives += [] if queue is None else list(queue)
        total -= math.log(similar(s[i], t[i]) / (similar(s[i], t[i]) + sum(similar(s[i], n) for n in negatives)))
    return total / len(s)


CASES = [
    (similarity_preserving, naive_similarity, {}, T),
    (similarity_preserving, naive_similarity, {}, WIDE),
    (pkt, naive_pkt, {}, T),
    (pkt, naive_pkt, {}, WIDE),
    (pkt, naive_pkt, {"convention": "published"}, T),
    (rkd_distance, naive_distance, {}, T),
    (rkd_distance, naive_distance, {}, WIDE),
    (rkd_distance, naive_distance, {"convention": "published"}, T),
    (rkd_angle, naive_angle, {}, T),
    (rkd_angle, naive_angle, {}, WIDE),
    (rkd_angle, naive_angle, {"convention": "published"}, T),
    (contrastive, naive_contrastive, {}, T),
    (contrastive, naive_contrastive, {"temperature": 0.5, "queue": QUEUE}, T),
    (contrastive, naive_contrastive, {"temperature": 0.5, "queue": QUEUE, "in_batch": False}, T),
]
cases = pytest.mark.parametrize(("loss", "naive", "options", "teacher"), CASES)


@cases
def test_equals_the_loops(loss, naive, options, teacher):
    expected = naive(
        S.numpy(), teacher.numpy(), **{k: getattr(v, "numpy", lambda v=v: v)() for k, v in options.items()}
    )
    assert loss(S, teacher, **options).item() == pytest.approx(expected, rel=1e-5 if loss is pkt else 1e-9)


@cases
def test_identities(loss, naive, options, teacher, identities):
    identities(lambda s, t: loss(s, t, **options), S, teacher, zero=loss is not contrastive)


@cases
def test_order_of_rows_does_not_matter(loss, naive, options, teacher):
    order = torch.tensor([3, 0, 5, 2, 1, 4])
    torch.testing.assert_close(loss(S[order], teacher[order], **options), loss(S, teacher, **options))


@cases
def test_halves_do_not_average_to_the_whole(loss, naive, options, teacher):
    """Relations are of the batch: its size is part of what is asked. Only fixed negatives are row by row."""
    halves = [loss(S[p], teacher[p], **options) for p in (slice(3), slice(3, None))]
    row_by_row = options.get("in_batch") is False
    assert torch.isclose(sum(halves) / 2, loss(S, teacher, **options)) == row_by_row


@cases
@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_batches_are_finite(loss, naive, options, teacher, size):
    s = S[:size].clone().requires_grad_()
    value = loss(s, teacher[:size], **options)
    value.backward()
    assert value.isfinite()
    assert value > -1e-12
    assert s.grad.isfinite().all()
    if size == 1 and "queue" not in options:
        assert abs(value) < 1e-12


@cases
@pytest.mark.parametrize("shape", ["equal", "zero", "repeated"])
def test_degenerate_vectors_are_finite(loss, naive, options, teacher, shape):
    s = {"equal": torch.ones_like(S), "zero": torch.zeros_like(S), "repeated": S[[0, 0, 1, 1, 2, 2]]}[shape]
    for other in (teacher, s):
        s = s.detach().clone().requires_grad_()
        value = loss(s, other, **options)
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()
        assert s.grad.abs().max() < 100


def test_constants_by_hand():
    # a 3-4-5 triangle against three points on a line, 0, 1, 2
    s, t = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    # ψ_s = (3, 4, 5)/4, ψ_t = (1, 2, 1)/(4/3)
    expected = (0 + 0.25 + 0.25) / 2 / 3
    assert rkd_distance(s, t).item() == pytest.approx(expected, abs=1e-7)
    assert rkd_distance(s, t, convention="published").item() == pytest.approx(expected * 6 / 9, abs=1e-7)
    # cosines at the corners: student 0, 3/5, 4/5; teacher 1, −1, 1
    expected = (0.5 + (1.6 - 0.5) + 0.02) / 3
    assert rkd_angle(s, t).item() == pytest.approx(expected)
    assert rkd_angle(s, t, convention="published").item() == pytest.approx(expected * 6 / 27)

    # orthogonal against equal rows: Ĝ_s = I, Ĝ_t = 1/√2 everywhere
    s, t = torch.eye(2), torch.ones(2, 2)
    expected = 2 * ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 4
    assert similarity_preserving(s, t).item() == pytest.approx(expected)
    assert similarity_preserving(s, t).item() == pytest.approx(1 - math.sqrt(0.5))

    # kernels: student rows 0 and 1 equal, row 2 orthogonal to both; the teacher's three equal
    s, t = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.ones(3, 1)
    row = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))  # (½, ½) from (⅔, ⅓); row 2 has (½, ½)
    assert pkt(s, t).item() == pytest.approx(2 * row / 3, rel=1e-5)
    # with themselves: (⅖, ⅖, ⅕) twice and (¼, ¼, ½), against ⅓ each
    first = math.log(1 / 3) - (2 * math.log(0.4) + math.log(0.2)) / 3
    last = math.log(1 / 3) - (2 * math.log(0.25) + math.log(0.5)) / 3
    assert pkt(s, t, convention="published").item() == pytest.approx((2 * first + last) / 9, rel=1e-5)

    # both rows meet their own teacher at cosine 1 and the other's at 0
    assert contrastive(torch.eye(2), 3 * torch.eye(2), temperature=0.5).item() == pytest.approx(
        math.log(1 + math.exp(-2)), rel=1e-5
    )
    queue = torch.tensor([[0.0, -1.0]])
    one = contrastive(torch.eye(2)[:1], torch.eye(2)[:1], temperature=1.0, queue=queue, in_batch=False)
    assert one.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)


@cases
def test_scale_does_not_matter(loss, naive, options, teacher):
    torch.testing.assert_close(loss(5 * S, teacher / 3, **options), loss(S, teacher, **options), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_shift_and_rotation_do_not_matter(loss):
    turn, _ = torch.linalg.qr(vectors(5, 4, 4))
    torch.testing.assert_close(loss(S @ turn + 3, T - 1), loss(S, T))
    assert abs(loss(2 * T @ turn + 3, T)) < 1e-12


def test_contrastive_bounds_and_queue():
    assert contrastive(T, T) < contrastive(S, T)
    assert contrastive(S, T, queue=QUEUE) > contrastive(S, T)  # more to tell apart
    torch.testing.assert_close(contrastive(S, T, queue=QUEUE[:0]), contrastive(S, T))
    collapsed = torch.ones_like(T)
    torch.testing.assert_close(contrastive(S, collapsed), torch.tensor(math.log(6), dtype=torch.float64))
    queue = QUEUE.clone().requires_grad_()
    contrastive(S.clone().requires_grad_(), T, queue=queue).backward()
    assert queue.grad is None


def test_queue_mask_takes_negatives_from_some_rows():
    mask = torch.rand(6, 7, generator=torch.Generator().manual_seed(4)) < 0.5
    mask[2] = False  # a row that has none left
    alone = [
        naive_contrastive(S[i : i + 1].numpy(), T[i : i + 1].numpy(), queue=QUEUE[mask[i]].numpy(), in_batch=False)
        for i in range(6)
    ]
    s = S.clone().requires_grad_()
    value = contrastive(s, T, queue=QUEUE, queue_mask=mask, in_batch=False)
    assert value.item() == pytest.approx(sum(alone) / 6, rel=1e-9)
    value.backward()
    assert s.grad.isfinite().all()
    assert (s.grad.abs().sum(1) > 0).tolist() == [True, True, False, True, True, True]
    for every, same in ((torch.ones_like(mask), QUEUE), (torch.zeros_like(mask), None)):
        torch.testing.assert_close(contrastive(S, T, queue=QUEUE, queue_mask=every), contrastive(S, T, queue=same))


def test_the_teacher_as_anchor_is_the_sides_exchanged_with_the_students_gradient():
    s = S.clone().requires_grad_()
    value = contrastive(s, T, anchor="teacher", queue=QUEUE)
    assert value.item() == pytest.approx(naive_contrastive(T.numpy(), S.numpy(), queue=QUEUE.numpy()), rel=1e-9)
    value.backward()
    assert (s.grad.abs().sum(1) > 0).all()


def test_batch_mask_takes_negatives_from_the_batch():
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(4)) < 0.5
    mask[2] = False
    expected = 0.0
    for i in range(6):
        others = [T[j].numpy() for j in range(6) if mask[i, j] and j != i]  # the diagonal stays the positive
        expected += naive_contrastive(S[i : i + 1].numpy(), T[i : i + 1].numpy(), queue=others, in_batch=False) / 6
    assert contrastive(S, T, batch_mask=mask).item() == pytest.approx(expected, rel=1e-9)
    none = contrastive(S, T, batch_mask=mask, in_batch=False, queue=QUEUE)
    torch.testing.assert_close(none, contrastive(S, T, in_batch=False, queue=QUEUE))


def test_noise_contrastive_is_crds_equation():
    """h = P / (P + K/N), P = e^(x/τ)/Z; no closed form of logistic functions here."""
    positive, negative = S[:, 0].tanh(), vectors(4, d=3).tanh()
    z, rows, tau = 50.0, 20, 0.5
    expected = 0.0
    for i in range(6):
        chance = [math.exp(x / tau) / z for x in (positive[i], *negative[i])]
        h = [p / (p + 3 / rows) for p in chance]
        expected -= (math.log(h[0]) + sum(math.log(1 - each) for each in h[1:])) / 6
    found = noise_contrastive(positive, negative, normaliser=z, rows=rows, temperature=tau)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    # P = K/N on both sides: a coin for each of 1 + K
    assert noise_contrastive(torch.zeros(2), torch.zeros(2, 3), normaliser=20 / 3, rows=20).item() == pytest.approx(
        4 * math.log(2)
    )


def test_noise_contrastive_is_finite_far_out():
    for cosine in (-1.0, 1.0):
        x = torch.full((2,), cosine, dtype=torch.bfloat16, requires_grad=True)
        value = noise_contrastive(x, -x.unsqueeze(1).expand(2, 9), normaliser=1e-3, rows=10, temperature=0.01)
        value.backward()
        assert value.dtype == torch.float32 and value.isfinite() and x.grad.isfinite().all()


def test_float32_of_large_norms_keeps_small_distances():
    """Squared norms minus products would lose them."""
    close = 1000 + S.float()
    torch.testing.assert_close(rkd_distance(close, T.float()), rkd_distance(S, T).float(), rtol=1e-2, atol=0)
    big = rkd_distance(100 + vectors(6, 40, 8).float(), vectors(7, 40, 8).float()).item()
    assert big == pytest.approx(naive_distance(vectors(6, 40, 8).numpy(), vectors(7, 40, 8).numpy()), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: similarity_preserving(S, T[:5]), r"student \[6, 4\], teacher \[5, 4\]"),
        (lambda: similarity_preserving(S[0], T[0]), r"\[B, D\]"),
        (lambda: pkt(S.unsqueeze(1), T.unsqueeze(1)), r"\[B, D\]"),
        (lambda: pkt(S, T, convention="mean"), "house, published"),
        (lambda: rkd_distance(S, T[:5]), r"\[B, D\]"),
        (lambda: rkd_distance(S, T, convention="sum"), "house, published"),
        (lambda: rkd_angle(S[:0], T[:0]), r"\[B, D\]"),
        (lambda: rkd_angle(S, T, convention="sum"), "house, published"),
        (lambda: contrastive(S, WIDE), r"student \[6, 4\], teacher \[6, 9\]"),
        (lambda: contrastive(S, T, temperature=0.0), "temperature"),
        (lambda: contrastive(S, T, queue=WIDE), r"\[K, 4\]"),
        (lambda: contrastive(S, T, in_batch=False), "queue"),
        (lambda: contrastive(S, T, anchor="both"), "student, teacher"),
        (lambda: contrastive(S, T, batch_mask=torch.ones(6, 7).bool()), r"\[6, 6\].*\[6, 7\]"),
        (lambda: noise_contrastive(S, S, normaliser=1.0, rows=9), r"\[B\] of positives"),
        (lambda: noise_contrastive(S[:, 0], S[:, :0], normaliser=1.0, rows=9), r"\[6, 0\]"),
        (lambda: noise_contrastive(S[:, 0], S, normaliser=0.0, rows=9), "normaliser"),
        (lambda: noise_contrastive(S[:, 0], S, normaliser=1.0, rows=0), "rows"),
        (lambda: contrastive(S, T, queue_mask=torch.ones(6, 7).bool()), r"\[6, 0\].*\[6, 7\]"),
        (lambda: contrastive(S, T, queue=QUEUE, queue_mask=torch.ones(7, 6).bool()), r"\[6, 7\].*\[7, 6\]"),
        (lambda: contrastive(S, T, queue=QUEUE, queue_mask=torch.ones(6, 7)), r"bool \[6, 7\], not torch.float32"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
