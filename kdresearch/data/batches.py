"""Batches bucketed by length: the list of an epoch's batches is a pure function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from kdresearch.errors import UserError


@dataclass(frozen=True)
class Mixture:
    """Which rows an epoch has: a pure function of the seed and the epoch, as many in each.

    Positions count the labelled rows first, then those without labels, then the pseudo-samples.

    Args:
        labelled, transfer, generated: rows with labels, real rows without, and pseudo-samples.
        share: of rows without labels in an epoch; labelled ones are repeated, or left out by a sample, to fit. None
            takes every row once, and labelled ones so often that ``least_labelled`` holds.
        least_labelled: share that labelled rows have at least in an epoch, where ``share`` is None.
        slices: into which the pseudo-samples are cut, the same number in each; an epoch has one of them.
        fresh_every: epochs after which the next slice comes; after the last one the first.

    Raises:
        UserError: a share outside (0, 1] or of no rows, or more slices than pseudo-samples.
    """

    labelled: int
    transfer: int = 0
    generated: int = 0
    share: float | None = None
    least_labelled: float = 0.0
    slices: int = 1
    fresh_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"data.transfer_share must be above 0 and at most 1, not {self.share}")
        if self.share is not None and not self.transfer + self.generated:
            raise UserError(
                f"data.transfer_share={self.share}: there are no rows without labels; data.transfer=unlabelled has "
                "them, and generator=NAME makes them"
            )
        if self.generated < self.slices and self.slices > 1:
            raise UserError(f"generator.fresh_every: {self.generated} pseudo-samples cannot be cut into {self.slices}")

    def __call__(self, epoch: int) -> np.ndarray:
        """Positions of the rows of an epoch."""
        size = self.generated // self.slices
        first = self.labelled + self.transfer + epoch // self.fresh_every % self.slices * size
        unlabelled = np.concatenate([np.arange(self.labelled, self.labelled + self.transfer), first + np.arange(size)])
        labelled = np.arange(self.labelled)
        share = self.share
        if share is None and len(labelled) < self.least_labelled * (len(labelled) + len(unlabelled)):
            share = 1 - self.least_labelled
        if share is not None:
            target = round(len(unlabelled) * (1 - share) / share)
            times, rest = divmod(target, self.labelled)
            sample = np.random.default_rng([self.seed, epoch, 0x51]).permutation(self.labelled)[:rest]
            labelled = np.concatenate([np.tile(labelled, times), sample])
        return np.concatenate([labelled, unlabelled])


class EpochBatches(Sampler[list[int]]):
    """Positions of the rows of each batch, rows of about the same length together.

    The rows are shuffled, cut into buckets of many batches, sorted by length within the bucket and cut into
    batches, which are shuffled again. Rows with and without labels are sorted apart and dealt out evenly, so that each
    batch has its share of both, however long they are. Every replica gets the same number of batches; where they do
    not divide, some are given a second time, and with ``mark_repeats`` their positions come as ``-1 - position`` so
    that no metric counts them twice.

    Args:
        lengths: [N] tokens of each row.
        epoch_positions: the positions that an epoch has, as many in each; None takes all rows in every epoch.
        batches_done: batches that this replica trained on before, so that a resumed run goes on where it stopped.
        bucket: batches of a bucket, at most.
        labelled: how many positions, the first ones, are those of rows with labels; None treats all rows alike.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        replicas: int = 1,
        rank: int = 0,
        mark_repeats: bool = False,
        batches_done: int = 0,
        bucket: int = 100,
        epoch_positions: Callable[[int], np.ndarray] | None = None,
        labelled: int | None = None,
    ) -> None:
        self.labelled = labelled
        self.epoch_positions = epoch_positions or (lambda epoch: np.arange(len(lengths)))
        self.size = len(self.epoch_positions(0))
        self.lengths, self.batch_size, self.bucket = lengths, batch_size, bucket
        self.seed, self.shuffle = seed, shuffle
        self.replicas, self.rank, self.mark_repeats = replicas, rank, mark_repeats
        self.epoch, self._skip = divmod(batches_done, max(1, len(self)))
        self._skip_epoch = self.epoch
        self.sampler = self  # Lightning calls batch_sampler.sampler.set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches = -(-self.size // self.batch_size)
        return -(-batches // self.replicas)

    def __iter__(self) -> Iterator[list[int]]:
        first = self._skip if self.epoch == self._skip_epoch else 0
        self._skip = 0
        yield from self.batches(self.epoch)[first:]

    def batches(self, epoch: int) -> list[list[int]]:
        """This replica's batches of an epoch."""
        generator, rows = np.random.default_rng([self.seed, epoch]), self.epoch_positions(epoch)
        rows = generator.permutation(rows) if self.shuffle else rows
        # Few rows are cut into four buckets at least: in one alone, a row would have the same company in every epoch.
        bucket = max(1, min(self.bucket, len(rows) // (4 * self.batch_size)))
        width = bucket * self.batch_size if self.shuffle else max(1, len(rows))
        cut: list[np.ndarray] = []
        for first in range(0, len(rows), width):
            near = self._by_length(rows[first : first + width])
            cut.extend(near[place : place + self.batch_size] for place in range(0, len(near), self.batch_size))
        if self.shuffle:
            cut = [cut[place] for place in generator.permutation(len(cut))]
        missing = len(self) * self.replicas - len(cut)
        repeats = [-1 - batch if self.mark_repeats else batch for batch in (cut * self.replicas)[:missing]]
        return [batch.tolist() for batch in (cut + repeats)[self.rank :: self.replicas]]

    def _by_length(self, rows: np.ndarray) -> np.ndarray:
        """The rows from short to long, those with and without labels in turn as often as there are."""
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        if self.labelled is None:
            return rows
        place = np.empty(len(rows))  # among its own, from 0 to 1
        for kind in (rows < self.labelled, rows >= self.labelled):
            place[kind] = (np.arange(kind.sum()) + 0.5) / max(1, kind.sum())
        ordered: np.ndarray = rows[np.argsort(place, kind="stable")]
        return ordered
