"""Attention maps, values and relation heads, against loops in NumPy and against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdresearch.errors import UserError
from kdresearch.objectives.attention import AttentionMaps, RelationHeads, ValueRelation, pools_by_attention
from kdresearch.objectives.objective import Objective
from kdresearch.structures import FIELDS, LOGITS, Batch, Outputs, Reading, Signature, Tokens

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
SAME, WORDS = Reading(), Reading("words")


@dataclass(frozen=True)
class Side(Signature):
    """What an objective is told of a model when it is bound."""

    heads: int = 2
    depth: int = 2
    width: int = 8
    embedding_width: int = 8
    fields: frozenset[str] = FIELDS
    name: str = "Side"


STUDENT, TEACHER = Side(), Side(depth=4, width=12)
POOLING = Side(heads=1, depth=1, fields=LOGITS | {"pooled", "hidden", "attention"})


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_head(x: Tensor, heads: int) -> Tensor:
    return torch.stack(x.chunk(heads, dim=2), dim=1)


def outputs(side: Side, seed: int, mask: Tensor = MASK) -> Outputs:
    """Queries, keys and values at random and the attention that follows, as a transformer gives them."""
    qkv = [tuple(draw(seed + 10 * i + j, *mask.shape, side.width) for j in range(3)) for i in range(side.depth)]
    maps = []
    for query, key, _ in qkv:
        scores = by_head(query, side.heads) @ by_head(key, side.heads).mT / math.sqrt(side.width // side.heads)
        maps.append(scores.masked_fill(~mask[:, None, None], -math.inf).softmax(-1))
    return Outputs(attention=tuple(maps), qkv=tuple(qkv), mask=mask)


def pooled(seed: int, mask: Tensor = MASK) -> Outputs:
    weight = draw(seed, *mask.shape).masked_fill(~mask, -math.inf).softmax(-1)
    return Outputs(attention=(weight[:, None, None],), mask=mask)


def batch(mask: Tensor = MASK, words: Tensor | None = None, teacher: Tensor | None = None) -> Batch:
    rows = torch.zeros(len(mask)).long()
    own = Tokens(mask.long(), mask, words)
    other = own if teacher is None else Tokens(torch.ones_like(teacher), torch.ones_like(teacher).bool(), teacher)
    return Batch(rows, rows, own, other)


def bound(objective: Any, student: Side = STUDENT, teacher: Side = TEACHER, reading: Reading = SAME) -> Any:
    objective.bind(student, teacher, reading)
    return objective


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(t: np.ndarray, s: np.ndarray) -> float:
    return float((t * np.log(t / s)).sum())


def relation(x: Tensor, y: Tensor, heads: int) -> list[float]:
    """KL of softmax(x·xᵀ/√d) over the real tokens, of every head and real query; x the student's."""
    values = []
    for row, length in enumerate(MASK.sum(1).tolist()):
        for s, t in zip(*(np.split(each[row, :length].numpy(), heads, axis=1) for each in (x, y)), strict=True):
            for q in range(length):
                values.append(kl(*(softmax(each @ each[q] / math.sqrt(each.shape[1])) for each in (t, s))))
    return values


OBJECTIVES: dict[str, Any] = {
    "kl": AttentionMaps,
    "kl_scores": lambda: AttentionMaps(inputs="scores", temperature=2.0),
    "mse": lambda: AttentionMaps("attention_mse"),
    "mse_scores": lambda: AttentionMaps("attention_mse", inputs="scores"),
    "mean": lambda: AttentionMaps(heads="mean"),
    "minilm": ValueRelation,
    "relation_heads": lambda: RelationHeads(4),
}
every_objective = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
by_words = pytest.mark.parametrize("make", [OBJECTIVES[n] for n in OBJECTIVES if "scores" not in n])


def test_attention_kl_of_mapped_layers_against_loops() -> None:
    student, teacher = outputs(STUDENT, 0), outputs(TEACHER, 100)
    found = bound(AttentionMaps(temperature=2.0))(student, teacher, batch())
    values = []
    for i, j in ((0, 1), (1, 3)):  # uniform: 1 with 2, 2 with 4
        for row, length in enumerate(MASK.sum(1).tolist()):
            for head in range(2):
                for q in range(length):
                    s, t = (side.attention[layer][row, head, q, :length].numpy() for side, layer in
                            ((student, i), (teacher, j)))  # fmt: skip
                    s, t = s**0.5 / (s**0.5).sum(), t**0.5 / (t**0.5).sum()
                    values.append(4 * kl(t, s))
    assert float(found) == pytest.approx(np.mean(values), rel=1e-9)


def test_attention_mse_of_scores_against_loops() -> None:
    student, teacher = outputs(STUDENT, 0), outputs(TEACHER, 100)
    found = bound(AttentionMaps("attention_mse", inputs="scores", layers=[[2, 3]]))(student, teacher, batch())
    values = []
    for row, length in enumerate(MASK.sum(1).tolist()):
        for head in range(2):
            q_s, k_s = (x[row, :, 4 * head : 4 * head + 4].numpy() for x in student.qkv[1][:2])
            q_t, k_t = (x[row, :, 6 * head : 6 * head + 6].numpy() for x in teacher.qkv[2][:2])
            for q in range(length):
                values += [(q_s[q] @ k_s[k] / 2 - q_t[q] @ k_t[k] / 6**0.5) ** 2 for k in range(length)]
    assert float(found) == pytest.approx(np.mean(values), rel=1e-9)


def test_published_tinybert_sees_padding_as_its_code_does() -> None:
    """Scores of -100 and below, those of padded keys, count as 0; padded queries count like the others."""
    student, teacher = outputs(STUDENT, 0), outputs(STUDENT, 100)
    objective = AttentionMaps("attention_mse", "scores", [[1, 1]], convention="tinybert")
    found = bound(objective, STUDENT, STUDENT)(student, teacher, batch())
    s, t = (by_head(side.qkv[0][0], 2) @ by_head(side.qkv[0][1], 2).mT / 2 for side in (student, teacher))
    assert float(found) == pytest.approx(float(((s - t) * MASK[:, None, None]).square().mean()))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_scores_and_probabilities_are_two_ways_to_one_value(temperature: float) -> None:
    sides = outputs(STUDENT, 0), outputs(TEACHER, 100), batch()
    one = bound(AttentionMaps(temperature=temperature))(*sides)
    other = bound(AttentionMaps(inputs="scores", temperature=temperature))(*sides)
    assert float(one) == pytest.approx(float(other), rel=1e-9)
    assert float(one) > 0.01


def test_relation_heads_against_loops() -> None:
    student, teacher = outputs(STUDENT, 0), outputs(TEACHER, 100)
    last = {n: np.mean(relation(student.qkv[-1][i], teacher.qkv[-1][i], 4)) for i, n in enumerate("qkv")}
    found = bound(RelationHeads(4))(student, teacher, batch())
    assert float(found) == pytest.approx(np.mean(list(last.values())), rel=1e-9)
    values = bound(RelationHeads(4, relations=["v"]))(student, teacher, batch())
    assert float(values) == pytest.approx(last["v"], rel=1e-9)
    upper = bound(RelationHeads(2, [1, 3], relations=("k", "q")))(student, teacher, batch())
    expected = [relation(student.qkv[0][i], teacher.qkv[2][i], 2) for i in (0, 1)]
    assert float(upper) == pytest.approx(np.mean(expected), rel=1e-9)


def test_minilm_is_attention_and_value_relation_of_the_last_layers() -> None:
    student, teacher = outputs(STUDENT, 0), outputs(TEACHER, 100)
    found = bound(ValueRelation())(student, teacher, batch())
    maps = bound(AttentionMaps(layers=[[2, 4]]))(student, teacher, batch())
    values = np.mean(relation(student.qkv[-1][2], teacher.qkv[-1][2], 2))
    assert float(found) == pytest.approx(float(maps) + values, rel=1e-9)


@every_objective
def test_a_model_has_nothing_to_learn_from_itself(make: Any) -> None:
    objective = bound(make(), STUDENT, STUDENT)
    assert float(objective(outputs(STUDENT, 0), outputs(STUDENT, 0), batch())) == pytest.approx(0, abs=1e-12)
    assert float(objective(outputs(STUDENT, 0), outputs(STUDENT, 100), batch())) > 1e-3


def moved(side: Outputs, order: Tensor, mask: Tensor) -> Outputs:
    """The tokens in another order; places beyond them hold nonsense."""
    pad = len(order) - side.mask.shape[1]
    qkv = [tuple(torch.nn.functional.pad(x, (0, 0, 0, pad), value=7.0)[:, order] for x in layer) for layer in side.qkv]
    maps = [torch.nn.functional.pad(x, (0, pad, 0, pad), value=0.3)[:, :, order][..., order] for x in side.attention]
    return Outputs(attention=tuple(maps), qkv=tuple(qkv), mask=mask)


@every_objective
def test_neither_padding_nor_order_matters(make: Any) -> None:
    objective = bound(make())
    student, teacher = outputs(STUDENT, 0), outputs(TEACHER, 100)
    plain = float(objective(student, teacher, batch()))
    order = torch.tensor([3, 6, 0, 4, 2, 5, 1])
    mask = torch.nn.functional.pad(MASK, (0, 2))[:, order]
    other = objective(moved(student, order, mask), moved(teacher, order, mask), batch(mask))
    assert float(other) == pytest.approx(plain, rel=1e-9)


@by_words
def test_words_of_one_token_each_compare_like_tokens(make: Any) -> None:
    student, teacher = outputs(STUDENT, 0), outputs(TEACHER, 100)
    words = torch.arange(5).expand(3, 5).masked_fill(~MASK, -1)
    one = bound(make())(student, teacher, batch())
    other = bound(make(), reading=WORDS)(student, teacher, batch(words=words))
    assert float(other) == pytest.approx(float(one), rel=1e-9)


# [CLS] w0 w1 w1 [SEP] against w0 w0 w1 w2
OWN, OTHER = torch.tensor([[-1, 0, 1, 1, -1]]), torch.tensor([[0, 0, 1, 2]])


def test_other_tokens_of_the_same_words_against_pooling_by_hand() -> None:
    student, teacher = outputs(STUDENT, 0, torch.ones(1, 5).bool()), outputs(TEACHER, 100, torch.ones(1, 4).bool())
    both = batch(torch.ones(1, 5).bool(), OWN, OTHER)
    a, b = student.attention[1][0].numpy(), teacher.attention[3][0].numpy()
    values = []
    for head in range(2):
        s = [a[head, [1]].mean(0), a[head, [2, 3]].mean(0)]
        t = [b[head, [0, 1]].mean(0), b[head, [2]].mean(0)]
        for x, y in zip(s, t, strict=True):
            x, y = np.array([x[1], x[2] + x[3]]), np.array([y[0] + y[1], y[2]])
            values.append(kl(y / y.sum(), x / x.sum()))
    found = bound(AttentionMaps(layers=[[2, 4]]), reading=WORDS)(student, teacher, both)
    assert float(found) == pytest.approx(np.mean(values), rel=1e-9)

    means = []
    for i in range(3):
        x, y = student.qkv[1][i][0].numpy(), teacher.qkv[3][i][0].numpy()
        x, y = np.stack([x[1], x[[2, 3]].mean(0)]), np.stack([y[[0, 1]].mean(0), y[2]])
        for s, t in zip(np.split(x, 4, 1), np.split(y, 4, 1), strict=True):
            means += [kl(softmax(t @ t[q] / 3**0.5), softmax(s @ s[q] / 2**0.5)) for q in range(2)]
    found = bound(RelationHeads(4), reading=WORDS)(student, teacher, both)
    assert float(found) == pytest.approx(np.mean(means), rel=1e-9)


@pytest.mark.parametrize("inputs", ["probabilities", "scores"])
def test_where_heads_differ_means_are_compared(inputs: str) -> None:
    wide = Side(heads=4, depth=2, width=12)
    student, teacher = outputs(STUDENT, 0), outputs(wide, 100)
    auto = bound(AttentionMaps("attention_mse", inputs), teacher=wide)(student, teacher, batch())
    values = []
    for layer in range(2):
        if inputs == "probabilities":
            s, t = student.attention[layer].mean(1), teacher.attention[layer].mean(1)
        else:  # the mean over heads of Σ q·k/√d is the whole product over H·√d
            s, t = (
                query @ key.mT / heads / math.sqrt(width / heads)
                for (query, key, _), heads, width in ((student.qkv[layer], 2, 8), (teacher.qkv[layer], 4, 12))
            )
        values.append(((s - t).square())[MASK[:, :, None] & MASK[:, None]].mean())
    assert float(auto) == pytest.approx(float(sum(values) / 2), rel=1e-9)
    with pytest.raises(UserError, match=r"heads=match.*2 of the student \(Side\), 4 of the teacher.*heads=mean"):
        bound(AttentionMaps(heads="match", inputs=inputs), teacher=wide)


def test_auto_matches_heads_where_it_can() -> None:
    sides = outputs(STUDENT, 0), outputs(TEACHER, 100), batch()
    auto, match, mean = (float(bound(AttentionMaps(heads=heads))(*sides)) for heads in ("auto", "match", "mean"))
    assert auto == match
    assert mean < match  # KL is convex


def row_kl(student: Tensor, teacher: Tensor) -> float:
    """Mean over rows of KL between weights [B, T], renormalised over the real tokens."""
    values = []
    for s, t, real in zip(student.numpy(), teacher.numpy(), MASK.numpy(), strict=True):
        values.append(kl(t[real] / t[real].sum(), s[real] / s[real].sum()))
    return float(np.mean(values))


def test_a_pooling_student_learns_what_the_first_token_attends_to() -> None:
    student, teacher = pooled(0), outputs(TEACHER, 100)
    first = [layer[:, :, 0].mean(1) for layer in teacher.attention]
    own = student.attention[0][:, 0, 0]
    for layers in ("uniform", "last"):
        found = bound(AttentionMaps(layers=layers), POOLING, TEACHER)(student, teacher, batch())
        assert float(found) == pytest.approx(row_kl(own, first[3]), rel=1e-9)
    chosen = bound(AttentionMaps(layers=[[1, 2]]), POOLING, TEACHER)(student, teacher, batch())
    assert float(chosen) == pytest.approx(row_kl(own, first[1]), rel=1e-9)


def test_a_pooling_teacher_teaches_the_last_layer() -> None:
    student, teacher = outputs(STUDENT, 0), pooled(100)
    found = bound(AttentionMaps(), STUDENT, POOLING)(student, teacher, batch())
    expected = row_kl(student.attention[1][:, :, 0].mean(1), teacher.attention[0][:, 0, 0])
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_pooling_on_both_sides_however_deep() -> None:
    student, teacher = pooled(0), pooled(100)
    deep = Side(heads=1, depth=3, fields=POOLING.fields)
    found = bound(AttentionMaps(), POOLING, deep)(student, teacher, batch())
    assert float(found) == pytest.approx(row_kl(*(side.attention[0][:, 0, 0] for side in (student, teacher))), rel=1e-9)
    assert float(bound(AttentionMaps(), deep, deep)(student, student, batch())) == pytest.approx(0, abs=1e-12)


def test_pooling_by_words() -> None:
    student, teacher = pooled(0, torch.ones(1, 5).bool()), outputs(TEACHER, 100, torch.ones(1, 4).bool())
    found = bound(AttentionMaps(), POOLING, TEACHER, WORDS)(
        student, teacher, batch(torch.ones(1, 5).bool(), OWN, OTHER)
    )
    x, y = student.attention[0][0, 0, 0].numpy(), teacher.attention[3][0, :, 0].mean(0).numpy()
    x, y = np.array([x[1], x[2] + x[3]]), np.array([y[0] + y[1], y[2]])
    assert float(found) == pytest.approx(kl(y / y.sum(), x / x.sum()), rel=1e-9)


def test_who_pools_by_attention() -> None:
    assert pools_by_attention(POOLING)
    assert not pools_by_attention(STUDENT)
    assert not pools_by_attention(Side(heads=1))  # a transformer of one head
    assert not pools_by_attention(Side(heads=4, fields=FIELDS - {"qkv"}))  # a transformer that hides its queries
    assert not pools_by_attention(Side(heads=0, fields=LOGITS | {"pooled"}))


SCORES = AttentionMaps(inputs="scores")


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "reading", "message"),
    [
        (SCORES, STUDENT, TEACHER, WORDS, r"inputs=scores.*do not add up by word.*inputs=probabilities"),
        (SCORES, POOLING, TEACHER, SAME, r"the student pools by attention.*inputs=probabilities"),
        (SCORES, STUDENT, POOLING, SAME, r"the teacher pools by attention.*inputs=probabilities"),
        (AttentionMaps(layers=[[0, 0], [1, 1]]), STUDENT, TEACHER, SAME, r"0 is the embeddings.*no attention"),
        (AttentionMaps(layers=[[1, 5]]), STUDENT, TEACHER, SAME, r"teacher has layers 0 \(embeddings\) to 4, and 5"),
        (AttentionMaps(layers=[[2, 1]]), POOLING, TEACHER, SAME, r"student has layers 0 \(embeddings\) to 1, and 2"),
        (AttentionMaps(heads="match"), POOLING, TEACHER, SAME, r"1 of the student \(Side\), 2 of the teacher"),
        (ValueRelation(), STUDENT, Side(heads=12), SAME, r"2 of the student \(Side\), 12 of the.*relation_heads"),
        (RelationHeads(8), STUDENT, TEACHER, SAME, r"8 relation heads .* 8 of the student .* 12 of .*divisor of 4"),
        (RelationHeads(4, [0, 4]), STUDENT, TEACHER, SAME, r"0 is the embeddings"),
        (RelationHeads(4, [2, 5]), STUDENT, TEACHER, SAME, r"teacher has layers 0 \(embeddings\) to 4, and 5"),
    ],
)
def test_models_that_do_not_fit(
    objective: Objective, student: Any, teacher: Any, reading: Reading, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        objective.bind(student, teacher, reading)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionMaps("attention_kd"), r"loss: 'attention_kd' \(did you mean 'attention_kl'\?\)"),
        (lambda: AttentionMaps(inputs="score"), r"inputs: 'score' \(did you mean 'scores'\?\)"),
        (lambda: AttentionMaps(heads="sum"), r"heads: 'sum'.*auto, match, mean"),
        (lambda: AttentionMaps("attention_mse", temperature=2.0), r"temperature=2.0 is for attention_kl"),
        (lambda: AttentionMaps(temperature=0.0), "temperature must be positive"),
        (lambda: AttentionMaps(convention="tinybert"), "convention 'tinybert'"),
        (lambda: AttentionMaps(convention="textbrewer"), "give inputs='scores'"),
        (lambda: RelationHeads(0), "heads must be 1 or more, not 0"),
        (lambda: RelationHeads(4, [[1, 2]]), r"one pair \[student, teacher\], not \[\[1, 2\]\]"),
        (lambda: RelationHeads(4, relations=["q", "w"]), r"relations: 'w'; one of: q, k, v"),
        (lambda: RelationHeads(4, relations=[]), "at least one of q, k, v"),
    ],
)
def test_bad_settings_are_refused_before_any_model(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_objective
def test_in_bf16_it_is_finite_and_teaches_the_student_alone(make: Any) -> None:
    def leaves(side: Outputs) -> Outputs:
        qkv = tuple(tuple(x.bfloat16().requires_grad_() for x in layer) for layer in side.qkv)
        return side._replace(qkv=qkv, attention=tuple(x.bfloat16().requires_grad_() for x in side.attention))

    student, teacher = leaves(outputs(STUDENT, 0)), leaves(outputs(TEACHER, 100))
    objective = bound(make())
    with torch.autocast("cpu", torch.bfloat16):
        value = objective(student, teacher, batch())
    assert value.dtype == torch.float32 and value.isfinite()
    assert torch.equal(value, objective(student, teacher, batch()))  # autocast lowers nothing
    value.backward()
    own, other = ([*side.attention, *(x for layer in side.qkv for x in layer)] for side in (student, teacher))
    assert all(x.grad is None for x in other)
    reached = [x.grad for x in own if x.grad is not None]
    assert reached and all(grad.isfinite().all() and grad.any() for grad in reached)


def test_what_each_needs() -> None:
    assert all(make().needs_shared_tokens for make in OBJECTIVES.values())
    needs = {name: set(make().needs) for name, make in OBJECTIVES.items()}
    assert needs["kl"] == needs["mse"] == {"attention"}
    assert needs["kl_scores"] == needs["mse_scores"] == needs["relation_heads"] == {"qkv"}
    assert needs["minilm"] == {"attention", "qkv"}
    assert all(make().needs == make().teacher_needs for make in OBJECTIVES.values())
