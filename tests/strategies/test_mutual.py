"""Mutual learning by hand, and what holds among equals."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.ngram import NgramBag, NgramLinear
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.strategies.mutual import MutualDistiller
from kdresearch.strategies.schedules import linear
from kdresearch.structures import LOGITS, Batch, Tokens

CLASSES = ("a", "b", "c")
WEIGHTS = {"label": 0.4, "mutual": 1.5}
bilstm = partial(BiLSTM, embedding_dim=6, hidden_dim=5, dropout=0.0)
textcnn = partial(TextCNN, embedding_dim=6, channels=4, kernel_sizes=[2], dropout=0.0)


def batch() -> Batch:
    ids = torch.randint(1, 30, (5, 6), generator=torch.Generator().manual_seed(1))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(torch.arange(5), torch.tensor([0, 2, -1, 1, -1]), tokens)


def distiller(*peers: Callable[..., Any], **settings: Any) -> MutualDistiller:
    torch.manual_seed(1)
    given = {"classes": CLASSES, "peers": list(peers), "weights": WEIGHTS} | settings
    return MutualDistiller(bilstm(30, 3), **given)


def fit(module: MutualDistiller, folder: Path, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, max_epochs=1, num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    loader = DataLoader([batch()] * 4, batch_size=None)
    trainer.fit(module, loader, DataLoader([batch()], batch_size=None))
    return trainer


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_three_networks_by_hand(temperature: float) -> None:
    module, rows = distiller(bilstm, textcnn, temperature=temperature, label_smoothing=0.1), batch()
    networks = (module.student, *module.peers)
    logits = [network(rows.student, LOGITS).logits for network in networks]
    p = [(z.detach() / temperature).softmax(1) for z in logits]  # a peer's answer passes no gradient
    expected = torch.tensor(0.0)
    for k, own in enumerate(logits):
        q = (own / temperature).softmax(1)
        kl = [(p[other] * (p[other] / q).log()).sum() / 5 for other in range(3) if other != k]
        label = cross_entropy(own[[0, 1, 3]], rows.label[[0, 1, 3]], label_smoothing=0.1)
        expected = expected + 0.4 * label + 1.5 * temperature**2 * (kl[0] + kl[1]) / 2
    module.log_dict = module.log = lambda *_, **__: None  # type: ignore[method-assign]
    loss = module.training_step(rows, 0)
    assert torch.allclose(loss, expected)
    parameters = [value for network in networks for value in network.parameters()]
    for own, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert torch.allclose(own, other, atol=1e-7)


def test_in_turn_each_learns_from_what_the_others_say_after_their_steps(tmp_path: Path) -> None:
    """Algorithm 1 of the paper on four batches, the student the last of three; by default all step at a time."""
    sgd = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.5)}
    module = distiller(bilstm, textcnn, convention="published", **sgd)
    twin = deepcopy(module)
    networks = {"peers.0": twin.peers[0], "peers.1": twin.peers[1], "student": twin.student}
    rows = batch()
    for _ in range(4):
        for network in networks.values():
            own = network(rows.student, LOGITS).logits
            others = [each(rows.student, LOGITS).logits.detach() for each in networks.values() if each is not network]
            kl = [(p.softmax(1) * (p.softmax(1) / own.softmax(1)).log()).sum() / 5 for p in others]
            loss = 0.4 * cross_entropy(own[[0, 1, 3]], rows.label[[0, 1, 3]]) + 1.5 * (kl[0] + kl[1]) / 2
            for value, gradient in zip(
                network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True
            ):
                value.data -= 0.5 * gradient
    assert fit(module, tmp_path).global_step == 4
    for where, network in networks.items():
        for name, value in network.named_parameters():
            assert torch.allclose(module.get_parameter(f"{where}.{name}"), value, atol=1e-5), (where, name)
    together = distiller(bilstm, textcnn, **sgd)
    fit(together, tmp_path)
    assert not torch.allclose(together.student.classifier.weight, module.student.classifier.weight, atol=1e-5)


def test_in_turn_accumulated_batches_share_a_step(tmp_path: Path) -> None:
    module = distiller(bilstm, convention="published")
    before = deepcopy(module)
    assert fit(module, tmp_path, accumulate_grad_batches=3).global_step == 2  # the last batch is one of its own
    assert not torch.equal(module.peers[0].classifier.weight, before.peers[0].classifier.weight)


@pytest.mark.parametrize("convention", ["house", "published"])
def test_each_network_is_clipped_by_itself(convention: str, tmp_path: Path) -> None:
    module = distiller(bilstm, convention=convention, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    before = deepcopy(module)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1,
        enable_model_summary=False, default_root_dir=tmp_path, gradient_clip_val=0.01, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch()], batch_size=None))
    for own, start in zip(module.networks, before.networks, strict=True):
        steps = [
            (after - value).flatten() / 0.1 for after, value in zip(own.parameters(), start.parameters(), strict=True)
        ]
        assert float(torch.cat(steps).norm().detach()) == pytest.approx(0.01, rel=1e-3)


def test_a_schedule_is_each_optimizers_in_turn(tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    rates: list[list[float]] = []
    module = distiller(
        bilstm,
        convention="published",
        scheduler=partial(linear, warmup=0),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
    )
    fit(module, tmp_path, callbacks=[Watch()])
    assert rates == [pytest.approx([0.1 * left / 4] * 2) for left in (4, 3, 2, 1)]


@pytest.mark.parametrize("weighting", ["nb", "none"])
def test_networks_that_start_as_one_are_refused(weighting: str) -> None:
    """Linear n-grams start at zero: twins of them stay twins, and the divergence between them is 0 for ever."""
    ngrams = partial(NgramLinear, weighting=weighting)
    given: dict[str, Any] = {"classes": CLASSES, "weights": WEIGHTS}
    with pytest.raises(UserError, match=r"mutual is dead: the student and peer 1 are the same NgramLinear"):
        MutualDistiller(ngrams(30, 3), peers=[ngrams], **given)
    with pytest.raises(UserError, match=r"peer 1 and peer 2 are the same NgramLinear"):
        distiller(ngrams, ngrams)
    other = MutualDistiller(ngrams(30, 3), peers=[NgramBag, partial(ngrams, smoothing=2.0)], **given)
    assert len(other.networks) == 3


def test_equals_have_nothing_to_tell_and_stay_equal(tmp_path: Path) -> None:
    module = distiller(bilstm)
    module.peers[0].load_state_dict(module.student.state_dict())
    before = module.student.classifier.weight.detach().clone()
    terms = module.terms(batch())
    assert float(terms["mutual"].detach()) == float(terms["mutual/peer1"].detach()) == 0
    assert torch.equal(terms["label"], terms["label/peer1"])
    fit(module, tmp_path)
    assert not torch.equal(module.student.classifier.weight, before)
    for name, value in module.student.state_dict().items():
        assert torch.equal(value, module.peers[0].state_dict()[name]), name


def test_everyone_learns_and_is_kept(tmp_path: Path) -> None:
    module = distiller(bilstm, textcnn)
    own = {name: value.clone() for name, value in module.named_parameters()}
    assert not torch.equal(own["student.embedding.weight"], own["peers.0.embedding.weight"])
    trainer = fit(module, tmp_path)
    assert {name for name, value in module.named_parameters() if torch.equal(value, own[name])} == set()
    assert {name.split(".")[0] for name in module.state_dict()} == {"student", "peers"}
    assert module.teacher is None and module.learns_from_unlabelled
    for place, peer in enumerate(module.peers, 1):  # the labelled rows alone are counted
        right = peer.eval()(batch().student, LOGITS).logits.argmax(1) == batch().label
        assert float(trainer.callback_metrics[f"val/accuracy/peer{place}"]) == pytest.approx(int(right.sum()) / 3)
        assert f"train/mutual/peer{place}" in trainer.callback_metrics


def test_a_peer_trains_at_the_rates_of_a_student() -> None:
    module = distiller(bilstm, head_lr_scale=5.0)
    names = {id(value): name for name, value in module.named_parameters()}
    scales = {names[id(value)]: group["lr_scale"] for group in module.parameter_groups() for value in group["params"]}
    assert set(scales) == set(names.values())
    for name, scale in scales.items():
        assert scale == (5.0 if ".classifier." in name else 1.0), name


def test_telemetry_is_about_the_student(tmp_path: Path) -> None:
    module = distiller(textcnn)
    found = module.telemetry(module.terms(batch()), module.weights_now())
    assert set(found) == {f"telemetry/{kind}/{name}" for kind in ("grad_norm", "share") for name in WEIGHTS} | {
        "telemetry/cosine/label/mutual"
    }
    assert found["telemetry/grad_norm/mutual"] > 0


def test_a_schedule_is_every_networks(tmp_path: Path) -> None:
    module = distiller(bilstm, schedules={"mutual": {"kind": "switch", "steps": 2}})
    seen = []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: (seen.append(module.weights_now()), step(batch, batch_idx))[1]  # type: ignore[method-assign]
    fit(module, tmp_path)
    assert [(each["mutual"], each["mutual/peer1"]) for each in seen] == [(0, 0)] * 2 + [(1.5, 1.5)] * 2
    assert all(each["label/peer1"] == 0.4 for each in seen)


@pytest.mark.parametrize(
    "model",
    [
        bilstm(30, 3),
        textcnn(30, 3),
        NgramBag(30, 3),
        NgramLinear(30, 3),
        Transformer(30, 3, architecture={"model_type": "distilbert", "dim": 8, "n_layers": 1, "n_heads": 2}),
    ],
    ids=lambda model: type(model).__name__,
)
def test_every_model_says_how_large_its_vocabulary_is(model: Any) -> None:
    tables = [part for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    assert model.signature.vocabulary == max(table.num_embeddings for table in tables if table.padding_idx == 0) == 30


def test_the_default_peer_is_of_the_students_kind_and_no_teacher_is_asked_for(build: Callable[..., Any]) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", ["strategy=mutual", "student=textcnn", "student.model.channels=5"])
        supervised = compose("train", ["strategy=supervised"])
        staged = compose("train", ["strategy=staged"])
    module = build(cfg.strategy, "strategy", student=bilstm(30, 3), classes=CLASSES)
    (peer,) = module.peers
    assert isinstance(peer, TextCNN) and (peer.signature.vocabulary, peer.signature.width) == (30, 15)
    taught = [get_class(each.strategy._target_).needs_teacher(each.strategy) for each in (cfg, supervised, staged)]
    assert taught == [False, False, True]


@pytest.mark.parametrize(
    ("peers", "settings", "message"),
    [
        ([], {}, r"strategy\.peers"),
        ([bilstm], {"convention": "paper"}, r"strategy\.convention: 'paper'; one of: house, published"),
        ([bilstm], {"weights": {"label": 1, "mutual": 0}}, r"strategy=supervised"),
        ([bilstm], {"temperature": -1.0}, r"temperature"),
        ([bilstm], {"weights": {"label": 1, "soft_label": 1}}, r"MutualDistiller has no objective 'soft_label'"),
    ],
)
def test_refused(peers: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        distiller(*peers, **settings)
    assert isinstance(refused.value, UserError) or "temperature" in message
