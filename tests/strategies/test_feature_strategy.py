"""FeatureDistiller and SemanticDistiller on small real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kdresearch import losses, package
from kdresearch.data.tokenizers import WordTokenizer
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramLinear
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.package import Package
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.feature import FeatureDistiller
from kdresearch.strategies.semantic import SemanticDistiller
from kdresearch.structures import LOGITS, Batch, Outputs, Reading, Signature, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("negative", "positive")
FEATURE = {"label": 0.5, "soft_label": 0.25, "feature": 2.0}
SEMANTIC = {"label": 0.5, "semantic": 2.0}
FIELDS = frozenset({"logits", "pooled", "hidden"})


def transformer(seed: int, width: int = 16, layers: int = 2) -> Transformer:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 24}
    architecture = {"model_type": "bert", "max_position_embeddings": 16, "initializer_range": 0.5, **sizes}
    return Transformer(30, 2, architecture=architecture, dropout=0.0)


def bilstm(seed: int, layers: int = 1) -> BiLSTM:
    torch.manual_seed(seed)
    return BiLSTM(30, 2, embedding_dim=6, hidden_dim=5, layers=layers, dropout=0.0)


def textcnn(seed: int) -> TextCNN:
    torch.manual_seed(seed)
    return TextCNN(30, 2, embedding_dim=5, channels=4, kernel_sizes=[2, 3], dropout=0.0)


def live(model: Any) -> LiveTeacher:
    return LiveTeacher(Package(model, None, CLASSES, "", {}))


def big() -> LiveTeacher:
    return live(transformer(2, width=24, layers=4))


def batch(seed: int = 0) -> Batch:
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~mask, 0)
    read = Tokens(ids, mask)
    return Batch(torch.arange(4), torch.tensor([0, 1, 1, 0]), read, read)


def feature(student: Any = None, teacher: Any = None, **settings: Any) -> FeatureDistiller:
    given = {"classes": CLASSES, "weights": FEATURE} | settings
    return FeatureDistiller(student or transformer(1), teacher=teacher or big(), **given)


def semantic(student: Any = None, teacher: Any = None, **settings: Any) -> SemanticDistiller:
    given = {"classes": CLASSES, "weights": SEMANTIC} | settings
    return SemanticDistiller(student or transformer(1), teacher=teacher or big(), **given)


def fit(module: Distiller, folder: Path, epochs: int = 1, resume: Path | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, max_epochs=epochs,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch(0), batch(1)], batch_size=None), ckpt_path=resume, weights_only=False)
    return trainer


def total(module: Distiller, rows: Batch) -> float:
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module.training_step(rows, 0).item()


def test_feature_is_the_weighted_sum() -> None:
    module, rows = feature(layers="last", label_smoothing=0.1, temperature=3.0), batch()
    student, teacher = module.student(rows.student, FIELDS), module.teacher(rows, FIELDS)
    projections = module.objectives["feature"].states.projections
    own = [project(student.hidden[i]) for project, i in zip(projections, (1, 2), strict=True)]
    expected = {
        "label": F.cross_entropy(student.logits, rows.label, label_smoothing=0.1),
        "soft_label": losses.soft_label(student.logits, teacher.logits, temperature=3.0),
        "feature": losses.hidden_mse(own, [teacher.hidden[3], teacher.hidden[4]], mask=rows.student.mask),
    }
    terms = module.terms(rows)
    assert set(terms) == set(FEATURE)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5)
        assert value > 1e-3
    whole = sum(FEATURE[name] * value.item() for name, value in expected.items())
    assert total(module, rows) == pytest.approx(whole, rel=1e-5)


def test_semantic_is_the_weighted_sum() -> None:
    module, rows = semantic(weight=0.2, label_smoothing=0.1), batch()  # its temperature is 2 unless told
    student, teacher = module.student(rows.student, FIELDS), module.teacher(rows, FIELDS)
    kl = 4 * F.kl_div((student.logits / 2).log_softmax(1), (teacher.logits / 2).softmax(1), reduction="batchmean")
    projections = module.objectives["semantic"].states.projections
    gaps = [
        (project(student.hidden[i]) - teacher.hidden[j])[rows.student.mask].square().mean()
        for project, (i, j) in zip(projections, ((1, 2), (2, 4)), strict=True)
    ]
    value = 0.2 * kl + 0.8 * (gaps[0] + gaps[1]) / 2
    assert module.terms(rows)["semantic"].item() == pytest.approx(value.item(), rel=1e-5)
    label = F.cross_entropy(student.logits, rows.label, label_smoothing=0.1)
    assert total(module, rows) == pytest.approx(0.5 * label.item() + 2.0 * value.item(), rel=1e-5)


STATES = {"layers": [[0, 0], [2, 3]], "level": "tokens", "projection": "linear", "shared_projection": True,
          "embeddings": True}  # fmt: skip


@pytest.mark.parametrize("make", [feature, semantic])
def test_settings_reach_the_objective(make: Any) -> None:
    module = make(**STATES, convention="tinybert" if make is feature else "norm")
    states: Any = module.objectives["feature" if make is feature else "semantic"].states
    assert {name: getattr(states, name) for name in STATES} == STATES
    assert states.pairs == [(0, 0), (2, 3)]
    assert len(states.projections) == 1
    defaults: Any = make().objectives["feature" if make is feature else "semantic"].states
    assert (defaults.layers, defaults.projection, defaults.shared_projection, defaults.embeddings) == (
        "uniform",
        "auto",
        False,
        False,
    )


def test_settings_of_the_losses_reach_them() -> None:
    assert feature(loss="patient", convention="pkd").objectives["feature"].loss.keywords == {"convention": "pkd"}
    given = {"weight": 0.1, "temperature": 4.0, "divergence": "reverse", "convention": "norm"}
    assert semantic(**given).objectives["semantic"].loss.keywords == given
    assert feature().objectives["soft_label"].settings["temperature"] == 2.0
    assert feature(level="sentence").objectives["feature"].needs == {"pooled"}


@pytest.mark.parametrize(
    ("student", "teacher", "level", "shapes"),
    [
        (transformer, big, "tokens", [(24, 16), (24, 16)]),
        (bilstm, big, "tokens", [(24, 10)]),
        (textcnn, big, "sentence", [(24, 8)]),
        (transformer, lambda: live(textcnn(2)), "sentence", [(8, 16)]),
        (transformer, lambda: live(transformer(2)), "tokens", []),
        (bilstm, lambda: live(bilstm(2, layers=2)), "tokens", []),
    ],
)
def test_auto_fits_the_two_architectures(student: Any, teacher: Any, level: str, shapes: list[tuple[int, int]]) -> None:
    for make, name in ((feature, "feature"), (semantic, "semantic")):
        module = make(student(1), teacher())
        term: Any = module.objectives[name]
        assert term.states.level == level and module.compares_tokens == (level == "tokens")
        assert [tuple(each.shape) for each in term.parameters() if each.dim() == 2] == shapes
        assert module.terms(batch())[name] > 1e-4


def test_projections_are_trained_saved_and_restored(tmp_path: Path) -> None:
    names = {f"objectives.feature.states.projections.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    torch.manual_seed(0)
    whole, half = feature(), feature()
    half.load_state_dict(whole.state_dict())
    assert names == {name for name in whole.state_dict() if name.startswith("objectives.")}
    grouped = {id(each): group for group in whole.parameter_groups() for each in group["params"]}
    for name in names:
        group = grouped[id(whole.get_parameter(name))]
        assert ("weight_decay" in group) == name.endswith("bias")
    start = {name: value.clone() for name, value in whole.state_dict().items() if name in names}
    fit(whole, tmp_path, epochs=2)
    assert not [name for name in names if torch.equal(whole.state_dict()[name], start[name])]

    fit(half, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(9)
    other = feature(transformer(5))
    assert fit(other, tmp_path, epochs=2, resume=tmp_path / "half.ckpt").global_step == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("make", [feature, semantic])
def test_gradient_reaches_student_and_projections_alone(make: Any) -> None:
    alone = {"label": 0, "soft_label": 0, "feature": 1} if make is feature else {"label": 0, "semantic": 1}
    module = make(weights=alone)
    (name,) = module.objectives
    module.terms(batch())[name].backward()
    assert all(each.grad is None for each in module.teacher.model.parameters())
    assert all(each.grad.any() for each in module.objectives.parameters())
    reached = {name for name, each in module.student.named_parameters() if each.grad is not None and each.grad.any()}
    classifier = {"classifier.weight", "classifier.bias"}
    everything = {name for name, _ in module.student.named_parameters()}
    attention_bias = {each for each in everything if each.endswith("key.bias")}  # adds the same to every score
    assert reached - attention_bias == everything - attention_bias - (classifier if make is feature else set())


@pytest.mark.parametrize("loss", ["hidden_mse", "cosine", "patient", "gram", "nst"])
def test_a_copy_of_the_teacher_has_nothing_to_learn(loss: str) -> None:
    terms = feature(transformer(3), live(transformer(3)), loss=loss, embeddings=True).terms(batch())
    assert terms["feature"].item() == pytest.approx(0.0, abs=1e-6)
    assert feature(transformer(4), live(transformer(3)), loss=loss).terms(batch())["feature"] > 1e-3


@pytest.mark.parametrize("loss", ["hidden_mse", "cosine", "patient", "gram", "nst"])
def test_features_can_be_learned(loss: str) -> None:
    torch.manual_seed(0)
    module = feature(loss=loss, weights={"label": 0, "soft_label": 0, "feature": 1})
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    values = []
    for _ in range(15):
        value = module.terms(batch())["feature"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


class Said:
    """A teacher of which class scores and sentence vectors are kept."""

    signature = Signature(LOGITS | {"pooled"}, width=3, classes=CLASSES, name="Said", recorded=True)

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs:
        return Outputs(logits=torch.zeros(len(batch.index), 2), pooled=torch.ones(len(batch.index), 3))

    def to(self, device: object) -> Said:
        return self


class Scores(Said):
    """One that has no sentence vectors to keep: asking it live would not help."""

    signature = Signature(LOGITS, classes=CLASSES, name="Scores", recorded=True)


def test_what_is_kept_of_a_teacher_teaches_sentence_vectors(tmp_path: Path) -> None:
    for make in (feature, semantic):
        module = make(teacher=Said(), reading=Reading("apart", "recorded"))
        start = {name: value.clone() for name, value in module.objectives.state_dict().items()}
        fit(module, tmp_path)
        assert start and not [name for name in start if torch.equal(module.objectives.state_dict()[name], start[name])]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student": NgramLinear(30, 2)},
         r"objective feature, of NgramLinear with Transformer as its teacher: needs pooled of the student, which "
         r"provides only logits; choose a model with sentence vectors"),
        ({"student": textcnn(1), "level": "tokens"},
         r"of TextCNN with .* needs hidden of the student, .* choose a model with layers, or compare sentence vectors"),
        ({"teacher": Said(), "level": "tokens"},
         r"with Said .*needs hidden of the teacher, which provides only logits, pooled; .* teacher.mode=live"),
        ({"teacher": Scores()}, r"with Scores .* provides only logits; choose a model with sentence vectors"),
        ({"teacher": live(NgramLinear(30, 2))}, r"needs pooled of the teacher, which provides only logits; choose"),
        ({"reading": Reading("apart", "the ngram tokenizer gives no character offsets")},
         r"objective feature, .*: compares tokens, .* different ones \(the ngram tokenizer .*\): .*level=sentence"),
        ({"projection": "none"}, r"objective feature, of Transformer .*: projection=none, .* 16 .* 24 of the teacher"),
        ({"layers": [[3, 4]]}, r"objective feature, of Transformer .*: layers: the student has layers 0"),
        ({"layers": "last", "student": transformer(1, layers=5)}, r"objective feature, .* 5 layers .* teacher's 4"),
        ({"layers": "skip", "student": bilstm(1)}, r"objective feature, of BiLSTM .* leaves no layer"),
        ({"loss": "atention_mse"}, r"loss: 'atention_mse'.*one of: hidden_mse, cosine"),
        ({"shared_projection": True, "embeddings": True, "student": bilstm(1)}, r"objective feature, .* one width"),
    ],
)  # fmt: skip
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        feature(**settings)


def test_tokens_apart_are_no_matter_to_sentences_and_first_tokens() -> None:
    apart = Reading("apart", "other tokenizers")
    for settings in ({"level": "sentence"}, {"loss": "patient"}):
        assert not feature(reading=apart, **settings).compares_tokens
    assert not semantic(reading=apart, level="sentence").compares_tokens
    with pytest.raises(UserError, match=r"objective semantic, of .*: compares tokens"):
        semantic(reading=apart)


def test_a_weight_of_zero_asks_nothing() -> None:
    module = feature(NgramLinear(30, 2), weights={"label": 1, "soft_label": 1, "feature": 0}, layers=[[9, 9]])
    assert set(module.objectives) == {"label", "soft_label"} and module.teacher_needs == LOGITS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer = WordTokenizer(min_count=1, max_length=8)
    tokenizer.fit([["a fine film", "a bad film"]])
    package.save(tmp_path, transformer(2, width=24, layers=4), tokenizer, CLASSES)
    return tmp_path


def test_the_outline_of_a_package_is_enough_to_bind_and_refuse(saved: Path) -> None:
    whole = package.load(saved)
    (saved / package.WEIGHTS).write_bytes(b"")  # which it does not read
    model, tokenizer = package.outline(saved)
    assert isinstance(model, nn.Module) and all(each.is_meta for each in model.parameters())
    assert tokenizer.encode(["a bad film"])[0].tolist() == whole.tokenizer.encode(["a bad film"])[0].tolist()
    shapes = {name: value.shape for name, value in whole.model.state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert model.signature == whole.model.signature
    planned, real = (feature(teacher=each) for each in (live(model), live(whole.model)))
    assert [each.shape for each in planned.parameters()] == [each.shape for each in real.parameters()]
    with pytest.raises(UserError, match=r"teacher has layers 0 \(embeddings\) to 4, and 5"):
        feature(teacher=live(model), layers=[[2, 5]])
    assert torch.zeros(1).device.type == "cpu"  # and nothing else is made on the meta device


@pytest.mark.parametrize("lost", ["model", "tokenizer"])
def test_the_outline_of_a_damaged_package_is_refused(saved: Path, lost: str) -> None:
    left = json.loads((saved / package.CONFIG).read_text())
    del left[lost]
    (saved / package.CONFIG).write_text(json.dumps(left))
    with pytest.raises(UserError, match=r"config\.json is damaged: it is not what was written"):
        package.outline(saved)
    with pytest.raises(UserError, match="nowhere does not exist"):
        package.outline(saved / "nowhere")
