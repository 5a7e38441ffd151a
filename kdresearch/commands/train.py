"""``kdresearch train``: compose a configuration, make a plan of it, run it, show the result."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdresearch.commands.messages import help_text, hydra_refusals
from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from kdresearch.bench.record import Record
    from kdresearch.commands.compose import Composition


def main(arguments: list[str]) -> int:
    """Run the command, one job or a sweep of them.

    Raises UserError for whatever cannot be, in one line.
    """
    if set(arguments) & {"-h", "--help"}:
        print(help_text(Path(config_dir())), end="")
        return 0
    # With its full errors Hydra raises them; without, it prints them with a trace of its own and exits.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    import hydra

    arguments = ["hydra.sweeper.dry_run=true" if argument == "--dry-run" else argument for argument in arguments]
    sys.argv = [sys.argv[0], *arguments]
    with hydra_refusals(arguments):
        try:
            hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")(job)()
        except SystemExit as stopped:
            if isinstance(stopped.__cause__, Exception):  # a job's own
                raise stopped.__cause__ from stopped.__cause__.__cause__
            raise
    return 0


def job(cfg: DictConfig) -> float | None:
    """One job; returns the validation score of the kept epoch, for sweepers."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from kdresearch.bench.sweep import record_failure
    from kdresearch.commands.compose import Composition
    from kdresearch.commands.console import say

    hydra = HydraConfig.get()
    composition = Composition(cfg, dict(hydra.runtime.choices), list(hydra.overrides.task))
    try:
        record = train(composition, Path(hydra.runtime.output_dir))
    except Exception as error:
        if hydra.mode == RunMode.RUN:  # Hydra prints the overrides before an Exception, and this is one line
            raise SystemExit(2) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        say(f"{Path(hydra.runtime.output_dir).name} failed: {reason}")
        record_failure(Path(hydra.runtime.output_dir), reason)
        raise
    return record.metrics.get(record.plan.selection.monitor)


def train(composition: Composition, folder: Path, tuning: dict[str, Any] | None = None) -> Record:
    """Run a composed configuration in a folder.

    Args:
        tuning: for the record, how its settings were chosen.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from kdresearch.bench.context import Context
    from kdresearch.bench.run import run
    from kdresearch.commands.compose import plan_of
    from kdresearch.commands.console import progress, say
    from kdresearch.commands.loggers import close_wandb, log_results, logger_maker

    failed = True
    try:
        plan = plan_of(composition)
        config: Any = OmegaConf.to_container(composition.cfg, resolve=True)
        loggers = logger_maker(config["logger"], config)
        keep_configuration(composition.cfg, folder)
        record = run(
            plan, folder, Context(say=say, progress=progress, store_limit=config["store"]["limit"]), loggers, tuning
        )
        log_results(record)
        failed = False
        return record
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    finally:
        close_wandb(failed)


def keep_configuration(cfg: DictConfig, folder: Path) -> None:
    """Keep the configuration beside the run where Hydra has not."""
    from omegaconf import OmegaConf

    if not (folder / ".hydra" / "config.yaml").exists():
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
