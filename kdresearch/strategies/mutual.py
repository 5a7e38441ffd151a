"""Deep mutual learning (Zhang et al. 2018): networks that learn together and from each other, without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kdresearch.errors import UserError, choices
from kdresearch.evaluation.task import RunningScores
from kdresearch.objectives.mutual import Mutual
from kdresearch.strategies.manual import ends_accumulation, step_by_hand
from kdresearch.strategies.named import Composition, NamedDistiller, Term, label
from kdresearch.structures import LOGITS, Batch, Model, Outputs, as_batch, check_signed

CONVENTIONS = ("house", "published")


class MutualDistiller(NamedDistiller):
    """Each network k of K: weights.label · CE(y, p_k) + weights.mutual · 1/(K−1) Σ_l KL(p_l‖p_k) (eq. 3-8).

    No gradient passes through the others' outputs. The student is the one that is evaluated and kept; the peers are
    trained, each clipped by itself, and checkpointed beside it. Terms of a peer are logged as ``train/NAME/peer1``, its
    validation accuracy as ``val/accuracy/peer1``.

    Args:
        peers: models, or what makes one of ``vocabulary`` and ``classes``; all read the student's tokens.
        convention: ``house``: all take one step at a time, by the others' outputs before it. ``published``: on each
            batch they step in turn, the student last, and each learns from the outputs of those before it after their
            step (algorithm 1), so that each peer runs twice.
        temperature: τ of the second term, which is multiplied by τ²; the paper has 1.
        label_smoothing: ε of the first.
        weights: ``label`` and ``mutual``.

    Raises:
        UserError: no peers, weights.mutual = 0, an unknown convention, or two networks that start as one.
    """

    composition: ClassVar[Composition] = {"label": Term(label, 1.0), "mutual": Term(Mutual, 1.0)}

    def __init__(
        self,
        student: Model,
        *,
        peers: Sequence[Callable[..., Model] | nn.Module],
        convention: str = "house",
        **settings: Any,
    ) -> None:
        if convention not in CONVENTIONS:
            raise UserError(f"strategy.convention: {choices(convention, CONVENTIONS)}")
        super().__init__(student, **settings)
        if not peers or "mutual" not in self.objectives:
            raise UserError("strategy.peers and strategy.weights.mutual: without them, use strategy=supervised")
        self.convention = convention
        self.peers = nn.ModuleList(self._peer(peer).train() for peer in peers)
        self.peer_scores = nn.ModuleList(self.task.running(len(self.classes)) for _ in self.peers)
        _check_different(self.networks)

    @classmethod
    def needs_teacher(cls, settings: Mapping[str, Any]) -> bool:
        """False: the peers stand in its place."""
        return False

    def _peer(self, peer: Callable[..., Model] | nn.Module) -> nn.Module:
        """A model as it is, or one that a factory makes for the student's vocabulary."""
        if not isinstance(peer, nn.Module):
            peer = peer(vocabulary=self.student.signature.vocabulary, classes=len(self.classes))  # type: ignore[assignment]
        check_signed("peer", peer)
        assert isinstance(peer, nn.Module)
        return peer

    @property
    def peer_models(self) -> list[nn.Module]:
        """The peers."""
        return list(self.peers)

    @property
    def networks(self) -> list[nn.Module]:
        """The student, then its peers."""
        return [self.student, *self.peers]

    @property
    def in_turn(self) -> bool:
        """Whether each network steps by itself."""
        return self.convention == "published"

    def setup(self, stage: str) -> None:
        """Bind the objectives; where networks step in turn, step by hand."""
        super().setup(stage)
        if self.in_turn:
            step_by_hand(self, stage)

    def configure_optimizers(self) -> Any:
        """One optimizer, or one for each network where they step in turn, with its schedule."""
        if not self.in_turn:
            return super().configure_optimizers()
        optimizers = [self.optimization(self._groups_of(network)) for network in self.networks]
        return tuple(entry if isinstance(entry, dict) else {"optimizer": entry} for entry in optimizers)

    def _groups_of(self, network: nn.Module) -> list[dict[str, Any]]:
        """The parameter groups of one network."""
        members = {id(parameter) for parameter in network.parameters()}
        groups = [
            group | {"params": [parameter for parameter in group["params"] if id(parameter) in members]}
            for group in self.parameter_groups()
        ]
        return [group for group in groups if group["params"]]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of all networks, or the student's where they step in turn."""
        if not self.in_turn:
            return super().training_step(batch, batch_idx)
        self._updates = ends_accumulation(self, batch_idx)
        loss = super().training_step(batch, batch_idx)  # in which the peers have their turns
        self._learn(0, loss)
        if self._updates:
            schedules = self.lr_schedulers() or []
            for schedule in schedules if isinstance(schedules, list) else [schedules]:
                schedule.step()  # type: ignore[call-arg]
        return loss

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The student's terms by name, and each peer's as NAME/peerK."""
        if self.in_turn:
            return self._terms_in_turn(batch)
        outputs = [network(batch.student, LOGITS) for network in self.networks]
        values: dict[str, Tensor] = {}
        for place in range(len(outputs)):
            values |= self._terms_of(place, outputs, batch)
        return values

    def _terms_of(self, place: int, outputs: Sequence[Outputs], batch: Batch) -> dict[str, Tensor]:
        """Of one network, which passes the gradient alone."""
        peers = [output for number, output in enumerate(outputs) if number != place]
        values = {}
        for name, term in self.objectives.items():
            teachers = peers if name == "mutual" else peers[:1]  # labels are the same whatever the peers' outputs
            values[_of(place, name)] = torch.stack([term(outputs[place], peer, batch) for peer in teachers]).mean()
        return values

    def _terms_in_turn(self, batch: Batch) -> dict[str, Tensor]:
        """The peers' terms at their turns, in which they step; and the student's, from what they say after that."""
        weights = self.weights_now()
        outputs = [network(batch.student, LOGITS) for network in self.networks]
        values: dict[str, Tensor] = {}
        for place, peer in enumerate(self.peers, 1):
            terms = self._terms_of(place, outputs, batch)
            self._learn(place, torch.stack([weights[name] * value for name, value in terms.items()]).sum())
            values |= {name: value.detach() for name, value in terms.items()}
            if self._updates:
                with torch.no_grad():
                    outputs[place] = peer(batch.student, LOGITS)
        return self._terms_of(0, outputs, batch) | values

    def _learn(self, place: int, loss: Tensor) -> None:
        """Gather the gradient of one network, and take its step where one is due."""
        self.manual_backward(loss / self.trainer.accumulate_grad_batches)
        if not self._updates:
            return
        if place == 0:  # by Lightning, which counts it
            optimizer = self.optimizers()[0]  # type: ignore[index]
            optimizer.step()
        else:
            optimizer = self.optimizers(use_pl_optimizer=False)[place]  # type: ignore[index]
            self.trainer.strategy.optimizer_step(optimizer, lambda: None, model=self)
        optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient of a network that steps by itself."""
        if self.in_turn:
            self.clip_gradients(optimizer)  # which has one network's, at their true scale

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm network by network."""
        if gradient_clip_algorithm == "value" or not gradient_clip_val:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for network in self.networks:  # or the largest gradient would slow all the others down
            nn.utils.clip_grad_norm_(network.parameters(), gradient_clip_val)

    def weights_now(self) -> dict[str, float]:
        """The student's weights, and the same for each peer."""
        weights = super().weights_now()
        return {_of(place, name): weight for place in range(len(self.peers) + 1) for name, weight in weights.items()}

    def telemetry(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
        """Of the student's own terms: the peers' do not reach it."""
        return super().telemetry({name: terms[name] for name in self.objectives}, weights)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score the student and the peers."""
        super().validation_step(batch, batch_idx)
        batch = as_batch(batch)
        for peer, scores in zip(self.peers, self.peer_scores, strict=True):
            assert isinstance(scores, RunningScores)
            scores.update(peer(batch.student, LOGITS).logits, batch.label)

    def on_validation_epoch_end(self) -> None:
        """Log the student's scores and each peer's monitored one."""
        super().on_validation_epoch_end()
        for place, scores in enumerate(self.peer_scores, 1):
            assert isinstance(scores, RunningScores)
            self.log(_of(place, self.task.monitor), scores.compute()[self.task.monitor])


def _of(place: int, name: str) -> str:
    """The student's terms by their own names, a peer's with its number."""
    return f"{name}/peer{place}" if place else name


def _check_different(networks: Sequence[nn.Module]) -> None:
    """Refuse two that start as one: they stay one on the same batches, where KL is 0 and has no gradient."""
    for place, network in enumerate(networks):
        for earlier, rival in enumerate(networks[:place]):
            if type(network) is not type(rival) or network.config != rival.config:
                continue
            first, second = rival.state_dict(), network.state_dict()
            if first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items()):
                name = "the student" if earlier == 0 else f"peer {earlier}"
                raise UserError(
                    f"strategy.peers: objective mutual is dead: {name} and peer {place} are the same "
                    f"{type(network).__name__} with the same initial weights, and stay equal on the same batches: "
                    "give peers of another kind or other settings (strategy.peers=[...])"
                )
