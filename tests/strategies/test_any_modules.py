"""Any torch modules, any batches: images with an ordinary loader, Hugging Face models with mappings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from kdresearch.errors import UserError
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.frozen import FrozenModel
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.wrap import wrap
from kdresearch.objectives.logits import SoftLabel
from kdresearch.strategies.adversarial import AdversarialDistiller
from kdresearch.strategies.attention import AttentionDistiller
from kdresearch.strategies.contrastive import ContrastiveDistiller
from kdresearch.strategies.correlation import CorrelationDistiller
from kdresearch.strategies.decoupled import DecoupledDistiller
from kdresearch.strategies.distiller import Distiller
from kdresearch.strategies.feature import FeatureDistiller
from kdresearch.strategies.mutual import MutualDistiller
from kdresearch.strategies.relation import RelationDistiller
from kdresearch.strategies.soft_label import SoftLabelDistiller
from kdresearch.structures import Batch, Tokens, as_batch


class Block(nn.Module):
    """Two convolutions and the way around them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, stride, 1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1)
        self.around = nn.Conv2d(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.norm(self.first(x)).relu()) + self.around(x)).relu()


class Net(nn.Module):
    """A ResNet in small."""

    def __init__(self, width: int, stride: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stage1 = Block(1, width, 1)
        self.stage2 = Block(width, 2 * width, stride)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stage2(self.stage1(x))).flatten(1))


def net(seed: int, width: int, **more: int) -> Net:
    torch.manual_seed(seed)
    return Net(width, **more)


def wrapped(module: nn.Module, **more: Any) -> Any:
    return wrap(module, hidden=["stage1", "stage2"], pooled="pool", **more)


@pytest.fixture(scope="module")
def images() -> TensorDataset:
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return TensorDataset(pixels[:320], torch.tensor(digits.target[:320]))


def loader(images: TensorDataset, **more: Any) -> DataLoader[Any]:
    return DataLoader(images, batch_size=32, **more)


def fit(module: Distiller, rows: Any, folder: Path, steps: int = 20, **more: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_steps": steps,
    }  # fmt: skip
    trainer = pl.Trainer(default_root_dir=folder, **(settings | more))
    trainer.fit(module, rows)
    return trainer


IMAGE_STRATEGIES: list[Any] = [
    (FeatureDistiller, {"layers": [[1, 1], [2, 2]]}),
    (FeatureDistiller, {"loss": "cosine"}),
    (FeatureDistiller, {"loss": "attention_transfer"}),
    (FeatureDistiller, {"loss": "nst"}),
    (RelationDistiller, {"weights": {"label": 1, "soft_label": 1, "rkd_distance": 1, "rkd_angle": 2,
                                     "similarity_preserving": 1, "pkt": 1}}),
    (ContrastiveDistiller, {}),
    (DecoupledDistiller, {}),
    (CorrelationDistiller, {}),
    (AdversarialDistiller, {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), IMAGE_STRATEGIES)
def test_a_net_learns_from_a_larger_one(kind: Any, settings: Any, images: TensorDataset, tmp_path: Path) -> None:
    student, large = wrapped(net(1, 4)), net(2, 8)
    before = {name: value.clone() for name, value in large.state_dict().items()}
    module = kind(student, classes=10, teacher=wrapped(large), **settings)
    module.make_optimizer = lambda groups: torch.optim.AdamW(groups, lr=3e-3)
    values: list[float] = []
    log = module.log_step
    module.log_step = lambda batch, terms, more: (values.append(float(terms["loss"])), log(batch, terms, more))
    start = {name: value.detach().clone() for name, value in student.named_parameters()}
    fit(module, loader(images), tmp_path, 30)
    assert sum(values[-10:]) < sum(values[:10])
    assert all(not torch.equal(value, start[name]) for name, value in student.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in large.state_dict().items())
    assert not large.training and all(each.grad is None and not each.requires_grad for each in large.parameters())
    assert not any(
        "teacher" in name and "projection" not in name and "memory" not in name for name in module.state_dict()
    )


def test_maps_of_other_sizes_meet_at_the_smaller(images: TensorDataset, tmp_path: Path) -> None:
    module = FeatureDistiller(wrapped(net(1, 4, stride=4)), classes=10, teacher=wrapped(net(2, 8)), layers=[[2, 2]])
    trainer = fit(module, loader(images), tmp_path, 3)
    assert torch.isfinite(trainer.callback_metrics["train/feature"])
    assert [(each.in_features, each.out_features) for each in module.objectives["feature"].states.projections] == [
        (8, 16)
    ]


def test_the_look_at_the_first_batch_leaves_no_trace(images: TensorDataset, tmp_path: Path) -> None:
    ends = []
    for example in (None, torch.zeros(2, 1, 8, 8)):
        pl.seed_everything(3, verbose=False)
        student, teacher = wrapped(net(1, 4), example=example), wrapped(net(2, 8), example=example)
        module = RelationDistiller(student, classes=10, teacher=teacher)
        assert module.bound == (example is not None)
        generator = torch.Generator().manual_seed(5)
        fit(module, loader(images, shuffle=True, generator=generator), tmp_path, 4)
        ends.append(module.student.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_wrapping_measures_and_leaves_the_module_as_it_was() -> None:
    module = net(1, 4)
    module.stage1.norm.eval()
    modes = {name: part.training for name, part in module.named_modules()}
    model = wrapped(module, classes=list("abcdefghij"))
    assert not model.signature.measured and model.signature.fields == {"logits", "hidden", "pooled"}
    before, random = module.stage1.norm.running_mean.clone(), torch.get_rng_state()
    model.look_at(torch.ones(3, 1, 8, 8))
    signature = model.signature
    assert (signature.width, signature.depth, signature.layout, signature.class_count) == (8, 2, "map", 10)
    assert [signature.width_of(layer) for layer in range(3)] == [0, 4, 8]
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert torch.equal(module.stage1.norm.running_mean, before) and torch.equal(torch.get_rng_state(), random)
    assert not any(part._forward_hooks for part in module.modules())
    with pytest.raises(UserError, match="Net has no submodule 'stage3'"):
        wrap(module, hidden=["stage3"])
    with pytest.raises(UserError, match="gives 10 logits, and classes names 2"):
        wrap(module, classes=["a", "b"], example=torch.zeros(2, 1, 8, 8))


def bert(seed: int, layers: int, width: int, classes: int = 3) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=classes, **sizes))


def layers_of(number: int) -> list[str]:
    return [f"bert.encoder.layer.{layer}" for layer in range(number)]


def test_somebodys_encoder_learns_from_mappings(tmp_path: Path) -> None:
    ids = torch.randint(1, 30, (16, 6), generator=torch.Generator().manual_seed(1))
    rows = [
        {"input_ids": each, "attention_mask": torch.ones(6, dtype=torch.long), "labels": int(each[0]) % 3}
        for each in ids
    ]
    student = wrap(bert(1, 1, 8), hidden=layers_of(1), pooled="bert.pooler", embeddings="bert.embeddings")
    teacher = wrap(bert(2, 2, 12), hidden=layers_of(2), pooled="bert.pooler", embeddings="bert.embeddings")
    module = FeatureDistiller(student, classes=3, teacher=teacher, embeddings=True)
    trainer = fit(module, DataLoader(rows, batch_size=8), tmp_path, 4)  # type: ignore[arg-type]
    assert torch.isfinite(trainer.callback_metrics["train/feature"])
    assert [each.in_features for each in module.objectives["feature"].states.projections] == [8, 8]
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    plain = student.module.eval()(input_ids=ids, attention_mask=tokens.mask.long()).logits
    torch.testing.assert_close(student(tokens).logits, plain)


def test_peers_may_be_any_modules(images: TensorDataset, tmp_path: Path) -> None:
    peer = wrap(net(2, 3))
    module = MutualDistiller(wrap(net(1, 4)), classes=10, peers=[peer])
    assert module.peer_models == [peer]
    trainer = fit(module, loader(images), tmp_path, 2)
    assert torch.isfinite(trainer.callback_metrics["train/mutual/peer1"])


def test_predictions_of_pairs_have_no_index(images: TensorDataset) -> None:
    module = SoftLabelDistiller(wrap(net(1, 4)), classes=10, teacher=wrap(net(2, 8)))
    pixels, label = images[:4]
    rows = module.predict_step([pixels, label], 0)
    assert rows["index"] is None and rows["logits"].shape == (4, 10)


def test_batches_of_any_form() -> None:
    x, y, index = torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([5, 6])
    assert as_batch((x, y)).index is None and as_batch([x, y]).student is x
    assert as_batch((x, y, index)).index is index
    mapped = as_batch({"pixels": x, "label": y, "index": index})
    assert mapped.label is y and mapped.index is index and set(mapped.student) == set(mapped.teacher) == {"pixels"}
    batch = Batch(index, y, x)
    assert as_batch(batch) is batch
    for wrong, message in (
        (x, "not a Tensor"), ({"pixels": x}, "needs one of labels and label"), ((x, y.float()), r"\[B\] integers"),
        ((x, torch.zeros(2, 2).long()), r"\[2, 2\]"), ((x,), "not a tuple"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            as_batch(wrong)


def test_what_needs_row_numbers_says_so(images: TensorDataset, tmp_path: Path) -> None:
    module = ContrastiveDistiller(wrapped(net(1, 4)), classes=10, teacher=wrapped(net(2, 8)), queue=64)
    with pytest.raises(UserError, match=r"a queue of vectors identifies rows by.*\(inputs, labels, index\)"):
        fit(module, loader(images), tmp_path, 2)


def test_maps_are_refused_by_what_needs_words(images: TensorDataset, tmp_path: Path) -> None:
    example = images[:2][0]
    student, teacher = (wrapped(net(seed, 4), example=example) for seed in (1, 2))
    for settings, message in (
        (
            {"loss": "gram"},
            "objective feature, of Net with Net as its teacher: loss=gram relates features over",
        ),
        ({"loss": "fsp"}, "loss=fsp .*maps"),
        ({"loss": "patient"}, "patient compares the first token"),
        ({"layers": [[0, 1]]}, r"the student \(Net\) gives none: count from 1"),
    ):
        with pytest.raises(UserError, match=message):
            FeatureDistiller(student, classes=10, teacher=teacher, **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs attention of the student"):
        AttentionDistiller(student, classes=10, teacher=teacher)
    words = BiLSTM(30, 10, embedding_dim=4, hidden_dim=3)
    with pytest.raises(UserError, match=r"hidden states of Net are maps .* and those of BiLSTM token states"):
        FeatureDistiller(student, classes=10, teacher=words)


def text(seed: int, classes: Any) -> TextCNN:
    torch.manual_seed(seed)
    return TextCNN(30, classes, embedding_dim=4, channels=3, kernel_sizes=(2,))


def test_a_bare_module_is_told_of_wrap() -> None:
    bare: Any = net(1, 4)
    for arguments, side in (((bare, text(1, 10)), "student"), ((text(1, 10), bare), "teacher")):
        with pytest.raises(UserError, match=rf"^{side}: Net is a torch module.*kd\.wrap\(net"):
            SoftLabelDistiller(arguments[0], classes=10, teacher=arguments[1])
    with pytest.raises(UserError, match=r"^teacher: BertForSequenceClassification is a torch module.*kd\.wrap"):
        SoftLabelDistiller(text(1, 3), teacher=bert(1, 1, 8))
    path: Any = "runs/encoder"
    with pytest.raises(UserError, match=r"'runs/encoder' is no model.*kd\.load_teacher"):
        SoftLabelDistiller(text(1, 3), teacher=path)


def test_classes_of_the_two_sides_are_compared() -> None:
    student = text(1, ("neg", "pos"))
    for names, message in (
        (("pos", "neg"), "the same names in another order.*TextCNN.*pos, neg.*neg, pos"),
        (("bad", "good"), "other names.*bad, good"),
        (("neg", "pos", "none"), "3 against 2"),
        (3, "the teacher, TextCNN, has 3, and the strategy 2"),
    ):
        with pytest.raises(UserError, match=message):
            SoftLabelDistiller(student, teacher=text(2, names))
    assert SoftLabelDistiller(student, teacher=text(2, ("neg", "pos"))).classes == ("neg", "pos")
    assert SoftLabelDistiller(text(1, 3), teacher=text(2, 3)).classes == ("0", "1", "2")
    assert SoftLabelDistiller(text(1, 2), classes=["a", "b"], teacher=text(2, 2)).classes == ("a", "b")
    with pytest.raises(UserError, match="the teacher, TextCNN, has 2"):
        SoftLabelDistiller(text(1, 3), classes=3, teacher=text(2, 2))
    with pytest.raises(UserError, match="classes: give their number"):
        SoftLabelDistiller(wrap(net(1, 4)), teacher=wrap(net(2, 8)))


def test_a_wrapped_teacher_of_other_classes_is_refused_before_a_step(images: TensorDataset, tmp_path: Path) -> None:
    module = SoftLabelDistiller(wrap(net(1, 4)), classes=10, teacher=wrap(net(2, 8, classes=3)))
    with pytest.raises(UserError, match="the teacher, Net, has 3, and the strategy 10"):
        fit(module, loader(images), tmp_path, 1)


def test_a_model_is_frozen_as_teacher_and_no_part_of_the_module() -> None:
    teacher = text(2, 3)
    module = SoftLabelDistiller(text(1, 3), teacher=teacher)
    assert isinstance(module.teacher, FrozenModel) and not any(each.requires_grad for each in teacher.parameters())
    module.train()
    assert not teacher.training and all(name.startswith("student.") for name, _ in module.named_parameters())
    same = text(1, 3)
    with pytest.raises(UserError, match="shares parameters with the student"):
        SoftLabelDistiller(same, teacher=same)


def test_a_strategy_knows_whether_it_learns_from_a_teacher() -> None:
    assert SoftLabelDistiller.needs_teacher({}) and not MutualDistiller.needs_teacher({})
    assert not SoftLabelDistiller.needs_teacher({"weights": {"label": 1, "soft_label": 0}})
    by_hand = {"objectives": {"label": SoftLabel()}, "weights": {"label": 1}}
    assert Distiller.needs_teacher(by_hand)  # whatever its name
    data = {"objectives": {"x": {"_target_": "kdresearch.objectives.logits.Label"}}, "weights": {"x": 1}}
    assert not Distiller.needs_teacher(data)
