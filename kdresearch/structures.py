"""The vocabulary that every part of the framework speaks: batches, outputs, models and teachers.

Shapes: B rows, T tokens, D features, C classes, H heads, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

UNLABELLED = -1
"""The label of a row that trains by the teacher alone, and of rows that no metric counts."""


class Tokens(NamedTuple):
    """Token ids padded to the batch, and where they are real."""

    ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool, True on real tokens
    words: Tensor | None = None  # [B, T] int64: the word of the text that a token belongs to, -1 for none

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tokens:
        words = self.words if self.words is None else self.words.to(device, non_blocking=non_blocking)
        ids, mask = (each.to(device, non_blocking=non_blocking) for each in (self.ids, self.mask))
        return Tokens(ids, mask, words)


class Batch(NamedTuple):
    """Rows as the student reads them, and as the teacher does when it runs live."""

    index: Tensor  # type: ignore[assignment]  # [B] int64: the row's place in the corpus, by which recorded knowledge is joined
    label: Tensor  # [B] int64, UNLABELLED where there is none
    student: Tokens
    teacher: Tokens | None = None


class Reading(NamedTuple):
    """How the tokens of the two sides correspond."""

    kind: str = "same"  # the same tokens; words: others of the same words, told by Tokens.words; apart: no telling
    why: str = ""  # where they are apart


SAME = Reading()


class Outputs(NamedTuple):
    """What a model gives; a field that was not asked for is None."""

    logits: Tensor | None = None  # [B, C]
    pooled: Tensor | None = None  # [B, D]: the vector that the classifier reads
    hidden: tuple[Tensor, ...] | None = None  # depth + 1 times [B, T, D], embeddings first
    attention: tuple[Tensor, ...] | None = None  # per layer [B, H, T, T]; attention pooling gives one [B, 1, 1, T]
    qkv: tuple[tuple[Tensor, Tensor, Tensor], ...] | None = None  # per layer, each [B, T, D], heads side by side
    embeddings: Tensor | None = None  # [B, T, E]: what the logits are computed from, twice differentiable
    sensitivity: Tensor | None = None  # [B, T, E]: d(logit of the predicted class) / d(embeddings), of a teacher
    members: tuple[Outputs, ...] | None = None  # of an ensemble, each member's own
    mask: Tensor | None = None  # [B, T] bool, of the tokens that the token-level fields speak of


FIELDS = frozenset({"logits", "pooled", "hidden", "attention", "qkv", "embeddings"})
"""What a model may give."""

RECORDED = frozenset({"logits", "pooled"})
"""What is kept of a teacher that is recorded; everything else takes a live one."""

LOGITS = frozenset({"logits"})


@dataclass(frozen=True)
class Signature:
    """What a model or a teacher can give, known before it is built with weights, trained or loaded."""

    fields: frozenset[str]  # of Outputs
    width: int = 0  # D of pooled, and of hidden from layer 1 on unless ``widths`` says otherwise
    depth: int = 0  # layers: hidden has depth + 1 entries
    heads: int = 0  # 0 without attention
    embedding_width: int = 0  # E of embeddings and of hidden[0]; 0 where neither is given
    vocabulary: int | None = None  # rows of the embedding table: token ids lie below; None where inputs are no ids
    classes: tuple[str, ...] | None = None  # names of the logits, in their order, where they are known
    widths: tuple[int, ...] | None = None  # of each hidden state, where layers differ
    layout: str = "tokens"  # of hidden states: tokens [B, T, D], or map [B, D, H, W]
    name: str = "the model"  # in messages
    recorded: bool = False  # a teacher of which no more is there than was recorded
    members: tuple[Signature, ...] | None = None  # of an ensemble

    def width_of(self, layer: int) -> int:
        """D of hidden[layer]."""
        if self.widths is not None:
            return self.widths[layer]
        return self.width if layer else self.embedding_width


class Model(Protocol):
    """An ``nn.Module`` that reads a batch's inputs; student or teacher alike. ``models.model.TextModel`` is the base."""

    signature: Signature
    config: dict[str, Any]  # plain constructor arguments, enough to build it again

    def __call__(self, tokens: Tokens, needs: frozenset[str] = LOGITS) -> Outputs: ...

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Look at the labelled training rows once, before training."""

    def load_vectors(self, vectors: Tensor, known: Tensor) -> None:
        """Start from word vectors [V, E] where ``known`` [V] says; UserError without a table of them."""


class Teacher(Protocol):
    """Whatever answers a batch like a frozen model: live, recorded, an ensemble."""

    @property
    def signature(self) -> Signature: ...

    def __call__(self, batch: Batch, needs: frozenset[str] = LOGITS) -> Outputs: ...

    def to(self, device: torch.device | str) -> Teacher: ...


def check_needs(model: Model, needs: frozenset[str]) -> None:
    """Raise ValueError where a model is asked for a field that it does not provide."""
    fields = model.signature.fields
    if missing := needs - fields:
        raise ValueError(
            f"{type(model).__name__} does not provide {', '.join(sorted(missing))}; it provides "
            f"{', '.join(sorted(fields))}"
        )
