"""Objectives on token states and sentence vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdresearch import losses
from kdresearch.errors import UserError, choices
from kdresearch.objectives.layers import LayerMap, layer_pairs
from kdresearch.objectives.objective import Objective
from kdresearch.objectives.pairing import pair, states
from kdresearch.objectives.settings import refuse_unused
from kdresearch.structures import Batch, Extract, Outputs, Reading, Signature

LEVELS = ("auto", "tokens", "sentence")
SENTENCE = ("uniform", "final")  # maps that choose no layer: sentence vectors are made of the last
PROJECTIONS = ("auto", "linear", "none")
FEATURE_LOSSES = ("hidden_mse", "cosine", "patient", "fsp", "gram", "nst", "attention_transfer")
TOKENS_ONLY = ("fsp", "gram", "nst", "attention_transfer")  # of the tokens of a row: a sentence vector has none
ANY_WIDTH = ("nst", "attention_transfer")
SHAPES = {"tokens": "token states [B, T, D]", "map": "maps [B, D, H, W]"}
NO_MAPS = ("fsp", "gram")  # of words


class StatePairs(nn.Module):
    """The states of mapped layers, side by side; it owns the projections of the student's to the teacher's width.

    Maps [B, D, H, W] are their H·W places in the stead of tokens (``places``), and a projection is a 1x1 convolution.

    Args:
        layers: see ``layer_pairs``.
        level: ``tokens`` compares token states (of words, where the two sides read different tokens); ``sentence``
            the vectors that the classifiers read; ``auto`` the first where both models have hidden states.
        projection: ``linear``, ``none``, or ``auto``: linear where the widths differ.
        shared_projection: one projection for all pairs of layers, as in TinyBERT's code.
        embeddings: whether the embeddings are a pair of their own.
        same_width: whether the loss wants widths alike.
        first_token: compare the first token only, which every reading has.
    """

    def __init__(
        self,
        layers: LayerMap = "uniform",
        level: str = "auto",
        projection: str = "auto",
        shared_projection: bool = False,
        embeddings: bool = False,
        same_width: bool = True,
        first_token: bool = False,
    ) -> None:
        super().__init__()
        if level not in LEVELS:
            raise UserError(f"level: {choices(level, LEVELS)}")
        if projection not in PROJECTIONS:
            raise UserError(f"projection: {choices(projection, PROJECTIONS)}")
        if shared_projection and projection == "none":
            raise UserError("shared_projection=true has no effect: projection=none makes none to share")
        self.layers, self.level, self.projection = layers, level, projection
        self.shared_projection, self.embeddings = shared_projection, embeddings
        self.same_width, self.first_token = same_width, first_token
        self.pairs: list[tuple[int, int]] = []
        self.maps = False
        self.projections = nn.ModuleList()

    @property
    def needs(self) -> frozenset[str]:
        """The fields of ``Outputs`` that both sides must give."""
        return frozenset({"hidden" if self.level == "tokens" else "pooled"})

    def bind(self, student: Signature, teacher: Signature) -> None:
        """Choose the level, the pairs of layers and their projections; UserError where the widths cannot meet."""
        if self.level == "auto":
            self.level = "tokens" if "hidden" in student.fields & teacher.fields else "sentence"
        if not self.needs <= student.fields & teacher.fields:
            return  # refused by the strategy, which knows the objective's name
        if self.level == "sentence":
            self._check_no_layers()
            widths = [(student.width, teacher.width)]
        else:
            self.pairs = layer_pairs(self.layers, student.depth, teacher.depth)
            if self.embeddings and (0, 0) not in self.pairs:
                self.pairs.insert(0, (0, 0))
            self.maps = _are_maps(student, teacher)
            if self.maps and self.first_token:
                raise UserError(
                    f"patient compares the first token, and the hidden states of {student.name} and {teacher.name} "
                    "are maps [B, D, H, W]: use loss=hidden_mse"
                )
            widths = [(student.width_of(first), teacher.width_of(second)) for first, second in self.pairs]
            _check_embeddings(self.pairs, student, teacher)
        self.projections = self._projections(student, teacher, widths)

    def _check_no_layers(self) -> None:
        """A choice that would change nothing is refused: its runs would differ by name alone."""
        if self.layers not in SENTENCE or self.embeddings or self.shared_projection:
            setting = "embeddings=true" if self.embeddings else f"layers={self.layers}"
            if self.shared_projection:
                setting = "shared_projection=true"
            raise UserError(
                f"{setting} is of hidden states, and the sentence vectors of both sides are compared "
                f"(level={self.level}): leave it out, or use two models with hidden states"
            )

    def _projections(self, student: Signature, teacher: Signature, widths: list[tuple[int, int]]) -> nn.ModuleList:
        linear = [self.projection == "linear" or (self.same_width and first != second) for first, second in widths]
        if self.projection == "none" and any(linear):
            student_width, teacher_width = widths[linear.index(True)]
            raise UserError(
                f"projection=none, and the widths differ: {student_width} of the student ({student.name}), "
                f"{teacher_width} of the teacher: use projection=linear"
            )
        if self.shared_projection and any(linear):
            if len(set(widths)) > 1:
                raise UserError(
                    f"shared_projection=true takes layers of one width, and these are {sorted(set(widths))}"
                )
            return nn.ModuleList([nn.Linear(*widths[0])])
        return nn.ModuleList(
            nn.Linear(*width) if projects else nn.Identity() for width, projects in zip(widths, linear, strict=True)
        )

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Both sides' states, layer by layer ([B, N, D], or [B, D] at sentence level), and where they are real."""
        if self.level == "sentence":
            assert student.pooled is not None and teacher.pooled is not None
            return [self.projections[0](student.pooled)], [teacher.pooled], None
        assert student.hidden is not None and teacher.hidden is not None
        student_states = [student.hidden[layer] for layer, _ in self.pairs]
        teacher_states = [teacher.hidden[layer] for _, layer in self.pairs]
        mask: Tensor | None = None
        if self.maps:
            both = [places(*maps) for maps in zip(student_states, teacher_states, strict=True)]
            student_states, teacher_states = [side for side, _ in both], [side for _, side in both]
        elif self.first_token:
            assert student.mask is not None and teacher.mask is not None
            mask = student.mask[:, :1] & teacher.mask[:, :1]
            student_states, teacher_states = [h[:, :1] for h in student_states], [h[:, :1] for h in teacher_states]
        else:
            pairing = pair(batch, student, teacher)
            mask = pairing.mask
            student_states = [states(h, pairing.student) for h in student_states]
            teacher_states = [states(h, pairing.teacher) for h in teacher_states]
        number = len(self.projections)
        projected = [self.projections[place % number](h) for place, h in enumerate(student_states)]
        return projected, teacher_states, mask


class Feature(Objective):
    """Hidden states of mapped layers, or sentence vectors, by one of ``losses.hidden``.

    Args:
        loss: ``hidden_mse``, ``cosine``, ``patient`` (first token), ``fsp`` (between consecutive pairs of the map, so
            that it takes two or more: ``embeddings=true`` makes one), ``gram``, ``nst`` or ``attention_transfer``.
            Of maps: ``hidden_mse``, ``cosine``, ``nst`` and ``attention_transfer``.
        layers, level, projection, shared_projection, embeddings: see ``StatePairs``.
        convention: a published variant of the loss; see there.
        member: of an ensemble, the teacher that it learns from, from 0.
    """

    def __init__(
        self,
        loss: str = "hidden_mse",
        layers: LayerMap = "uniform",
        level: str = "auto",
        projection: str = "auto",
        shared_projection: bool = False,
        embeddings: bool = False,
        convention: str = "house",
        member: int | None = None,
    ) -> None:
        super().__init__()
        if loss not in FEATURE_LOSSES:
            raise UserError(f"loss: {choices(loss, FEATURE_LOSSES)}")
        if loss == "cosine" and convention != "house":
            raise UserError(f"convention: {choices(convention, ('house',))} for cosine")
        if loss in TOKENS_ONLY and level == "sentence":
            raise UserError(f"loss={loss} relates the tokens of a row, and level=sentence has none: use level=tokens")
        settings = {} if loss == "cosine" else {"convention": convention}
        self.loss: Callable[..., Tensor] = partial(getattr(losses, loss), **settings)
        layer = [torch.zeros(1, 1, 2)] * 2
        self.loss(layer, layer)  # raises ValueError for a convention that it lacks
        self.name, self.member = loss, member
        self.states = StatePairs(
            layers,
            "tokens" if loss in TOKENS_ONLY else level,
            projection,
            shared_projection,
            embeddings,
            same_width=loss not in ANY_WIDTH,
            first_token=loss == "patient",
        )

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Pair the layers and make the projections; UserError where the models or the loss do not allow it."""
        _bind_states(self, self.states, student, teacher)
        if self.states.maps and self.name in NO_MAPS:
            raise UserError(
                f"loss={self.name} relates features over the words of a text, and the hidden states are maps "
                "[B, D, H, W]: use loss=hidden_mse, cosine, nst or attention_transfer"
            )
        if self.name == "fsp" and len(self.states.pairs) == 1:
            raise UserError(
                f"loss=fsp is between two layers of a network, and layers={self.states.layers} pairs one "
                "layer of the student: add embeddings=true, or name two pairs"
            )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of the paired states [B, N, D], or vectors [B, D]."""
        assert teacher is not None
        student_states, teacher_states, mask = self.states(student, teacher, batch)
        return self.loss(student_states, teacher_states, mask=mask)


class Semantic(Objective):
    """Class scores and hidden states in one term: ``losses.semantic``.

    Args:
        weight: w of the KL term.
        temperature, divergence, convention: see ``losses.semantic``.
        layers, level, projection, shared_projection, embeddings: see ``StatePairs``.

    Raises:
        UserError: a choice of layers that a weight of 1 leaves out, and what ``StatePairs`` refuses.
    """

    def __init__(
        self,
        weight: float = 0.5,
        temperature: float = 1.0,
        divergence: str = "forward",
        convention: str = "house",
        layers: LayerMap = "uniform",
        level: str = "auto",
        projection: str = "auto",
        shared_projection: bool = False,
        embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.loss: Callable[..., Tensor] = partial(
            losses.semantic, weight=weight, temperature=temperature, divergence=divergence, convention=convention
        )
        logits, hidden = torch.zeros(1, 2), torch.zeros(1, 2)
        self.loss(logits, logits, student_hidden=hidden, teacher_hidden=hidden)  # raises ValueError for bad settings
        of_states = {"layers": layers, "projection": projection, "embeddings": embeddings}
        if weight == 1:
            refuse_unused(Semantic, "weight=1 is the KL term alone", **of_states, shared_projection=shared_projection)
        self.states = StatePairs(layers, level, projection, shared_projection, embeddings)

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Pair the layers and make the projections; UserError where the two models do not allow it."""
        _bind_states(self, self.states, student, teacher)
        self.needs |= {"logits"}
        self.teacher_needs |= {"logits"}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of logits [B, C] and the paired states [B, N, D], or vectors [B, D]."""
        assert teacher is not None and student.logits is not None and teacher.logits is not None
        student_states, teacher_states, mask = self.states(student, teacher, batch)
        return self.loss(
            student.logits, teacher.logits, student_hidden=student_states, teacher_hidden=teacher_states, mask=mask
        )


def _bind_states(objective: Objective, pairs: StatePairs, student: Signature, teacher: Signature | None) -> None:
    if teacher is not None:
        pairs.bind(student, teacher)
    objective.needs = objective.teacher_needs = pairs.needs
    layers = frozenset(layer for _, layer in pairs.pairs)
    objective.teacher_extracts = {"hidden": Extract(layers, first=pairs.first_token)} if layers else {}
    objective.needs_shared_tokens = pairs.level == "tokens" and not pairs.first_token and not pairs.maps


def places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, D, H, W] as states [B, H·W, D] of the same places.

    Where sizes differ, both are averaged to the smaller height and width (adaptive average pooling).
    """
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    student, teacher = (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
    return student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2)


def _are_maps(student: Signature, teacher: Signature) -> bool:
    """Whether both sides' hidden states are maps; UserError where one's are and the other's are not."""
    if student.layout != teacher.layout:
        raise UserError(
            f"hidden states of {student.name} are {SHAPES[student.layout]} and those of {teacher.name} "
            f"{SHAPES[teacher.layout]}: compare pooled vectors (level=sentence)"
        )
    return student.layout == "map"


def _check_embeddings(pairs: list[tuple[int, int]], student: Signature, teacher: Signature) -> None:
    for side, signature, layers in zip(
        ("student", "teacher"), (student, teacher), zip(*pairs, strict=True), strict=True
    ):
        if 0 in layers and not signature.width_of(0):
            raise UserError(f"layers: 0 is the embeddings, and the {side} ({signature.name}) gives none: count from 1")
