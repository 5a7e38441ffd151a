"""``kdresearch train``: compose a configuration, make a plan of it, run it."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdresearch.bench.context import Context
from kdresearch.bench.run import run
from kdresearch.commands.compose import Composition, plan_of
from kdresearch.commands.console import progress, say
from kdresearch.commands.loggers import close_wandb, log_results, logger_maker
from kdresearch.conf_path import config_dir
from kdresearch.errors import UserError


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One job of ``kdresearch train``; returns the validation score of the kept epoch, for sweepers."""
    job = HydraConfig.get()
    composition = Composition(cfg, dict(job.runtime.choices), list(job.overrides.task))
    try:
        return train(composition, Path(job.runtime.output_dir))
    except UserError as error:
        if job.mode == RunMode.RUN:  # Hydra prints the overrides before an Exception, and this is one line
            raise SystemExit(2) from error
        say(f"job {job.job.num} failed: {error}")
        raise


def train(composition: Composition, folder: Path) -> float | None:
    """Run a composed configuration in a folder."""
    failed = True
    try:
        plan = plan_of(composition)
        config = OmegaConf.to_container(composition.cfg, resolve=True)
        loggers = logger_maker(config["logger"], config)  # type: ignore[call-overload,arg-type,index]
        save_configuration(composition.cfg, folder)
        record = run(plan, folder, Context(say=say, progress=progress), loggers)
        log_results(record)
        failed = False
        return record.metrics.get(plan.selection.monitor)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    finally:
        close_wandb(failed)


def save_configuration(cfg: DictConfig, folder: Path) -> None:
    """Keep the configuration beside the run where Hydra has not."""
    if not (folder / ".hydra" / "config.yaml").exists():
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
