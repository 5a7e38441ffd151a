from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kdresearch.errors import UserError
from kdresearch.models.bilstm import POOLINGS, BiLSTM
from kdresearch.structures import FIELDS, Outputs, Tokens

LENGTHS = (7, 1, 4, 9)


def small(**changes: object) -> BiLSTM:
    torch.manual_seed(0)
    arguments: dict = {"embedding_dim": 5, "hidden_dim": 4, "layers": 2} | changes
    return BiLSTM(30, 3, **arguments).double().eval()


def tokens(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> Tokens:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(seed))
    return Tokens(ids * mask, mask)


EVERYTHING = FIELDS - {"qkv"}


def flat(outputs: Outputs) -> list[Tensor]:
    given = (outputs.logits, outputs.pooled, outputs.embeddings, *(outputs.hidden or ()), *(outputs.attention or ()))
    return [tensor for tensor in given if tensor is not None]


def packed_twin(model: BiLSTM) -> nn.LSTM:
    config = model.config
    lstm = nn.LSTM(
        config["embedding_dim"], config["hidden_dim"], config["layers"], batch_first=True, bidirectional=True
    ).double()
    for suffix, directions in (("", model.rightward), ("_reverse", model.leftward)):
        for layer, direction in enumerate(directions):
            for name, weight in direction.named_parameters():
                getattr(lstm, name.replace("_l0", f"_l{layer}") + suffix).data.copy_(weight)
    return lstm


@pytest.mark.parametrize("layers", [1, 3])
def test_equals_packed_lstm_in_states_and_gradients(layers: int) -> None:
    model = small(layers=layers, pooling="last")
    lstm, batch = packed_twin(model), tokens()
    outputs = model(batch, frozenset({"hidden", "pooled"}))
    assert outputs.hidden is not None and outputs.pooled is not None

    table = model.embedding.weight.detach().clone().requires_grad_()
    packed = pack_padded_sequence(
        embedding(batch.ids, table, padding_idx=0), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    states, (final, _) = lstm(packed)
    states, _ = pad_packed_sequence(states, batch_first=True)
    last = torch.cat((final[-2], final[-1]), dim=1)
    torch.testing.assert_close(outputs.hidden[-1], states, rtol=0, atol=1e-12)
    torch.testing.assert_close(outputs.pooled, last, rtol=0, atol=1e-12)

    weights = torch.randn_like(states)
    ((outputs.hidden[-1] * weights).sum() + outputs.pooled.square().sum()).backward()
    ((states * weights).sum() + last.square().sum()).backward()
    torch.testing.assert_close(model.embedding.weight.grad, table.grad, rtol=0, atol=1e-10)
    for suffix, directions in (("", model.rightward), ("_reverse", model.leftward)):
        for layer, direction in enumerate(directions):
            for name, weight in direction.named_parameters():
                expected = getattr(lstm, name.replace("_l0", f"_l{layer}") + suffix).grad
                torch.testing.assert_close(weight.grad, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_what_each_row_says_alone(pooling: str) -> None:
    model, batch = small(pooling=pooling), tokens()
    outputs = model(batch, frozenset({"hidden", "pooled", "logits"}))
    assert outputs.hidden is not None and outputs.pooled is not None
    for row, length in enumerate(LENGTHS):
        states = outputs.hidden[-1][row, :length]
        if pooling == "attention":
            hide, _, query = model.scorer
            scores = torch.tanh(states @ hide.weight.T + hide.bias) @ query.weight[0]
            expected = (scores.exp() / scores.exp().sum()) @ states
        else:
            expected = {
                "max": states.max(0).values,
                "mean": states.mean(0),
                "last": torch.cat((states[-1, :4], states[0, 4:])),
            }[pooling]
        torch.testing.assert_close(outputs.pooled[row], expected)
    torch.testing.assert_close(outputs.logits, outputs.pooled @ model.classifier.weight.T + model.classifier.bias)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_changes_nothing_whatever_ids_it_carries(pooling: str) -> None:
    model, batch = small(pooling=pooling), tokens()
    longer = Tokens(
        torch.cat((batch.ids.masked_fill(~batch.mask, 17), torch.full((4, 6), 23)), dim=1),
        torch.cat((batch.mask, torch.zeros(4, 6, dtype=torch.bool)), dim=1),
    )
    short, long = model(batch, model.signature.fields), model(longer, model.signature.fields)
    torch.testing.assert_close(long.logits, short.logits)
    torch.testing.assert_close(long.pooled, short.pooled)
    for before, after in zip(short.hidden, long.hidden, strict=True):
        torch.testing.assert_close(after[:, :9], before)
        assert after[~longer.mask].eq(0).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_do_not_see_each_other(pooling: str) -> None:
    model, batch, order = small(pooling=pooling), tokens(), torch.tensor([2, 0, 3, 1])
    direct = flat(model(batch, model.signature.fields))
    moved = flat(model(Tokens(batch.ids[order], batch.mask[order]), model.signature.fields))
    for before, after in zip(direct, moved, strict=True):
        torch.testing.assert_close(after, before[order])


def test_attention_is_a_distribution_over_the_real_tokens() -> None:
    batch = tokens()
    outputs = small()(batch, EVERYTHING)
    assert outputs.attention is not None
    (attention,) = outputs.attention
    assert attention.shape == (4, 1, 1, 9)
    weights = attention[:, 0, 0]
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))
    assert weights[~batch.mask].eq(0).all() and weights[batch.mask].gt(0).all()
    torch.testing.assert_close(outputs.pooled, (weights[..., None] * outputs.hidden[-1]).sum(1))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_row_without_tokens_pools_to_zero_and_keeps_gradients_finite(pooling: str) -> None:
    model = small(pooling=pooling)
    batch = tokens((3, 0, 5))
    outputs = model(batch, model.signature.fields)
    assert outputs.pooled[1].eq(0).all()
    torch.testing.assert_close(outputs.logits[1], model.classifier.bias)
    assert all(tensor[1].eq(0).all() for tensor in outputs.attention or ())
    with torch.autograd.set_detect_anomaly(True):
        sum(tensor.square().sum() for tensor in flat(model(batch, model.signature.fields))).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_declares_what_it_gives() -> None:
    for pooling in POOLINGS:
        model = small(pooling=pooling)
        assert (model.signature.width, model.signature.depth, model.signature.heads) == (
            8,
            2,
            int(pooling == "attention"),
        )
        assert model.signature.embedding_width == 5
        assert model.signature.fields == EVERYTHING - (set() if pooling == "attention" else {"attention"})
    outputs = small()(tokens(), EVERYTHING)
    assert outputs.pooled.shape == (4, 8) and outputs.logits.shape == (4, 3)
    assert [state.shape[2] for state in outputs.hidden] == [5, 8, 8]


@pytest.mark.parametrize("need", sorted(EVERYTHING))
def test_gives_and_computes_only_what_is_asked(need: str) -> None:
    model, batch, calls = small(), tokens(), []
    for part in ("scorer", "classifier"):
        getattr(model, part).register_forward_hook(lambda *_, part=part: calls.append(part))
    outputs = model(batch, frozenset({need}))
    assert {name for name in FIELDS if getattr(outputs, name) is not None} == {need}
    assert outputs.mask is batch.mask
    assert calls == {"logits": ["scorer", "classifier"], "hidden": [], "embeddings": []}.get(need, ["scorer"])


def test_default_need_is_the_logits() -> None:
    model, batch = small(), tokens()
    outputs = model(batch)
    assert outputs.pooled is outputs.hidden is outputs.attention is None
    torch.testing.assert_close(outputs.logits, model(batch, EVERYTHING).logits, rtol=0, atol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_config_builds_it_again(pooling: str) -> None:
    model = small(pooling=pooling, layers=3, dropout=0.1)
    again = type(model)(**json.loads(json.dumps(model.config))).double().eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_gradient_reaches_every_weight_but_padding() -> None:
    model = small()
    batch = tokens()
    model(batch).logits.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())
    seen = set(batch.ids[batch.mask].tolist())
    assert set(model.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == seen


def test_logits_depend_on_the_embeddings_that_are_given_out() -> None:
    outputs = small()(tokens(), frozenset({"logits", "hidden"}))
    (gradient,) = torch.autograd.grad(outputs.logits.sum(), outputs.hidden[0])
    assert gradient.abs().sum(2)[tokens().mask].gt(0).all()


def test_dropout_acts_in_training_only_and_not_on_what_is_given_out() -> None:
    model, batch = small(layers=1, dropout=0.5), tokens()
    assert torch.equal(model(batch).logits, model(batch).logits)
    model.train()
    first, second = model(batch, EVERYTHING), model(batch, EVERYTHING)
    assert torch.equal(first.hidden[0], second.hidden[0])
    assert not torch.equal(first.hidden[1], second.hidden[1])
    assert not torch.allclose(first.logits, first.pooled @ model.classifier.weight.T + model.classifier.bias)


def test_attention_learns_to_find_the_one_telling_token() -> None:
    torch.manual_seed(0)
    model = BiLSTM(12, 2, embedding_dim=8, hidden_dim=8, dropout=0.0)
    ids = torch.randint(3, 12, (64, 10))
    label = torch.arange(64) % 2
    place = torch.randint(0, 10, (64,))
    ids[torch.arange(64), place] = 1 + label
    batch = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch).logits, label).backward()
        optimizer.step()
    assert (model(batch).logits.argmax(1) == label).all()


def test_mixed_precision_stays_close() -> None:
    model, batch = small().float(), tokens((3, 0, 5))
    exact = model(batch, EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch, EVERYTHING)
    for expected, tensor in zip(flat(exact), flat(rounded), strict=True):
        torch.testing.assert_close(tensor.float(), expected, rtol=0.05, atol=0.05)


def test_load_vectors_copies_known_words_and_spares_padding() -> None:
    model = small()
    before = model.embedding.weight.detach().clone()
    vectors = torch.randn(30, 5)
    vectors[9] = torch.nan
    known = torch.zeros(30, dtype=torch.bool)
    known[[0, 4, 7]] = True
    model.load_vectors(vectors, known)
    after = model.embedding.weight
    assert torch.equal(after[[4, 7]], vectors[[4, 7]].double())
    known[0] = False
    assert torch.equal(after[~known], before[~known]) and after[0].eq(0).all()
    assert after.requires_grad and known.sum() == 2


@pytest.mark.parametrize(
    ("vectors", "known", "message"),
    [
        (torch.zeros(30, 6), torch.ones(30, dtype=torch.bool), r"\[30, 6\].*\[30, 5\]"),
        (torch.zeros(29, 5), torch.ones(29, dtype=torch.bool), r"\[29, 5\]"),
        (torch.zeros(30, 5), torch.ones(29, dtype=torch.bool), r"\[29\]"),
        (torch.zeros(30, 5), torch.ones(30, dtype=torch.int64), "int64"),
    ],
)
def test_load_vectors_refuses_what_does_not_fit(vectors: Tensor, known: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small().load_vectors(vectors, known)


def test_refusals_name_the_thing() -> None:
    with pytest.raises(
        ValueError, match="BiLSTM does not provide attention; it provides embeddings, hidden, logits, pooled"
    ):
        small(pooling="max")(tokens(), EVERYTHING)
    with pytest.raises(UserError, match=r"'maxx'.*'max'.*attention, max, mean, last"):
        small(pooling="maxx")
    with pytest.raises(UserError, match="layers is 0"):
        small(layers=0)
