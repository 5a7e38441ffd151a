"""Students that start from their teacher: from its layers, its embeddings, or word vectors that are distilled from it.

Nothing here trains or draws random numbers: the same models in, the same numbers out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdresearch.errors import UserError, choices
from kdresearch.models.transformer import HubClassifier, Transformer
from kdresearch.structures import Model, Tokens

LAYERS = ("uniform", "first", "last")
_ALIKE = (  # what two encoders must share for the weights of one to mean the same in the other
    "model_type",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dim",  # DistilBERT's name for it
    "hidden_act",
    "activation",
    "hidden_activation",
    "vocab_size",
    "pad_token_id",  # RoBERTa counts positions from it
    "max_position_embeddings",
)
_INSTEAD = (
    "layers are copied between encoders that differ in depth only; with the same vocabulary, any other student can "
    "start from the teacher's embeddings, reduced by SVD"
)


@torch.no_grad()
def copy_layers(
    student: Transformer,
    teacher: Transformer | HubClassifier,
    layers: str | Sequence[int] = "uniform",
    *,
    classifier: bool = False,
) -> list[int]:
    """Start a student from some layers of its teacher, and from all that the encoder holds beside its layers.

    DistilBERT takes one layer out of two (Sanh et al. 2019, §3), BERT-PKD the first ones (Sun et al. 2019, "Patient
    Knowledge Distillation for BERT Model Compression"). ``uniform`` takes layer ⌈i·T/S⌉ for the i-th of S, the last
    for the last: the layers that TinyBERT's student learns from (Jiao et al. 2020, §3.1).

    Both sides must read the same token ids: that the vocabularies have one size is checked, not that they are one.

    Args:
        layers: ``uniform``, ``first``, ``last``, or the teacher's layers, counted from 1, one for each of the
            student's.
        classifier: copy the linear head too.

    Returns:
        The teacher's layers that were copied, counted from 1.

    Raises:
        UserError: the encoders differ in more than depth, or share one layer's weights (ALBERT); the layers are not
            the teacher's; the head is of another kind. The student is unchanged then.
    """
    student_encoder, teacher_encoder = student.encoder, _encoder(teacher)
    _check_alike(student_encoder, teacher_encoder)
    numbers = _select_layers(layers, student.signature.depth, teacher.signature.depth)
    stack = _stack(student_encoder, student.signature.depth, teacher_encoder, teacher.signature.depth)

    before = student_encoder.state_dict()
    after = {
        name: tensor
        for name, tensor in teacher_encoder.state_dict().items()
        if name in before and not name.startswith(f"{stack}.")  # a teacher may have a pooler more
    }
    for place, number in enumerate(numbers):
        layer = teacher_encoder.get_submodule(f"{stack}.{number - 1}").state_dict()
        after |= {f"{stack}.{place}.{name}": tensor for name, tensor in layer.items()}
    _check_fits(before, after)
    if classifier:
        _check_head(student, teacher)
        student.classifier.load_state_dict(teacher.classifier.state_dict())  # type: ignore[union-attr]
    student_encoder.load_state_dict(after)
    return numbers


def _check_alike(student: nn.Module, teacher: nn.Module) -> None:
    for name in _ALIKE:
        student_value, teacher_value = (getattr(encoder.config, name, None) for encoder in (student, teacher))
        if student_value != teacher_value:
            raise UserError(f"the student's {name} is {student_value} and the teacher's {teacher_value}: {_INSTEAD}")


def _select_layers(layers: str | Sequence[int], student: int, teacher: int) -> list[int]:
    if not isinstance(layers, str):
        numbers = list(layers)
        if len(numbers) != student or not all(1 <= number <= teacher for number in numbers):
            raise UserError(f"layers is {numbers}; the student takes {student} of the teacher's layers 1 to {teacher}")
        return numbers
    if layers not in LAYERS:
        raise UserError(f"layers is {choices(layers, LAYERS)}, or a list of the teacher's layers")
    if layers == "uniform":
        return [-(-number * teacher // student) for number in range(1, student + 1)]
    if student > teacher:
        raise UserError(
            f"layers={layers} takes {student} different layers and the teacher has {teacher}: use layers=uniform or a "
            "list"
        )
    first = 1 if layers == "first" else teacher - student + 1
    return list(range(first, first + student))


def _encoder(model: Transformer | HubClassifier) -> nn.Module:
    encoder: nn.Module = model.encoder if isinstance(model, Transformer) else model.model.base_model
    return encoder


def _stack(student: nn.Module, depth: int, teacher: nn.Module, teacher_depth: int) -> str:
    """The name of the list of layers, the outermost that has each side's depth; families call it differently."""
    student_lists, teacher_lists = _lists(student, depth), _lists(teacher, teacher_depth)
    if common := [name for name in student_lists if name in teacher_lists]:
        return common[0]
    raise UserError(
        f"{type(teacher).__name__} has no list of {teacher_depth} layers to choose from (ALBERT shares one's weights): "
        f"{_INSTEAD}"
    )


def _lists(encoder: nn.Module, length: int) -> list[str]:
    return [name for name, part in encoder.named_modules() if isinstance(part, nn.ModuleList) and len(part) == length]


def _check_fits(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
    for name in sorted(student.keys() | teacher.keys()):
        student_shape, teacher_shape = (
            list(state[name].shape) if name in state else "missing" for state in (student, teacher)
        )
        if student_shape != teacher_shape:
            raise UserError(
                f"{name} is {student_shape} in the student and {teacher_shape} in what it would take from the teacher: "
                f"{_INSTEAD}"
            )


def _check_head(student: Transformer, teacher: Transformer | HubClassifier) -> None:
    if not isinstance(teacher, Transformer):
        raise UserError(f"the head of a {type(teacher).__name__} is no classifier that a Transformer could take over")
    student_head, teacher_head = (
        f"pooling={model.pooling} into {model.classifier.out_features} classes" for model in (student, teacher)
    )
    if student_head != teacher_head:
        raise UserError(f"the student's classifier reads {student_head}, the teacher's {teacher_head}")


@torch.no_grad()
def reduce_embeddings(student: nn.Module, teacher: nn.Module) -> float:
    """Start a student's embedding table [V, E] from its teacher's [V, D] of the same vocabulary, by SVD.

    The rows are U_E·S_E of the centred table, its best approximation of rank E (Eckart & Young 1936), times one number
    that gives them the standard deviation of the student's own random start. Centred, because what all words have in
    common distinguishes none of them and would cost one of the E dimensions. The row of padding stays as it is.

    Both sides must read the same token ids: that the vocabularies have one size is checked, not that they are one.

    Returns:
        The share of the teacher's variance that is kept, in (0, 1].

    Raises:
        UserError: a model has no embedding table; the tables have different rows; the student's is the wider one.
    """
    student_table, teacher_table = _table(student, "student"), _table(teacher, "teacher")
    if student_table.num_embeddings != teacher_table.num_embeddings:
        sizes = student_table.num_embeddings, teacher_table.num_embeddings
        raise UserError(
            f"the student's vocabulary has {sizes[0]} entries and the teacher's {sizes[1]}: "
            "give the student the teacher's tokenizer, or distil word vectors, which need no common vocabulary"
        )
    _check_width(student_table.embedding_dim, teacher_table.embedding_dim)
    real = _real(student_table).cpu()
    reduced, variance_share = _principal(teacher_table.weight.cpu()[real], student_table.embedding_dim)
    student_table.weight[real.to(student_table.weight.device)] = (reduced * spread(student)).to(student_table.weight)
    return variance_share


@torch.no_grad()
def spread(model: nn.Module) -> float:
    """The standard deviation of a model's embedding table, without padding: the scale that its training starts at."""
    table = _table(model, "student")
    return float(table.weight[_real(table)].double().std(correction=0))


def _table(model: nn.Module, side: str) -> nn.Embedding:
    if isinstance(model, (Transformer, HubClassifier)):
        table = _encoder(model).get_input_embeddings()  # type: ignore[operator]
    else:
        table = getattr(model, "embedding", None)
    if not isinstance(table, nn.Embedding):
        raise UserError(f"the {side}, {type(model).__name__}, has no table of word embeddings")
    return table


def _real(table: nn.Embedding) -> Tensor:
    """[V] bool: the rows that are not padding."""
    rows = torch.arange(table.num_embeddings, device=table.weight.device)
    return rows != (-1 if table.padding_idx is None else table.padding_idx)


def _check_width(student: int, teacher: int) -> None:
    if student > teacher:
        raise UserError(
            f"the student's embeddings are {student} wide and the teacher's {teacher}, which fill no more than "
            f"{teacher}: make the student's narrower"
        )


def _principal(rows: Tensor, width: int) -> tuple[Tensor, float]:
    """The first principal components of rows [N, D], largest first, at mean square 1, and their share of variance."""
    centred = rows.double() - rows.double().mean(0)
    variance, directions = torch.linalg.eigh(centred.T @ centred)  # ascending; D x D where an SVD would be N x D
    reduced = centred @ directions[:, -width:].flip(1)
    scale = reduced.square().mean().sqrt()
    if not scale > 0:
        raise UserError(f"the {len(rows)} vectors of the teacher are all alike: there is nothing to start from")
    return (reduced / scale).float(), float(variance[-width:].sum() / variance.sum())


@torch.no_grad()
def static_vectors(
    teacher: Model,
    encode: Callable[[list[str]], Tokens],
    words: Sequence[str],
    width: int,
    *,
    scale: float = 1.0,
    batch_size: int = 256,
) -> Tensor:
    """Static word vectors [len(words), width] of a contextual teacher; the student's vocabulary may be any.

    Each word goes through the teacher alone ("decontextualised", Bommasani et al. 2020; Gupta & Jaggi 2021,
    "Obtaining Better Static Word Embeddings Using Contextual Embedding Models", learn better ones from running text).
    Its vector is the mean of the last hidden states of its tokens, special ones included, which is how such a model
    pools a text. Then the principal components are kept, as Model2Vec does (Tulkens & van Dongen 2024), but every word
    at its own length: weighting by frequency helps a mean that is not trained, and the student is trained.

    Args:
        teacher: where it gives no hidden states, ``pooled`` is the vector.
        encode: the teacher's tokenizer, texts to padded ids.
        scale: standard deviation of the answer; ``spread`` of the student keeps its training at its own scale.

    Raises:
        UserError: the teacher's vectors are narrower than ``width``, or all alike; it gives no vectors at all.
    """
    field = next((name for name in ("hidden", "pooled") if name in teacher.signature.fields), None)
    if field is None:
        raise UserError(f"{teacher.signature.name} provides neither hidden nor pooled, of which word vectors are made")
    _check_width(width, teacher.signature.width)
    assert isinstance(teacher, nn.Module)
    device, training = next(teacher.parameters()).device, teacher.training
    teacher.eval()
    vectors = []
    for first in range(0, len(words), batch_size):
        tokens = encode(list(words[first : first + batch_size])).to(device)
        outputs = teacher(tokens, frozenset({field}))
        if outputs.hidden is not None:
            real = tokens.mask[..., None]
            total = outputs.hidden[-1].masked_fill(~real, 0.0).sum(1)
            vectors.append((total / real.sum(1).clamp(min=1)).cpu())
        else:
            assert outputs.pooled is not None
            vectors.append(outputs.pooled.cpu())
    teacher.train(training)
    return _principal(torch.cat(vectors), width)[0] * scale


@torch.no_grad()
def ngram_vectors(words: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors for a table of n-grams from those of their words: their sum divided by √n.

    The factor leaves n-grams of every order at the scale of one word, as a random start would, and not shorter the
    longer they are, as their mean is (by 1/√n, were the words unrelated).

    Args:
        words: [W, E], one row per word.
        members: [V, n] rows of ``words`` that each n-gram consists of; 0 where it has fewer, and for no word.

    Returns:
        Vectors [V, E], and which rows have one [V] bool: those of n-grams with a word.
    """
    count = (members > 0).sum(1)
    total = nn.functional.embedding_bag(members, words, mode="sum", padding_idx=0)
    return total / count.clamp(min=1).sqrt()[:, None], count > 0
