from __future__ import annotations

import pytest
import torch

from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramBag
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.package import Package
from kdresearch.structures import Batch, Outputs, Tokens
from kdresearch.teachers.live import LiveTeacher

CLASSES = ("a", "b", "c")
EVERYTHING = frozenset({"logits", "pooled", "hidden", "attention"})
SENSITIVITY = frozenset({"sensitivity"})
ARCHITECTURE = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 64, "max_position_embeddings": 32}  # fmt: skip


def model(dropout: float = 0.5) -> BiLSTM:
    torch.manual_seed(3)
    return BiLSTM(30, 3, embedding_dim=8, hidden_dim=7, layers=2, dropout=dropout).train()


def tokens(lengths: tuple[int, ...] = (9, 5, 1)) -> Tokens:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return Tokens(ids, mask)


def batch(rows: Tokens | None) -> Batch:
    empty = Tokens(torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool))
    return Batch(torch.arange(3), torch.tensor([0, 1, 2]), empty, rows)


def live(own: torch.nn.Module, precision: str = "32") -> LiveTeacher:
    return LiveTeacher(Package(own, None, CLASSES, "", {}), precision)


def test_it_answers_as_the_model_in_eval_mode() -> None:
    own = model()
    teacher = live(own)
    assert not own.training  # dropout off, from the constructor on
    answer = teacher(batch(tokens()), EVERYTHING)
    expected = own(tokens(), EVERYTHING)
    assert torch.equal(answer.logits, expected.logits)
    assert torch.equal(answer.pooled, expected.pooled)
    assert all(torch.equal(*pair) for pair in zip(answer.hidden, expected.hidden, strict=True))
    assert all(torch.equal(*pair) for pair in zip(answer.attention, expected.attention, strict=True))
    assert torch.equal(answer.mask, tokens().mask)
    assert torch.equal(teacher(batch(tokens())).logits, answer.logits)


def test_only_what_is_asked_for() -> None:
    assert live(model())(batch(tokens()), frozenset({"pooled"})).logits is None
    answer = live(model())(batch(tokens()))
    assert (answer.pooled, answer.hidden, answer.attention) == (None, None, None)


def test_it_is_frozen() -> None:
    own = model()
    teacher = live(own)
    assert not any(parameter.requires_grad for parameter in own.parameters())
    with torch.enable_grad():
        answer = teacher(batch(tokens()), EVERYTHING)
    assert not answer.logits.requires_grad
    assert not isinstance(teacher, torch.nn.Module)


def test_it_describes_its_model() -> None:
    own, teacher = model(), live(model())
    assert (
        teacher.signature.width,
        teacher.signature.depth,
        teacher.signature.heads,
        teacher.signature.embedding_width,
    ) == (14, 2, 1, 8)
    assert teacher.signature.fields == own.signature.fields | {"sensitivity"}
    floor = live(NgramBag(30, 3))
    assert (floor.signature.fields, floor.signature.embedding_width) == ({"logits", "pooled"}, 0)
    assert teacher.signature.classes == CLASSES


def test_a_batch_without_its_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch\.teacher"):
        live(model())(batch(None))


def test_precision() -> None:
    with pytest.raises(UserError, match=r"teacher\.precision: 'fp16'.*32, bf16"):
        live(model(), "fp16")
    torch.manual_seed(0)
    own = Transformer(30, 3, architecture=ARCHITECTURE)
    everything = EVERYTHING | {"qkv", "embeddings", "sensitivity"}
    full, half = live(own)(batch(tokens()), everything), live(own, "bf16")(batch(tokens()), everything)
    assert 0 < (full.logits - half.logits).abs().max() < 0.1
    for answer in (full, half):
        assert {each.dtype for each in _tensors(answer)} == {torch.float32}
        assert len(answer.qkv) == 2 and {each.dtype for layer in answer.qkv for each in layer} == {torch.float32}
        assert answer.embeddings.dtype == answer.sensitivity.dtype == torch.float32
    assert 0 < (full.sensitivity - half.sensitivity).norm() < 0.1 * full.sensitivity.norm()


def test_the_precision_of_the_training_is_not_the_teachers() -> None:
    """Lightning's bf16-mixed puts autocast around the whole training step."""
    teacher = live(model())
    expected = teacher(batch(tokens()), EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        answer = teacher(batch(tokens()), EVERYTHING)
    assert all(torch.equal(*pair) for pair in zip(_tensors(answer), _tensors(expected), strict=True))


def sensitive(kind: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model, and the part of it that gives out the embeddings."""
    torch.manual_seed(3)
    if kind == "bert":
        encoder = Transformer(30, 3, architecture=ARCHITECTURE)
        for parameter in encoder.parameters():
            parameter.data.normal_(std=0.2)
        return encoder, encoder.encoder.embeddings
    words = BiLSTM(30, 3, embedding_dim=8, hidden_dim=7) if kind == "bilstm" else TextCNN(30, 3, embedding_dim=8)
    return words, words.embedding


@pytest.mark.parametrize("kind", ["bert", "bilstm", "textcnn"])
def test_sensitivity_is_the_slope_of_the_predicted_classs_logit(kind: str) -> None:
    own, source = sensitive(kind)
    teacher, rows = live(own), tokens((6, 2))
    answer = teacher.read(rows, SENSITIVITY)
    assert [name for name in Outputs._fields if getattr(answer, name) is not None] == ["sensitivity", "mask"]
    assert answer.sensitivity.shape == (2, 6, teacher.signature.embedding_width)
    assert answer.sensitivity[~rows.mask].eq(0).all() and answer.sensitivity[rows.mask].abs().sum(1).gt(0).all()

    own.double()  # finite differences, on one token of each row
    predicted = own(rows).logits.argmax(1)
    for row, token in ((0, 4), (1, 1)):
        for feature in range(0, teacher.signature.embedding_width, 3):
            values = []
            for step in (1e-5, -1e-5):
                moved = torch.zeros(2, 6, teacher.signature.embedding_width, dtype=torch.double)
                moved[row, token, feature] = step
                with source.register_forward_hook(lambda *call, moved=moved: call[-1] + moved):
                    values.append(own(rows).logits[row, predicted[row]])
            slope = float(values[0] - values[1]) / 2e-5
            assert float(answer.sensitivity[row, token, feature]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "bilstm", "textcnn"])
def test_sensitivity_leaves_no_trace(kind: str) -> None:
    own, _ = sensitive(kind)
    teacher, rows = live(own), batch(tokens())
    plain = teacher(rows)
    with torch.no_grad():  # as the distiller asks
        answer = teacher(rows, teacher.signature.fields)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(answer.logits, plain.logits, atol=1e-5, rtol=0)
    given = [each for each in answer if isinstance(each, torch.Tensor)] + [*(answer.hidden or ())]
    assert not any(each.requires_grad for each in given)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in own.parameters())
    assert not own.training
    assert torch.equal(teacher(rows, SENSITIVITY).sensitivity, answer.sensitivity)


@pytest.mark.parametrize("kind", ["bert", "bilstm", "textcnn"])
def test_sensitivity_while_predicting(kind: str) -> None:
    """Lightning validates in inference mode, whose tensors know no gradient."""
    teacher = live(sensitive(kind)[0])
    expected = teacher(batch(tokens()), SENSITIVITY).sensitivity
    with torch.inference_mode():
        assert torch.equal(teacher(batch(tokens()), SENSITIVITY).sensitivity, expected)


def test_no_sensitivity_without_embeddings() -> None:
    with pytest.raises(ValueError, match="NgramBag does not provide embeddings; it provides logits, pooled"):
        live(NgramBag(30, 3)).read(tokens(), SENSITIVITY)


def _tensors(answer: Outputs) -> list[torch.Tensor]:
    return [answer.logits, answer.pooled, *answer.hidden, *answer.attention]
