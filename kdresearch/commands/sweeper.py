"""Hydra's sweeper with cells that keep: the same command again runs what is missing, and the end is a comparison."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from kdresearch.errors import UserError, choices

if TYPE_CHECKING:
    from kdresearch.bench.sweep import Cell, CellState
    from kdresearch.commands.compose import Composition

RETRY, ON_FAILURE = ("failed",), ("go", "stop")


class CellSweeper(BasicSweeper):
    """Every combination of the values; see conf/hydra/sweeper/cells.yaml.

    Args:
        max_batch_size: how many cells the launcher takes at once; None leaves all to it.
        params: swept values beside those of the command line.
        dry_run: print the cells and what they would cost, and run nothing.
        report: compare the cells at the end.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
        dry_run: bool = False,
        report: bool = True,
    ) -> None:
        super().__init__(max_batch_size, dict(params or {}))
        self.dry_run = dry_run
        self.report = report

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run the cells that are missing, then show how all of them stand.

        Raises:
            UserError: a value of ``retry`` or ``on_failure`` that there is not; cells that failed, at the end.
        """
        from kdresearch.bench import sweep
        from kdresearch.commands.console import say
        from kdresearch.commands.sweep import describe, show_end

        assert self.config is not None
        for name in ("hydra", "hydra_plugins"):  # their lines about each job say less than the job's own
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = Path(str(self.config.hydra.sweep.dir))
        retry, on_failure = self.config.get("retry"), self.config.get("on_failure")
        if retry is not None and retry not in RETRY:
            raise UserError(f"retry {choices(retry, [*RETRY, 'null'])}")
        if on_failure not in ON_FAILURE:
            raise UserError(f"on_failure {choices(on_failure, ON_FAILURE)}")
        compositions = self._compositions(folder, arguments)
        cells = [cell for cell, _ in compositions]
        before = [sweep.state_of(folder, cell) for cell in cells]
        if self.dry_run:
            describe(folder, before, [composition for _, composition in compositions])
            return []
        sweep.write_manifest(folder, cells)
        pending = [state.cell for state in before if _is_pending(state, retry)]
        say(f"{folder}: {len(cells)} cells, {sweep.summary(before)}; {len(pending)} to run")
        results = self._launch(folder, pending, stop=on_failure == "stop")
        show_end(folder, [sweep.state_of(folder, cell) for cell in cells], self.report)
        return results

    def _compositions(self, folder: Path, arguments: Sequence[str]) -> list[tuple[Cell, Composition]]:
        """Each combination with its configuration, composed once."""
        from omegaconf import OmegaConf, open_dict

        from kdresearch.bench.sweep import Cell, cell_name, settled_name
        from kdresearch.commands.compose import Composition

        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        words = self._parse_config() + list(arguments)
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        swept = {override.get_key_element() for override in overrides if _is_swept(override)}
        (combinations,) = self.split_arguments(overrides, None)
        cells: dict[str, tuple[Cell, Composition]] = {}
        for combination in combinations:
            cfg = loader.load_sweep_config(self.config, list(combination))
            options, typed = dict(cfg.hydra.runtime.choices), list(cfg.hydra.overrides.task)
            with open_dict(cfg):
                del cfg["hydra"]
            config: Any = OmegaConf.to_container(cfg, resolve=True)
            values = [word for word in combination if word.partition("=")[0] in swept]
            cell = Cell(settled_name(folder, cell_name(config, values)), tuple(combination))
            cells.setdefault(cell.name, (cell, Composition(cfg, options, typed)))
        return list(cells.values())

    def _launch(self, folder: Path, cells: Sequence[Cell], stop: bool) -> list[Any]:
        """Hand cells to the launcher; one that fails leaves its reason in its folder."""
        from kdresearch.bench.sweep import DIVERGED, FAILED, state_of

        assert self.launcher is not None
        size = self.max_batch_size or (1 if stop else len(cells) or 1)
        results: list[Any] = []
        for start in range(0, len(cells), size):
            batch = cells[start : start + size]
            jobs = [[*cell.overrides, f"hydra.sweep.subdir={cell.name}"] for cell in batch]
            results.extend(self.launcher.launch(jobs, initial_job_idx=start))
            if stop and any(state_of(folder, cell).state in (FAILED, DIVERGED) for cell in batch):
                break
        return results


def _is_pending(state: CellState, retry: str | None) -> bool:
    from kdresearch.bench.sweep import DIVERGED, DONE, FAILED, RUNNING

    if state.state in (FAILED, DIVERGED):
        return retry is not None
    return state.state not in (DONE, RUNNING)


def _is_swept(override: Override) -> bool:
    return bool(override.is_sweep_override())
