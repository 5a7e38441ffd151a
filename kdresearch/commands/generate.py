"""``kdresearch generate``: pseudo-samples, and what the teacher says of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdresearch.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from kdresearch.bench.context import Context
    from kdresearch.bench.plan import Plan
    from kdresearch.commands.compose import Composition
    from kdresearch.data.datamodule import TextDataModule
    from kdresearch.structures import Teacher

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
    options = {"number": "", "show": str(DEFAULT_SHOWN), "out": ""}
    overrides, folders = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, _, value = argument.partition("=")
        if name in options:
            options[name] = value
        elif name in ("--config-dir", "-cd"):
            folder = value or next(remaining, "")
            if not folder or not Path(folder).expanduser().is_dir():
                raise UserError(f"--config-dir: there is no folder {folder!r}")
            folders.append(f"file://{Path(folder).expanduser().absolute()}")
        else:
            overrides.append(argument)
    if options["number"]:
        overrides.append(f"generator.number={_number('number', options['number'])}")
    if not any(argument.startswith("strategy=") for argument in overrides):
        overrides.append("strategy=generative")
    shown, out = (
        _number("show", options["show"], least=0),
        Path(options["out"]).expanduser() if options["out"] else None,
    )
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"out={out}: there is no folder {out.absolute().parent}")

    from hydra import initialize_config_dir

    from kdresearch.commands.compose import compose_overrides
    from kdresearch.commands.messages import hydra_refusals
    from kdresearch.conf_path import config_dir

    with hydra_refusals(overrides), initialize_config_dir(config_dir(), version_base="1.3"):
        search = [f"hydra.searchpath={folders}"] if folders else []
        _run(compose_overrides(overrides, search), shown, out)
    return 0


def _number(name: str, text: str, least: int = 1) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number < least:
        raise UserError(f"{name}={text}: a number from {least} up is needed")
    return number


def _run(composition: Composition, shown: int, out: Path | None) -> None:
    import numpy as np

    from kdresearch.bench.context import Context, prepare_process
    from kdresearch.bench.data import open_data
    from kdresearch.bench.fit import check_training
    from kdresearch.bench.samples import add_samples, build_generator, describe_counts, teacher_probabilities
    from kdresearch.bench.teacher import check_teacher, promise_teacher
    from kdresearch.commands.compose import plan_of
    from kdresearch.commands.console import progress, say
    from kdresearch.generation.filters import ACCEPTED, OF_TEACHER, count_verdicts

    plan, context = plan_of(composition, with_teacher=True), Context(say=say, progress=progress)
    prepare_process(plan)
    check_training(plan)
    if plan.samples is None:
        option = composition.options["generator"]
        raise UserError(f"generator={option} makes no samples: choose one with generator=NAME")
    _, filters = build_generator(plan, plan.samples)
    data = open_data(plan, context).prepare()
    if plan.teacher is not None:
        check_teacher(plan.teacher)
        promise_teacher(plan, data.tokenizer, data.classes, context)  # refuses
    facts = add_samples(plan, plan.samples, data, context)
    texts = data.corpus.all_texts(data.split.generated)
    probabilities, verdicts, counts = None, np.full(len(texts), ACCEPTED), facts["counts"]
    if plan.teacher is not None:
        probabilities = teacher_probabilities(_teacher(plan, data, context), data)
        verdicts = filters.teacher_verdicts(probabilities)
        counts = {**facts["counts"], **count_verdicts(verdicts, OF_TEACHER)}
    _show(texts[:shown], probabilities, verdicts, data.classes)
    print(f"{len(texts):,} samples (pool {facts['pool']}): {describe_counts(counts)}")
    if out is not None:
        _write(out, texts, probabilities, verdicts, data.classes)
        print(f"{len(texts):,} rows -> {out}")


def _teacher(plan: Plan, data: TextDataModule, context: Context) -> Teacher:
    """The plan's teacher, recorded on the samples, and checked on the validation rows."""
    from dataclasses import replace

    import numpy as np

    from kdresearch.bench.knowledge import obtain_knowledge
    from kdresearch.bench.run import run
    from kdresearch.bench.teacher import obtain_teacher

    assert plan.teacher is not None
    packages = obtain_teacher(plan.teacher, context, run)
    none = np.empty(0, np.int64)  # what nobody looks at is not paid for
    data.split = replace(data.split, transfer=none, test=none)
    return obtain_knowledge(plan, packages, data, context, live=False, token_level=False).evaluation


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
