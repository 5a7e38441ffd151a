"""``make faults`` runs the long form of what this folder tests in short."""

from __future__ import annotations

import os

import pytest

LONG = os.environ.get("KDRESEARCH_FAULTS") == "long"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("usefixtures") and "long" in item.get_closest_marker("usefixtures").args:
            item.add_marker(pytest.mark.skipif(not LONG, reason="make faults"))


@pytest.fixture
def long() -> None:
    """Marks what only ``make faults`` runs."""
