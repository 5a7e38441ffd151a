"""Scores of any systems, ours or not: what each got for each item of a data set, over seeds.

They come from run records, from tables (Parquet, CSV, TSV, JSON lines) with a row for each system, seed and item, and
from the samples that lm-evaluation-harness writes with ``--log_samples``.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdresearch.errors import UserError, choices

COLUMNS = ("system", "seed", "item", "score", "data")
TABLES = (".parquet", ".csv", ".tsv", ".jsonl")
_SAMPLES = re.compile(r"samples_(?P<task>.+)_\d{4}-\d{2}-\d{2}T[\d.:-]+")
_RIGHT = {"true": 1.0, "false": 0.0, "right": 1.0, "wrong": 0.0}
_NAMED = 3  # items that a message names

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class System:
    """One method on one data set.

    Attributes:
        scores: [S, N], of the runs that finished; S may be 0.
        failures: how many further runs ended otherwise, by how (diverged, failed, ...).
    """

    name: str
    scores: Floats
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def runs(self) -> Floats:
        """[S + failures] means over the items, a failed run being ``-inf``: the worst there is."""
        return np.concatenate([self.scores.mean(1), np.full(sum(self.failures.values()), -math.inf)])


@dataclass(frozen=True)
class Scoreboard:
    """Systems on the same N items of one data set, in the order in which they came."""

    data: str
    items: tuple[str, ...]
    systems: tuple[System, ...]

    def __getitem__(self, name: str) -> System:
        for system in self.systems:
            if system.name == name:
                return system
        raise UserError(f"system {choices(name, [system.name for system in self.systems])}")


@dataclass(frozen=True)
class Cell:
    """One row of a table: what one run of a system got for one item."""

    data: str
    system: str
    seed: str
    item: str
    score: float  # NaN: the run failed


def read_scores(
    paths: Iterable[str | Path],
    *,
    metric: str | None = None,
    columns: Mapping[str, str] | None = None,
    common_items: bool = False,
) -> list[Scoreboard]:
    """One scoreboard for each data set that the paths hold scores for.

    Args:
        paths: tables, folders of run records, or folders of lm-evaluation-harness results.
        metric: of lm-evaluation-harness samples, e.g. ``acc_norm``; where there is one metric it need not be named.
            Of run records it is the accuracy.
        columns: names of columns that are called otherwise: ``{"system": "model", "item": "doc_id"}``.
        common_items: compare on the items that all systems have, instead of refusing systems that lack some.

    Raises:
        UserError: a path that is not there or holds no scores, a column that is missing, a system that has a score for
            an item twice, systems on different items.
    """
    boards: dict[str, list[tuple[tuple[str, ...], System]]] = defaultdict(list)
    cells: list[Cell] = []
    folders: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"there is no file or folder {str(path)!r} to compare")
        if path.is_file():
            cells.extend(_table(path, dict(columns or {}), metric))
        elif any(path.rglob("run.json")):
            folders.append(path)
        elif samples := sorted(path.rglob("samples_*.jsonl")):
            cells.extend(cell for sample in _latest(samples) for cell in _samples(sample, metric))
        else:
            raise UserError(
                f"{str(path)!r} holds neither run records nor lm-evaluation-harness samples (samples_*.jsonl)"
            )
    for data, items, system in (*_systems(cells, common_items), *_recorded(folders)):
        boards[data].append((items, system))
    return [_board(data, entries, common_items) for data, entries in boards.items()]


def _board(data: str, entries: Sequence[tuple[tuple[str, ...], System]], common_items: bool) -> Scoreboard:
    """All systems of a data set on the same items, in one order."""
    names = [system.name for _, system in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{data}: {name!r} comes from two of the paths; give one, or name them apart")
    shared = set(entries[0][0]).intersection(*(items for items, _ in entries))
    every = set().union(*(items for items, _ in entries))
    if shared != every and not common_items:
        items, system = min(entries, key=lambda entry: len(entry[0]))
        lacking = sorted(every - set(items))
        raise UserError(
            f"{data}: {system.name!r} lacks {len(lacking):,} of {len(every):,} items that others have, e.g. "
            f"{', '.join(lacking[:_NAMED])}; common_items=True (--common-items) compares on the "
            f"{len(shared):,} that all have"
        )
    if not shared:
        raise UserError(f"{data}: there is no item that all systems have")
    order = tuple(sorted(shared))
    systems = []
    for items, system in entries:
        place = {item: index for index, item in enumerate(items)}
        systems.append(System(system.name, system.scores[:, [place[item] for item in order]], system.failures))
    return Scoreboard(data, order, tuple(systems))


def _systems(cells: Iterable[Cell], common_items: bool) -> Iterator[tuple[str, tuple[str, ...], System]]:
    """Cells by data set and system, as arrays."""
    runs: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for cell in cells:
        run = runs[cell.data, cell.system][cell.seed]
        if cell.item in run:
            raise UserError(f"{cell.data}: {cell.system!r} has two scores for item {cell.item!r} of seed {cell.seed!r}")
        run[cell.item] = cell.score
    for (data, name), seeds in runs.items():
        finished = {seed: run for seed, run in seeds.items() if not any(map(math.isnan, run.values()))}
        items = sorted(set().union(*(run.keys() for run in seeds.values())))
        if finished and common_items:
            items = [item for item in items if all(item in run for run in finished.values())]
        for seed, run in finished.items():
            if lacking := [item for item in items if item not in run]:
                raise UserError(
                    f"{data}: seed {seed!r} of {name!r} lacks {len(lacking):,} of {len(items):,} items, e.g. "
                    f"{', '.join(lacking[:_NAMED])}; a run that failed has the score NaN"
                )
        scores = np.array([[run[item] for item in items] for run in finished.values()]).reshape(-1, len(items))
        failed = len(seeds) - len(finished)
        yield data, tuple(items), System(name, scores, {"failed": failed} if failed else {})


def _recorded(folders: Sequence[Path]) -> Iterator[tuple[str, tuple[str, ...], System]]:
    """Methods of run records: right and wrong on the test rows."""
    if not folders:
        return
    from kdresearch.reporting.comparison import compare
    from kdresearch.reporting.records import find

    records = find(folders)
    if not records.finished:
        raise UserError(f"no finished run to compare in {', '.join(map(str, folders))}")
    for table in compare(records.finished, unfinished=records.unfinished):
        for row in table.rows:
            if row.runs:
                correct = row.correct.astype(np.float64)
                yield table.title, row.runs[0].predictions.ids, System(row.method, correct, dict(row.failures))


def _table(path: Path, columns: Mapping[str, str], metric: str | None) -> Iterator[Cell]:
    """The rows of a Parquet, CSV, TSV or JSON lines file."""
    if _SAMPLES.fullmatch(path.stem) and path.suffix == ".jsonl":
        yield from _samples(path, metric)
        return
    if path.suffix not in TABLES:
        raise UserError(f"{path}: the kind of file {choices(path.suffix, TABLES)}")
    for name in columns:
        if name not in COLUMNS:
            raise UserError(f"column {choices(name, COLUMNS)}")
    rows = _rows(path)
    header = list(rows[0]) if rows else []
    names = {name: columns.get(name, name) for name in COLUMNS}
    if "score" not in columns and "score" not in header and "correct" in header:
        names["score"] = "correct"
    for name in ("system", "item", "score"):
        if names[name] not in header:
            raise UserError(
                f"{path} has no column {names[name]!r}{' or correct' if names[name] == 'score' else ''}; it has "
                f"{', '.join(map(repr, header)) or 'no rows'}; --columns {name}=NAME names it"
            )
    for number, row in enumerate(rows, start=1):
        yield Cell(
            data=str(row.get(names["data"], path.stem)),
            system=str(row[names["system"]]),
            seed=str(row.get(names["seed"], "")),
            item=str(row[names["item"]]),
            score=_score(row[names["score"]], f"{path}, row {number}"),
        )


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        elif path.suffix == ".jsonl":
            table = pyarrow.json.read_json(path)
        else:
            separator = "\t" if path.suffix == ".tsv" else ","
            table = pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(delimiter=separator))
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read: {(str(problem).splitlines() or ['?'])[0]}") from problem
    return rows


def _score(value: Any, place: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str):
        value = _RIGHT.get(value.strip().lower(), value)
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{place}: the score {value!r} is no number, true or false") from None
    if math.isinf(score):
        raise UserError(f"{place}: the score is infinite; a run that failed has the score NaN")
    return score


def _latest(samples: Sequence[Path]) -> list[Path]:
    """Of each folder and task the last file: the names end in the time at which they were written."""
    files: dict[tuple[Path, str], Path] = {}
    for path in samples:
        match = _SAMPLES.fullmatch(path.stem)
        files[path.parent, match["task"] if match else path.stem] = path
    return list(files.values())


def _samples(path: Path, metric: str | None) -> Iterator[Cell]:
    """One task of one model; the folder has the model's name."""
    import json

    match = _SAMPLES.fullmatch(path.stem)
    task = match["task"] if match else path.stem.removeprefix("samples_")
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{path} is no file of JSON lines ({problem})") from None
    if not all(isinstance(line, dict) and "doc_id" in line for line in lines) or not lines:
        raise UserError(f"{path} is no file of samples: its lines have no doc_id")
    filters = sorted({str(line.get("filter", "none")) for line in lines})
    metrics = [str(name) for name in lines[0].get("metrics", ())] or _numeric(lines[0])
    name, _, rule = (metric or "").partition(",")
    name = name or (metrics[0] if len(metrics) == 1 else "")
    if name not in metrics:
        raise UserError(f"{path.name}: metric {choices(name, metrics)}")
    rule = rule or (filters[0] if len(filters) == 1 else "")
    if rule not in filters:
        raise UserError(f"{path.name}: filter {choices(rule, filters)}; name both: --metric {name},{filters[0]}")
    for line in lines:
        if str(line.get("filter", "none")) == rule:
            yield Cell(task, path.parent.name, "", str(line["doc_id"]), _score(line[name], str(path)))


def _numeric(line: Mapping[str, Any]) -> list[str]:
    """The metrics of a line that does not list them."""
    return [key for key, value in line.items() if isinstance(value, int | float) and key != "doc_id"]
