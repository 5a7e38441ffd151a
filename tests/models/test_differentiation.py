"""Embeddings, and the derivatives of the logits with respect to them, of every model that gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.differentiation import tracked, twice_differentiable
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import HubClassifier, Transformer
from kdresearch.structures import Tokens

BOTH = frozenset({"logits", "embeddings"})
LENGTHS = (4, 2)
TINY = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "vocab_size": 20,
    "pad_token_id": 0,
}
# Each kind's module that gives out the embeddings.
SOURCE = {
    "bilstm": "embedding",
    "textcnn": "embedding",
    "bert": "encoder.embeddings",
    "roberta": "encoder.embeddings",
    "distilbert": "encoder.embeddings",
    "mpnet": "encoder.embeddings",
    "albert": "encoder.encoder.embedding_hidden_mapping_in",
    "electra": "encoder.embeddings_project",
    "hub": "model.bert.embeddings",
}


def tokens() -> Tokens:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return Tokens(torch.tensor([[3, 7, 11, 5], [9, 2, 0, 0]]), mask)


def build(kind: str, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    if kind == "bilstm":
        return BiLSTM(20, 3, embedding_dim=5, hidden_dim=4, layers=2, dropout=dropout)
    if kind == "textcnn":
        return TextCNN(20, 3, embedding_dim=5, channels=4, kernel_sizes=(1, 2), dropout=dropout)
    if kind == "hub":
        model: nn.Module = HubClassifier(architecture=TINY | {"num_labels": 3})
    else:
        changes = {"embedding_size": 6} if kind in ("albert", "electra") else {}
        model = Transformer(classes=3, architecture=TINY | {"model_type": kind} | changes, dropout=dropout)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4)  # their own start is close to linear
    return model


def slope(model: Any) -> Tensor:
    """d(logits of the first class) / d(embeddings) [B, T, E], in the graph."""
    outputs = model(tokens(), BOTH)
    (gradient,) = torch.autograd.grad(outputs.logits[:, 0].sum(), outputs.embeddings, create_graph=True)
    return gradient


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("kind", SOURCE)
def test_first_and_second_derivative_are_those_of_finite_differences(kind: str, frozen: bool) -> None:
    model = build(kind).double().eval().requires_grad_(not frozen)
    moved = torch.zeros(2, 4, model.signature.embedding_width, dtype=torch.double, requires_grad=True)
    real = tokens().mask[..., None]

    def logits(moved: Tensor) -> Tensor:
        with model.get_submodule(SOURCE[kind]).register_forward_hook(lambda *call: call[-1] + moved * real):
            given: Tensor = model(tokens(), BOTH).logits
        return given

    assert torch.autograd.gradcheck(logits, (moved,), fast_mode=True)
    assert torch.autograd.gradgradcheck(logits, (moved,), fast_mode=True)
    (expected,) = torch.autograd.grad(logits(moved)[:, 0].sum(), moved)
    torch.testing.assert_close(slope(model) * real, expected)


@pytest.mark.parametrize("kind", SOURCE)
def test_a_penalty_on_the_slope_trains_the_parameters(kind: str) -> None:
    model = build(kind).double().eval()
    slope(model).square().sum().backward()
    trained = [(each, torch.randn_like(each)) for each in model.parameters() if each.grad is not None]
    step, values = 1e-6, []
    for sign in (1, -2):
        for parameter, direction in trained:
            parameter.data += sign * step * direction
        values.append(float(slope(model).detach().square().sum()))
    expected = (values[0] - values[1]) / (2 * step)
    assert abs(expected) > 1e-5
    assert sum(float((p.grad * d).sum()) for p, d in trained) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", SOURCE)
def test_training_with_dropout_in_either_precision(kind: str, precision: torch.dtype) -> None:
    model = build(kind, dropout=0.3).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        gradient = slope(model)
    gradient.float().square().sum().backward()
    reached = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert all(parameter.grad.isfinite().all() for parameter in reached)
    assert sum(bool(parameter.grad.any()) for parameter in reached) >= len(list(model.parameters())) // 3


@pytest.mark.parametrize("kind", SOURCE)
def test_asking_changes_no_logits_and_leaves_no_trace(kind: str) -> None:
    model = build(kind).eval()
    before = model(tokens())
    asked = model(tokens(), BOTH)
    torch.testing.assert_close(asked.logits, before.logits, atol=1e-5, rtol=0)
    assert asked.embeddings.shape == (2, 4, model.signature.embedding_width)
    assert torch.equal(model(tokens()).logits, before.logits) and before.embeddings is None
    assert torch.backends.cudnn.enabled and torch.backends.cuda.flash_sdp_enabled()
    with torch.no_grad():
        assert not model(tokens(), BOTH).embeddings.requires_grad


@pytest.mark.parametrize("kind", ["bilstm", "textcnn", "bert"])
def test_embeddings_of_one_token_move_with_its_word_alone(kind: str) -> None:
    model, batch = build(kind).eval(), tokens()
    other = batch._replace(ids=batch.ids.clone())
    other.ids[0, 1] = 13
    before, after = model(batch, BOTH).embeddings, model(other, BOTH).embeddings
    changed = (before != after).any(2)
    assert changed.nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=str)
def test_the_fast_path_of_attention_has_no_second_derivative(precision: torch.dtype) -> None:
    """Why there is a context at all; once this fails, it can go."""
    query = torch.randn(1, 2, 4, 8, dtype=precision, requires_grad=True)

    def twice() -> None:
        answer = nn.functional.scaled_dot_product_attention(query, query, query)
        (first,) = torch.autograd.grad(answer.sum(), query, create_graph=True)
        first.sum().backward()

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match="not implemented"):
        twice()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), twice_differentiable():
        twice()
    assert query.grad is not None


def test_the_kernels_come_back_when_the_forward_pass_fails() -> None:
    def fail() -> None:
        with twice_differentiable():
            assert not torch.backends.cudnn.enabled and not torch.backends.cuda.flash_sdp_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.backends.cudnn.enabled and torch.backends.cuda.flash_sdp_enabled()


def test_tracked_touches_only_what_has_no_gradient() -> None:
    trained = torch.ones(2, requires_grad=True) * 2
    assert tracked(trained) is trained and not trained.is_leaf
    frozen = torch.ones(2)
    assert tracked(frozen) is frozen and frozen.requires_grad
    with torch.no_grad():
        assert not tracked(torch.ones(2)).requires_grad


def test_a_pretrained_encoder(tmp_path: Path) -> None:
    source = build("bert")
    source.encoder.save_pretrained(str(tmp_path))
    model = Transformer(classes=3, path=tmp_path).eval().requires_grad_(False)
    assert model.signature.fields == source.signature.fields and slope(model).any()
