"""Losses between attention maps and relations, against hand-computed constants and loops in NumPy."""

import math

import numpy as np
import pytest
import torch

from kdresearch.losses import attention_kl, attention_mse, relation_heads, value_relation

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SCORES_S, SCORES_T = draw(0, 4, 2, 5, 5), draw(1, 4, 2, 5, 5)
VALUES_S, VALUES_T, VALUES_WIDE = draw(2, 4, 2, 5, 3), draw(3, 4, 2, 5, 3), draw(4, 4, 2, 5, 6)
STATES_S, STATES_T, STATES_WIDE = draw(5, 4, 5, 6), draw(6, 4, 5, 6), draw(7, 4, 5, 12)


def softmax(z):
    e = np.exp(np.asarray(z) - np.max(z))
    return e / e.sum()


def attend(scores):
    """Attention as a model with padding gives it: 0 on padded keys."""
    return scores.masked_fill(~MASK[:, None, None], -math.inf).softmax(-1)


S, T = attend(SCORES_S), attend(SCORES_T)


def naive_mse(s, t, mask):
    total, count = 0.0, 0
    for b in range(len(s)):
        tokens = np.flatnonzero(mask[b])
        for h in range(s.shape[1]):
            total += sum((s[b, h, q, k] - t[b, h, q, k]) ** 2 for q in tokens for k in tokens)
        count += len(tokens) ** 2 * s.shape[1]
    return total / count


def naive_mse_sum(s, t, mask):
    """TextBrewer's attention_mse_sum: the heads' sum is one map."""
    return naive_mse(s.sum(1, keepdims=True), t.sum(1, keepdims=True), mask)


def naive_tinybert(s, t, mask):
    s, t = np.where(s <= -100, 0, s), np.where(t <= -100, 0, t)
    return ((s - t) ** 2).sum() / s.size


def naive_relation(s, t, mask):
    """Mean KL between the softmaxes of two scores over the valid keys."""
    rows = []
    for b in range(len(s)):
        tokens = np.flatnonzero(mask[b])
        for h in range(s.shape[1]):
            for q in tokens:
                p_s, p_t = softmax(s[b, h, q, tokens]), softmax(t[b, h, q, tokens])
                rows.append(sum(a * math.log(a / c) for a, c in zip(p_t, p_s, strict=True)))
    return sum(rows) / len(rows)


def naive_kl(s, t, mask, temperature=1.0, inputs="probabilities"):
    if inputs == "probabilities":
        s, t = np.log(np.maximum(s, 1e-300)), np.log(np.maximum(t, 1e-300))
    return temperature**2 * naive_relation(s / temperature, t / temperature, mask)


def naive_ce(s, t, mask, inputs):
    """TextBrewer: each softmax over every key, then the valid ones."""
    rows = []
    for b in range(len(s)):
        tokens = np.flatnonzero(mask[b])
        for h in range(s.shape[1]):
            for q in tokens:
                p_s, p_t = softmax(s[b, h, q]), softmax(t[b, h, q])
                rows.append(-sum(p_t[k] * math.log(p_s[k]) for k in tokens))
    return sum(rows) / len(rows)


def naive_ce_mean(s, t, mask, inputs):
    return naive_ce(s.mean(1, keepdims=True), t.mean(1, keepdims=True), mask, inputs)


def scaled_products(x):
    return np.array([[h @ h.T / math.sqrt(h.shape[1]) for h in row] for row in x])


def naive_values(s, t, mask):
    return naive_relation(scaled_products(s), scaled_products(t), mask)


def naive_heads(s, t, mask, heads):
    def cut(x):
        width = x.shape[2] // heads
        return np.array([[row[:, h * width : (h + 1) * width] for h in range(heads)] for row in x])

    return naive_values(cut(s), cut(t), mask)


CASES = [
    (attention_mse, naive_mse, {}, S, T),
    (attention_mse, naive_mse, {}, SCORES_S, SCORES_T),
    (attention_mse, naive_mse, {"convention": "textbrewer"}, SCORES_S, SCORES_T),
    (attention_mse, naive_mse_sum, {"convention": "textbrewer_sum"}, SCORES_S, SCORES_T),
    (attention_mse, naive_tinybert, {"convention": "tinybert"}, SCORES_S, SCORES_T),
    (attention_kl, naive_kl, {}, S, T),
    (attention_kl, naive_kl, {"temperature": 2.0}, S, T),
    (attention_kl, naive_kl, {"temperature": 2.0, "inputs": "scores"}, SCORES_S, SCORES_T),
    (attention_kl, naive_ce, {"convention": "textbrewer", "inputs": "scores"}, SCORES_S, SCORES_T),
    (attention_kl, naive_ce_mean, {"convention": "textbrewer_mean", "inputs": "scores"}, SCORES_S, SCORES_T),
    (value_relation, naive_values, {}, VALUES_S, VALUES_T),
    (value_relation, naive_values, {}, VALUES_S, VALUES_WIDE),
    (relation_heads, naive_heads, {"heads": 3}, STATES_S, STATES_T),
    (relation_heads, naive_heads, {"heads": 2}, STATES_S, STATES_WIDE),
    (relation_heads, naive_heads, {"heads": 1}, STATES_S, STATES_WIDE),
]
cases = pytest.mark.parametrize(("loss", "naive", "options", "student", "teacher"), CASES)
masked = [case for case in CASES if "convention" not in case[2] or case[2]["convention"] == "house"]
masked_cases = pytest.mark.parametrize(("loss", "naive", "options", "student", "teacher"), masked)


@cases
def test_equals_the_loops(loss, naive, options, student, teacher):
    expected = naive(student.numpy(), teacher.numpy(), MASK.numpy(), **without_convention(naive, options))
    assert loss(student, teacher, mask=MASK, **options).item() == pytest.approx(expected, rel=1e-9)


def without_convention(naive, options):
    return {k: v for k, v in options.items() if k != "convention"}


@cases
def test_identities(loss, naive, options, student, teacher, identities):
    zero = "textbrewer" not in options.get("convention", "") or loss is attention_mse
    identities(lambda s, t: loss(s, t, mask=MASK, **options), student, teacher, zero=zero)


@cases
def test_no_mask_counts_every_token(loss, naive, options, student, teacher):
    everything = loss(student, teacher, mask=torch.ones_like(MASK), **options)
    assert torch.equal(loss(student, teacher, **options), everything)


def padded(x, fill, axes):
    """``x`` with ``fill`` wherever an axis of tokens is padded, and two more tokens of it."""
    for axis in axes:
        shape = [1] * x.dim()
        shape[0], shape[axis] = MASK.shape
        x = x.masked_fill(~MASK.view(shape), fill)
        more = list(x.shape)
        more[axis] = 2
        x = torch.cat([x, torch.full(more, fill, dtype=x.dtype)], axis)
    return x


@masked_cases
@pytest.mark.parametrize("fill", [math.nan, -math.inf, 0.0])
def test_padding_does_not_matter(loss, naive, options, student, teacher, fill):
    axes = {attention_mse: (2, 3), attention_kl: (2, 3), value_relation: (2,), relation_heads: (1,)}[loss]
    mask = torch.cat([MASK, torch.zeros(4, 2, dtype=torch.bool)], 1)
    s = padded(student, fill, axes).requires_grad_()
    value = loss(s, padded(teacher, fill, axes), mask=mask, **options)
    torch.testing.assert_close(value, loss(student, teacher, mask=MASK, **options))
    value.backward()
    assert s.grad.isfinite().all()
    for row, tokens in enumerate(mask):
        for axis in axes:
            assert s.grad[row].index_select(axis - 1, (~tokens).nonzero()[:, 0]).abs().max() == 0


@cases
def test_order_of_rows_does_not_matter(loss, naive, options, student, teacher):
    order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(
        loss(student[order], teacher[order], mask=MASK[order], **options),
        loss(student, teacher, mask=MASK, **options),
    )


@cases
def test_halves_of_as_many_tokens_average_to_the_whole(loss, naive, options, student, teacher):
    mask = MASK.clone()
    mask[2:] = mask[:2]  # 3 and 5 tokens, twice
    halves = [loss(student[p], teacher[p], mask=mask[p], **options) for p in (slice(2), slice(2, None))]
    torch.testing.assert_close(loss(student, teacher, mask=mask, **options), sum(halves) / 2)


@masked_cases
def test_no_valid_token_gives_zero(loss, naive, options, student, teacher):
    s = student.clone().requires_grad_()
    value = loss(s, teacher, mask=torch.zeros_like(MASK), **options)
    assert value == 0
    value.backward()
    assert torch.equal(s.grad, torch.zeros_like(s))


@cases
def test_layers_are_averaged(loss, naive, options, student, teacher):
    other = student.flip(0)
    each = [loss(student, teacher, mask=MASK, **options), loss(other, teacher, mask=MASK, **options)]
    both = loss([student, other], (teacher, teacher), mask=MASK, **options)
    torch.testing.assert_close(both, sum(each) / (1 if options.get("convention") == "tinybert" else 2))


@masked_cases
def test_order_of_heads_matters_only_between_sides(loss, naive, options, student, teacher):
    if loss is relation_heads:
        width_s, width_t = student.shape[2] // options["heads"], teacher.shape[2] // options["heads"]
        s, t = student.roll(width_s, 2), teacher.roll(width_t, 2)
    else:
        s, t = student.flip(1), teacher.flip(1)
    torch.testing.assert_close(loss(s, t, mask=MASK, **options), loss(student, teacher, mask=MASK, **options))


def test_constants_by_hand():
    s = torch.tensor([[[[0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [0.1, 0.1, 0.8]]]])
    t = torch.tensor([[[[0.1, 0.1, 0.8], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]]]])
    mask = torch.tensor([[True, True, False]])
    assert attention_mse(s, t, mask=mask).item() == pytest.approx((0.16 + 0.04 + 0.1225 + 0.0025) / 4)
    # valid keys renormalised: student (⅝, ⅜), (½, ½); teacher (½, ½), (¾, ¼)
    first = 0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)
    second = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert attention_kl(s, t, mask=mask).item() == pytest.approx((first + second) / 2)
    assert attention_kl(s**2, t**2, mask=mask, temperature=2.0).item() == pytest.approx(2 * (first + second))
    # two heads with the same error: their mean, and the square of their sum
    for convention, times in (("house", 1), ("textbrewer", 1), ("textbrewer_sum", 4)):
        two = attention_mse(s.expand(1, 2, 3, 3), t.expand(1, 2, 3, 3), mask=mask, convention=convention)
        assert two.item() == pytest.approx(times * 0.325 / 4)
    # values 0 and 1 of width 1: R_s rows softmax(0, 0) and softmax(0, 1); teacher 0 and 0: ½ each
    values = torch.tensor([[[[0.0], [1.0]]]])
    e = math.e
    expected = 0.5 * math.log((1 + e) / 2) + 0.5 * math.log((1 + e) / (2 * e))
    assert value_relation(values, 0 * values).item() == pytest.approx(expected / 2)
    assert relation_heads(values[0], 0 * values[0], heads=1).item() == pytest.approx(expected / 2)
    # width 4 in one head: the products are divided by √4
    wide = torch.tensor([[[[0.0] * 4, [1 / math.sqrt(2)] * 4]]])
    assert value_relation(wide, 0 * wide).item() == pytest.approx(expected / 2)


def test_tinybert_zeroes_the_scores_that_a_mask_pushed_down():
    down = ~MASK[:, None, None]
    s, t = SCORES_S.masked_fill(down, -10000.0), SCORES_T.masked_fill(down, -math.inf)
    expected = (SCORES_S.masked_fill(down, 0.0) - SCORES_T.masked_fill(down, 0.0)).square().mean()
    torch.testing.assert_close(attention_mse(s, t, mask=MASK, convention="tinybert"), expected)


def test_scores_and_their_probabilities_agree():
    for temperature in (1.0, 3.0):
        scores = attention_kl(SCORES_S, SCORES_T, mask=MASK, temperature=temperature, inputs="scores")
        torch.testing.assert_close(attention_kl(S, T, mask=MASK, temperature=temperature), scores)


def test_renormalised_attention_sees_no_scale_of_its_rows():
    torch.testing.assert_close(attention_kl(S * draw(8, 4, 2, 5, 1).exp(), T, mask=MASK), attention_kl(S, T, mask=MASK))


def test_zero_attention_is_finite():
    s = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]], requires_grad=True)
    value = attention_kl(s, torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]]))
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()


def test_one_query_pools_the_row():
    """A pooling attention [B, 1, 1, T] against a first token's."""
    student, teacher = draw(9, 4, 1, 1, 5).softmax(-1), T.mean(1, keepdim=True)[:, :, :1]
    rows, squares = [], 0.0
    for b in range(4):
        tokens = MASK[b]
        p_s, p_t = (x[b, 0, 0, tokens] / x[b, 0, 0, tokens].sum() for x in (student, teacher))
        rows.append((p_t * (p_t / p_s).log()).sum())
        squares += (student[b, 0, 0, tokens] - teacher[b, 0, 0, tokens]).square().sum()
    torch.testing.assert_close(attention_kl(student, teacher, mask=MASK), sum(rows) / 4)
    torch.testing.assert_close(attention_mse(student, teacher, mask=MASK), squares / MASK.sum())


def test_relation_heads_of_queries_keys_and_values():
    layer_s, layer_t = (STATES_S, STATES_T, STATES_S.flip(0)), (STATES_WIDE, STATES_WIDE.flip(0), STATES_WIDE.flip(1))
    each = [relation_heads(s, t, heads=3, mask=MASK) for s, t in zip(layer_s, layer_t, strict=True)]
    torch.testing.assert_close(relation_heads(layer_s, layer_t, heads=3, mask=MASK), sum(each) / 3)


def test_relation_heads_are_value_relation_regrouped():
    per_head = VALUES_S.transpose(1, 2).reshape(4, 5, 6), VALUES_T.transpose(1, 2).reshape(4, 5, 6)
    torch.testing.assert_close(
        relation_heads(*per_head, heads=2, mask=MASK), value_relation(VALUES_S, VALUES_T, mask=MASK)
    )


def test_relations_see_no_rotation():
    turn, _ = torch.linalg.qr(draw(10, 3, 3))
    torch.testing.assert_close(value_relation(VALUES_S @ turn, VALUES_T), value_relation(VALUES_S, VALUES_T))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_mse(S, T[:, :1]), r"student \[4, 2, 5, 5\], teacher \[4, 1, 5, 5\]"),
        (lambda: attention_mse(S[:, :, :2], T[:, :, :2]), r"\[B, H, T, T\]"),
        (lambda: attention_mse(S[0], T[0]), r"\[B, H, T, T\]"),
        (lambda: attention_mse(S, T, mask=MASK[:, :4]), r"bool \[4, 5\]"),
        (lambda: attention_mse(S, T, mask=MASK.double()), "torch.float64"),
        (lambda: attention_mse(S, T, convention="sum"), "house, textbrewer, textbrewer_sum, tinybert"),
        (lambda: attention_mse([S, S], [T]), "2 of the student, 1 of the teacher"),
        (lambda: attention_kl(S, T, temperature=0.0), "temperature"),
        (lambda: attention_kl(S, T, inputs="logits"), "probabilities, scores"),
        (lambda: attention_kl(S, T, convention="tinybert"), "house, textbrewer, textbrewer_mean"),
        (lambda: attention_kl(S, T, convention="textbrewer"), "inputs='scores'"),
        (lambda: attention_kl([S], T), "sequence of layers"),
        (lambda: value_relation(VALUES_S, VALUES_T[:, :1]), "same B, H and T"),
        (lambda: value_relation(VALUES_S[0], VALUES_T[0]), r"\[B, H, T, d\]"),
        (lambda: value_relation(VALUES_S, VALUES_T, mask=MASK[:2]), r"bool \[4, 5\]"),
        (lambda: relation_heads(STATES_S, STATES_WIDE, heads=4), "student 6, teacher 12"),
        (lambda: relation_heads(STATES_S, STATES_T, heads=0), "heads"),
        (lambda: relation_heads(STATES_S, STATES_T[:, :3], heads=2), "same rows"),
        (lambda: relation_heads([STATES_S], [STATES_T] * 3, heads=2), "1 of the student, 3 of the teacher"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
