from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdresearch.artifacts import Store
from kdresearch.data.corpus import Row
from kdresearch.data.datamodule import TextDataModule
from kdresearch.data.encoding import fitted
from kdresearch.data.tokenizers import UNKNOWN, NgramTokenizer, PretrainedTokenizer, WordTokenizer
from kdresearch.errors import UserError
from kdresearch.models.ngram import NgramBag
from kdresearch.strategies.supervised import SupervisedDistiller
from kdresearch.structures import UNLABELLED, Batch, Tokens

TRAIN, TEST = 75, 21


class Colours:
    """Texts of 1 to 12 words that tell their class, no two alike."""

    name = "colours"
    synthetic = True
    classes = ("red", "blue")

    def key(self) -> dict[str, object]:
        return {}

    def rows(self) -> Iterator[Row]:
        for part, count in {"train": TRAIN, "test": TEST, "unlabelled": 9}.items():
            for i in range(count):
                label = self.classes[i % 2]
                text = " ".join([f"{part}{i}", *[label] * (1 + i * 7 % 11)])
                yield Row(part, f"{part}/{i}", text, None if part == "unlabelled" else label)


class Watched(SupervisedDistiller):
    """Writes down the rows that each process trains and validates on."""

    def __init__(self, folder: Path, data: TextDataModule) -> None:
        model = NgramBag(data.tokenizer.size, 2, embedding_dim=4)
        super().__init__(model, classes=data.classes)
        self.folder = folder

    def note(self, kind: str, batch: Batch) -> None:
        with (self.folder / f"{kind}{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([self.current_epoch, batch.index.tolist(), batch.label.tolist()]) + "\n")

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.note("train", batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.note("val", batch)
        super().validation_step(batch, batch_idx)


def noted(folder: Path, kind: str) -> list[list[Any]]:
    files = sorted(folder.glob(f"{kind}*.jsonl"))
    return [[rank, *json.loads(line)] for rank, file in enumerate(files) for line in file.read_text().splitlines()]


def data_of(folder: Path, **options: Any) -> TextDataModule:
    settings = {"batch_size": 8, "eval_batch_size": 5, "validation": 11, "order_seed": 3} | options
    tokenizer = settings.pop("tokenizer", None) or WordTokenizer(min_count=1)
    return TextDataModule(Colours(), tokenizer, store=Store(folder / "store"), **settings).prepare()


def fit(data: TextDataModule, folder: Path, resume: Path | None = None, **options: Any) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(0, verbose=False)
    trainer = Trainer(
        **{"accelerator": "cpu", "logger": False, "max_epochs": 2, "num_sanity_val_steps": 0} | options,
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Watched(folder, data), data, ckpt_path=resume)
    return trainer


def batches_equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.index, b.index) and torch.equal(a.label, b.label) and torch.equal(a.student.ids, b.student.ids)
        for a, b in zip(one, other, strict=True)
    )


def test_batches_carry_the_rows_of_their_index(tmp_path: Path) -> None:
    data = data_of(tmp_path, transfer="unlabelled")
    loaders = {"train": data.train_dataloader(), "validation": data.val_dataloader(), "test": data.test_dataloader()}
    rows = {"train": data.split.trained, "validation": data.split.validation, "test": data.split.test}
    for name, loader in loaders.items():
        read = list(loader)
        assert len(read) == len(loader)
        assert sorted(torch.cat([batch.index for batch in read]).tolist()) == sorted(rows[name].tolist())
        for batch in read:
            assert batch.teacher is None and batch.index.dtype == batch.label.dtype == torch.int64
            assert batch.label.tolist() == data.labels[batch.index.numpy()].tolist()
            for text, ids, mask in zip(next(data.corpus.texts(batch.index.numpy())), *batch.student[:2], strict=True):
                assert ids[mask].tolist() == data.tokenizer.encode([text])[0].tolist()
    labels = torch.cat([batch.label for batch in data.train_dataloader()])
    assert (labels == UNLABELLED).sum() == len(data.split.transfer) == 9
    looked = torch.cat([batch.index for batch in data.training_batches()])
    assert sorted(looked.tolist()) == data.split.train.tolist()  # labelled rows alone


SAMPLES = [f"sample{number} {'red blue ' * (number % 5)}unheard" for number in range(12)]


def test_pseudo_samples_are_rows_without_labels(tmp_path: Path) -> None:
    said: list[str] = []
    plain, data = data_of(tmp_path), data_of(tmp_path, say=said.append)
    before = data.used
    data.extend(SAMPLES, "f1")
    assert data.corpus.ids(data.split.generated) == [f"generated/{number}" for number in range(12)]
    assert [text for chunk in data.corpus.texts(data.split.generated) for text in chunk] == SAMPLES
    assert data.used.tolist() == [*before.tolist(), *data.split.generated.tolist()]
    assert data.tokenizer.size == plain.tokenizer.size and data.fingerprint == plain.fingerprint  # as it was fitted
    rows, labels = ([] for _ in range(2))
    for batch in data.train_dataloader():
        rows += batch.index.tolist()
        labels += batch.label.tolist()
        for text, ids, mask in zip(next(data.corpus.texts(batch.index.numpy())), *batch.student[:2], strict=True):
            assert ids[mask].tolist() == data.tokenizer.encode([text])[0].tolist()
    assert sorted(rows) == sorted([*data.split.train.tolist(), *data.split.generated.tolist()])
    assert labels.count(UNLABELLED) == 12 and data.labels[rows].tolist() == labels
    for part in (data.split.validation, data.split.test):
        assert data.corpus.ids(part) == plain.corpus.ids(part)
    assert [line for line in said if "encoding" in line] == ["encoding 12 rows of generated f1"]
    said.clear()
    data_of(tmp_path, say=said.append).extend(SAMPLES, "f1")
    assert not said  # encoded once
    other = data_of(tmp_path)
    other.extend(SAMPLES[::-1], "f2")
    first = other.rows(other.split.generated[:1]).__getitems__([0]).student
    assert first.ids[first.mask].tolist() == other.tokenizer.encode(SAMPLES[-1:])[0].tolist()


@pytest.mark.parametrize("stop", [5, 13])
def test_a_resumed_run_sees_the_same_mixture(tmp_path: Path, stop: int) -> None:
    """Fresh samples every second epoch, beside as many labelled rows."""

    def mixed() -> TextDataModule:
        data = data_of(tmp_path, transfer_share=0.5)
        data.extend(SAMPLES * 4, "f3", slices=2, fresh_every=2)
        return data

    whole = fit(mixed(), tmp_path / "whole", max_epochs=3)
    assert whole.global_step == 3 * 6  # 24 and 24 rows
    saved = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=stop, save_top_k=-1)
    fit(mixed(), tmp_path / "cut", max_epochs=3, max_steps=stop, callbacks=[saved])
    fit(mixed(), tmp_path / "resumed", resume=tmp_path / "saved" / f"step={stop}.ckpt", max_epochs=3)
    rows = [noted(tmp_path / name, "train") for name in ("whole", "cut", "resumed")]
    assert rows[1] + rows[2] == rows[0]
    data = mixed()
    for epoch, half in enumerate((0, 0, 1)):
        of_epoch = [row for _, at, index, _ in rows[0] if at == epoch for row in index]
        generated = sorted(set(of_epoch) & set(data.split.generated.tolist()))
        assert generated == data.split.generated[24 * half :][:24].tolist() and len(of_epoch) == 48


def test_shares_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transfer_share must be above 0"):
        data_of(tmp_path, transfer_share=2.0)
    with pytest.raises(UserError, match="there are no rows without labels"):
        data_of(tmp_path, transfer_share=0.5).train_dataloader()


def test_the_teachers_own_tokens_come_beside_the_students(tmp_path: Path) -> None:
    data, tokenizer = data_of(tmp_path), NgramTokenizer(orders=2, min_count=1)
    name = fitted(tokenizer, data.corpus, data.split.trained, data.store)
    data.teacher_rows = data.read_by(tokenizer, name)
    for batch in data.val_dataloader():
        texts = next(data.corpus.texts(batch.index.numpy()))
        assert [ids[mask].tolist() for ids, mask in zip(*batch.teacher[:2], strict=True)] == [
            tokenizer.encode([text])[0].tolist() for text in texts
        ]


def spelling(folder: Path) -> PretrainedTokenizer:
    """Reads letter by letter, the spaces too."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(str(folder))
    return PretrainedTokenizer(path=folder)


def read_teacher(data: TextDataModule, tokenizer: Any, token_level: bool = True) -> TextDataModule:
    name = fitted(tokenizer, data.corpus, data.split.trained, data.store)
    data.read_teacher(tokenizer, name, token_level=token_level)
    return data


def all_batches(data: TextDataModule) -> list[Batch]:
    return [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader(), *data.training_batches()]


def spelt(ids: torch.Tensor, words: torch.Tensor) -> list[str]:
    """The words of a row that was read letter by letter."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return ["".join(letters[i] for i in ids[words == number]) for number in range(int(words.max()) + 1)]


def test_tokens_of_both_sides_name_the_words_of_the_text(tmp_path: Path) -> None:
    data = data_of(tmp_path, transfer="unlabelled")
    assert data.reading == "apart"  # there is no teacher yet
    before = all_batches(data)
    read_teacher(data, spelling(tmp_path / "spelling"))
    assert data.reading == "words"
    after = all_batches(data)
    assert batches_equal(before, after) and all(batch.student.words is None for batch in before)
    for batch in after:
        for row, text in enumerate(next(data.corpus.texts(batch.index.numpy()))):
            own, other = (Tokens(*(each[row] for each in side)) for side in batch[2:])
            assert own.words[own.mask].tolist() == list(range(len(text.split()))) and (own.words[~own.mask] == -1).all()
            assert spelt(other.ids, other.words) == text.split() and (other.words[~other.mask] == -1).all()


@pytest.mark.parametrize("other", [{"size": 29999}, {"max_length": 12}])
def test_a_teacher_that_gives_every_row_the_same_ids_reads_the_same(tmp_path: Path, other: dict[str, int]) -> None:
    data = read_teacher(data_of(tmp_path), WordTokenizer(min_count=1, **other))
    assert data.reading == "same" and data.teacher_rows is not data.student_rows
    for batch in all_batches(data):
        assert torch.equal(batch.student.ids, batch.teacher.ids) and batch.student.words is batch.teacher.words is None
    assert not list(data.store.artifacts("words"))


@pytest.mark.parametrize("other", [{"max_length": 11}, {"min_count": 2}, {"truncation": "tail", "max_length": 5}])
def test_one_other_length_or_id_is_another_reading(tmp_path: Path, other: dict[str, Any]) -> None:
    """Texts have at most 12 words, each one of its own."""
    data = read_teacher(data_of(tmp_path), WordTokenizer(**{"min_count": 1} | other))
    assert data.reading == "words"
    for batch in all_batches(data):
        known = batch.teacher.mask & (batch.teacher.ids > UNKNOWN)
        theirs = batch.student.ids.gather(1, batch.teacher.words.clamp(min=0))  # whose n-th token is the n-th word
        assert known.any() and torch.equal(theirs[known], batch.teacher.ids[known])


def test_tokens_that_cannot_be_compared_or_need_not_be_are_apart(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    student = data.student_rows
    for tokenizer, token_level in [(NgramTokenizer(min_count=1), True), (spelling(tmp_path / "spelling"), False)]:
        read_teacher(data, tokenizer, token_level)
        assert data.reading == "apart" and data.student_rows.same_ids(student)
        assert all(batch.student.words is batch.teacher.words is None for batch in all_batches(data))
    assert not list(data.store.artifacts("words"))
    ngrams = data_of(tmp_path, tokenizer=NgramTokenizer(min_count=1))
    assert read_teacher(ngrams, WordTokenizer(min_count=1)).reading == "apart"
    assert read_teacher(ngrams, NgramTokenizer(min_count=1)).reading == "same"


def test_the_last_teacher_read_is_the_one_that_counts(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    for tokenizer, reading in [
        (spelling(tmp_path / "spelling"), "words"),
        (WordTokenizer(min_count=1), "same"),
        (WordTokenizer(min_count=2), "words"),
        (NgramTokenizer(min_count=1), "apart"),
    ]:
        assert read_teacher(data, tokenizer).reading == reading
        batch = next(iter(data.test_dataloader()))
        assert (batch.student.words is not None) == (batch.teacher.words is not None) == (reading == "words")


def test_repeats_come_without_a_label(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    rows = data.rows(data.split.test)
    batch = rows.__getitems__([4, -5, 0, -1])
    assert batch.index.tolist() == data.split.test[[4, 4, 0, 0]].tolist()
    first, second = data.labels[data.split.test[[4, 0]]].tolist()
    assert batch.label.tolist() == [first, UNLABELLED, second, UNLABELLED]


def test_what_is_stored_is_read_again_to_the_same_batches(tmp_path: Path) -> None:
    first = data_of(tmp_path)
    said: list[str] = []
    again = data_of(tmp_path, say=said.append)
    assert not said and batches_equal(list(first.train_dataloader()), list(again.train_dataloader()))
    other = data_of(tmp_path, order_seed=4)
    assert not batches_equal(list(first.train_dataloader()), list(other.train_dataloader()))
    assert np.array_equal(first.split.validation, other.split.validation)
    assert not np.array_equal(first.split.validation, data_of(tmp_path, split_seed=9).split.validation)


def test_worker_processes_read_the_same(tmp_path: Path) -> None:
    data, fetched = data_of(tmp_path), data_of(tmp_path, workers=1)
    assert batches_equal(list(data.train_dataloader()), list(fetched.train_dataloader()))
    rows = pickle.loads(pickle.dumps(data.rows(data.split.test)))  # where workers are not forked
    assert batches_equal([rows.__getitems__([3, 1])], [data.rows(data.split.test).__getitems__([3, 1])])


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_a_resumed_run_sees_what_an_uninterrupted_one_does(tmp_path: Path, stop: int) -> None:
    whole = fit(data_of(tmp_path), tmp_path / "whole")
    assert whole.global_step == 16
    saved = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=stop, save_top_k=-1)
    fit(data_of(tmp_path), tmp_path / "cut", max_steps=stop, callbacks=[saved])
    resumed = fit(data_of(tmp_path), tmp_path / "resumed", resume=tmp_path / "saved" / f"step={stop}.ckpt")
    assert resumed.global_step == 16
    rows = [noted(tmp_path / name, "train") for name in ("whole", "cut", "resumed")]
    assert len(rows[1]) == stop and rows[1] + rows[2] == rows[0]


def test_two_processes_share_out_each_epoch(tmp_path: Path) -> None:
    """Run by itself (below): a process that has used threads had better not fork."""
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=120, capture_output=True)
    data = data_of(tmp_path)
    trained, validated = noted(tmp_path / "ddp", "train"), noted(tmp_path / "ddp", "val")
    orders = []
    for epoch in (0, 1):
        shares = [
            [row for rank, at, rows, _ in trained if (rank, at) == (own, epoch) for row in rows] for own in (0, 1)
        ]
        assert sorted(shares[0] + shares[1]) == data.split.train.tolist() and abs(len(shares[0]) - len(shares[1])) <= 8
        orders.append(shares)
        counted = Counter(
            row
            for _, at, rows, labels in validated
            if at == epoch
            for row, label in zip(rows, labels, strict=True)
            if label != UNLABELLED
        )
        assert counted == Counter(data.split.validation.tolist())
    assert orders[0] != orders[1]
    assert len(validated) == 2 * 2 * 2  # three batches of 11 rows, and one again
    summed = json.loads((tmp_path / "ddp" / "metrics.json").read_text())
    assert summed["val/accuracy"] == pytest.approx(summed["alone"], abs=1e-6)


def run_ddp(folder: Path) -> None:
    """Two processes on the CPU; the validation accuracy that they log against that of the weights that come back."""
    torch.set_num_threads(1)
    data = data_of(folder)
    trainer = fit(data, folder / "ddp", devices=2, strategy="ddp_fork", callbacks=[])
    module = trainer.lightning_module.eval()
    batches = list(data_of(folder).val_dataloader())
    with torch.no_grad():
        right = torch.cat([module(batch).argmax(1) == batch.label for batch in batches])
    metrics = {"val/accuracy": trainer.callback_metrics["val/accuracy"].item(), "alone": right.float().mean().item()}
    (folder / "ddp" / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    run_ddp(Path(sys.argv[1]))
