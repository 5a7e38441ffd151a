"""Any objectives by configuration: the published recipes, what overrides add, and an objective for each teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.objectives.attention import AttentionMaps, RelationHeads
from kdresearch.objectives.hidden import Feature
from kdresearch.objectives.logits import Label, SoftLabel
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.relation import Pkt
from kdresearch.package import Package
from kdresearch.strategies.combined import CombinedDistiller
from kdresearch.structures import Batch, Outputs, Tokens
from kdresearch.teachers.ensemble import EnsembleTeacher, MappedTeacher
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")
FIELDS = frozenset({"logits", "pooled", "hidden", "qkv"})
MASK = torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]


def transformer(seed: int, width: int = 16, layers: int = 2) -> Transformer:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 24}
    architecture = {"model_type": "bert", "max_position_embeddings": 16, "initializer_range": 0.5, **sizes}
    return Transformer(30, 3, architecture=architecture, dropout=0.0)


def textcnn(seed: int, channels: int = 4) -> TextCNN:
    torch.manual_seed(seed)
    return TextCNN(30, 3, embedding_dim=5, channels=channels, kernel_sizes=[2, 3], dropout=0.0)


def live(model: Any, classes: tuple[str, ...] = CLASSES) -> LiveTeacher:
    return LiveTeacher(Package(model, None, classes, "", {}))


def batch() -> Batch:
    ids = torch.randint(1, 30, MASK.shape, generator=torch.Generator().manual_seed(0)).masked_fill(~MASK, 0)
    read = Tokens(ids, MASK)
    return Batch(torch.arange(4), torch.tensor([0, 2, 1, -1]), read, read)


@pytest.fixture
def composed(build: Callable[..., Any]) -> Callable[..., Any]:
    """``composed(*overrides, **arguments)``: the strategy of a configuration."""

    def compose_and_build(*overrides: str, **arguments: Any) -> Any:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            cfg = compose("train", ["teacher=none", *overrides])
        settings = {"student": transformer(1), "teacher": live(transformer(2, width=24, layers=4)), "classes": CLASSES}
        torch.manual_seed(0)
        return build(cfg.strategy, "strategy", **settings | arguments)

    return compose_and_build


def both(module: Any) -> tuple[Outputs, Outputs]:
    rows = batch()
    return module.student(rows.student, FIELDS), module.teacher(rows, FIELDS)


def total(module: Any) -> float:
    module.log = module.log_dict = lambda *args, **kwargs: None
    return float(module.training_step(batch(), 0).detach())


def soft(student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
    log_s, log_t = ((side.logits / temperature).log_softmax(1) for side in (student, teacher))
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(1).mean()


def scores(x: Tensor, y: Tensor, heads: int) -> Tensor:
    """x·yᵀ/√d of [B, T, D], by head."""
    x, y = (torch.stack(each.chunk(heads, dim=2), dim=1) for each in (x, y))
    return x @ y.mT / math.sqrt(x.shape[3])


def test_tinybert_is_layers_and_attention_scores_and_then_soft_labels(composed: Callable[..., Any]) -> None:
    """Eq. 7-10 of Jiao et al. 2020 as in their code: one projection, plain means over positions, sums over layers."""
    module = composed("strategy=tinybert")
    assert {name: type(term) for name, term in module.objectives.items()} == {
        "hidden": Feature, "attention": AttentionMaps, "soft_label": SoftLabel
    }  # fmt: skip
    assert [(stage.weights, stage.train) for stage in module.stages] == [
        ({"hidden": 1.0, "attention": 1.0}, "all"), ({"soft_label": 1.0}, "all")
    ]  # fmt: skip
    student, teacher = both(module)
    (project,) = module.objectives["hidden"].states.projections
    hidden = sum(F.mse_loss(project(student.hidden[i]), teacher.hidden[j]) for i, j in ((0, 0), (1, 2), (2, 4)))
    padding = ~MASK[:, None, None]
    attention = sum(
        F.mse_loss(
            scores(*student.qkv[i][:2], 4).masked_fill(padding, 0.0),
            scores(*teacher.qkv[j][:2], 4).masked_fill(padding, 0.0),
        )
        for i, j in ((0, 1), (1, 3))
    )
    terms = module.terms(batch())
    assert {name: float(value.detach()) for name, value in terms.items()} == pytest.approx(
        {"hidden": float(hidden.detach()), "attention": float(attention.detach())}, rel=1e-4
    )
    assert total(module) == pytest.approx(float((hidden + attention).detach()), rel=1e-4)
    module.milestones = (0,)  # the second stage
    assert total(module) == pytest.approx(float(soft(student, teacher, 1.0).detach()), rel=1e-4)


def test_distilbert_is_soft_labels_and_the_direction_of_the_last_states(composed: Callable[..., Any]) -> None:
    """5·KL at τ = 2 and 1·cosine of Sanh et al. 2019; the 2 of masked words is nobody's."""
    module = composed("strategy=distilbert")
    assert {name: type(term) for name, term in module.objectives.items()} == {
        "label": Label, "soft_label": SoftLabel, "cosine": Feature
    }  # fmt: skip
    student, teacher = both(module)
    (project,) = module.objectives["cosine"].states.projections
    cosine = 1 - F.cosine_similarity(project(student.hidden[2]), teacher.hidden[4], dim=2)[MASK].mean()
    label = F.cross_entropy(student.logits[:3], batch().label[:3])
    expected = label + 5 * soft(student, teacher, 2.0) + cosine
    assert float(module.terms(batch())["cosine"].detach()) == pytest.approx(float(cosine.detach()), rel=1e-4)
    assert total(module) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_minilm_is_relations_of_queries_keys_and_values(composed: Callable[..., Any]) -> None:
    """Eq. 5-7 of Wang et al. 2021 at four relation heads, each relation alike."""
    module = composed("strategy=minilm")
    assert {name: type(term) for name, term in module.objectives.items()} == {
        "label": Label, "soft_label": SoftLabel, "relations": RelationHeads
    }  # fmt: skip
    student, teacher = both(module)
    divergences = []
    for s, t in zip(student.qkv[-1], teacher.qkv[-1], strict=True):
        log_s, log_t = (scores(x, x, 4).masked_fill(~MASK[:, None, None], -1e9).log_softmax(3) for x in (s, t))
        kl = (log_t.exp() * (log_t - log_s)).sum(3)  # [B, heads, T]
        divergences.append(kl.transpose(1, 2)[MASK].mean())
    relations = sum(divergences) / 3
    label = F.cross_entropy(student.logits[:3], batch().label[:3])
    expected = 0.5 * label + 0.5 * soft(student, teacher, 2.0) + relations
    assert float(module.terms(batch())["relations"].detach()) == pytest.approx(float(relations.detach()), rel=1e-4)
    assert total(module) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_overrides_alone_combine(composed: Callable[..., Any]) -> None:
    module = composed(
        "strategy=combined",
        "+strategy.objectives.states={_target_: kdresearch.objectives.hidden.Feature, level: sentence, loss: cosine}",
        "+strategy.weights.states=0.25",
        "+strategy.objectives.pkt._target_=kdresearch.objectives.relation.Pkt",
        "+strategy.weights.pkt=3",
        "strategy.weights.label=0",
        "strategy.objectives.soft_label.temperature=4",
        "strategy.schedules={pkt: {kind: switch, steps: 5}}",
    )
    assert isinstance(module, CombinedDistiller)
    assert {name: type(term) for name, term in module.objectives.items()} == {
        "soft_label": SoftLabel, "states": Feature, "pkt": Pkt
    }  # fmt: skip
    assert module.weights == {"label": 0, "soft_label": 0.5, "states": 0.25, "pkt": 3}
    assert module.objectives["states"].needs == {"pooled"}
    assert (module.schedules["pkt"].kind, module.schedules["pkt"].steps) == ("switch", 5)
    module.schedules.clear()
    terms = {name: float(value.detach()) for name, value in module.terms(batch()).items()}
    assert terms["soft_label"] == pytest.approx(float(soft(*both(module), 4.0).detach()), rel=1e-5)
    assert total(module) == pytest.approx(0.5 * terms["soft_label"] + 0.25 * terms["states"] + 3 * terms["pkt"])


def test_a_recipe_is_changed_by_overrides(composed: Callable[..., Any]) -> None:
    module = composed(
        "strategy=tinybert",
        "strategy.objectives.hidden.layers=[[1,1],[2,3]]",
        "strategy.stages.0.weights.attention=0",
        "strategy.schedules={hidden: {steps: 0.1}}",
    )
    assert module.objectives["hidden"].states.pairs == [(0, 0), (1, 1), (2, 3)]
    assert set(module.objectives) == {"soft_label", "hidden"}
    assert module.schedules["hidden"].steps == 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives.x=3", "weights.x=1"], r"strategy.objectives.x must be an objective with its _target_ .*not 3"),
        (["objectives.x={loss: cosine}", "weights.x=1"], r"strategy.objectives.x must be an objective .*not \{'loss'"),
        (["objectives.x={_target_: torch.nn.Identity}", "weights.x=1"], r"strategy.objectives.x must .*not Identity"),
        (["objectives.x={_target_: kdresearch.objectives.logits.LogitMse}"], "needs a weight for 'x'"),
        (["weights.x=1"], r"CombinedDistiller has no objective 'x'; one of: label, soft_label"),
    ],
)
def test_what_is_no_objective_is_refused(overrides: list[str], message: str, composed: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        composed("strategy=combined", *(f"+strategy.{each}" for each in overrides))


# An ensemble: the class scores of all together, the vectors of each alone.

PER_MEMBER = {"label": 0.5, "soft_label": 0.5, "first": 1.0, "second": 2.0}


def members(**wiring: Any) -> CombinedDistiller:
    torch.manual_seed(0)
    first, second = live(textcnn(2)), live(transformer(3, width=24), ("c", "a", "b"))
    objectives: dict[str, Objective] = {
        "label": Label(), "soft_label": SoftLabel(2.0), "first": Feature(level="sentence", member=0),
        "second": Feature("cosine", level="sentence", member=1),
    }  # fmt: skip
    teacher = EnsembleTeacher([first, MappedTeacher(second, CLASSES)])
    settings = {"objectives": objectives, "weights": PER_MEMBER, "teacher": teacher, "classes": CLASSES}
    return CombinedDistiller(textcnn(1, channels=3), **settings | wiring)


def test_each_objective_learns_from_its_own_member() -> None:
    module, rows = members(), batch()
    widths = [module.objectives[name].states.projections[0].weight.shape for name in ("first", "second")]
    assert widths == [(8, 6), (24, 6)]
    asked = frozenset({"logits", "pooled"})
    student = module.student(rows.student, asked)
    one, other = (member(rows, asked) for member in module.teacher.members)
    own = [module.objectives[name].states.projections[0](student.pooled) for name in ("first", "second")]
    probability = (one.logits.softmax(1) + other.logits.softmax(1)) / 2
    expected = {
        "label": F.cross_entropy(student.logits[:3], rows.label[:3]),
        "soft_label": soft(student, Outputs(logits=probability.log()), 2.0),
        "first": (own[0] - one.pooled).square().mean(),
        "second": 1 - F.cosine_similarity(own[1], other.pooled).mean(),
    }
    found = {name: float(value.detach()) for name, value in module.terms(rows).items()}
    expected = {name: float(value.detach()) for name, value in expected.items()}
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)  # a KL of almost equal scores is a small difference
    whole = sum(PER_MEMBER[name] * value for name, value in found.items())
    assert total(module) == pytest.approx(whole, rel=1e-5)


def test_it_fits_and_no_member_changes(tmp_path: Path) -> None:
    module = members()
    frozen = [live(textcnn(2)).model, transformer(3, width=24)]
    start = {name: value.clone() for name, value in module.named_parameters()}
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, max_steps=2,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch(), batch()], batch_size=None))
    assert not [name for name, value in module.named_parameters() if torch.equal(value, start[name])]
    now = [module.teacher.members[0].model, module.teacher.members[1].teacher.model]
    for before, after in zip(frozen, now, strict=True):
        assert all(torch.equal(value, before.state_dict()[name]) for name, value in after.state_dict().items())


class OfOne(SoftLabel):
    """Class scores of the second teacher."""

    member = 1


def test_class_scores_of_one_member() -> None:
    module = members(objectives={"soft_label": OfOne(2.0)}, weights={"soft_label": 1.0})
    rows = batch()
    other = module.teacher.members[1](rows)
    expected = soft(module.student(rows.student), other, 2.0)
    assert float(module.terms(rows)["soft_label"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "teacher", "message"),
    [
        (Feature(level="sentence", member=2), None,
         r"objective x learns from member 2 \(from 0\), and the teacher is an ensemble of 2"),
        (Feature(level="sentence", member=-1), None, r"member -1 \(from 0\), .* an ensemble of 2"),
        (Feature(level="sentence", member=0), live(textcnn(2)),
         r"objective x learns from member 0 .* the teacher is no ensemble \(teacher=ensemble\)"),
        (Feature(level="sentence"), None,
         r"objective x, of TextCNN with EnsembleTeacher .*: needs pooled of the teacher, which provides only logits"),
        (Feature(level="tokens", member=1), None, r"of TextCNN with Transformer .*: needs hidden of the student"),
    ],
)  # fmt: skip
def test_members_that_are_not_there_are_refused(objective: Objective, teacher: Any, message: str) -> None:
    given = {} if teacher is None else {"teacher": teacher}
    with pytest.raises(UserError, match=message):
        members(objectives={"x": objective}, weights={"x": 1.0}, **given)


def test_a_member_needs_a_teacher() -> None:
    with pytest.raises(UserError, match="objective x needs a teacher: choose one with teacher=NAME"):
        members(objectives={"x": Feature(member=0)}, weights={"x": 1.0}, teacher=None)


def test_a_bilstm_learns_layers_of_one_member_by_override(composed: Callable[..., Any]) -> None:
    teacher = EnsembleTeacher([live(textcnn(2)), live(transformer(3, width=24, layers=3))])
    torch.manual_seed(1)
    module = composed(
        "strategy=combined",
        "+strategy.objectives.deep={_target_: kdresearch.objectives.hidden.Feature, layers: [[1, 2]], member: 1}",
        "+strategy.weights.deep=1",
        student=BiLSTM(30, 3, embedding_dim=6, hidden_dim=5, dropout=0.0),
        teacher=teacher,
    )
    rows = batch()
    (project,) = module.objectives["deep"].states.projections
    own = project(module.student(rows.student, frozenset({"hidden"})).hidden[1])
    gap = own - teacher.members[1](rows, frozenset({"hidden"})).hidden[2]
    value = module.terms(rows)["deep"]
    assert float(value.detach()) == pytest.approx(float(gap[MASK].square().mean().detach()), rel=1e-5)
