"""``kdresearch tune``: as many trials over one space for control and method, then the runs that count."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdresearch.errors import Diverged, UserError, choices

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from kdresearch.bench.search import Dimension

HELP = """kdresearch tune [trials=N] [tune=NAME] [OPTION=VALUE ...]: tune control and method alike, then train both

  trials=N           settings tried for each method, the first of them its defaults (default: tune.trials)
  tune=NAME          the space, a file of conf/tune or of your own (default: default); its values are set by their path:
                     tune.shared.student.training.learning_rate.high=0.03  ~tune.method.strategy.weights
  --config-dir DIR   a folder of your own options, laid out like conf/

Every other OPTION=VALUE is one of kdresearch train; comma-separated values of `seed` are the seeds of the runs that
count, and comma-separated values of any other option are methods, each with a search of its own. Trials are chosen by
selection.monitor on the validation rows and leave the test part alone. The same command goes on where it was stopped
if hydra.sweep.dir=FOLDER is given.

examples:
  kdresearch tune student=textcnn strategy=supervised,soft_label teacher=ngram trials=12 seed=1,2,3 \\
      hydra.sweep.dir=sweeps/tuned
  kdresearch tune data=files data.train=A.csv data.test=B.csv student=bilstm strategy=supervised,soft_label \\
      teacher=ngram trials=20 seed=1,2,3 ~tune.shared.student.model.dropout
  kdresearch report sweeps/tuned
"""


@dataclass(frozen=True)
class Method:
    """One combination of the options that are not seeds."""

    name: str  # of its folder
    overrides: tuple[str, ...]


def main(arguments: list[str]) -> int:
    """Run the command; the comparison of the tuned runs is what it prints last.

    Raises UserError for what ``kdresearch train`` refuses, and for a space that names no setting of any option.
    """
    if set(arguments) & {"-h", "--help"}:
        print(HELP, end="")
        return 0
    overrides, search = _arguments(arguments)
    from hydra import initialize_config_dir

    from kdresearch.commands.messages import hydra_refusals
    from kdresearch.conf_path import config_dir

    with hydra_refusals(overrides), initialize_config_dir(config_dir(), version_base="1.3"):
        folder = _tune(overrides, search)
    from kdresearch.commands.report import report

    return report([folder], folder / "report")


def _arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of ``kdresearch train`` with those of the space, and the search path of options."""
    overrides, search = [], []
    remaining = iter(arguments)
    group = "+tune=default"
    for argument in remaining:
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            path = Path(value or next(remaining, "")).expanduser()
            if not path.is_dir():
                raise UserError(f"--config-dir: there is no folder {str(path)!r}")
            search.append(f"hydra.searchpath=[file://{path.absolute()}]")
        elif name == "tune":
            group = f"+{argument}"
        else:
            overrides.append(f"tune.{argument}" if name == "trials" else argument)
    return [group, *overrides], search


def _tune(overrides: list[str], search: list[str]) -> Path:
    from kdresearch.commands.compose import needs_teacher
    from kdresearch.commands.console import say

    methods, seeds = _methods(overrides)
    folder, setting_names = None, _known_keys(search)
    for method in methods:
        cfg, sweep = _composed([*search, *method.overrides])
        folder = folder or sweep
        space = _space(cfg, setting_names)
        required = [
            dimension.key for dimension in space if not dimension.key.startswith("strategy.") or needs_teacher(cfg)
        ]
        if lacking := [key for key in required if not _has(cfg, key)]:
            say(f"{method.name} has no {', '.join(lacking)}: not searched")
        trials = _trials(method, cfg, search, space, folder)
        for seed in seeds:
            words = [*search, *method.overrides, *_words(trials["chosen"]), f"seed={seed}"]
            _run(words, folder / f"{method.name}-seed{seed}", trials)
    assert folder is not None
    return folder


def _methods(overrides: Sequence[str]) -> tuple[list[Method], list[str]]:
    """Every combination of comma-separated values, and the seeds."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    axes: list[list[str]] = []
    seeds: list[str] = ["0"]
    varied = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        values = (
            [f"{key}={value}" for value in override.sweep_string_iterator()] if override.is_sweep_override() else []
        )
        if key == "seed":
            seeds = [value.partition("=")[2] for value in values] or [str(override.value())]
            continue
        axes.append(values or [str(override.input_line)])
        varied.append(bool(values))
    methods = []
    for words in itertools.product(*axes):
        names = [word.partition("=")[2].replace("/", "_") for word, varies in zip(words, varied, strict=True) if varies]
        methods.append(Method("-".join(names) or "method", words))
    if len({method.name for method in methods}) < len(methods):
        methods = [Method(f"{number}-{method.name}", method.overrides) for number, method in enumerate(methods)]
    return methods, seeds


def _composed(overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """A configuration, and the folder of its sweep."""
    from hydra import compose
    from omegaconf import open_dict

    cfg = compose("train", list(overrides), return_hydra_config=True)
    sweep = Path(str(cfg.hydra.sweep.dir))
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, sweep


def _space(cfg: DictConfig, setting_names: frozenset[str]) -> list[Dimension]:
    """The dimensions, shared ones first; UserError for a setting that no option has.

    Those of methods are drawn for a control too, so that its points are theirs in what both have.
    """
    from omegaconf import OmegaConf

    from kdresearch.bench.search import dimensions

    settings: Any = OmegaConf.to_container(cfg.tune, resolve=True)
    for name in settings:
        if name not in ("trials", "search_seed", "seed", "shared", "method"):
            raise UserError(f"tune: {choices(name, ('trials', 'search_seed', 'seed', 'shared', 'method'))}")
    if not isinstance(settings["trials"], int) or settings["trials"] < 1:
        raise UserError(f"tune.trials: a whole number of at least 1, not {settings['trials']!r}")
    space = [*dimensions(settings.get("shared") or {}), *dimensions(settings.get("method") or {})]
    for dimension in space:
        if not _has(cfg, dimension.key) and dimension.key not in setting_names:
            raise UserError(f"tune: {choices(dimension.key, sorted(setting_names))}")
    return space


def _has(cfg: DictConfig, key: str) -> bool:
    from omegaconf import OmegaConf

    return OmegaConf.select(cfg, key) is not None


def _known_keys(search: Sequence[str]) -> frozenset[str]:
    """Dotted keys of the options of every group: what one student or strategy has and another lacks."""
    from omegaconf import OmegaConf

    from kdresearch.bench.identity import flat
    from kdresearch.conf_path import config_dir

    folders = [Path(config_dir()), *(Path(word.partition("file://")[2].rstrip("]")) for word in search)]
    keys: set[str] = set()
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            if file.parent.name not in ("tune", "experiment"):
                keys |= set(flat(OmegaConf.to_container(OmegaConf.load(file)), file.parent.name))
    return frozenset(keys)


def _trials(
    method: Method, cfg: DictConfig, search: list[str], space: Sequence[Dimension], folder: Path
) -> dict[str, Any]:
    """Train every trial that is not there yet; what a record says of the search."""
    from omegaconf import OmegaConf

    from kdresearch.bench.search import best, dimensions, points
    from kdresearch.commands.compose import needs_teacher
    from kdresearch.commands.console import say

    settings: Any = OmegaConf.to_container(cfg.tune, resolve=True)
    monitor, mode = str(cfg.selection.monitor), str(cfg.selection.mode)
    sections = ("shared", "method") if needs_teacher(cfg) else ("shared",)
    searched = {dimension.key for name in sections for dimension in dimensions(settings.get(name) or {})}
    usable = {key for key in searched if _has(cfg, key)}
    sampled = points(space, settings["trials"] - 1, settings["search_seed"])
    tried = [{}, *({key: value for key, value in point.items() if key in usable} for point in sampled)]
    scores: list[float | None] = []
    for number, point in enumerate(tried):
        words = [*search, *method.overrides, *_words(point), f"seed={settings['seed']}", "evaluation.test=false"]
        words.append("evaluation.efficiency=false")
        metrics = _run(words, folder / "trials" / method.name / f"{number:02d}")
        scores.append(None if metrics is None else metrics[monitor])
        result = "diverged" if metrics is None else f"{monitor} {metrics[monitor]:.4f}"
        say(f"{method.name}: trial {number + 1} of {len(tried)}: {', '.join(_words(point)) or 'defaults'}: {result}")
    winner = best(scores, mode)
    return {
        "trials": len(tried),
        "space": {name: settings.get(name) for name in ("shared", "method")},
        "chosen_by": f"{monitor} ({mode})",
        "search_seed": settings["search_seed"],
        "trial_seed": settings["seed"],
        "validation": scores,
        "trial": winner,
        "chosen": tried[winner],
    }


def _words(point: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in point.items()]


def _run(overrides: Iterable[str], folder: Path, tuning: dict[str, Any] | None = None) -> dict[str, float] | None:
    """The metrics of a run, trained unless a finished one of this identity is there; None where it diverges."""
    from omegaconf import open_dict

    from kdresearch.bench.context import Context
    from kdresearch.bench.fit import check_training
    from kdresearch.bench.identity import identity
    from kdresearch.bench.schema import METRICS, RUN, read_json
    from kdresearch.bench.settings import resolve_settings
    from kdresearch.commands.compose import compose_overrides, plan_of
    from kdresearch.commands.train import train

    composition = compose_overrides(list(overrides))
    with open_dict(composition.cfg):
        del composition.cfg["tune"]
    record = read_json(folder / RUN)
    if record.get("status") in ("finished", "diverged") and record.get("tuning") == _stored(tuning):
        plan = plan_of(composition)
        check_training(plan)
        if record.get("identity") == identity(resolve_settings(plan, Context())):
            return read_json(folder / METRICS) if record["status"] == "finished" else None
    try:
        return train(composition, folder, tuning).metrics
    except Diverged:
        return None


def _stored(tuning: dict[str, Any] | None) -> Any:
    """As it reads once it was written."""
    return None if tuning is None else json.loads(json.dumps(tuning))
