"""The LightningDataModule over any source, tokenizer and split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from kdresearch.artifacts import Store
from kdresearch.data.batches import EpochBatches, Mixture
from kdresearch.data.corpus import Corpus, Source, extend, load
from kdresearch.data.encoding import EncodedRows, encoded, fitted
from kdresearch.data.split import Split, labels_of, split
from kdresearch.data.tokenizers import TextTokenizer, gives_words
from kdresearch.structures import UNLABELLED, Batch


class Rows(Dataset[Batch]):
    """Rows by position, fetched a batch at a time."""

    def __init__(
        self, index: np.ndarray, labels: np.ndarray, student: EncodedRows, teacher: EncodedRows | None
    ) -> None:
        self.index, self.labels, self.student, self.teacher = index, labels, student, teacher

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, positions: list[int]) -> Batch:
        """The batch of some positions; a position given as ``-1 - position`` is a repeat and comes unlabelled."""
        place = np.asarray(positions)
        repeat = place < 0
        index = self.index[np.where(repeat, -1 - place, place)]
        return Batch(
            index=torch.from_numpy(index),
            label=torch.from_numpy(np.where(repeat, UNLABELLED, self.labels[index])),
            student=self.student.tokens(index),
            teacher=self.teacher.tokens(index) if self.teacher is not None else None,
        )


def _as_is(batch: Batch) -> Batch:
    return batch


class TextDataModule(LightningDataModule):
    """Rows of a source, read by a student's tokenizer and, when the teacher runs live, by the teacher's too.

    Args:
        source: where the rows come from.
        tokenizer: how the student reads them.
        store: where corpus, vocabulary and encodings are kept.
        split_seed: of the validation rows and of samples (``limit``).
        order_seed: of the order of training batches.
        batch_size, eval_batch_size: rows of a batch on each device.
        transfer_share: of rows without labels in an epoch; see ``Mixture``.
        workers: processes that fetch batches; 0 fetches in the main one, which is fast enough for memory-mapped ids.
        carve: the settings of ``split``: validation, folds, fold, limit, transfer, transfer_limit.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: TextTokenizer,
        *,
        store: Store | None = None,
        split_seed: int = 0,
        order_seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        transfer_share: float | None = None,
        workers: int = 0,
        say: Callable[[str], None] = lambda _: None,
        **carve: Any,
    ) -> None:
        super().__init__()
        Mixture(1, 1, share=transfer_share)  # refuses
        self.source, self.tokenizer, self.store, self.say = source, tokenizer, store or Store(), say
        self.split_seed, self.order_seed = split_seed, order_seed
        self.batch_size, self.eval_batch_size, self.workers = batch_size, eval_batch_size, workers
        self.carve, self.transfer_share = carve, transfer_share
        self.least_labelled = 0.0  # of an epoch's rows, where transfer_share is None; see ``Mixture``
        self.slices, self.fresh_every = 1, 1
        self.teacher_rows: EncodedRows | None = None
        self.reading: Literal["same", "words", "apart"] = "apart"  # see read_teacher
        self.batches_done = 0
        self._prepared = False

    corpus: Corpus
    split: Split
    labels: np.ndarray
    fingerprint: str
    student_rows: EncodedRows

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.prepare().corpus.classes

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table that the student's ids index."""
        return self.prepare().tokenizer.size

    @property
    def label_changes(self) -> dict[str, int]:
        """Rows of each part whose label the source had to rewrite; a source may leave it out."""
        return dict(getattr(self.source, "label_changes", {}))

    def prepare(self) -> TextDataModule:
        """Read, carve, fit and encode, or open what the store has. Safe to call again, and in every process."""
        if not self._prepared:
            self.corpus = load(self.source, self.store, self.say)
            self.split = split(self.corpus, seed=self.split_seed, **self.carve)
            self.labels = labels_of(self.corpus)
            self.fingerprint = fitted(self.tokenizer, self.corpus, self.split.trained, self.store, self.say)
            self.student_rows = self.read_by(self.tokenizer, self.fingerprint)
            self._prepared = True
        return self

    def read_by(
        self, tokenizer: TextTokenizer, fingerprint: str, index: np.ndarray | None = None, *, words: bool = False
    ) -> EncodedRows:
        """Rows (all that this run uses, if none are named) as a fitted tokenizer reads them.

        Args:
            words: also the word that each token belongs to.
        """
        rows = self.used if index is None else index
        return encoded(tokenizer, fingerprint, self.corpus, rows, self.store, self.say, words=words)

    def read_teacher(self, tokenizer: TextTokenizer, fingerprint: str, *, token_level: bool) -> None:
        """Read the rows with a live teacher's tokenizer too, and find out how the tokens of both sides compare.

        ``reading`` is from then on ``same``, where every row has the same ids on both sides; ``words``, where
        the tokens of both name the words of the text that they belong to; else ``apart``.

        Args:
            token_level: whether tokens are to be compared at all; words cost one more pass over the texts.
        """
        sides = [(self.tokenizer, self.fingerprint), (tokenizer, fingerprint)]
        self.student_rows, self.teacher_rows = student, teacher = [self.read_by(*side) for side in sides]
        self.reading = "same" if student.same_ids(teacher) else "apart"
        if self.reading == "apart" and token_level and all(gives_words(reader) for reader, _ in sides):
            self.student_rows, self.teacher_rows = [self.read_by(*side, words=True) for side in sides]
            self.reading = "words"

    def extend(self, texts: list[str], fingerprint: str, *, slices: int = 1, fresh_every: int = 1) -> None:
        """Add pseudo-samples, which train by the teacher alone, to what is trained on; tokenizers stay as fitted.

        Args:
            fingerprint: of the texts in this order.
            slices, fresh_every: an epoch has one of so many slices, and others after so many epochs; see ``Mixture``.
        """
        first = len(self.corpus)
        self.corpus = extend(self.corpus, "generated", texts, fingerprint)
        self.split = replace(self.split, generated=np.arange(first, len(self.corpus)))
        self.labels = labels_of(self.corpus)
        self.slices, self.fresh_every = slices, fresh_every
        self.student_rows = self.read_by(self.tokenizer, self.fingerprint)

    @property
    def used(self) -> np.ndarray:
        """Every row that this run trains on or evaluates on, in corpus order."""
        split = self.split
        return np.sort(np.concatenate([split.trained, split.generated, split.validation, split.test]))

    @property
    def mixture(self) -> Mixture:
        """Which of the rows that are trained on an epoch has."""
        numbers = {"labelled": len(self.split.train), "transfer": len(self.split.transfer)}
        return Mixture(
            **numbers,
            generated=len(self.split.generated),
            share=self.transfer_share,
            least_labelled=self.least_labelled,
            slices=self.slices,
            fresh_every=self.fresh_every,
            seed=self.order_seed,
        )

    def epoch_rows(self) -> np.ndarray:
        """Every row of the first epoch, by its place in the corpus; repeated ones as often as they come."""
        rows: np.ndarray = np.concatenate([self.split.trained, self.split.generated])[self.mixture(0)]
        return rows

    def setup(self, stage: str | None = None) -> None:
        """``prepare``, as Lightning calls it."""
        self.prepare()

    def rows(self, index: np.ndarray) -> Rows:
        """Corpus-wide indices [N] as a data set of batches."""
        return Rows(index, self.labels, self.student_rows, self.teacher_rows)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the rows that are trained on, in another order in each epoch."""
        index = np.concatenate([self.split.trained, self.split.generated])
        batches = EpochBatches(
            self.student_rows.lengths(index),
            self.batch_size,
            seed=self.order_seed,
            batches_done=self.batches_done,
            epoch_positions=self.mixture,
            labelled=len(self.split.train),
            **self._replicas(),
        )
        return self._loader(index, batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the validation rows."""
        return self.evaluation(self.split.validation)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test rows."""
        return self.evaluation(self.split.test)

    def evaluation(self, index: np.ndarray) -> DataLoader[Batch]:
        """Batches over rows in a fixed order."""
        lengths = self.student_rows.lengths(index)
        batches = EpochBatches(lengths, self.eval_batch_size, shuffle=False, mark_repeats=True, **self._replicas())
        return self._loader(index, batches)

    def training_batches(self) -> Iterator[Batch]:
        """The labelled training rows once, in a fixed order: what a model may look at before it is trained."""
        yield from self._loader(
            self.split.train,
            EpochBatches(self.student_rows.lengths(self.split.train), self.eval_batch_size, shuffle=False),
        )

    def _loader(self, index: np.ndarray, batches: EpochBatches) -> DataLoader[Batch]:
        return DataLoader(
            self.rows(index),
            batch_sampler=batches,
            collate_fn=_as_is,  # type: ignore[arg-type]
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            generator=torch.Generator().manual_seed(self.order_seed),
        )

    def _replicas(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"replicas": trainer.world_size, "rank": trainer.global_rank} if trainer is not None else {}

    def state_dict(self) -> dict[str, Any]:
        """Batches that this replica has trained on."""
        assert self.trainer is not None
        return {"batches_done": self.trainer.fit_loop.epoch_loop.batch_progress.total.ready}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches of ``state_dict``."""
        self.batches_done = state_dict["batches_done"]
