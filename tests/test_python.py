"""The blocks of docs/python.md, as they stand there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdresearch as kd
from kdresearch.artifacts import Store

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


def reviews(rows: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Synthetic reviews and their polarity."""
    source = [row for row in kd.Reviews(train=rows, test=2, unlabelled=0, seed=seed).rows() if row.part == "train"]
    return [row.text for row in source], [str(row.label) for row in source]


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: a teacher for the others."""
    texts, labels = reviews(800, seed=1)
    folder = tmp_path_factory.mktemp("floor")
    return kd.distil(student=kd.NgramLinear, texts=texts, labels=labels, seeds=1, folder=folder).folders[0]


def test_nothing_heavy_is_loaded_before_it_is_used() -> None:
    program = (
        "import sys, time; began = time.process_time(); import kdresearch as kd; dir(kd); kd.UserError; "
        "assert not {'torch', 'lightning', 'hydra', 'transformers'} & set(sys.modules), 'heavy'; "
        "print(time.process_time() - began)"
    )
    took = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert took < 0.3


def test_every_public_name_is_there_and_documented() -> None:
    for name in [*kd._HOMES, "losses"]:
        assert name in dir(kd) and getattr(kd, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        kd.Nothing  # noqa: B018


def test_the_parts_under_anybodys_trainer(tmp_path: Path, floor: Path) -> None:
    source = kd.Reviews(train=300, test=50, unlabelled=200)
    data = kd.TextDataModule(source, kd.WordTokenizer(), transfer="unlabelled", store=Store(tmp_path))
    teacher = kd.load_teacher(floor, data)
    student = kd.BiLSTM(vocabulary=data.vocabulary, classes=len(data.classes), embedding_dim=16, hidden_dim=8)
    distiller = kd.SoftLabelDistiller(student, classes=data.classes, teacher=teacher, temperature=2.0)
    before = student.classifier.weight.detach().clone()
    pl.Trainer(max_epochs=1, **QUIET).fit(distiller, data)
    assert not torch.equal(before, student.classifier.weight)
    assert len(list(Store(tmp_path).artifacts("knowledge"))) == 1


def test_a_whole_recorded_comparison(floor: Path, tmp_path: Path) -> None:
    texts, labels = reviews(300)
    small: Callable[..., nn.Module] = kd.Component(
        "kdresearch.models.textcnn.TextCNN", {"embedding_dim": 16, "channels": 8}
    )  # type: ignore[assignment]
    settings = {"student": small, "texts": texts, "labels": labels, "seeds": 2, "folder": tmp_path, "updates": 30}
    taught = kd.distil(teacher=floor, strategy=kd.SoftLabelDistiller, **settings)
    alone = kd.distil(**settings)
    table = str(kd.compare([taught, alone]))
    assert "textcnn · alone" in table and "textcnn · soft_label" in table and "±" in table
    assert taught.student.predict(["a fine film"])[0] in ("negative", "positive")
    changed = [folder.stat().st_mtime_ns for folder in taught.folders]
    again = kd.distil(teacher=floor, strategy=kd.SoftLabelDistiller, **settings)
    assert again.folders == taught.folders and [each.stat().st_mtime_ns for each in again.folders] == changed
    others = kd.distil(**{**settings, "labels": labels[::-1]})
    assert set(others.folders).isdisjoint(alone.folders)  # what is in the lists decides, not what they are called


class Net(nn.Module):
    """A small convolutional network of digits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.stage2(self.stage1(images))).flatten(1))


def digits() -> DataLoader[tuple[torch.Tensor, ...]]:
    data = load_digits()
    images = torch.from_numpy(data.images.astype(np.float32) / 16)[:, None]
    return DataLoader(TensorDataset(images, torch.from_numpy(data.target)), batch_size=64, shuffle=True)


def test_any_torch_modules_and_any_batches() -> None:
    pl.seed_everything(0, verbose=False)
    teacher = kd.wrap(Net(16), hidden=["stage1", "stage2"], pooled="pool")
    student = kd.wrap(Net(4), hidden=["stage1", "stage2"], pooled="pool")
    distiller = kd.FeatureDistiller(student, teacher=teacher, classes=10, layers=[[1, 1], [2, 2]])
    frozen = {name: value.clone() for name, value in teacher.state_dict().items()}
    pl.Trainer(max_epochs=1, **QUIET).fit(distiller, digits())
    assert all(torch.equal(frozen[name], value) for name, value in teacher.state_dict().items())


def test_objectives_by_hand_a_loss_alone_and_knowledge_as_a_value(floor: Path, tmp_path: Path) -> None:
    student = kd.wrap(Net(4), pooled="pool")
    objectives = {"label": kd.Label(), "rkd": kd.RkdDistance()}
    teacher = kd.wrap(Net(16), pooled="pool")
    distiller = kd.Distiller(
        student, teacher=teacher, classes=10, objectives=objectives, weights={"label": 1, "rkd": 25}
    )
    pl.Trainer(max_epochs=1, **QUIET).fit(distiller, digits())

    logits = torch.randn(4, 3)
    assert float(kd.losses.soft_label(logits, logits, temperature=2.0)) == pytest.approx(0, abs=1e-6)

    knowledge = kd.record(floor, ["a fine film", "a dull film"], fields={"logits"}, store=Store(tmp_path))
    expected = kd.Package.probabilities(_opened(floor), ["a fine film", "a dull film"])
    np.testing.assert_allclose(knowledge.probabilities, expected, atol=1e-5)
    with pytest.raises(kd.UserError, match="fields: 'hidden'"):
        kd.record(floor, ["a"], fields={"hidden"})


def _opened(folder: Path) -> kd.Package:
    from kdresearch import package

    return package.load(folder)
