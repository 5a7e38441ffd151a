"""What each network starts from, against what its paper or its authors' code says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.initialise import spread
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.structures import LOGITS, Tokens

BERT = {
    "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 128, "max_position_embeddings": 64,
}  # fmt: skip


def batch(vocabulary: int) -> Tokens:
    return Tokens(torch.randint(1, vocabulary, (6, 9)), torch.ones(6, 9, dtype=torch.bool))


def is_uniform(values: Tensor, bound: float) -> None:
    """Within the bounds, close to them, and of their first, second and fourth moment within four standard errors."""
    values = values.detach().double()
    error = 4 / math.sqrt(values.numel())
    assert 0.98 * bound < values.abs().max() <= bound
    assert abs(float(values.mean())) < error * bound / math.sqrt(3)
    assert float(values.square().mean()) == pytest.approx(bound**2 / 3, rel=0.9 * error)
    assert float(values.pow(4).mean()) == pytest.approx(bound**4 / 5, rel=1.4 * error)


def is_normal(values: Tensor, deviation: float) -> None:
    values = values.detach().double()
    assert abs(float(values.mean())) < 0.1 * deviation
    assert float(values.std()) == pytest.approx(deviation, rel=0.1)


def test_textcnn_starts_from_kims_embeddings_and_scaled_filters() -> None:
    torch.manual_seed(0)
    model = TextCNN(500, 7, embedding_dim=60, channels=20)
    is_uniform(model.embedding.weight[1:], 0.25)
    assert model.embedding.weight[0].eq(0).all()
    assert spread(model) == pytest.approx(0.25 / math.sqrt(3), rel=0.02)
    for part, inputs in zip((*model.convolutions, model.classifier), (180, 240, 300, 60), strict=True):
        is_uniform(part.weight, 1 / math.sqrt(inputs))
        assert part.bias.eq(0).all()


def test_max_norm_scales_a_class_back_before_a_training_step_only() -> None:
    model, tokens = TextCNN(50, 3, embedding_dim=8, channels=6, max_norm=3.0, dropout=0.0), batch(50)
    start = torch.randn(3, 18)
    start *= torch.tensor([[1.0], [3.0], [9.0]]) / start.norm(dim=1, keepdim=True)
    model.classifier.weight.data.copy_(start)
    model.eval()(tokens)
    assert torch.equal(model.classifier.weight, start)
    first = model.train()(tokens).logits
    torch.testing.assert_close(model.classifier.weight.norm(dim=1), torch.tensor([1.0, 3.0, 3.0]))
    torch.testing.assert_close(model.classifier.weight[2], start[2] / 3)
    (first.sum() + model(tokens).logits.sum()).backward()  # the second forward of one step disturbs nothing
    with pytest.raises(UserError, match="max_norm must be above 0, or null for none, not 0"):
        TextCNN(50, 3, max_norm=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_bilstm_starts_with_open_forget_gates_and_orthogonal_recurrences(layers: int) -> None:
    torch.manual_seed(0)
    model = BiLSTM(400, 5, embedding_dim=40, hidden_dim=24, layers=layers)
    is_uniform(model.embedding.weight[1:], BiLSTM.EMBEDDING_BOUND)
    assert model.embedding.weight[0].eq(0).all()
    for place, lstm in enumerate([*model.rightward, *model.leftward]):
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0  # torch adds two
        assert bias.chunk(4)[1].eq(1).all()
        assert all(bias.chunk(4)[gate].eq(0).all() for gate in (0, 2, 3))
        for gate in lstm.weight_hh_l0.chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(24), atol=1e-5, rtol=0)
        inputs = 40 if place % layers == 0 else 48
        for gate in lstm.weight_ih_l0.chunk(4):  # a gate's own fan-out, not that of the four together
            is_uniform(gate, math.sqrt(6 / (inputs + 24)))
    starts = [tuple(lstm.weight_hh_l0.flatten().tolist()) for lstm in (*model.rightward, *model.leftward)]
    assert len(set(starts)) == 2 * layers


def test_bilstm_heads_start_after_glorot() -> None:
    torch.manual_seed(0)
    model = BiLSTM(50, 40, embedding_dim=8, hidden_dim=30)
    is_uniform(model.classifier.weight, math.sqrt(6 / (60 + 40)))
    is_uniform(model.scorer[0].weight, math.sqrt(6 / (60 + 60)))
    assert model.scorer[2].weight.abs().max() <= math.sqrt(6 / 61)
    assert model.classifier.bias.eq(0).all() and model.scorer[0].bias.eq(0).all()


def test_embedding_dropout_is_locked_over_the_tokens_of_a_row_and_word_dropout_over_a_token() -> None:
    torch.manual_seed(0)
    words = torch.ones(50, 12, 16)
    locked = BiLSTM(9, 2, embedding_dim=16, embedding_dropout=0.25).train()._drop(words)
    assert torch.equal(locked, locked[:, :1].expand_as(locked))
    assert set(locked.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert float((locked[:, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    assert len({tuple(row) for row in locked[:, 0].tolist()}) > 40
    dropped = BiLSTM(9, 2, embedding_dim=16, embedding_dropout=0.0, word_dropout=0.25).train()._drop(words)
    assert torch.equal(dropped, dropped[..., :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    assert float((dropped[..., 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    for model in (BiLSTM(9, 2, word_dropout=0.5).eval(), BiLSTM(9, 2, embedding_dropout=0.0).train()):
        assert torch.equal(model._drop(words), words)
    with pytest.raises(UserError, match="word_dropout is a probability"):
        BiLSTM(9, 2, word_dropout=1.0)


def test_dropped_embeddings_are_not_what_others_are_given() -> None:
    model = BiLSTM(9, 2, embedding_dim=16, embedding_dropout=0.9).train()
    tokens = batch(9)
    words = model(tokens, LOGITS | {"hidden"}).hidden[0]
    assert torch.equal(words, model.embedding(tokens.ids))


def test_transformer_from_scratch_starts_as_bert() -> None:
    torch.manual_seed(0)
    model = Transformer(300, 5, architecture=BERT)
    for name, weight in model.named_parameters():
        if "LayerNorm" in name:
            assert weight.eq(1 if name.endswith("weight") else 0).all(), name
        elif name.endswith("bias"):
            assert weight.eq(0).all(), name
        else:
            is_normal(weight[1:] if "word_embeddings" in name else weight, 0.02)
    assert model.encoder.embeddings.word_embeddings.weight[0].eq(0).all()
