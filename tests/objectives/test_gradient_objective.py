"""What the class score depends on: against derivatives by hand, finite differences, and training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdresearch import losses
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramBag
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.objectives.gradient import Jacobian
from kdresearch.package import Package
from kdresearch.structures import LOGITS, UNLABELLED, Batch, Model, Outputs, Reading, Signature, Tokens
from kdresearch.teachers.live import LiveTeacher

VOCABULARY, CLASSES = 12, 3
LENGTHS = torch.tensor([5, 3, 4, 1])


class Curve(nn.Module):
    """logits = mean over real tokens of tanh(e) @ W, of which every derivative is known."""

    def __init__(self, seed: int, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.signature = Signature(LOGITS | {"embeddings"}, embedding_width=width, name="Curve")
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.weight = nn.Parameter(torch.randn(width, CLASSES))

    def forward(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs:
        words = self.embedding(tokens.ids)
        if torch.is_grad_enabled() and not words.requires_grad:
            words.requires_grad_()
        mean = (words.tanh() * tokens.mask[..., None]).sum(1) / tokens.mask.sum(1, keepdim=True)
        return Outputs(logits=mean @ self.weight, embeddings=words, mask=tokens.mask)


def batch(seed: int = 0, padding: int = 0, **words: Tensor) -> Batch:
    """Both sides read the same four rows."""
    ids = torch.randint(1, VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(5) < LENGTHS[:, None]
    ids = torch.cat([ids.masked_fill(~mask, 0), torch.zeros(4, padding, dtype=torch.long)], 1)
    mask = torch.cat([mask, torch.zeros(4, padding, dtype=torch.bool)], 1)
    tokens = Tokens(ids, mask)
    return Batch(torch.arange(4), torch.full((4,), UNLABELLED), tokens, tokens)


def live(model: Any) -> LiveTeacher:
    return LiveTeacher(Package(model, None, tuple("abc"), "", {}))


def value(objective: Jacobian, student: Model, teacher: LiveTeacher, rows: Batch) -> Tensor:
    return objective(student(rows.student, objective.needs), teacher(rows, objective.teacher_needs), rows)


def bilstm(seed: int, width: int = 4, **settings: Any) -> BiLSTM:
    torch.manual_seed(seed)
    return BiLSTM(VOCABULARY, CLASSES, embedding_dim=width, hidden_dim=3, **{"dropout": 0.0} | settings)


def textcnn(seed: int) -> TextCNN:
    torch.manual_seed(seed)
    return TextCNN(VOCABULARY, CLASSES, embedding_dim=4, channels=3, kernel_sizes=(1, 2), dropout=0.0)


def transformer(seed: int) -> Transformer:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
    return Transformer(
        VOCABULARY, CLASSES, architecture={"model_type": "bert", "max_position_embeddings": 16, **sizes}, dropout=0.0
    )


MODELS = [Curve, bilstm, textcnn, transformer]
distances = pytest.mark.parametrize("distance", ["norm", "cosine"])


@distances
def test_equals_the_derivative_by_hand(distance: str) -> None:
    student, teacher, rows = Curve(0), Curve(1), batch()
    found = value(Jacobian(distance), student, live(teacher), rows).item()

    mask, ids = rows.student.mask.numpy(), rows.student.ids.numpy()
    predicted = teacher(rows.student).logits.argmax(1).numpy()
    gradients = []
    for model in (student, teacher):
        table, weight = model.embedding.weight.detach().double().numpy(), model.weight.detach().double().numpy()
        slope = 1 - np.tanh(table[ids]) ** 2
        gradients.append(slope * weight[:, predicted].T[:, None] / mask.sum(1)[:, None, None])
    if distance == "cosine":
        s, t = (g / np.linalg.norm(g, axis=2, keepdims=True) for g in gradients)
        expected = (1 - (s * t).sum(2))[mask].mean()
    else:
        s, t = (np.linalg.norm(g, axis=2) * mask for g in gradients)
        s, t = (n / np.linalg.norm(n, axis=1, keepdims=True) for n in (s, t))
        expected = ((s - t) ** 2).sum(1).mean()
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > 1e-3


@pytest.mark.parametrize("made", MODELS)
@distances
def test_identical_models_are_at_zero_and_others_are_not(made: Any, distance: str) -> None:
    teacher = made(0)
    student = copy.deepcopy(teacher).train()
    assert value(Jacobian(distance), student, live(teacher), batch()).item() == pytest.approx(0, abs=1e-6)
    found = value(Jacobian(distance), made(1).train(), live(teacher), batch())
    assert found > 1e-4
    found.backward()


@pytest.mark.parametrize("made", MODELS)
@distances
def test_padding_does_not_matter(made: Any, distance: str) -> None:
    student, teacher = made(0).eval(), live(made(1))
    expected = value(Jacobian(distance), student, teacher, batch()).item()
    assert value(Jacobian(distance), student, teacher, batch(padding=3)).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("made", [Curve, bilstm])
@distances
def test_gradient_equals_finite_differences(made: Any, distance: str) -> None:
    student, teacher, rows = made(0).double(), live(made(1)), batch()
    objective = Jacobian(distance)
    parameters = [each for each in student.parameters() if each.requires_grad]
    found = torch.autograd.grad(
        value(objective, student, teacher, rows), parameters, allow_unused=True, materialize_grads=True
    )
    step = 1e-5
    for parameter, gradient in zip(parameters, found, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            ends.append(value(objective, student, teacher, rows).item())
            with torch.no_grad():
                parameter -= sign * step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    assert max(float(gradient.abs().max()) for gradient in found) > 1e-3


@pytest.mark.parametrize("made", MODELS[1:])
def test_training_lowers_it(made: Any) -> None:
    student, teacher, rows = made(0).train(), live(made(1)), batch()
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    course = []
    for _ in range(60):  # the words that a maximum is taken of change on the way, and the loss jumps
        optimizer.zero_grad()
        loss = value(Jacobian(), student, teacher, rows)
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    assert course[-1] < course[0] / 2


def test_words_are_compared_where_tokens_differ() -> None:
    """The student has one token for each word, the teacher two; a special one before them on its side."""
    student, teacher = Curve(0), live(Curve(1, width=6))
    own = Tokens(torch.tensor([[3, 4]]), torch.ones(1, 2).bool(), torch.tensor([[0, 1]]))
    other = Tokens(torch.tensor([[1, 5, 6, 7, 8]]), torch.ones(1, 5).bool(), torch.tensor([[-1, 0, 0, 1, 1]]))
    rows = Batch(torch.tensor([0]), torch.tensor([UNLABELLED]), own, other)
    found = value(Jacobian(), student, teacher, rows)

    answer = student(own)
    asked = teacher(rows, frozenset({"logits", "sensitivity"}))
    (gradient,) = torch.autograd.grad(answer.logits[0, asked.logits.argmax()], answer.embeddings)
    words = asked.sensitivity[:, 1:].view(1, 2, 2, 6).mean(2)
    torch.testing.assert_close(found, losses.jacobian(gradient, words))
    assert found > 1e-4

    with pytest.raises(ValueError, match=r"student reads \[1, 2\] tokens and the teacher \[1, 5\]"):
        value(Jacobian(), student, teacher, rows._replace(student=own._replace(words=None)))


def test_the_class_is_the_teachers() -> None:
    student, teacher, rows = Curve(0), live(Curve(1)), batch()
    answer = teacher(rows, Jacobian.teacher_needs)
    student_answer = student(rows.student)
    turned = answer._replace(logits=-answer.logits)
    assert not torch.isclose(Jacobian()(student_answer, answer, rows), Jacobian()(student_answer, turned, rows))


def test_frozen_embeddings_are_differentiated_all_the_same() -> None:
    student = bilstm(0)
    student.embedding.weight.requires_grad_(False)
    value(Jacobian(), student, live(bilstm(1)), batch()).backward()
    assert student.embedding.weight.grad is None
    assert student.classifier.weight.grad.abs().sum() > 0


def test_a_model_that_depends_on_nothing_is_finite() -> None:
    student, teacher = Curve(0), Curve(1)
    for dead in (student, teacher):
        saved = dead.weight.data.clone()
        dead.weight.data.zero_()
        for distance in ("norm", "cosine"):
            student.zero_grad()
            found = value(Jacobian(distance), student, live(copy.deepcopy(teacher)), batch())
            found.backward()
            assert found.isfinite()
            assert student.weight.grad.isfinite().all()
        dead.weight.data.copy_(saved)


def test_a_student_without_a_graph_is_told() -> None:
    with torch.no_grad(), pytest.raises(ValueError, match="takes its graph, and it ran without: not under no_grad"):
        value(Jacobian(), bilstm(0), live(bilstm(1)), batch())


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"distance: 'cosin' \(did you mean 'cosine'\?\); one of: norm, cosine"):
        Jacobian("cosin")
    narrow, wide = bilstm(0), live(bilstm(1, width=7))
    with pytest.raises(UserError, match=r"student's \(BiLSTM\) are 4 wide and the teacher's 7: use distance=norm"):
        Jacobian("cosine").bind(narrow.signature, wide.signature, Reading())
    Jacobian().bind(narrow.signature, wide.signature, Reading())
    Jacobian("cosine").bind(narrow.signature, live(bilstm(1)).signature, Reading())
    Jacobian("cosine").bind(
        NgramBag(9, 2).signature, wide.signature, Reading()
    )  # what it lacks is told by the strategy
    objective = Jacobian(member=1)
    assert (objective.needs, objective.teacher_needs) == ({"logits", "embeddings"}, {"logits", "sensitivity"})
    assert objective.needs_shared_tokens and not objective.needs_labels
    assert objective.member == 1
