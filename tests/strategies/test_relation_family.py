"""Relation, contrastive and gradient distillation as strategies, on small real models."""

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
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.package import Package
from kdresearch.strategies.contrastive import ContrastiveDistiller
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.gradient import GradientDistiller
from kdresearch.strategies.relation import RelationDistiller
from kdresearch.structures import UNLABELLED, Batch, Reading, Tokens
from kdresearch.teachers.live import LiveTeacher

VOCABULARY, CLASSES = 12, ("a", "b", "c")
LABEL = torch.tensor([0, 2, UNLABELLED, 1, 1, UNLABELLED])
RELATION = {"label": 0.5, "soft_label": 0.5, "rkd_distance": 1.0, "rkd_angle": 2.0,
            "similarity_preserving": 3.0, "pkt": 4.0}  # fmt: skip


def bilstm(seed: int = 1) -> BiLSTM:
    torch.manual_seed(seed)
    return BiLSTM(VOCABULARY, 3, embedding_dim=4, hidden_dim=3, dropout=0.0)


def textcnn() -> TextCNN:
    torch.manual_seed(2)
    return TextCNN(VOCABULARY, 3, embedding_dim=5, channels=4, kernel_sizes=(2, 3), dropout=0.0)


def transformer() -> Transformer:
    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return Transformer(
        VOCABULARY, 3, architecture={"model_type": "bert", "max_position_embeddings": 16, **sizes}, dropout=0.0
    )


def teacher(model: Any = None) -> LiveTeacher:
    return LiveTeacher(Package(model or bilstm(9), None, CLASSES, "", {}))


def batch(seed: int = 0, rows: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([7, 2, 5, 3, 6, 1])[:, None]
    ids = torch.randint(1, VOCABULARY, (6, 7), generator=generator).masked_fill(~mask, 0)
    tokens = Tokens(ids[:rows], mask[:rows])
    return Batch(torch.arange(rows) + 6 * seed, LABEL[:rows], tokens, tokens)


STRATEGIES: list[tuple[type[Distiller], dict[str, Any]]] = [
    (RelationDistiller, {"weights": RELATION}),
    (ContrastiveDistiller, {"queue": 8, "weights": {"label": 0.5, "soft_label": 0.5, "contrastive": 0.1}}),
    (GradientDistiller, {"weights": {"label": 0.5, "soft_label": 0.5, "gradient": 1.0}}),
    (
        ContrastiveDistiller,
        {
            "convention": "published",
            "memory": 13,
            "sampled": 5,
            "weights": {"label": 1.0, "soft_label": 1.0, "contrastive": 0.8},
        },
    ),
]
strategies = pytest.mark.parametrize(
    ("strategy", "settings"), STRATEGIES, ids=["relation", "contrastive", "gradient", "crd"]
)


def fit(module: Distiller, batches: list[Batch], folder: Path, epochs: int = 1, resume: Path | None = None) -> Any:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, max_epochs=epochs,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=resume, weights_only=False)
    return trainer


def equal(one: nn.Module, other: nn.Module) -> list[bool]:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return [torch.equal(*pair) for pair in pairs]


@strategies
@pytest.mark.parametrize("student", [bilstm, textcnn, transformer])
def test_two_steps_and_a_short_last_batch(
    strategy: Any, settings: dict[str, Any], student: Any, tmp_path: Path
) -> None:
    module = strategy(student(), classes=CLASSES, teacher=teacher(), **settings)
    start = {name: each.detach().clone() for name, each in module.named_parameters()}
    before = teacher().model.state_dict()
    fit(module, [batch(0), batch(1, rows=1)], tmp_path)
    assert all(each.isfinite().all() for each in module.parameters())
    still = {name for name, each in module.named_parameters() if torch.equal(each, start[name])}
    assert still <= {"student.encoder.embeddings.token_type_embeddings.weight"}
    assert all(torch.equal(each, before[name]) for name, each in module.teacher.model.state_dict().items())


@strategies
def test_rows_without_labels_teach(strategy: Any, settings: dict[str, Any]) -> None:
    weights = {name: 0.0 if name in ("label", "soft_label") else weight for name, weight in settings["weights"].items()}
    module = strategy(textcnn(), classes=CLASSES, teacher=teacher(), **settings | {"weights": weights})
    assert module.learns_from_unlabelled
    assert set(module.objectives) == set(weights) - {"label", "soft_label"}
    rows = batch()
    labelled = module.terms(rows)
    bare = module.eval().terms(rows._replace(label=torch.full_like(rows.label, UNLABELLED)))
    for name, term in bare.items():
        assert term > 0
        if strategy is not ContrastiveDistiller:  # whose queue has grown
            assert torch.equal(term, labelled[name])
        (gradient,) = torch.autograd.grad(term, module.student.convolutions[0].weight, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_the_relations_are_the_losses() -> None:
    student, rows = textcnn(), batch()
    module = RelationDistiller(
        student, classes=CLASSES, teacher=teacher(), convention="published", temperature=3.0, weights=RELATION
    )
    terms = module.terms(rows)
    asked = frozenset({"logits", "pooled"})
    own, other = student(rows.student, asked), module.teacher(rows, asked)
    kept = rows.label != UNLABELLED
    expected = {
        "label": F.cross_entropy(own.logits[kept], rows.label[kept]),
        "soft_label": losses.soft_label(own.logits, other.logits, temperature=3.0),
        "rkd_distance": losses.rkd_distance(own.pooled, other.pooled, convention="published"),
        "rkd_angle": losses.rkd_angle(own.pooled, other.pooled, convention="published"),
        "similarity_preserving": losses.similarity_preserving(own.pooled, other.pooled),
        "pkt": losses.pkt(own.pooled, other.pooled, convention="published"),
    }
    assert set(terms) == set(expected)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])


def test_a_relation_of_weight_zero_is_left_out() -> None:
    module = RelationDistiller(
        textcnn(), classes=CLASSES, teacher=teacher(), weights=RELATION | {"rkd_angle": 0.0, "pkt": 0.0}, batch_size=3
    )
    assert set(module.objectives) == {"label", "soft_label", "rkd_distance", "similarity_preserving"}


def test_the_contrast_is_the_loss_and_its_projection_is_trained_and_saved() -> None:
    student, rows = textcnn(), batch()
    module = ContrastiveDistiller(
        student, classes=CLASSES, teacher=teacher(), contrastive_temperature=0.3, temperature=3.0,
        weights={"label": 0.5, "soft_label": 0.5, "contrastive": 1.0},
    )  # fmt: skip
    terms = module.terms(rows)
    asked = frozenset({"logits", "pooled"})
    own, other = student(rows.student, asked), module.teacher(rows, asked)
    projected = module.objectives["contrastive"].projection(own.pooled)
    label = rows.label
    apart = (label[:, None] != label) | (label[:, None] == UNLABELLED)
    both = [
        losses.contrastive(projected, other.pooled, temperature=0.3, anchor=anchor, batch_mask=apart)
        for anchor in ("student", "teacher")
    ]
    torch.testing.assert_close(terms["contrastive"], sum(both) / 2)
    torch.testing.assert_close(terms["soft_label"], losses.soft_label(own.logits, other.logits, temperature=3.0))
    trained = {id(each) for group in module.parameter_groups() for each in group["params"]}
    assert id(module.objectives["contrastive"].projection.weight) in trained
    assert "objectives.contrastive.projection.weight" in module.state_dict()


def test_a_run_resumed_from_its_checkpoint_has_the_same_queue_and_weights(tmp_path: Path) -> None:
    settings = STRATEGIES[1][1]
    batches = [batch(seed) for seed in range(3)]

    def made() -> ContrastiveDistiller:
        return ContrastiveDistiller(textcnn(), classes=CLASSES, teacher=teacher(), **settings)

    whole, first, second = made(), made(), made()
    fit(whole, batches, tmp_path, epochs=2)
    fit(first, batches, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    assert not all(equal(first, whole))
    fit(second, batches, tmp_path, epochs=2, resume=tmp_path / "half.ckpt")
    assert all(equal(second, whole))
    queue = second.objectives["contrastive"]
    assert int(queue.filled) == 8
    assert sorted(queue.rows.tolist()) == [10, 11, 12, 13, 14, 15, 16, 17]
    assert int(queue.pointer) == 36 % 8
    saved = torch.load(tmp_path / "half.ckpt", weights_only=False)["state_dict"]
    assert {f"objectives.contrastive.{name}" for name in ("queue", "rows", "filled", "pointer")} <= set(saved)


def test_validation_leaves_the_queue_alone() -> None:
    module = ContrastiveDistiller(textcnn(), classes=CLASSES, teacher=teacher(), **STRATEGIES[1][1]).eval()
    module.validation_step(batch(), 0)
    module.terms(batch())
    assert int(module.objectives["contrastive"].filled) == 0


@pytest.mark.parametrize(
    ("strategy", "settings", "message"),
    [
        (RelationDistiller, {"weights": RELATION, "batch_size": 2},
         "rkd_distance relates the rows of a batch and needs at least 3: student.training.batch_size is 2"),
        (RelationDistiller, {"weights": RELATION | {"rkd_angle": 0, "rkd_distance": 0}, "batch_size": 2},
         "pkt relates .* at least 3"),
        (RelationDistiller, {"weights": RELATION, "student": NgramBag(9, 3), "teacher": None},
         "soft_label needs a teacher"),
        (ContrastiveDistiller, STRATEGIES[1][1] | {"queue": 0, "batch_size": 1}, "contrastive .* at least 2"),
        (ContrastiveDistiller, STRATEGIES[1][1] | {"queue": -2}, "queue .* at least 0, not -2"),
        (ContrastiveDistiller, STRATEGIES[1][1] | {"queue": 0, "in_batch": False}, "leaves no negatives"),
        (RelationDistiller, {"weights": RELATION | {"rkd_angle": 0, "rkd_distance": 0, "pkt": 0},
                             "convention": "published"}, "convention=published has no effect: similarity_preserving"),
        (ContrastiveDistiller, STRATEGIES[1][1] | {"convention": "ours"}, "convention: 'ours'"),
        (ContrastiveDistiller, STRATEGIES[1][1] | {"memory": 9}, "memory=9 has no effect: convention=house"),
        (ContrastiveDistiller, STRATEGIES[1][1] | {"momentum": 0.9}, "momentum=0.9 has no effect"),
        (ContrastiveDistiller, STRATEGIES[3][1] | {"queue": 9}, "queue=9 has no effect: convention=published"),
        (ContrastiveDistiller, STRATEGIES[3][1] | {"memory": None}, "every training row: give memory"),
        (GradientDistiller, STRATEGIES[2][1] | {"distance": "cosine"},
         r"gradient, .* distance=cosine .* \(TextCNN\) are 5 wide and the teacher's 4: use distance=norm"),
        (GradientDistiller, STRATEGIES[2][1] | {"teacher": teacher(NgramBag(VOCABULARY, 3))},
         "gradient, of .* needs sensitivity of the teacher"),
        (GradientDistiller, STRATEGIES[2][1] | {"student": NgramBag(VOCABULARY, 3)},
         "gradient, of NgramBag .*: needs embeddings of the student"),
        (GradientDistiller, STRATEGIES[2][1] | {"reading": Reading("apart")}, "gradient, of .*: compares tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_words(strategy: Any, settings: dict[str, Any], message: str) -> None:
    settings = {"student": textcnn(), "teacher": teacher(), **settings}
    with pytest.raises(UserError, match=message):
        strategy(classes=CLASSES, **settings)


def test_a_queue_lifts_the_need_of_rows() -> None:
    ContrastiveDistiller(textcnn(), classes=CLASSES, teacher=teacher(), batch_size=1, **STRATEGIES[1][1])
    module = GradientDistiller(textcnn(), classes=CLASSES, teacher=teacher(), batch_size=1, **STRATEGIES[2][1])
    assert module.compares_tokens
