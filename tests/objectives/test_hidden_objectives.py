"""Token states and sentence vectors: the right layers, through the objective's own projections, into the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.objectives.hidden import FEATURE_LOSSES, TOKENS_ONLY, Feature, Semantic, StatePairs
from kdresearch.structures import FIELDS, LOGITS, Batch, Outputs, Reading, Signature, Tokens

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
SAME, WORDS, APART = Reading(), Reading("words"), Reading("apart")
# Words of two rows; 0 and 1 are on both sides of the first, only 1 on both sides of the second.
OWN_WORDS = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, -1, -1]])
OTHER_WORDS = torch.tensor([[-1, 0, 1, 1, 3, -1], [-1, 1, 1, 1, 2, -1]])


@dataclass(frozen=True)
class Side(Signature):
    """What an objective is told of a model when it is bound."""

    width: int = 8
    depth: int = 2
    heads: int = 2
    embedding_width: int = 8
    fields: frozenset[str] = FIELDS
    name: str = "Side"


STUDENT, TEACHER = Side(embedding_width=6), Side(width=12, depth=4, embedding_width=10)
NO_LAYERS = LOGITS | {"pooled"}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(side: Side, seed: int, mask: Tensor = MASK) -> Outputs:
    widths = [side.embedding_width, *[side.width] * side.depth]
    hidden = tuple(draw(seed + i, *mask.shape, width) for i, width in enumerate(widths))
    return Outputs(
        logits=draw(seed + 20, len(mask), 3), pooled=draw(seed + 21, len(mask), side.width), hidden=hidden, mask=mask
    )


def batch(own: Tensor | None = None, other: Tensor | None = None) -> Batch:
    rows = torch.zeros(len(MASK if own is None else own)).long()
    student, teacher = (
        Tokens(MASK.long(), MASK, words) if words is None else Tokens(words.clamp(min=0), words > -2, words)
        for words in (own, other)
    )
    return Batch(rows, rows, student, teacher)


def bound(objective: Any, student: Side = STUDENT, teacher: Side = TEACHER, reading: Reading = SAME) -> Any:
    torch.manual_seed(0)
    objective.bind(student, teacher, reading)
    return objective.double()


def sides() -> tuple[Outputs, Outputs]:
    return outputs(STUDENT, 0), outputs(TEACHER, 100)


def by_hand(objective: Any, pairs: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """The states of named layers, the student's each through the projection of its place."""
    student, teacher = sides()
    projections = objective.states.projections
    assert len(projections) == len(pairs)
    own = [project(student.hidden[i]) for project, (i, _) in zip(projections, pairs, strict=True)]
    return own, [teacher.hidden[j] for _, j in pairs]


every_loss = pytest.mark.parametrize("loss", FEATURE_LOSSES)


@every_loss
@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        ({}, [(1, 2), (2, 4)]),
        ({"layers": "last"}, [(1, 3), (2, 4)]),
        ({"layers": "skip"}, [(1, 2)]),
        ({"layers": [[2, 1]], "projection": "linear"}, [(2, 1)]),
        ({"embeddings": True}, [(0, 0), (1, 2), (2, 4)]),
        ({"layers": [[1, 4], [0, 0]], "embeddings": True}, [(1, 4), (0, 0)]),  # there already
    ],
)
def test_it_is_the_loss_of_the_mapped_layers(loss: str, settings: Any, pairs: list[tuple[int, int]]) -> None:
    if loss == "fsp" and len(pairs) == 1:
        with pytest.raises(UserError, match=r"loss=fsp is between two layers .* pairs one layer"):
            bound(Feature(loss, **settings))
        return
    objective = bound(Feature(loss, **settings))
    own, other = by_hand(objective, pairs)
    found = objective(*sides(), batch())
    assert float(found) == pytest.approx(float(getattr(losses, loss)(own, other, mask=MASK)), rel=1e-9)
    assert float(found) > 1e-3
    projected = loss not in ("nst", "attention_transfer") or "projection" in settings
    assert all(isinstance(each, nn.Linear if projected else nn.Identity) for each in objective.states.projections)


def test_hidden_mse_against_a_loop() -> None:
    """Of real tokens alone, each layer by its own weight and bias."""
    objective, (student, teacher) = bound(Feature()), sides()
    squares = []
    for project, (i, j) in zip(objective.states.projections, ((1, 2), (2, 4)), strict=True):
        for row, length in enumerate((5, 3, 2)):
            own = student.hidden[i][row, :length] @ project.weight.T + project.bias
            squares += (own - teacher.hidden[j][row, :length]).square().flatten().tolist()
    assert float(objective(student, teacher, batch())) == pytest.approx(sum(squares) / len(squares), rel=1e-9)


@every_loss
def test_words_are_compared_where_tokens_differ(loss: str) -> None:
    if loss == "fsp":
        return  # of two layers: the next test
    objective = bound(Feature(loss, layers=[[2, 4]]), reading=WORDS)
    student = outputs(STUDENT, 0, torch.ones_like(OWN_WORDS).bool())
    teacher = outputs(TEACHER, 100, torch.ones_like(OTHER_WORDS).bool())
    h, g = objective.states.projections[0](student.hidden[2]), teacher.hidden[4]
    if loss == "patient":  # the first token, of whatever word
        expected = losses.patient(h[:, :1], g[:, :1])
    else:
        own = torch.stack([h[0, :2].mean(0), h[0, 2], h[1, 1:3].mean(0), torch.zeros_like(h[1, 0])]).reshape(2, 2, -1)
        other = torch.stack([g[0, 1], g[0, 2:4].mean(0), g[1, 1:4].mean(0), torch.zeros_like(g[1, 0])])
        both = torch.tensor([[True, True], [True, False]])
        expected = getattr(losses, loss)(own, other.reshape(2, 2, -1), mask=both)
    found = objective(student, teacher, batch(OWN_WORDS, OTHER_WORDS))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(found) > 1e-3


def test_fsp_is_between_the_words_of_two_layers() -> None:
    objective = bound(Feature("fsp", layers=[[1, 2], [2, 4]]), reading=WORDS)
    student = outputs(STUDENT, 0, torch.ones_like(OWN_WORDS).bool())
    teacher = outputs(TEACHER, 100, torch.ones_like(OTHER_WORDS).bool())
    first, second = objective.states.projections
    own, other = [], []
    for h, g in (
        (first(student.hidden[1]), teacher.hidden[2]), (second(student.hidden[2]), teacher.hidden[4])
    ):  # fmt: skip
        nothing = torch.zeros_like(h[1, 0])
        own.append(torch.stack([h[0, :2].mean(0), h[0, 2], h[1, 1:3].mean(0), nothing]).reshape(2, 2, -1))
        other.append(torch.stack([g[0, 1], g[0, 2:4].mean(0), g[1, 1:4].mean(0), nothing]).reshape(2, 2, -1))
    distances = []
    for row, words in ((0, 2), (1, 1)):
        g_s, g_t = (x[row].T @ y[row] / words for x, y in (own, other))
        distances.append((g_s - g_t).square().sum() / g_t.square().sum())
    found = objective(student, teacher, batch(OWN_WORDS, OTHER_WORDS))
    assert float(found.detach()) == pytest.approx(float(sum(distances)) / 2, rel=1e-6)


def test_patient_reads_the_first_token_where_both_have_one() -> None:
    objective = bound(Feature("patient"), reading=APART)
    assert not objective.needs_shared_tokens
    student, teacher = outputs(STUDENT, 0), outputs(TEACHER, 100, torch.ones(3, 7).bool())  # other tokens
    lost = teacher.mask.clone()
    lost[2, 0] = False
    teacher = teacher._replace(mask=lost)
    found = objective(student, teacher, batch())
    values = []
    for project, (i, j) in zip(objective.states.projections, ((1, 2), (2, 4)), strict=True):
        own, other = F.normalize(project(student.hidden[i][:2, 0])), F.normalize(teacher.hidden[j][:2, 0])
        values.append((own - other).square().sum(1).mean())
    assert float(found) == pytest.approx(float(sum(values)) / 2, rel=1e-9)
    gap = student._replace(mask=lost[:, :5]), teacher._replace(mask=torch.ones(3, 7).bool())  # on the other side
    assert float(objective(*gap, batch())) == pytest.approx(float(found), rel=1e-9)


def test_sentence_vectors() -> None:
    student, teacher = sides()
    for loss in ("hidden_mse", "cosine", "patient"):
        objective = bound(Feature(loss, level="sentence"))
        (project,) = objective.states.projections
        assert (project.in_features, project.out_features) == (8, 12)
        assert objective.needs == objective.teacher_needs == {"pooled"}
        assert not objective.needs_shared_tokens
        expected = getattr(losses, loss)(project(student.pooled), teacher.pooled)
        bare = student._replace(hidden=None), teacher._replace(hidden=None, mask=None)
        assert float(objective(*bare, batch())) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("poor", ["student", "teacher", "both", "none"])
def test_auto_is_tokens_where_both_have_them(poor: str) -> None:
    student, teacher = (Side(fields=NO_LAYERS) if poor in (name, "both") else Side() for name in ("student", "teacher"))
    for made in (Feature(), Semantic()):
        objective = bound(made, student, teacher)
        assert objective.states.level == ("tokens" if poor == "none" else "sentence")
        field = {"hidden"} if poor == "none" else {"pooled"}
        scores = {"logits"} if isinstance(made, Semantic) else set()
        assert objective.needs == objective.teacher_needs == field | scores
        assert objective.needs_shared_tokens == (poor == "none")
    for relational in ("gram", "nst"):  # a sentence vector has no tokens to relate
        assert bound(Feature(relational), student, teacher).needs == {"hidden"}


@pytest.mark.parametrize(
    ("loss", "projection", "width", "made"),
    [
        ("hidden_mse", "auto", 8, nn.Identity),
        ("hidden_mse", "auto", 12, nn.Linear),
        ("hidden_mse", "linear", 8, nn.Linear),
        ("hidden_mse", "none", 8, nn.Identity),
        ("nst", "auto", 12, nn.Identity),
        ("nst", "none", 12, nn.Identity),
        ("nst", "linear", 12, nn.Linear),
    ],
)
def test_projections_are_made_where_they_are_wanted(loss: str, projection: str, width: int, made: type) -> None:
    objective = bound(Feature(loss, projection=projection), Side(), Side(width=width))
    assert [type(each) for each in objective.states.projections] == [made, made]
    shapes = {tuple(each.shape) for each in objective.parameters()}
    assert shapes == ({(width, 8), (width,)} if made is nn.Linear else set())


def test_embeddings_have_a_projection_of_their_own_width() -> None:
    objective = bound(Feature(embeddings=True))
    assert [tuple(each.weight.shape) for each in objective.states.projections] == [(10, 6), (12, 8), (12, 8)]
    same = bound(Feature(embeddings=True), Side(), Side(width=12))  # embeddings alike, states not
    assert [type(each) for each in same.states.projections] == [nn.Identity, nn.Linear, nn.Linear]


def test_one_projection_is_shared_by_all_layers() -> None:
    student, teacher = Side(), Side(width=12, embedding_width=12, depth=4)
    objective = bound(Feature(shared_projection=True, embeddings=True, convention="tinybert"), student, teacher)
    (project,) = objective.states.projections
    own, other = outputs(student, 0), outputs(teacher, 100)
    expected = sum((project(own.hidden[i]) - other.hidden[j]).square().mean() for i, j in ((0, 0), (1, 2), (2, 4)))
    assert float(objective(own, other, batch())) == pytest.approx(float(expected), rel=1e-9)
    plain = bound(Feature(shared_projection=True), Side(), Side())  # nothing to project
    assert not list(plain.parameters())
    with pytest.raises(UserError, match=r"shared_projection=true takes layers of one width.*\(6, 10\), \(8, 12\)"):
        bound(Feature(shared_projection=True, embeddings=True))


@pytest.mark.parametrize("make", [Feature, Semantic])
@pytest.mark.parametrize("level", ["tokens", "sentence"])
def test_widths_that_cannot_meet(make: Any, level: str) -> None:
    with pytest.raises(UserError, match=r"projection=none, .* 8 of the student \(Side\), 12 of the teacher: .*linear"):
        bound(make(level=level, projection="none"))
    with pytest.raises(UserError, match=r"8 of the student \(Side\), 9 of the teacher"):  # the pair that differs
        bound(make(level="tokens", projection="none", layers=[[0, 0], [1, 1]]), Side(), Side(width=9))


@pytest.mark.parametrize("make", [Feature, Semantic])
def test_a_choice_of_layers_between_sentence_vectors_is_refused(make: Any) -> None:
    for settings, said in (
        ({"layers": "last"}, "layers=last is of hidden states"),
        ({"layers": [[1, 2]]}, r"layers=\[\[1, 2\]\] is of hidden states"),
        ({"embeddings": True}, "embeddings=true is of hidden states"),
        ({"shared_projection": True}, "shared_projection=true is of hidden states"),
    ):
        with pytest.raises(UserError, match=said):
            bound(make(level="sentence", **settings))
        bound(make(level="tokens", **settings))
    bound(make(level="sentence", layers="final"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Feature("hiden_mse"), r"loss: 'hiden_mse' \(did you mean 'hidden_mse'\?\).*patient, fsp, gram, nst"),
        (lambda: Feature(level="token"), r"level: 'token' \(did you mean 'tokens'\?\).*auto, tokens, sentence"),
        (lambda: Feature(projection="line"), r"projection: 'line'.*auto, linear, none"),
        (lambda: Feature("cosine", convention="pkd"), r"convention: 'pkd'; one of: house for cosine"),
        (lambda: Feature("patient", convention="tinybert"), "convention 'tinybert'.*pkd"),
        (lambda: Feature("gram", level="sentence"), "loss=gram relates the tokens of a row.*level=tokens"),
        (lambda: Feature("nst", level="sentence"), "loss=nst relates the tokens of a row"),
        (lambda: Feature("fsp", level="sentence"), "loss=fsp relates the tokens of a row"),
        (lambda: Feature(projection="none", shared_projection=True), "shared_projection=true has no effect"),
        (lambda: Semantic(weight=1.5), "weight"),
        (lambda: Semantic(weight=1.0, layers="last"), "layers=last has no effect: weight=1 is the KL term alone"),
        (lambda: Semantic(temperature=0.0), "temperature must be positive"),
        (lambda: Semantic(divergence="jsd"), "divergence 'jsd'.*forward"),
        (lambda: Semantic(convention="tinybert"), "convention 'tinybert'.*norm"),
        (lambda: Semantic(level="token"), "level: 'token'"),
    ],
)
def test_bad_settings_are_refused_before_any_model(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "convention"),
    [("hidden_mse", "tinybert"), ("patient", "pkd"), ("fsp", "published"), ("gram", "mean"), ("nst", "textbrewer")],
)
def test_published_conventions_reach_the_loss(loss: str, convention: str) -> None:
    objective = bound(Feature(loss, convention=convention))
    own, other = by_hand(objective, [(1, 2), (2, 4)])
    function = getattr(losses, loss)
    found = float(objective(*sides(), batch()))
    assert found == pytest.approx(float(function(own, other, mask=MASK, convention=convention)), rel=1e-9)
    assert found != pytest.approx(float(function(own, other, mask=MASK)), rel=0.05)


@every_loss
def test_identical_models_have_nothing_to_learn(loss: str) -> None:
    student = outputs(Side(), 0)
    assert float(bound(Feature(loss, embeddings=True), Side(), Side())(student, student, batch())) == 0.0
    if loss not in TOKENS_ONLY:
        assert float(bound(Feature(loss, level="sentence"), Side(), Side())(student, student, batch())) == 0.0
    assert float(bound(Semantic(), Side(), Side())(student, student, batch())) == pytest.approx(0.0, abs=1e-12)


@every_loss
def test_gradient_reaches_mapped_states_and_projections_alone(loss: str) -> None:
    student, teacher = (
        side._replace(hidden=tuple(h.clone().requires_grad_() for h in side.hidden)) for side in sides()
    )
    layers = [[1, 2], [2, 4]] if loss == "fsp" else "final"
    objective = bound(Feature(loss, layers=layers, projection="linear"))
    objective(student, teacher, batch()).backward()
    assert all(h.grad is None for h in teacher.hidden)
    assert [h.grad is not None for h in student.hidden] == [False, loss == "fsp", True]
    reached = student.hidden[2].grad.abs().sum(2) > 0
    assert torch.equal(reached, MASK & (torch.arange(5) < 1) if loss == "patient" else MASK)
    for project in objective.states.projections:
        assert project.weight.grad.any() and project.bias.grad.any()


@pytest.mark.parametrize("level", ["tokens", "sentence"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_semantic_is_scores_and_layers_weighed(level: str, weight: float) -> None:
    objective, (student, teacher) = bound(Semantic(weight, temperature=3.0, level=level)), sides()
    kl = 9 * F.kl_div((student.logits / 3).log_softmax(1), (teacher.logits / 3).softmax(1), reduction="batchmean")
    if level == "sentence":
        squares = [(objective.states.projections[0](student.pooled) - teacher.pooled).square()]
    else:
        pairs = zip(*by_hand(objective, [(1, 2), (2, 4)]), strict=True)
        squares = [(own - other)[MASK].square() for own, other in pairs]
    mse = sum(each.mean() for each in squares) / len(squares)
    found = float(objective(student, teacher, batch()))
    assert found == pytest.approx(float(weight * kl + (1 - weight) * mse), rel=1e-6)
    assert float(kl) > 0.01


def test_settings_of_semantic_reach_the_loss() -> None:
    student, teacher = sides()
    reverse = bound(Semantic(1.0, divergence="reverse"))(student, teacher, batch())
    assert float(reverse) == pytest.approx(
        float(losses.soft_label(student.logits, teacher.logits, divergence="reverse")), rel=1e-9
    )
    house, norm = (float(bound(Semantic(0.0, convention=c))(student, teacher, batch())) for c in ("house", "norm"))
    assert norm == pytest.approx(12 * house, rel=1e-9)
    settings = {"layers": "last", "projection": "linear", "shared_projection": True}
    one = bound(Semantic(0.0, **settings))(student, teacher, batch())
    assert float(one) == pytest.approx(float(bound(Feature(**settings))(student, teacher, batch())), rel=1e-9)
    assert len(bound(Semantic(embeddings=True)).states.projections) == 3


def test_semantic_compares_words_too() -> None:
    student, teacher = outputs(STUDENT, 0, OWN_WORDS > -2), outputs(TEACHER, 100, OTHER_WORDS > -2)
    rows = batch(OWN_WORDS, OTHER_WORDS)
    expected = bound(Feature(), reading=WORDS)(student, teacher, rows)
    assert float(bound(Semantic(0.0), reading=WORDS)(student, teacher, rows)) == pytest.approx(float(expected))


@every_loss
def test_in_bf16_it_is_finite_and_in_full_precision(loss: str) -> None:
    student, teacher = (side._replace(hidden=tuple(h.float() for h in side.hidden)) for side in sides())
    objective = bound(Feature(loss)).float()
    exact = objective(student, teacher, batch())
    half = [side._replace(hidden=tuple(h.bfloat16() for h in side.hidden)) for side in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16):
        value = objective(*half, batch())
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact), rel=0.05)


@pytest.mark.parametrize("make", [Feature, Semantic])
def test_models_that_lack_the_field_are_left_to_the_strategy(make: Any) -> None:
    """It says what it needs, and no more: the refusal names the objective, which the strategy knows."""
    objective = make(level="tokens", layers=[[99, 99]])
    objective.bind(Side(fields=NO_LAYERS), TEACHER, SAME)
    assert "hidden" in objective.needs and "hidden" in objective.teacher_needs
    objective.bind(STUDENT, None, SAME)
    bare = make()
    bare.bind(Side(fields=LOGITS), Side(fields=LOGITS), SAME)
    assert "pooled" in bare.needs


def test_layers_are_of_the_depths_of_the_two_models() -> None:
    with pytest.raises(UserError, match=r"the teacher has layers 0 \(embeddings\) to 4, and 5"):
        bound(Feature(layers=[[2, 5]]))
    with pytest.raises(UserError, match=r"the student has layers 0 \(embeddings\) to 2, and 3"):
        bound(Semantic(layers=[[3, 4]]))


def test_a_member_is_remembered_for_the_strategy() -> None:
    assert (Feature().member, Feature(member=0).member, Feature(member=2).member) == (None, 0, 2)


def test_pairs_carry_projections_into_the_state() -> None:
    objective = bound(Feature())
    names = {f"states.projections.{place}.{part}" for place in (0, 1) for part in ("weight", "bias")}
    assert set(objective.state_dict()) == names
    assert isinstance(objective.states, StatePairs)
