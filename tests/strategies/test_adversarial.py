"""Adversarial distillation: both sides' steps by hand, and Lightning's bookkeeping done by hand."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramLinear
from kdresearch.objectives.adversarial import SpectralLinear
from kdresearch.package import Package
from kdresearch.strategies.adversarial import AdversarialDistiller
from kdresearch.strategies.schedules import linear
from kdresearch.structures import Batch, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")
WEIGHTS = {"label": 0.5, "soft_label": 0.25, "adversarial": 2.0}
FIELDS = frozenset({"logits", "pooled"})


def bilstm(seed: int, width: int) -> BiLSTM:
    torch.manual_seed(seed)
    return BiLSTM(30, 3, embedding_dim=6, hidden_dim=width, dropout=0.0)


def batch(seed: int = 0) -> Batch:
    ids = torch.randint(1, 30, (6, 7), generator=torch.Generator().manual_seed(seed))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(torch.arange(6), torch.tensor([0, 2, 1, 1, -1, -1]), tokens, tokens)


def distiller(student: Any = None, **settings: Any) -> AdversarialDistiller:
    teacher = LiveTeacher(Package(bilstm(2, 7), None, CLASSES, "", {}))
    made = {
        "reads": "pooled",
        "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1),
        "hidden_dim": 4,
        "weights": WEIGHTS,
    }
    return AdversarialDistiller(student or bilstm(1, 5), **{"classes": CLASSES, "teacher": teacher} | made | settings)


def fit(module: AdversarialDistiller, folder: Path, *rows: Batch, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1, **{"max_epochs": 1} | settings,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=DataLoader(list(rows), batch_size=None))
    return trainer


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def vectors(module: AdversarialDistiller, rows: Batch, reads: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sides' logits, and what the discriminator reads of each."""
    student, teacher = module.student(rows.student, FIELDS), module.teacher(rows, FIELDS)
    own, other = student.logits, teacher.logits
    if reads == "pooled":
        own, other = module.adversary.projection(student.pooled), teacher.pooled
    own, other = (each - each.mean(1, keepdim=True) for each in (own, other))
    if reads == "pooled":
        own, other = (each / each.norm(dim=1, keepdim=True) for each in (own, other))
    else:
        own, other = 2 * own, 2 * other
    return student.logits, teacher.logits, own, other


@pytest.mark.parametrize("reads", ["pooled", "logits"])
def test_one_update_of_either_side_by_hand(reads: str, tmp_path: Path) -> None:
    module, rows = distiller(reads=reads, temperature=2.0, discriminator_smoothing=0.2), batch()
    twin = deepcopy(module)
    trainer = fit(module, tmp_path, rows)
    assert trainer.global_step == 1

    judge = twin.adversary.discriminator.requires_grad_(True)
    own_logits, logits, own, other = vectors(twin, rows, reads)
    probability = torch.sigmoid(judge(own))
    p, q = (logits / 2).softmax(1), (own_logits / 2).softmax(1)
    loss = (
        0.5 * cross_entropy(own_logits[:4], rows.label[:4])
        + 0.25 * 4 * (p * (p / q).log()).sum() / 6
        + 2.0 * -probability.log().mean()
    )
    students = {name: value for name, value in twin.named_parameters() if ".discriminator." not in name}
    gradients = torch.autograd.grad(loss, list(students.values()))
    after = state(module)
    for (name, value), gradient in zip(students.items(), gradients, strict=True):
        assert torch.allclose(after[name], value - 0.1 * gradient, atol=1e-6), name

    mine, theirs = torch.sigmoid(judge(own.detach())), torch.sigmoid(judge(other))
    against = -(0.8 * theirs.log() + 0.2 * (1 - theirs).log()).mean() / 2 - (1 - mine).log().mean() / 2
    adam = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.5, 0.999))
    against.backward()
    adam.step()
    for name, value in judge.named_parameters():
        assert torch.allclose(after[f"objectives.adversarial.discriminator.{name}"], value, atol=1e-6), name
    logged = trainer.callback_metrics
    assert float(logged["train/adversarial"]) == pytest.approx(float(-probability.detach().log().mean()), rel=1e-4)
    assert float(logged["train/discriminator"]) == pytest.approx(float(against.detach()), rel=1e-4)
    right = torch.cat([theirs > 0.5, mine < 0.5]).float().mean()
    assert float(logged["train/discriminator_accuracy"]) == pytest.approx(float(right))


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (8, 1)])
def test_a_discriminators_layer_stretches_nothing(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = SpectralLinear(*shape)
    whole = layer(torch.eye(shape[0])) - layer.bias
    assert float(torch.linalg.matrix_norm(whole.detach(), 2)) == pytest.approx(1)
    assert torch.allclose(whole * torch.linalg.matrix_norm(layer.weight, 2), layer.weight.T, atol=1e-6)


def test_neither_side_moves_the_other(tmp_path: Path) -> None:
    """Without the student's rate the discriminator alone learns; and it is no parameter of the student's optimizer."""
    module = distiller(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    before = state(module)
    fit(module, tmp_path, batch())
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert moved and moved == {name for name in before if ".discriminator." in name}
    trained = {id(value) for group in module.parameter_groups() for value in group["params"]}
    assert trained == {id(value) for name, value in module.named_parameters() if ".discriminator." not in name}
    assert all(value.grad is None and not value.requires_grad for value in module.adversary.discriminator.parameters())
    assert "objectives.adversarial.projection.weight" in before  # the widths differ


def test_clipping_is_the_trainers(tmp_path: Path) -> None:
    module = distiller()
    before = state(module)
    fit(module, tmp_path, batch(), gradient_clip_val=0.01)
    steps = [
        (value.detach() - before[name]) / 0.1
        for name, value in module.named_parameters()
        if ".discriminator." not in name
    ]
    assert float(torch.cat([step.flatten() for step in steps]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_accumulation_is_the_trainers(tmp_path: Path) -> None:
    """The same batch twice is one update of it; what is left at the end of the data is an update of its own."""
    first, second = batch(0), batch(1)
    once, twice = distiller(), distiller()
    twice.load_state_dict(once.state_dict())
    before = state(once)
    assert fit(once, tmp_path, first, second).global_step == 2
    assert fit(twice, tmp_path, first, first, second, second, accumulate_grad_batches=2).global_step == 2
    for name, value in once.named_parameters():
        apart, moved = (float((value - each).detach().norm()) for each in (twice.get_parameter(name), before[name]))
        assert apart < 0.01 * moved, (name, apart, moved)
    assert fit(distiller(), tmp_path, *[first] * 5, accumulate_grad_batches=2).global_step == 3
    limited = fit(distiller(), tmp_path, *[first] * 9, accumulate_grad_batches=2, limit_train_batches=3)
    assert limited.global_step == 2


def test_the_schedule_and_the_end_count_the_students_updates(tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    rates: list[list[float]] = []
    module = distiller(scheduler=partial(linear, warmup=0))
    trainer = fit(module, tmp_path, *[batch()] * 9, max_steps=5, callbacks=[Watch()])
    assert trainer.global_step == 5
    assert rates == [pytest.approx([0.1 * left / 5, 1e-3]) for left in (5, 4, 3, 2, 1)]


def test_it_trains_again_after_a_prediction(tmp_path: Path) -> None:
    module = distiller()
    trainer = fit(module, tmp_path, batch(), gradient_clip_val=1.0)
    trainer.predict(module, DataLoader([batch()], batch_size=None))
    assert fit(module, tmp_path, batch(), gradient_clip_val=1.0).global_step == 1


def test_a_discriminator_against_a_still_student_wins(tmp_path: Path) -> None:
    module = distiller(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0), discriminator_learning_rate=0.05)
    rows = batch()
    with torch.no_grad():
        module.terms(rows)
        before = float(module.adversary.discrimination()[0])
    trainer = fit(module, tmp_path, *[rows] * 150)
    logged = trainer.callback_metrics
    assert float(logged["train/discriminator"]) < before
    assert float(logged["train/discriminator_accuracy"]) > 0.9


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_rows_without_labels_and_other_precisions(precision: Any, tmp_path: Path) -> None:
    module = distiller()
    before = state(module)
    rows = batch()._replace(label=torch.full((6,), -1))
    fit(module, tmp_path, rows, precision=precision)
    assert not [name for name, value in module.named_parameters() if torch.equal(value, before[name])]
    assert all(value.isfinite().all() for value in module.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reads": "hidden"}, r"reads: 'hidden'; one of: logits, pooled"),
        ({"hidden_dim": 0}, r"hidden_dim .* not 0"),
        ({"discriminator_learning_rate": 0}, r"discriminator_learning_rate .* positive, not 0"),
        ({"discriminator_smoothing": 1.0}, r"discriminator_smoothing .* not 1\.0"),
        ({"weights": {**WEIGHTS, "adversarial": 0}}, r"weights\.adversarial is 0.*strategy=soft_label"),
        ({"teacher": None}, r"needs a teacher"),
        ({"student": NgramLinear(30, 3)}, r"adversarial, of NgramLinear .* needs pooled of the student"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(**settings)
