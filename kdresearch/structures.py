"""The types that all parts of the framework share: batches, outputs, models and teachers.

Shapes: B rows, T tokens, D features, C classes, H heads, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kdresearch.errors import UserError

UNLABELLED = -1
"""The label of a row that trains by the teacher alone, and of rows that no metric counts."""


class Tokens(NamedTuple):
    """Token ids padded to the batch, and where they are real."""

    ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool, True on real tokens
    words: Tensor | None = None  # [B, T] int64: the word of the text that a token belongs to, -1 for none

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tokens:
        """The same tokens on ``device``."""
        words = self.words if self.words is None else self.words.to(device, non_blocking=non_blocking)
        ids, mask = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.ids, self.mask))
        return Tokens(ids, mask, words)


class Batch(NamedTuple):
    """Rows as the student reads them, and as the teacher does when it runs live; ``as_batch`` makes one of others.

    Text is ``Tokens``; another model's inputs are whatever it reads.
    """

    index: Any  # [B] int64: the row's place in the data, by which knowledge is joined; None where it is unknown
    label: Tensor  # [B] int64, UNLABELLED where there is none
    student: Any
    teacher: Any = None


class Reading(NamedTuple):
    """How the tokens of the two sides correspond."""

    kind: str = "same"  # the same tokens; words: other tokens of the same words (Tokens.words); apart: neither
    reason: str = ""  # why they are apart


SAME = Reading()


class Outputs(NamedTuple):
    """What a model gives; a field outside ``needs`` is None."""

    logits: Tensor | None = None  # [B, C]
    pooled: Tensor | None = None  # [B, D]: the vector that the classifier reads
    hidden: tuple[Tensor, ...] | None = None  # depth + 1 times [B, T, D], embeddings first
    attention: tuple[Tensor, ...] | None = None  # per layer [B, H, T, T]; attention pooling gives one [B, 1, 1, T]
    qkv: tuple[tuple[Tensor, Tensor, Tensor], ...] | None = None  # per layer, each [B, T, D], heads side by side
    embeddings: Tensor | None = None  # [B, T, E]: what the logits are computed from, twice differentiable
    sensitivity: Tensor | None = None  # [B, T, E]: d(logit of the predicted class) / d(embeddings), of a teacher
    members: tuple[Outputs, ...] | None = None  # of an ensemble, each member's own
    mask: Tensor | None = None  # [B, T] bool, of the tokens of the token-level fields


FIELDS = frozenset({"logits", "pooled", "hidden", "attention", "qkv", "embeddings"})
"""What a model may give."""

RECORDED = frozenset({"logits", "pooled"})
"""What is kept of a teacher that is recorded; everything else takes a live one."""

LOGITS = frozenset({"logits"})


class Extract(NamedTuple):
    """As much of one field of a teacher's ``Outputs`` as is read: without the rest the same is computed."""

    places: frozenset[int] | None = None  # of the field's tensors (hidden[i] is i, qkv[i][j] is 3i + j); None: all
    first: bool = False  # the first token's states, or what the first token attends to, alone
    average: bool = False  # of attention: the mean over heads alone
    words: bool = False  # tokens by the words that they belong to, where both sides read other tokens

    def union(self, another: Extract) -> Extract:
        """What holds both."""
        every = self.places is None or another.places is None
        return Extract(
            None if every else self.places | another.places,  # type: ignore[operator]
            *(mine and theirs for mine, theirs in zip(self[1:], another[1:], strict=True)),
        )


@dataclass(frozen=True)
class Signature:
    """What a model or a teacher can give, known before it is built with weights, trained or loaded."""

    fields: frozenset[str]  # of Outputs
    width: int = 0  # D of pooled, and of hidden from layer 1 on unless ``widths`` is given
    depth: int = 0  # layers: hidden has depth + 1 entries
    heads: int = 0  # 0 without attention
    embedding_width: int = 0  # E of embeddings and of hidden[0]; 0 where neither is given
    vocabulary: int | None = None  # rows of the embedding table: token ids lie below; None where inputs are no ids
    classes: tuple[str, ...] | None = None  # names of the logits, in their order, where they are known
    widths: tuple[int, ...] | None = None  # of each hidden state, where layers differ
    layout: str = "tokens"  # of hidden states: tokens [B, T, D], or map [B, D, H, W]
    measured: bool = True  # False of a wrapped module before its first inputs: widths and layout are not known yet
    logits: int | None = None  # C, where it is known without names
    name: str = "the model"  # in messages
    recorded: bool = False  # a teacher of which no more is there than was recorded
    members: tuple[Signature, ...] | None = None  # of an ensemble

    @property
    def class_count(self) -> int | None:
        """C, where it is known."""
        return self.logits if self.classes is None else len(self.classes)

    def width_of(self, layer: int) -> int:
        """D of hidden[layer]."""
        if self.widths is not None:
            return self.widths[layer]
        return self.width if layer else self.embedding_width


class Model(Protocol):
    """An ``nn.Module`` that reads a batch's inputs; student or teacher alike; see ``models.model.TextModel``."""

    @property
    def signature(self) -> Signature:
        """What it gives, known before it is trained."""

    config: dict[str, Any]  # plain constructor arguments, enough to build it again

    def __call__(self, inputs: Any, /, needs: frozenset[str] = LOGITS) -> Outputs: ...

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Look at the labelled training rows once, before training."""

    def load_vectors(self, vectors: Tensor, has_vector: Tensor) -> None:
        """Start from word vectors [V, E] in the rows of ``has_vector`` [V]; UserError without a table of them."""

    def look_at(self, inputs: Any) -> None:
        """Read inputs of some rows once, where the signature is not ``measured`` without them."""


class Teacher(Protocol):
    """Whatever answers a batch like a frozen model: live, recorded, an ensemble."""

    @property
    def signature(self) -> Signature:
        """What it gives."""

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs: ...

    def to(self, device: torch.device | str) -> Teacher:
        """The same teacher with its tensors on ``device``."""


def check_needs(model: Model, needs: frozenset[str]) -> None:
    """Raise ValueError where ``needs`` has a field that the model does not provide."""
    signature = model.signature
    if missing := needs - signature.fields:
        raise ValueError(
            f"{signature.name} does not provide {', '.join(sorted(missing))}; it provides "
            f"{', '.join(sorted(signature.fields))}"
        )


def check_signed(side: str, model: object) -> None:
    """Raise UserError for a student or teacher without a signature, saying what makes one."""
    if isinstance(getattr(model, "signature", None), Signature):
        return
    if isinstance(model, torch.nn.Module):
        raise UserError(
            f"{side}: {type(model).__name__} is a torch module, and what its inside gives is not known: "
            f"kd.wrap({type(model).__name__.lower()}, hidden=[...], pooled=...) makes a {side} of it"
        )
    raise UserError(
        f"{side}: {model!r} is no model: give one of kdresearch.models, kd.wrap(module)"
        + (", or kd.load_teacher(path, data)" if side == "teacher" else "")
    )


LABELS = ("labels", "label")
_FORMS = "(inputs, labels), (inputs, labels, index), a mapping with labels, or a kdresearch Batch"


def as_batch(rows: Any) -> Batch:
    """Rows of any loader as a ``Batch``, of which student and teacher read the same inputs.

    Args:
        rows: a ``Batch``; ``(inputs, labels)`` or ``(inputs, labels, index)``; or a mapping with ``labels`` or
            ``label`` and perhaps ``index``, of which the rest are the inputs.

    Raises:
        UserError: anything else, or labels that are no integers [B].
    """
    if isinstance(rows, Batch):
        return rows
    index: Any = None
    if isinstance(rows, Mapping):
        names = [name for name in LABELS if name in rows]
        if len(names) != 1:
            raise UserError(f"a batch of {', '.join(map(str, rows))} needs one of {' and '.join(LABELS)}: {_FORMS}")
        label, index = rows[names[0]], rows.get("index")
        inputs: Any = {name: value for name, value in rows.items() if name not in (*LABELS, "index")}
    elif isinstance(rows, list | tuple) and len(rows) in (2, 3):
        inputs, label, *rest = rows
        index = rest[0] if rest else None
    else:
        raise UserError(f"a batch is {_FORMS}, not a {type(rows).__name__}")
    if not isinstance(label, Tensor) or label.ndim != 1 or label.is_floating_point() or label.dtype == torch.bool:
        shape = f"{label.dtype} {list(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
        raise UserError(f"labels of a batch must be [B] integers, not {shape}")
    return Batch(index, label.long(), inputs, inputs)


def index_of(batch: Batch, reader: str) -> Tensor:
    """The batch's row numbers [B].

    Args:
        reader: what needs them, in the message.

    Raises:
        UserError: the loader gives none.
    """
    if batch.index is None:
        raise UserError(
            f"{reader} identifies rows by their number, and these batches have none: let the data give "
            "(inputs, labels, index), or a mapping with index"
        )
    index: Tensor = batch.index
    return index
