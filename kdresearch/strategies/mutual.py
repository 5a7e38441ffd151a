"""Deep mutual learning (Zhang et al. 2018): networks that learn together and from each other, without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from kdresearch.errors import UserError
from kdresearch.objectives.logits import Label
from kdresearch.objectives.mutual import Mutual
from kdresearch.strategies.distiller import Distiller
from kdresearch.structures import LOGITS, UNLABELLED, Batch, Model


class MutualDistiller(Distiller):
    """Each network k: weights.label · CE(y, p_k) + weights.mutual · mean over the others l of KL(p_l‖p_k) (eq. 3-7).

    All take one step at a time, on the same batch, and the others' answers pass no gradient. The student is the one
    that is evaluated and kept; the peers are trained, clipped and checkpointed beside it. Terms of a peer are logged
    as ``train/NAME/peer1``, its validation accuracy as ``val/accuracy/peer1``.

    Args:
        peers: each makes a model of ``vocabulary`` and ``classes``; all read the student's tokens.
        temperature: τ of the second term, which is multiplied by τ²; the paper has 1.
        label_smoothing: ε of the first.
        weights: ``label`` and ``mutual``.

    Raises:
        UserError: no peers, or weights.mutual = 0.
    """

    def __init__(
        self,
        student: Model,
        *,
        classes: tuple[str, ...],
        peers: Sequence[Callable[..., Model]],
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float],
        **wiring: Any,
    ) -> None:
        objectives = {"label": Label(label_smoothing), "mutual": Mutual(temperature)}
        super().__init__(student, classes=classes, objectives=objectives, weights=weights, **wiring)
        if not peers or "mutual" not in self.objectives:
            raise UserError("strategy.peers and strategy.weights.mutual: without them, use strategy=supervised")
        made = [peer(vocabulary=student.vocabulary, classes=len(classes)) for peer in peers]
        self.peers = nn.ModuleList(peer.train() for peer in made if isinstance(peer, nn.Module))
        self.peer_accuracy = nn.ModuleList(MulticlassAccuracy(len(classes), average="micro") for _ in made)

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:
        return False

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        outputs = [network(batch.student, LOGITS) for network in (self.student, *self.peers)]
        values = {}
        for place, own in enumerate(outputs):
            others = [other for other in outputs if other is not own]
            for name, term in self.objectives.items():
                asked = others if name == "mutual" else others[:1]  # labels are the same whatever the others say
                values[_of(place, name)] = torch.stack([term(own, other, batch) for other in asked]).mean()
        return values

    def weights_now(self) -> dict[str, float]:
        weights = super().weights_now()
        return {_of(place, name): weight for place in range(len(self.peers) + 1) for name, weight in weights.items()}

    def telemetry(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
        """Of the student's own terms: the peers' do not reach it."""
        return super().telemetry({name: terms[name] for name in self.objectives}, weights)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        counted = batch.label != UNLABELLED
        if counted.any():
            for peer, metric in zip(self.peers, self.peer_accuracy, strict=True):
                assert isinstance(metric, MulticlassAccuracy)
                metric.update(peer(batch.student, LOGITS).logits[counted].float(), batch.label[counted])

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        for place, metric in enumerate(self.peer_accuracy, 1):
            assert isinstance(metric, MulticlassAccuracy)
            self.log(_of(place, "val/accuracy"), metric.compute())
            metric.reset()


def _of(place: int, name: str) -> str:
    """The student's terms by their own names, a peer's with its number."""
    return f"{name}/peer{place}" if place else name
