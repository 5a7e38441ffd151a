from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdresearch.errors import UserError
from kdresearch.models.transformer import HubClassifier, Transformer
from kdresearch.strategies.supervised import SupervisedDistiller
from kdresearch.structures import FIELDS, LOGITS, Batch, Tokens

TINY = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
LENGTHS = (7, 1, 4, 12)
CLASSES = ("bad", "so so", "good")


def tokens(lengths: tuple[int, ...] = LENGTHS, width: int = 0, padding: int = 0) -> Tokens:
    mask = torch.arange(max(width, *lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 40, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    ids = torch.nn.functional.pad(ids, (0, mask.shape[1] - ids.shape[1]))
    return Tokens(ids.masked_fill(~mask, padding), mask)


def tiny(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(40, 3, **{"architecture": TINY} | changes).eval()


def hub_classifier(folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**TINY, vocab_size=40, **names))
    model.save_pretrained(str(folder))
    return folder


def test_fields_have_the_shapes_that_the_vocabulary_says() -> None:
    model, batch = tiny(), tokens()
    outputs = model(batch, FIELDS)
    assert (model.signature.width, model.signature.depth, model.signature.heads) == (16, 2, 4)
    assert model.signature.embedding_width == 16 and model.signature.fields == FIELDS
    assert outputs.logits.shape == (4, 3) and outputs.pooled.shape == (4, 16)
    assert [states.shape for states in outputs.hidden] == [(4, 12, 16)] * 3
    assert [maps.shape for maps in outputs.attention] == [(4, 4, 12, 12)] * 2
    assert [[each.shape for each in layer] for layer in outputs.qkv] == [[(4, 12, 16)] * 3] * 2
    assert outputs.embeddings is outputs.hidden[0] and outputs.mask is batch.mask
    torch.testing.assert_close(outputs.hidden[0], model.encoder.embeddings(batch.ids))
    torch.testing.assert_close(outputs.logits, model.classifier(outputs.pooled))
    for field in FIELDS:
        alone = model(batch, frozenset({field}))
        assert [name for name in FIELDS if getattr(alone, name) is not None] == [field]


def test_attention_is_a_distribution_over_the_real_tokens() -> None:
    batch = tokens()
    for maps in tiny()(batch, frozenset({"attention"})).attention:
        keys = batch.mask[:, None, None, :]
        torch.testing.assert_close((maps * keys).sum(-1), torch.ones(4, 4, 12))
        assert (maps * ~keys).abs().max() < 1e-12
        assert (maps[0, :, 0, :7] > 0).all()


def test_the_fast_path_is_left_for_maps_and_taken_again_without() -> None:
    model, batch = tiny(), tokens()
    assert model.encoder.config._attn_implementation == "sdpa"
    before = model(batch, LOGITS | {"hidden"})
    assert model.encoder.config._attn_implementation == "sdpa"
    after = model(batch, FIELDS)
    assert model.encoder.config._attn_implementation == "eager"
    again = model(batch, LOGITS)
    assert model.encoder.config._attn_implementation == "sdpa"
    assert torch.equal(again.logits, before.logits)
    torch.testing.assert_close(after.logits, before.logits)
    for fast, slow in zip(before.hidden, after.hidden, strict=True):
        torch.testing.assert_close(fast[batch.mask], slow[batch.mask])


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("needs", [LOGITS, FIELDS])
def test_padding_changes_nothing_whatever_ids_it_carries(pooling: str, needs: frozenset[str]) -> None:
    model = tiny(pooling=pooling)
    expected = model(tokens(), needs).logits
    torch.testing.assert_close(model(tokens(width=20, padding=17), needs).logits, expected)
    for row, length in enumerate(LENGTHS):
        alone = Tokens(tokens().ids[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(model(alone, needs).logits[0], expected[row])


def test_pooling_by_hand() -> None:
    for pooling in ("mean", "first"):
        outputs = tiny(pooling=pooling)(tokens(), FIELDS)
        last = outputs.hidden[-1]
        for row, length in enumerate(LENGTHS):
            expected = last[row, :length].mean(0) if pooling == "mean" else last[row, 0]
            torch.testing.assert_close(outputs.pooled[row], expected)


KINDS = {kind: {"model_type": kind} for kind in ("bert", "roberta", "camembert", "distilbert", "mpnet")} | {
    kind: {"model_type": kind, "embedding_size": 8} for kind in ("albert", "electra")
}

VALUES = ("value", "v_lin", "v")


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_follow_from_queries_and_keys_and_values_from_the_states(kind: str) -> None:
    model, batch = tiny(architecture=TINY | KINDS[kind]), tokens()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    if kind == "mpnet":  # the one that adds something to the scores
        model.encoder.encoder.relative_attention_bias.weight.data.zero_()
    outputs = model(batch, FIELDS)
    assert model.signature.fields == FIELDS and len(outputs.qkv) == 2
    layers = zip(outputs.qkv, outputs.attention, outputs.hidden[:-1], strict=True)
    for number, ((queries, keys, values), maps, states) in enumerate(layers):
        queries, keys = (each.unflatten(2, (4, 4)).transpose(1, 2) for each in (queries, keys))  # [B, H, T, D / H]
        scores = (queries @ keys.mT / 2).masked_fill(~batch.mask[:, None, None], -torch.inf)  # 2 is √(D / H)
        torch.testing.assert_close(scores.softmax(-1), maps)
        weight, bias = (
            [each for name, each in model.named_parameters() if name.endswith(tuple(f".{v}.{what}" for v in VALUES))]
            for what in ("weight", "bias")
        )
        torch.testing.assert_close(values, states @ weight[number % len(weight)].T + bias[number % len(bias)])


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_nothing_of_the_reading_stays_on_the_module() -> None:
    model = tiny()
    model(tokens(), frozenset({"hidden", "attention"}))  # transformers hooks its layers once, for good
    before = hooks(model)
    model(tokens(), FIELDS)
    assert hooks(model) == before
    with pytest.raises(IndexError):
        model(tokens()._replace(ids=tokens().ids + 40), FIELDS)
    assert hooks(model) == before
    model.encoder.encoder.layer[1].forward = None  # breaks amid the layers
    with pytest.raises(TypeError):
        model(tokens(), FIELDS)
    assert hooks(model) == before


def test_where_the_maps_are_not_found_qkv_is_not_promised() -> None:
    model = tiny(architecture=TINY | {"model_type": "deberta-v2"})
    assert model.signature.fields == FIELDS - {"qkv"}
    with pytest.raises(ValueError, match="Transformer does not provide qkv; it provides attention, embeddings"):
        model(tokens(), frozenset({"qkv"}))
    grouped = TINY | {"model_type": "albert", "embedding_size": 8, "num_hidden_groups": 2}
    assert len(tiny(architecture=grouped)(tokens(), frozenset({"qkv"})).qkv) == 2
    assert "qkv" not in tiny(architecture=grouped | {"inner_group_num": 2}).signature.fields


def test_a_saved_encoder_is_where_it_starts(tmp_path: Path) -> None:
    source = tiny()
    source.encoder.save_pretrained(str(tmp_path))
    model = Transformer(999, 3, path=tmp_path, dropout=0.4).eval()
    states = [one(tokens(), frozenset({"hidden"})).hidden[-1] for one in (source, model)]
    torch.testing.assert_close(*states)
    assert model.encoder.config.hidden_dropout_prob == 0.1 and model.encoder.config.attention_probs_dropout_prob == 0
    again = Transformer(**json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert again.encoder.config.hidden_dropout_prob == 0.1 and again.dropout.p == 0.4


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet", "albert", "electra"])
def test_every_parameter_of_an_architecture_is_trained(kind: str) -> None:
    changes = {"embedding_size": 8} if kind in ("albert", "electra") else {}
    model = tiny(architecture=TINY | {"model_type": kind} | changes)
    model(tokens()).logits.pow(2).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_settings_reach_the_encoder() -> None:
    model = tiny(dropout=0.25, attention_dropout=0.5)
    assert model.encoder.config.hidden_dropout_prob == 0.25 and model.dropout.p == 0.25
    assert model.encoder.config.attention_probs_dropout_prob == 0.5
    assert model.encoder.config.vocab_size == 40 and model.encoder.config.pad_token_id == 0
    assert tiny(architecture=TINY | {"vocab_size": 50}).encoder.config.vocab_size == 50


def test_dropout_is_at_work_once_a_distiller_has_it(tmp_path: Path) -> None:
    tiny().encoder.save_pretrained(str(tmp_path))
    model = Transformer(classes=3, path=tmp_path, dropout=0.0)
    assert not model.encoder.training  # as transformers gives it
    distiller = SupervisedDistiller(model, classes=CLASSES)
    assert all(part.training for part in model.modules())
    batch = Batch(torch.arange(4), torch.tensor([0, 1, 2, 0]), tokens())
    torch.manual_seed(0)
    first, second = distiller.terms(batch)["label"], distiller.terms(batch)["label"]
    assert not torch.equal(first, second)
    distiller.eval()
    assert torch.equal(distiller.terms(batch)["label"], distiller.terms(batch)["label"])


def test_a_hub_classifier_answers_like_the_model_that_it_is(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = HubClassifier(path=hub_classifier(tmp_path)).eval()
    own = AutoModelForSequenceClassification.from_pretrained(str(tmp_path)).eval()
    batch = tokens()
    assert model.classes == CLASSES and (model.signature.width, model.signature.depth, model.signature.heads) == (
        16,
        2,
        4,
    )
    expected = own(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    torch.testing.assert_close(model(batch).logits, expected)
    torch.testing.assert_close(model(tokens(width=20, padding=5)).logits, expected)
    outputs = model(batch, FIELDS - {"pooled"})
    assert len(outputs.hidden) == 3 and len(outputs.attention) == len(outputs.qkv) == 2
    assert outputs.embeddings is outputs.hidden[0] and model.signature.embedding_width == 16
    assert model.signature.fields == FIELDS - {"pooled"}
    torch.testing.assert_close(outputs.logits, expected)
    with pytest.raises(ValueError, match="HubClassifier does not provide pooled"):
        model(batch, frozenset({"pooled"}))
    again = HubClassifier(**json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert again.classes == CLASSES
    torch.testing.assert_close(again(batch).logits, expected)


def test_what_makes_no_model_is_refused(tmp_path: Path) -> None:
    for both in ({"path": None, "architecture": None}, {"path": tmp_path, "architecture": TINY}):
        with pytest.raises(UserError, match=r"needs either a path .* or an architecture"):
            Transformer(40, 3, **both)
    with pytest.raises(UserError, match=r"pooling: 'means' \(did you mean 'mean'\?\)"):
        tiny(pooling="means")
    with pytest.raises(UserError, match="architecture"):
        tiny(architecture=TINY | {"model_type": "brt"})
    with pytest.raises(UserError, match="architecture"):
        tiny(architecture={"hidden_size": 16})
    with pytest.raises(UserError, match="architecture"):
        tiny(architecture=TINY | {"num_attention_heads": 5})
    with pytest.raises(UserError, match="is no folder"):
        Transformer(40, 3, path=tmp_path / "nowhere")
