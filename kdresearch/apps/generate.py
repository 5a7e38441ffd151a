"""``kdresearch generate``: pseudo-samples, and what the teacher says of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdresearch.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig

    from kdresearch.apps.record import Chosen

HELP = """kdresearch generate [number=N] [show=N] [out=FILE] [OPTION=VALUE ...]: make pseudo-samples and look at them

  number=N           samples that pass the filters of the text: short for generator.number=N (default: as kdresearch
                     train)
  show=N             samples that are shown, with the teacher's probabilities and the filters' verdict (default: 10)
  out=FILE           a Parquet file of them all: text, the teacher's probability of each class, verdict
  --config-dir DIR   a folder of your own options, laid out like conf/

Every other OPTION=VALUE is one of kdresearch train, which finds the samples made by the same options. The samples are
those of the rows that the run would train on; teacher=none shows them without an opinion.

examples:
  kdresearch generate generator=resample teacher=ngram
  kdresearch generate generator=scratch_lm teacher=none number=200 show=20
  kdresearch generate data=imdb data.path=aclImdb_v1.tar.gz data.limit=1000 generator=resample teacher=ngram \\
      generator.filters.min_confidence=0.8 out=samples.parquet
"""
DEFAULT_SHOWN = 10
_WIDTH = 200  # letters of a sample that are shown


def main(arguments: list[str]) -> int:
    """Run the command.

    Raises UserError for what ``kdresearch train`` refuses, a number that is none, and no generator.
    """
    if set(arguments) & {"-h", "--help"}:
        print(HELP, end="")
        return 0
    own = {"number": "", "show": str(DEFAULT_SHOWN), "out": ""}
    overrides, folders = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, _, value = argument.partition("=")
        if name in own:
            own[name] = value
        elif name in ("--config-dir", "-cd"):
            given = value or next(remaining, "")
            if not given or not Path(given).expanduser().is_dir():
                raise UserError(f"--config-dir: there is no folder {given!r}")
            folders.append(f"file://{Path(given).expanduser().absolute()}")
        else:
            overrides.append(argument)
    if own["number"]:
        overrides.append(f"generator.number={_number('number', own['number'])}")
    if not any(argument.startswith("strategy=") for argument in overrides):
        overrides.append("strategy=generative")
    shown, out = _number("show", own["show"], least=0), Path(own["out"]).expanduser() if own["out"] else None
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"out={out}: there is no folder {out.absolute().parent}")

    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    from kdresearch.apps.record import Chosen
    from kdresearch.apps.train_command import told_in_a_line
    from kdresearch.conf_path import config_dir

    with told_in_a_line(overrides), initialize_config_dir(config_dir(), version_base="1.3"):
        search = [f"hydra.searchpath={folders}"] if folders else []
        cfg = compose("train", [*search, *overrides], return_hydra_config=True)
        chosen = Chosen(dict(cfg.hydra.runtime.choices), overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        _run(cfg, chosen, shown, out)
    return 0


def _number(name: str, text: str, least: int = 1) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number < least:
        raise UserError(f"{name}={text}: a number from {least} up is needed")
    return number


def _run(cfg: DictConfig, chosen: Chosen, shown: int, out: Path | None) -> None:
    from dataclasses import replace

    import numpy as np

    from kdresearch.apps import pseudo_samples, train
    from kdresearch.apps import teacher as teachers
    from kdresearch.artifacts import Store
    from kdresearch.generation.filters import KEPT, OF_TEACHER, counted

    train.environment(cfg)
    train.check(cfg)
    if not pseudo_samples.asked(cfg):
        raise UserError(f"generator={chosen.options['generator']} makes no samples: choose one with generator=NAME")
    _, filters = pseudo_samples.made_of(cfg)
    store = Store()
    data = train.rows_of(cfg, store).prepare()
    device = train.device_of(cfg)
    teaches = chosen.options["teacher"] != "none" or teachers.named(cfg)
    if teaches:
        teachers.promise(pseudo_samples.without(cfg), chosen, store, data)  # refuses
    facts = pseudo_samples.add(cfg, data, store, device)
    texts = data.corpus.all_texts(data.split.generated)
    probabilities, verdicts, counts = None, np.full(len(texts), KEPT), facts["counts"]
    if teaches:
        found = teachers.find(pseudo_samples.without(cfg), chosen, store, train.run)
        none = np.empty(0, np.int64)  # what nobody looks at is not paid for
        data.split = replace(data.split, transfer=none, test=none)
        answers = teachers.answer(cfg, found, data, store, device, live=False, token_level=False)
        probabilities = pseudo_samples.probabilities(answers.evaluation, data)
        verdicts = filters.teacher_verdicts(probabilities)
        counts = {**facts["counts"], **counted(verdicts, OF_TEACHER)}
    _show(texts[:shown], probabilities, verdicts, data.classes)
    print(f"{len(texts):,} samples (pool {facts['pool']}): {pseudo_samples.told(counts)}")
    if out is not None:
        _write(out, texts, probabilities, verdicts, data.classes)
        print(f"{len(texts):,} rows -> {out}")


def _show(texts: list[str], probabilities: np.ndarray | None, verdicts: np.ndarray, classes: tuple[str, ...]) -> None:
    for row, text in enumerate(texts):
        line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        opinion = "" if probabilities is None else f"{_opinion(probabilities[row], classes)}  {verdicts[row]}\n"
        print(f"{row:>3}  {opinion}{'     ' if opinion else ''}{line[:_WIDTH]}{'...' if len(line) > _WIDTH else ''}")


def _opinion(probabilities: Any, classes: tuple[str, ...], most: int = 4) -> str:
    likeliest = (-probabilities).argsort(kind="stable")[:most]
    return "  ".join(f"{classes[number]} {probabilities[number]:.3f}" for number in likeliest)


def _write(
    path: Path, texts: list[str], probabilities: np.ndarray | None, verdicts: np.ndarray, classes: tuple[str, ...]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"text": pa.array(texts, pa.large_string())}
    if probabilities is not None:
        columns |= {f"p({name})": probabilities[:, number] for number, name in enumerate(classes)}
    pq.write_table(pa.table({**columns, "verdict": verdicts.tolist()}), path, compression="zstd")
