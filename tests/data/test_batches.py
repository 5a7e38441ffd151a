from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdresearch.data.batches import EpochBatches, Mixture
from kdresearch.errors import UserError


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 60, size=count)


def flat(batches: list[list[int]]) -> list[int]:
    return [position for batch in batches for position in batch]


def epochs(batches: EpochBatches, count: int) -> list[list[list[int]]]:
    """What Lightning would read: it names the epoch before each."""
    first = batches.epoch
    read = []
    for epoch in range(first, first + count):
        batches.sampler.set_epoch(epoch)
        read.append(list(batches))
    return read


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 8), (8, 8), (9, 8), (1000, 7), (1000, 32)])
def test_an_epoch_gives_every_row_once(rows: int, size: int, shuffle: bool) -> None:
    batches = EpochBatches(lengths_of(rows), size, shuffle=shuffle, bucket=5)
    for epoch in epochs(batches, 3):
        assert sorted(flat(epoch)) == list(range(rows))
        assert len(epoch) == len(batches) == -(-rows // size)
        assert sorted(map(len, epoch), reverse=True) == [size] * (rows // size) + [rows % size] * (rows % size > 0)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = lengths_of(300)
    first, second, third = epochs(EpochBatches(lengths, 8, seed=4), 3)
    assert epochs(EpochBatches(lengths, 8, seed=4), 3) == [first, second, third]
    assert EpochBatches(lengths, 8, seed=4).batches(1) == second
    assert len({str(one) for one in (first, second, third, *epochs(EpochBatches(lengths, 8, seed=5), 2))}) == 5


@pytest.mark.parametrize("rows", [40, 100, 1000, 5000])
def test_rows_keep_other_company_in_every_epoch(rows: int) -> None:
    first, second = ({frozenset(batch) for batch in one} for one in epochs(EpochBatches(np.arange(rows), 8), 2))
    assert first.isdisjoint(second)


def test_evaluation_goes_by_length_in_every_epoch() -> None:
    lengths = lengths_of(100)
    first, second = epochs(EpochBatches(lengths, 8, shuffle=False, seed=1), 2)
    assert first == second == epochs(EpochBatches(lengths, 8, shuffle=False, seed=2), 1)[0]
    assert np.array_equal(lengths[flat(first)], np.sort(lengths))


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [3, 64, 101, 250])
@pytest.mark.parametrize("options", [{}, {"shuffle": False, "mark_repeats": True}])
def test_replicas_share_out_an_epoch(replicas: int, rows: int, options: dict[str, Any]) -> None:
    lengths = lengths_of(rows)
    shares = [
        epochs(EpochBatches(lengths, 8, replicas=replicas, rank=rank, bucket=4, **options), 2)
        for rank in range(replicas)
    ]
    for epoch in range(2):
        own = [share[epoch] for share in shares]
        batches = -(-rows // 8)
        assert (
            {len(share) for share in own}
            == {-(-batches // replicas)}
            == {len(EpochBatches(lengths, 8, replicas=replicas))}
        )
        given = [batch for share in own for batch in share]
        repeats = len(given) - batches
        if options:
            marked = [batch for batch in given if batch[0] < 0]
            assert len(marked) == repeats and all(position < 0 for batch in marked for position in batch)
            assert sorted(flat([batch for batch in given if batch[0] >= 0])) == list(range(rows))
            assert all([-1 - position for position in batch] in given for batch in marked)
        else:
            distinct = {tuple(batch) for batch in given}
            assert len(distinct) == batches and sorted(flat([list(one) for one in distinct])) == list(range(rows))
            assert repeats == -batches % replicas


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("done", [0, 1, 6, 12, 13, 14, 25, 26, 30])
def test_a_resumed_run_goes_on_where_it_stopped(done: int, replicas: int) -> None:
    options: dict[str, Any] = {"seed": 2, "replicas": replicas, "rank": replicas - 1}
    lengths = lengths_of(100 * replicas)
    whole = [batch for epoch in epochs(EpochBatches(lengths, 8, **options), 4) for batch in epoch]
    resumed = EpochBatches(lengths, 8, batches_done=done, **options)
    assert len(resumed) == 13 if replicas == 1 else len(resumed) == len(whole) // 4
    rest = [batch for epoch in epochs(resumed, 4 - resumed.epoch) for batch in epoch]
    assert rest == whole[done:] and rest
    resumed.set_epoch(done // len(resumed))
    assert list(resumed) == resumed.batches(resumed.epoch)  # read again, that epoch is whole


def test_little_is_padding() -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(174), 0.75, size=25_000), 5, 256).astype(int)
    for batch_size in (32, 64):
        batches = EpochBatches(lengths, batch_size).batches(0)
        padded = sum(lengths[batch].max() * len(batch) for batch in batches)
        assert lengths.sum() / padded >= 0.95
        firsts = [lengths[batch].mean() for batch in batches]
        assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.1  # no march from short to long


def test_every_row_once_where_nothing_is_mixed() -> None:
    mixture = Mixture(7, 3, 5)
    assert mixture(0).tolist() == mixture(4).tolist() == list(range(15))


@pytest.mark.parametrize(
    ("share", "labelled"), [(0.5, 30), (0.75, 10), (0.3, 70), (1.0, 0), (0.9, 3)], ids=lambda value: str(value)
)
def test_labelled_rows_are_repeated_or_left_out_to_fit_a_share(share: float, labelled: int) -> None:
    mixture = Mixture(20, 10, 20, share=share, seed=1)
    rows = [mixture(epoch) for epoch in range(3)]
    for epoch in rows:
        counts = np.bincount(epoch, minlength=50)
        assert counts[20:].tolist() == [1] * 30
        assert counts[:20].sum() == labelled and np.ptp(counts[:20]) <= 1  # none more often than another but by one
    assert rows[0].tolist() == Mixture(20, 10, 20, share=share, seed=1)(0).tolist()
    if labelled % 20:  # who is repeated once more, or left out, is drawn anew
        assert len({tuple(np.sort(epoch)) for epoch in rows}) == 3
        assert sorted(rows[0]) != sorted(Mixture(20, 10, 20, share=share, seed=2)(0))


def test_fresh_pseudo_samples_come_after_some_epochs() -> None:
    mixture = Mixture(4, 2, 10, slices=3, fresh_every=2)
    fresh = [(epoch[6:] - 6).tolist() for epoch in map(mixture, range(8))]
    assert fresh == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2 + [[6, 7, 8]] * 2 + [[0, 1, 2]] * 2  # then from the beginning
    assert all(mixture(epoch)[:6].tolist() == list(range(6)) for epoch in range(8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, "transfer_share must be above 0 and at most 1, not 0.0"),
        ({"share": 1.1}, "transfer_share must be above 0 and at most 1, not 1.1"),
        ({"share": 0.5, "transfer": 0, "generated": 0}, "there are no rows without labels.*generator=NAME"),
        ({"slices": 7}, "generator.fresh_every: 6 pseudo-samples cannot be cut into 7"),
    ],
    ids=str,
)
def test_mixtures_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture(**({"labelled": 4, "transfer": 2, "generated": 6} | given))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("done", [0, 3, 8, 11])
def test_mixed_epochs_go_on_where_they_stopped(done: int, replicas: int) -> None:
    mixture = Mixture(30, 5, 60, share=0.6, slices=2, fresh_every=2, seed=3)
    options: dict[str, Any] = {"seed": 3, "epoch_positions": mixture, "replicas": replicas, "rank": 0}
    lengths = lengths_of(95)
    whole = EpochBatches(lengths, 8, **options)
    assert len(whole) == -(-(35 + 23) // 8 // replicas)
    epochs_whole = epochs(whole, 4)
    if replicas == 1:
        assert [sorted(flat(epoch)) for epoch in epochs_whole] == [sorted(mixture(epoch)) for epoch in range(4)]
    resumed = EpochBatches(lengths, 8, batches_done=done, **options)
    rest = [batch for epoch in epochs(resumed, 4 - resumed.epoch) for batch in epoch]
    assert rest == [batch for epoch in epochs_whole for batch in epoch][done:]


@pytest.mark.parametrize(("others", "least"), [(0, 16), (40, 10), (600, 3)])
def test_each_batch_has_its_share_of_labelled_rows(others: int, least: int) -> None:
    """Though pseudo-samples are much shorter, and sorting by length alone would part the two."""
    lengths = np.concatenate([lengths_of(200) + 100, lengths_of(others, 1)])
    batches = EpochBatches(lengths, 16, labelled=200)
    for epoch in epochs(batches, 2):
        assert sorted(flat(epoch)) == list(range(200 + others))
        assert min(sum(position < 200 for position in batch) for batch in epoch if len(batch) == 16) >= least
        spread = [np.ptp(lengths[[each for each in batch if each < 200]]) for batch in epoch]
        assert np.mean(spread) < 30  # of 60: still sorted


def test_labelled_rows_are_repeated_for_their_least_share() -> None:
    counts = np.bincount(Mixture(20, 10, 90, least_labelled=0.5)(0), minlength=120)
    assert counts.tolist() == [5] * 20 + [1] * 100
    assert Mixture(20, 10, 10, least_labelled=0.5)(0).tolist() == list(range(40))  # enough as they are
    assert len(Mixture(20, 10, 90, share=1.0, least_labelled=0.5)(0)) == 100  # said otherwise
    assert Mixture(20, least_labelled=0.5)(0).tolist() == list(range(20))
