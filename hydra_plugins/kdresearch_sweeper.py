"""Hydra takes sweepers from this namespace package alone; see ``kdresearch.commands.sweeper``."""

from __future__ import annotations

from kdresearch.commands.sweeper import CellSweeper


class KdresearchSweeper(CellSweeper):
    """``hydra/sweeper=cells``: every combination of the values, each a cell with a folder of its own."""
