"""The objective of adversarial distillation, and the discriminator that it is played against."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdresearch.errors import UserError, choices
from kdresearch.losses import checks
from kdresearch.objectives.objective import Objective
from kdresearch.structures import Batch, Outputs, Reading, Signature

REPRESENTATIONS = ("logits", "pooled")
LOGITS_SCALE = 2.0
"""Logits lie closer together than vectors of length 1 in hundreds of dimensions."""


class SpectralLinear(nn.Linear):
    """A linear map by its weight over the weight's largest singular value (Miyato et al. 2018, eq. 8).

    The value is exact, where torch's ``spectral_norm`` approaches it by power iterations that are a state of their own
    (and cannot be pickled, as starting processes by spawning takes).
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        weight = self.weight if self.out_features <= self.in_features else self.weight.T
        largest = torch.linalg.eigvalsh(weight @ weight.T)[-1].sqrt()
        return F.linear(input, self.weight / largest, self.bias)


class Adversarial(Objective):
    """mean −log D(student): how little a discriminator takes the student's representation for the teacher's.

    The non-saturating loss of Goodfellow et al. 2014, §3. D is a perceptron of one hidden layer with spectral norms
    (Miyato et al. 2018), so that its score moves by no more than its input does; that is centred, and of length 1
    (``pooled``) or times ``LOGITS_SCALE``. Its parameters take no gradient from this loss: they learn by
    ``discrimination``.

    Args:
        reads: ``logits``; or ``pooled``, the student's projected to the teacher's width where they differ.
        hidden_dim: units of the discriminator.
        smoothing: ε: the target for the teacher's vectors is 1 − ε (Salimans et al. 2016, §3.4).

    Raises:
        UserError: an unknown representation, no units, or a smoothing outside [0, 1).
    """

    def __init__(self, reads: str = "logits", hidden_dim: int = 64, smoothing: float = 0.1) -> None:
        super().__init__()
        if reads not in REPRESENTATIONS:
            raise UserError(f"reads: {choices(reads, REPRESENTATIONS)}")
        if hidden_dim < 1:
            raise UserError(f"hidden_dim must be at least 1, not {hidden_dim}")
        if not 0 <= smoothing < 1:
            raise UserError(f"discriminator_smoothing must lie in [0, 1), not {smoothing}")
        self.reads, self.hidden_dim, self.smoothing = reads, hidden_dim, smoothing
        self.needs = self.teacher_needs = frozenset({reads})
        self.projection: nn.Module = nn.Identity()
        self.discriminator: nn.Module = nn.Identity()
        self._latest: tuple[Tensor, Tensor] | None = None

    def bind(self, student: Signature, teacher: Signature | None, reading: Reading) -> None:
        """Make the discriminator, and a projection where widths differ; UserError for an unknown number of classes."""
        if teacher is None or not self.needs <= student.fields & teacher.fields:
            return  # refused by the strategy, which knows the objective's name
        if self.reads == "pooled":
            width = teacher.width
            if student.width != width:
                self.projection = nn.Linear(student.width, width)
        else:
            names = teacher.classes or student.classes
            if names is None:
                raise UserError("reads=logits: how many they are is not known: name the student's or teacher's classes")
            width = len(names)
        self.discriminator = nn.Sequential(
            SpectralLinear(width, self.hidden_dim), nn.LeakyReLU(0.2), SpectralLinear(self.hidden_dim, 1)
        ).requires_grad_(False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar loss of vectors [B, C] or [B, D]; they are kept for ``discrimination``."""
        assert teacher is not None
        student_vectors = self._normal(self.projection(getattr(student, self.reads)))
        teacher_vectors = self._normal(getattr(teacher, self.reads))
        self._latest = student_vectors.detach(), teacher_vectors.detach()
        return F.softplus(-self._score(student_vectors)).mean()

    def discrimination(self) -> tuple[Tensor, Tensor]:
        """What D learns by, on the vectors of the latest ``forward``, and its accuracy.

        Returns:
            ½·(mean [−(1−ε)·log D(t) − ε·log(1 − D(t))] + mean −log(1 − D(s))); the share of rows that
            it classifies correctly.
        """
        assert self._latest is not None
        student, teacher = self._score(torch.cat(self._latest)).chunk(2)
        target = torch.full_like(teacher, 1 - self.smoothing)
        loss = (F.binary_cross_entropy_with_logits(teacher, target) + F.softplus(student).mean()) / 2
        return loss, torch.cat([teacher > 0, student < 0]).float().mean()

    def _normal(self, vectors: Tensor) -> Tensor:
        """Float32, whatever the student is trained in; of one size, so that neither side is known by that."""
        vectors = vectors.float()
        if self.reads == "pooled":
            return checks.centred_unit(vectors)
        return LOGITS_SCALE * (vectors - vectors.mean(1, keepdim=True))

    def _score(self, vectors: Tensor) -> Tensor:
        """D's logits [B]."""
        with torch.autocast(vectors.device.type, enabled=False):
            scores: Tensor = self.discriminator(vectors)
            return scores.squeeze(1)
