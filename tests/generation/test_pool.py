from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdresearch.artifacts import Store
from kdresearch.errors import UserError
from kdresearch.generation.filters import OF_TEXT, Filters, identity, words
from kdresearch.generation.generator import Preparation
from kdresearch.generation.pool import PATIENCE, Pool, pool
from kdresearch.generation.resample import Resample

TRAINING = ["a fine film with a plot that holds", "the acting is dull and the end is worse", "no, I did not laugh once"]
HELD_OUT = ["an end that nobody could have seen coming at all", "dull"]


class Counting:
    """Texts of two numbers, of 1000 that there are; what it was asked is written down."""

    def __init__(self, size: int = 10**9, setting: int = 0, sampling: int = 0) -> None:
        self.size, self.setting, self.sampling = size, setting, sampling
        self.prepared: list[bool] = []  # whether its files were there
        self.generated: list[tuple[int, int]] = []

    def key(self) -> dict[str, Any]:
        return {"generator": "counting", "size": self.size, "setting": self.setting, "sampling": self.sampling}

    def preparation_key(self) -> dict[str, Any]:
        return {"setting": self.setting}

    def prepare(self, preparation: Preparation) -> None:
        folder = preparation.folder
        assert folder is not None
        self.prepared.append((folder / "learnt").exists())
        if not self.prepared[-1]:
            (folder / "learnt").write_text("by heart")
        assert (folder / "learnt").read_text() == "by heart"

    def generate(self, number: int, seed: int, start: int) -> list[str]:
        self.generated.append((seed, start))
        number = min(number, self.size - start)
        return [
            f"film {draw // 40} of year {draw % 40}" for draw in np.random.default_rng(seed).integers(1000, size=number)
        ]


def made(store: Store, generator: Any, filters: Filters | None = None, **settings: Any) -> Pool:
    given: dict[str, Any] = {
        "texts": TRAINING,
        "labels": np.array([1, 0, -1]),
        "classes": ("no", "yes"),
        "held_out": HELD_OUT,
        "number": 100,
        "seed": 0,
        "chunk": 30,
    }
    return pool(generator, filters or Filters(), store=store, **(given | settings))


def near(text: str) -> set[str]:
    """A text of ``Counting`` and those that differ from it in one of their numbers: copies, if it is held out."""
    _, film, _, _, year = text.split()
    other_films, other_years = range(25), range(40)
    return {f"film {each} of year {year}" for each in other_films} | {
        f"film {film} of year {each}" for each in other_years
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_as_many_as_asked_and_every_one_accounted_for(store: Store) -> None:
    generator = Counting()
    found = made(
        store, generator, held_out=["film 3 of year 4"], texts=[*TRAINING, "Film 5 of year 6"], labels=np.zeros(4)
    )
    assert len(found.texts) == found.counts["kept"] == 100
    assert len({identity(words(text)) for text in found.texts}) == 100
    assert list(found.counts) == [*OF_TEXT, "kept"]
    assert found.counts["duplicate"] > 0
    whole = [text for seed, start in generator.generated for text in Counting().generate(30, seed, start)]
    last = whole.index(found.texts[-1])
    assert sum(found.counts.values()) == last + 1  # what was made beyond the last one counts nowhere
    leaks = near("film 3 of year 4")
    assert found.texts == [
        text for text in dict.fromkeys(whole[: last + 1]) if text != "film 5 of year 6" and text not in leaks
    ]
    assert found.counts["leakage"] == len(leaks & set(whole[: last + 1])) > 1
    assert [start for _, start in generator.generated] == [30 * piece for piece in range(len(generator.generated))]
    assert len({seed for seed, _ in generator.generated}) == len(generator.generated)


def test_the_second_time_nothing_is_generated(store: Store) -> None:
    first = made(store, Counting())
    again = Counting()
    assert made(store, again) == first
    assert (again.prepared, again.generated) == ([], [])


def test_what_is_told_of_a_pool(store: Store) -> None:
    found = made(store, generator := Counting())
    assert found.generated == 30 * len(generator.generated) >= sum(found.counts.values())
    pieces = sum(artifact.seconds for artifact in store.artifacts("samples"))
    assert found.seconds == pytest.approx(pieces, abs=1e-3)
    assert found.fingerprint == next(store.artifacts("pool")).path.name


def test_all_there_is(store: Store) -> None:
    said: list[str] = []
    found = made(store, Counting(size=70), number=None, say=said.append)
    assert found.texts == made(store, Counting(size=70)).texts and found.generated == 70
    assert not [line for line in said if "exhausted" in line]


def test_other_samples_of_what_was_prepared_once(store: Store) -> None:
    made(store, Counting())
    other, anew = Counting(sampling=1), Counting(setting=1)
    made(store, other)
    made(store, anew)
    assert (other.prepared, anew.prepared) == ([True], [False])
    assert other.generated and len(list(store.artifacts("generator"))) == 2


def test_a_generator_without_a_preparation_leaves_none(store: Store) -> None:
    made(store, Resample(n_iter=1000))
    assert not list(store.artifacts("generator"))


class Dying(Counting):
    """Its preparation has two halves; it does not survive the second, the first time."""

    error: BaseException = KeyboardInterrupt()

    def prepare(self, preparation: Preparation) -> None:
        folder = preparation.folder
        assert folder is not None
        self.prepared.append((folder / "half").exists())
        if not self.prepared[-1]:
            (folder / "half").touch()
            raise self.error
        (folder / "learnt").write_text("by heart")


def test_a_preparation_that_died_goes_on_from_what_it_left(store: Store) -> None:
    generator = Dying()
    with pytest.raises(KeyboardInterrupt):
        made(store, generator)
    (left,) = store.leftovers()  # which the store shows, and can be rid of
    assert (left / "half").exists() and not list(store.artifacts("generator"))
    made(store, generator)
    (kept,) = store.artifacts("generator")
    assert generator.prepared == [False, True] and set(kept.files) == {"half", "learnt"}
    assert not store.leftovers() and not store.damaged(kept)


def test_a_preparation_that_was_refused_leaves_nothing(store: Store) -> None:
    generator = Dying()
    generator.error = UserError("no")
    with pytest.raises(UserError, match="no"):
        made(store, generator)
    assert not store.leftovers()


def test_a_larger_pool_pays_for_the_difference(store: Store) -> None:
    first, more, fewer = Counting(), Counting(), Counting()
    small = made(store, first)
    large = made(store, more, number=200)
    assert large.texts[:100] == small.texts
    assert more.generated[0][1] == 30 * len(first.generated)
    assert (first.prepared, more.prepared) == ([False], [True])  # what was learnt is not learnt again
    assert made(store, fewer, number=40).texts == small.texts[:40]
    assert (fewer.prepared, fewer.generated) == ([], [])


def test_other_filters_pay_for_nothing(store: Store) -> None:
    first = made(store, Counting())
    other = Counting()
    leak = first.texts[3]
    found = made(store, other, Filters(max_run=2), held_out=[leak], number=80)
    assert other.generated == []
    leaks = near(leak)
    assert found.texts == [text for text in first.texts if text not in leaks][:80]
    assert found.counts["leakage"] == len(leaks & set(first.texts[: first.texts.index(found.texts[-1])])) > 1
    made(store, other, Filters(min_confidence=0.7), number=80)  # the teacher's are asked elsewhere
    assert len(list(store.artifacts("pool"))) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"chunk": 20},
        {"generator": Counting(setting=1)},
        {"texts": [*TRAINING[:2], "another"]},
        {"labels": np.array([1, 1, -1])},
        {"classes": ("bad", "good")},
    ],
    ids=str,
)
def test_what_was_made_of_anything_else_is_not_taken(store: Store, other: dict[str, Any]) -> None:
    made(store, Counting())
    generator = other.pop("generator", Counting())
    generator.generated.clear()
    made(store, generator, **other)
    assert generator.generated[0][1] == 0


def test_a_source_that_ends(store: Store) -> None:
    said: list[str] = []
    found = made(store, Counting(size=70), say=said.append)
    assert len(found.texts) == found.counts["kept"] == 70 - found.counts["duplicate"]
    assert said[-1].startswith(
        f"the generator is exhausted: {found.counts['kept']} pseudo-samples, not 100: length 0, "
    )
    again = Counting(size=70)
    assert made(store, again).texts == found.texts and again.generated == []


def test_a_source_that_gives_nothing(store: Store) -> None:
    with pytest.raises(UserError, match=r"exhausted, and no text passed .* length 70, .* kept 0 of 70$"):
        made(store, Counting(size=70), Filters(min_words=9))
    with pytest.raises(UserError, match="exhausted, and no text passed"):
        made(store, Counting(size=0), number=1)


def test_it_gives_up_where_hardly_anything_passes(store: Store) -> None:
    generator = Counting()  # has 1000 texts
    with pytest.raises(UserError, match=rf"the last {PATIENCE * 200:,} texts gave \d+ samples: length 0, .*duplicate"):
        made(store, generator, number=1001, chunk=200)
    assert PATIENCE < len(generator.generated) <= 2 * PATIENCE
    assert [artifact.kind for artifact in store.artifacts("pool")] == []


@pytest.mark.parametrize("settings", [{"number": 0}, {"chunk": 0}, {"seed": -1}], ids=str)
def test_numbers_that_make_no_sense(store: Store, settings: dict[str, int]) -> None:
    (name,) = settings
    with pytest.raises(UserError, match=f"generator.{name} must be at least"):
        made(store, Counting(), **settings)


def test_resampled_reviews(store: Store) -> None:
    held_out = ["fine", "film", "plot", "acting", "dull", "end", "worse", "laugh", "once"]
    found = made(store, Resample(p_ng=0.5, n_iter=200), number=150, held_out=held_out)
    known = {word for text in [*TRAINING, "[MASK]"] for word in words(text)}
    assert len(found.texts) == 150 and {word for text in found.texts for word in words(text)} <= known
    assert not {identity(words(text)) for text in found.texts} & {identity(words(text)) for text in TRAINING + held_out}
    assert found.counts["training_copy"] and found.counts["duplicate"] and found.counts["leakage"]


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from kdresearch.artifacts import Store
from kdresearch.generation.filters import Filters
from kdresearch.generation.pool import pool
from kdresearch.generation.resample import Resample

home, marks, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

class Slow(Resample):
    def generate(self, number, seed, start):
        with marks.open("a") as file:
            file.write(f"{start}\\n")
        time.sleep(seconds if start == 80 else 0)
        return super().generate(number, seed, start)

texts = ["a fine film with a plot that holds", "the acting is dull and the end is worse", "no, I did not laugh once"]
found = pool(Slow(n_iter=1000), Filters(), store=Store(home), texts=texts, labels=np.array([1, 0, -1]),
             classes=("no", "yes"), held_out=["dull"], number=150, seed=3, chunk=40)
print(repr((found.texts, found.counts)))
"""


def run(home: Path, marks: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(home), str(marks), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_in_the_middle_and_continued(store: Store, tmp_path: Path) -> None:
    marks, other_marks = tmp_path / "marks", tmp_path / "other marks"
    killed, whole = run(store.root, marks, 60), run(tmp_path / "other", other_marks, 0)
    wait_until(lambda: marks.exists() and marks.read_text().splitlines()[-1:] == ["80"])
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(store.artifacts("samples"))) == 2 and not list(store.artifacts("pool"))
    continued, _ = run(store.root, marks, 0).communicate(timeout=60)
    alone, _ = whole.communicate(timeout=60)
    assert continued == alone != ""
    starts = [int(line) for line in other_marks.read_text().split()]
    assert starts == list(range(0, 40 * len(starts), 40)) and len(starts) > 3
    done = [int(line) for line in marks.read_text().split()]
    assert done == [0, 40, 80, *starts[2:]]  # the piece in which it died begins anew, no other does
    assert not store.leftovers()
