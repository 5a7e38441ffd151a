"""Kept answers are the live ones, to half precision, whatever the order and company of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdresearch.artifacts import Store
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.reviews import Reviews
from kdresearch.data.tokenizers import WordTokenizer
from kdresearch.models.bilstm import BiLSTM
from kdresearch.models.textcnn import TextCNN
from kdresearch.models.transformer import Transformer
from kdresearch.package import Package
from kdresearch.structures import Batch
from kdresearch.teachers import kept
from kdresearch.teachers.kept import KeptTeacher
from kdresearch.teachers.live import LiveTeacher

ARCHITECTURE = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextDataModule:
    store = Store(tmp_path_factory.mktemp("store"))
    source = Reviews(train=40, test=10, unlabelled=4)
    made = TextDataModule(source, WordTokenizer(min_count=1, max_length=24), store=store, batch_size=8).prepare()
    made.teacher_rows = made.student_rows
    return made


def live(kind: str, data: TextDataModule) -> LiveTeacher:
    torch.manual_seed(3)
    size, classes = data.tokenizer.size, data.classes
    model: Any = {
        "transformer": lambda: Transformer(size, len(classes), architecture=ARCHITECTURE),
        "bilstm": lambda: BiLSTM(size, len(classes), embedding_dim=8, hidden_dim=6, layers=2),
        "textcnn": lambda: TextCNN(size, len(classes), embedding_dim=8, channels=4),
    }[kind]()
    return LiveTeacher(Package(model.eval(), data.tokenizer, classes, kind, {}))


def flat(field: Any) -> list[torch.Tensor]:
    return [field] if isinstance(field, torch.Tensor) else [leaf for part in field for leaf in flat(part)]


@pytest.mark.parametrize("kind", ["transformer", "bilstm", "textcnn"])
def test_kept_is_live(kind: str, data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "PIECE", 7)
    teacher = live(kind, data)
    needs = frozenset(teacher.signature.fields - {"embeddings"})
    made = KeptTeacher(
        teacher, kind, data.corpus, data.teacher_rows, data.split.train, needs, Store(tmp_path), batch_size=3
    )
    assert (made.signature.width, made.signature.depth, made.signature.heads) == (
        teacher.signature.width,
        teacher.signature.depth,
        teacher.signature.heads,
    )
    rows = np.random.default_rng(1).permutation(data.split.train)[:9]
    batch = data.rows(rows).__getitems__(list(range(9)))
    answer, again = teacher(batch, needs), made(batch, needs)
    assert torch.equal(answer.mask, again.mask)
    for field in needs:
        own, other = flat(getattr(answer, field)), flat(getattr(again, field))
        assert len(own) == len(other)
        for a, b in zip(own, other, strict=True):
            assert a.shape == b.shape and b.dtype == torch.float32
            if field not in ("logits", "pooled"):  # what a live teacher says of padding is nobody's business
                where = batch.teacher.mask
                if field == "attention":
                    pairs = where[:, None, None] & (where[:, None, :, None] if a.shape[2] > 1 else True)
                    a, b = a * pairs, b * pairs
                else:
                    a, b = a * where[..., None], b * where[..., None]
            torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


def test_nothing_is_asked_twice(data: TextDataModule, tmp_path: Path) -> None:
    teacher, asked = live("bilstm", data), []
    read = teacher.read
    teacher.read = lambda tokens, needs: asked.append(len(tokens.ids)) or read(tokens, needs)  # type: ignore[method-assign]

    def keep(rows: np.ndarray, *fields: str) -> None:
        KeptTeacher(teacher, "t", data.corpus, data.teacher_rows, rows, frozenset(fields), Store(tmp_path))

    train = data.split.train
    keep(train, "hidden")
    assert sum(asked) == len(train)
    keep(train, "hidden")
    assert sum(asked) == len(train)
    keep(train, "hidden", "attention")
    assert sum(asked) == 2 * len(train)
    other = KeptTeacher(
        teacher, "other", data.corpus, data.teacher_rows, train[:4], frozenset({"hidden"}), Store(tmp_path)
    )
    assert sum(asked) == 2 * len(train) + 4
    batch: Batch = data.rows(train[4:6]).__getitems__([0, 1])
    with pytest.raises(KeyError, match="not recorded"):
        other(batch, frozenset({"hidden"}))
