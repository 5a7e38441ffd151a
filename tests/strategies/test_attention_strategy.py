"""AttentionDistiller with real small models: one option sweeps over the losses, whatever the two architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramBag
from kdresearch.models.transformer import Transformer
from kdresearch.package import Package
from kdresearch.strategies.attention import ATTENTION_LOSSES, AttentionDistiller
from kdresearch.structures import LOGITS, Batch, Outputs, Reading, Signature, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("negative", "positive")
WEIGHTS = {"label": 0.5, "soft_label": 0.25, "attention": 2.0}
LENGTHS = torch.tensor([7, 3, 1, 5])
FIELDS = frozenset({"logits", "attention", "qkv"})


def transformer(seed: int, width: int = 16, heads: int = 4, layers: int = 2) -> Transformer:
    torch.manual_seed(seed)
    architecture = {
        "model_type": "bert",
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "initializer_range": 0.5,  # attention far from uniform
    }
    return Transformer(30, 2, architecture=architecture, dropout=0.0)


def bilstm(seed: int) -> BiLSTM:
    torch.manual_seed(seed)
    return BiLSTM(30, 2, embedding_dim=6, hidden_dim=5, dropout=0.0)


def live(model: Any) -> LiveTeacher:
    return LiveTeacher(Package(model, None, CLASSES, "", {}))


def tokens(seed: int, lengths: torch.Tensor = LENGTHS) -> Tokens:
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(seed))
    return Tokens(ids.masked_fill(~mask, 0), mask)


def batch() -> Batch:
    read = tokens(0)
    return Batch(torch.arange(4), torch.tensor([0, 1, 1, 0]), read, read)


def word_batch() -> Batch:
    """Two tokens to a word on the student's side, one on the teacher's after a special token."""
    own, other = tokens(0), tokens(1, (LENGTHS + 1) // 2 + 1)
    place = [torch.arange(each.mask.shape[1]) for each in (own, other)]
    words = (place[0] // 2).expand_as(own.ids), (place[1] - 1).expand_as(other.ids)
    own, other = (
        each._replace(words=word.masked_fill(~each.mask, -1)) for each, word in zip((own, other), words, strict=True)
    )
    return Batch(torch.arange(4), torch.tensor([0, 1, 1, 0]), own, other)


def distiller(student: Any = None, teacher: Any = None, **settings: Any) -> AttentionDistiller:
    given = {"classes": CLASSES, "weights": WEIGHTS} | settings
    return AttentionDistiller(
        student or transformer(1), teacher=teacher or live(transformer(2, width=24, layers=4)), **given
    )


def fit(module: AttentionDistiller, folder: Path, rows: Batch, **settings: Any) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, max_epochs=1, **settings,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=DataLoader([rows, rows], batch_size=None))


READINGS = {"same": batch, "words": word_batch}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
def test_two_steps_of_every_loss(loss: str, reading: str, tmp_path: Path) -> None:
    teacher = live(transformer(2, width=24, layers=4))
    module = distiller(teacher=teacher, loss=loss, reading=Reading(reading))
    own = {name: value.clone() for name, value in module.student.named_parameters()}
    frozen = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    fit(module, tmp_path, READINGS[reading](), precision="bf16-mixed" if loss == "attention_kl" else "32-true")
    assert module.global_step == 2
    assert not [name for name, value in module.student.named_parameters() if torch.equal(value, own[name])]
    assert all(value.isfinite().all() for value in module.student.parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_the_loss_is_the_weighted_sum() -> None:
    module, rows = distiller(attention_temperature=2.0, label_smoothing=0.1, temperature=3.0), batch()
    student, teacher = module.student(rows.student, FIELDS), module.teacher(rows, FIELDS)
    maps = [[student.attention[i] for i in (0, 1)], [teacher.attention[j] for j in (1, 3)]]
    expected = {
        "label": F.cross_entropy(student.logits, rows.label, label_smoothing=0.1),
        "soft_label": losses.soft_label(student.logits, teacher.logits, temperature=3.0),
        "attention": losses.attention_kl(*maps, mask=rows.student.mask, temperature=2.0),
    }
    terms = module.terms(rows)
    assert set(terms) == set(WEIGHTS) == set(module.weights)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5)
        assert value > 1e-3
    module.log = module.log_dict = lambda *args, **kwargs: None
    total = sum(WEIGHTS[name] * value for name, value in expected.items())
    assert module.training_step(rows, 0).item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("heads", [4, 3])
def test_scores_are_what_the_models_own_attention_is_made_of(heads: int) -> None:
    """Queries and keys, cut into heads here, give the maps that the encoders gave: a mean differs, a match does not."""
    teacher = live(transformer(2, width=24, heads=heads, layers=4))
    found = [distiller(teacher=teacher, inputs=way).terms(batch())["attention"] for way in ("probabilities", "scores")]
    assert torch.allclose(*found, rtol=1e-4) == (heads == 4)


def test_settings_reach_their_objectives() -> None:
    module = distiller(loss="attention_mse", inputs="scores", layers=[[2, 3]], heads="mean", convention="textbrewer")
    term: Any = module.objectives["attention"]
    assert (term.inputs, term.pairs, term.heads, term.loss.keywords) == (
        "scores",
        [(2, 3)],
        "mean",
        {"convention": "textbrewer"},
    )
    term = distiller(loss="relation_heads", layers=[[1, 3]], relation_heads=8).objectives["attention"]
    assert (term.heads, term.pair) == (8, (1, 3))
    term = distiller(loss="relation_heads").objectives["attention"]
    assert (term.heads, term.pair) == (4, (2, 4))
    assert "attention" not in distiller(loss="relation_heads").student_needs  # the fast attention stays


@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
def test_attention_can_be_learned(loss: str) -> None:
    module = distiller(loss=loss, weights={"label": 0, "soft_label": 0, "attention": 1})
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    values = []
    for _ in range(15):
        value = module.terms(batch())["attention"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("loss", ["attention_kl", "attention_mse"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [(bilstm, transformer), (bilstm, bilstm), (transformer, bilstm)],
    ids=["bilstm<-transformer", "bilstm<-bilstm", "transformer<-bilstm"],
)
def test_pooling_attention_takes_part(student: Any, teacher: Any, loss: str, reading: str, tmp_path: Path) -> None:
    module = distiller(student(1), live(teacher(2)), loss=loss, reading=Reading(reading))
    rows = READINGS[reading]()
    before = module.terms(rows)["attention"]
    assert before > 1e-5
    before.backward()
    pooling: nn.Module = module.student.scorer if student is bilstm else module.student.encoder.encoder.layer[-1]
    assert any(p.grad is not None and p.grad.any() for p in pooling.parameters())
    fit(module, tmp_path, rows)
    assert module.terms(rows)["attention"].isfinite()


class Said:
    """A teacher of which only class scores are kept."""

    signature = Signature(LOGITS, classes=CLASSES, name="Said", recorded=True)

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        return Outputs(logits=torch.zeros(len(batch.index), 2))

    def to(self, device: object) -> Said:
        return self


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "attention"}, r"loss: 'attention'.*one of: attention_kl, attention_mse, minilm, relation_heads"),
        ({"loss": "relation_heads", "layers": [[1, 2], [2, 4]]}, r"one pair \[\[student, teacher\]\], not \[\[1, 2\]"),
        ({"loss": "minilm", "layers": "last"}, "layers=last has no effect: loss=minilm is .* last layers"),
        ({"loss": "minilm", "relation_heads": 8}, "relation_heads=8 has no effect: loss=minilm"),
        ({"loss": "minilm", "convention": "textbrewer"}, "convention=textbrewer has no effect"),
        ({"loss": "relation_heads", "heads": "mean"}, "heads=mean has no effect: loss=relation_heads"),
        ({"loss": "relation_heads", "inputs": "scores"}, "inputs=scores has no effect"),
        ({"loss": "relation_heads", "attention_temperature": 2.0}, "attention_temperature=2.0 has no effect"),
        ({"loss": "relation_heads", "layers": "first"}, "layers=first has no effect: loss=relation_heads"),
        ({"loss": "attention_kl", "relation_heads": 8}, "relation_heads=8 has no effect: loss=attention_kl"),
        ({"loss": "attention_mse", "attention_temperature": 2.0}, "temperature=2.0 is for attention_kl"),
        ({"loss": "relation_heads", "relation_heads": 3}, r"objective attention, .*: 3 .* 16 .* 24 of .*divisor of 8"),
        ({"loss": "minilm", "teacher": live(transformer(2, heads=2))}, r"4 of the student \(Transformer\), 2 of the"),
        ({"heads": "match", "teacher": live(transformer(2, heads=2))}, r"4 of the student \(Transformer\), 2 of the"),
        ({"loss": "minilm", "student": bilstm(1)}, r"of BiLSTM .* needs qkv of the student, which provides only"),
        ({"inputs": "scores", "student": bilstm(1)}, r"objective attention, .*: inputs=scores: the student pools"),
        ({"inputs": "scores", "reading": Reading("words")}, r"scores do not add up by word"),
        (
            {"student": NgramBag(30, 2)},
            r"of NgramBag .* needs attention of the student, which provides only logits, pooled",
        ),
        ({"teacher": Said()}, r"with Said .* needs attention of the teacher, .* only logits; .*teacher.mode=live"),
        ({"reading": Reading("apart")}, r"objective attention, of Transformer with .* compares tokens"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(**settings)


def test_a_teacher_is_needed() -> None:
    with pytest.raises(UserError, match="objective soft_label needs a teacher"):
        AttentionDistiller(transformer(1), classes=CLASSES, weights=WEIGHTS)
    with pytest.raises(UserError, match="objective attention needs a teacher"):
        AttentionDistiller(transformer(1), classes=CLASSES, weights=WEIGHTS | {"soft_label": 0})
