from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kdresearch.errors import UserError
from kdresearch.models.textcnn import TextCNN
from kdresearch.structures import FIELDS, Tokens

LENGTHS = (8, 1, 4, 2, 11)
BOTH = frozenset({"logits", "pooled"})


def small(**changes: object) -> TextCNN:
    torch.manual_seed(0)
    arguments: dict = {"embedding_dim": 5, "channels": 6, "kernel_sizes": (2, 3, 5)} | changes
    return TextCNN(30, 3, **arguments).double().eval()


def tokens(lengths: tuple[int, ...] = LENGTHS) -> Tokens:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(1))
    return Tokens(ids * mask, mask)


def naive(model: TextCNN, ids: list[int]) -> np.ndarray:
    """Kim's network on one row, window by window."""
    words = model.embedding.weight.detach().numpy()[np.array(ids, dtype=int)]
    pooled: list[float] = []
    for convolution in model.convolutions:
        kernels, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()  # [C, E, k], [C]
        size = kernels.shape[2]
        row = np.vstack((words, np.zeros((max(size - len(words), 0), words.shape[1]))))
        windows = [row[start : start + size].T for start in range(len(row) - size + 1)]
        for kernel, offset in zip(kernels, bias, strict=True):
            pooled.append(max(max((kernel * window).sum() + offset, 0.0) for window in windows))
    return np.array(pooled)


@pytest.mark.parametrize("sizes", [(2, 3, 5), (4,), (1, 3), (5, 2), (20,)])
def test_equals_the_naive_network_row_by_row(sizes: tuple[int, ...]) -> None:
    model, batch = small(kernel_sizes=sizes), tokens()
    outputs = model(batch, BOTH)
    for row, length in enumerate(LENGTHS):
        expected = naive(model, batch.ids[row, :length].tolist())
        np.testing.assert_allclose(outputs.pooled[row].detach().numpy(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(outputs.logits, outputs.pooled @ model.classifier.weight.T + model.classifier.bias)


def test_padding_changes_nothing_whatever_ids_it_carries() -> None:
    model, batch = small(), tokens()
    for convolution in model.convolutions:
        convolution.bias.data.fill_(2.0)  # windows of pure padding would answer with the bias
    longer = Tokens(
        torch.cat((batch.ids.masked_fill(~batch.mask, 17), torch.full((5, 7), 23)), dim=1),
        torch.cat((batch.mask, torch.zeros(5, 7, dtype=torch.bool)), dim=1),
    )
    torch.testing.assert_close(model(longer, BOTH).pooled, model(batch, BOTH).pooled)
    for row, length in enumerate(LENGTHS):
        alone = Tokens(batch.ids[row : row + 1, :length], batch.mask[row : row + 1, :length])
        torch.testing.assert_close(model(alone, BOTH).pooled[0], model(batch, BOTH).pooled[row])


def test_rows_do_not_see_each_other() -> None:
    model, batch, order = small(), tokens(), torch.tensor([4, 2, 0, 3, 1])
    moved = model(Tokens(batch.ids[order], batch.mask[order]))
    torch.testing.assert_close(moved.logits, model(batch).logits[order])


def test_row_without_tokens_is_finite() -> None:
    model = small()
    outputs = model(tokens((3, 0)), BOTH)
    np.testing.assert_allclose(outputs.pooled[1].detach().numpy(), naive(model, []), rtol=0, atol=1e-12)
    outputs.logits.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_gradient_reaches_every_weight_but_padding() -> None:
    model, batch = small(), tokens()
    model(batch).logits.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())
    moved = set(model.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist())
    assert moved <= set(batch.ids[batch.mask].tolist()) and len(moved) > 10


def test_gradient_is_that_of_finite_differences() -> None:
    model, batch = small(), tokens()
    weight = model.convolutions[1].weight
    model(batch).logits[:, 0].sum().backward()
    direction, step = torch.randn_like(weight), 1e-6
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            weight += sign * step * direction
            values.append(model(batch).logits[:, 0].sum())
    slope = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close((weight.grad * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_declares_what_it_gives() -> None:
    model = small()
    assert (model.signature.width, model.signature.depth, model.signature.heads, model.signature.embedding_width) == (
        18,
        0,
        0,
        5,
    )
    assert model.signature.fields == BOTH | {"embeddings"}
    outputs = model(tokens(), BOTH)
    assert outputs.pooled.shape == (5, 18) and outputs.logits.shape == (5, 3)


@pytest.mark.parametrize("need", ["embeddings", "logits", "pooled"])
def test_gives_and_computes_only_what_is_asked(need: str) -> None:
    model, batch, calls = small(), tokens(), []
    model.classifier.register_forward_hook(lambda *_: calls.append("classifier"))
    outputs = model(batch, frozenset({need}))
    assert {name for name in FIELDS if getattr(outputs, name) is not None} == {need}
    assert outputs.mask is batch.mask
    assert calls == (["classifier"] if need == "logits" else [])


def test_config_builds_it_again() -> None:
    model = small(dropout=0.1)
    again = type(model)(**json.loads(json.dumps(model.config))).double().eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_dropout_acts_in_training_only_and_not_on_pooled() -> None:
    model, batch = small(), tokens()
    expected = model(batch, BOTH)
    assert torch.equal(model(batch).logits, expected.logits)
    model.train()
    drawn = model(batch, BOTH)
    assert torch.equal(drawn.pooled, expected.pooled) and not torch.allclose(drawn.logits, expected.logits)


def test_load_vectors_moves_the_answer() -> None:
    model, batch = small(), tokens()
    before = model(batch).logits
    model.load_vectors(torch.ones(30, 5), torch.arange(30) >= 0)
    assert model.embedding.weight[1:].eq(1).all() and model.embedding.weight[0].eq(0).all()
    assert not torch.allclose(model(batch).logits, before)
    with pytest.raises(UserError, match=r"\[30, 4\].*\[30, 5\]"):
        model.load_vectors(torch.ones(30, 4), torch.arange(30) >= 0)


def test_refusals_name_the_thing() -> None:
    with pytest.raises(
        ValueError, match="TextCNN does not provide attention, hidden, qkv; it provides embeddings, logits, pooled"
    ):
        small()(tokens(), FIELDS)
    for sizes in ((), (3, 0)):
        with pytest.raises(UserError, match="kernel_sizes"):
            small(kernel_sizes=sizes)
