"""Who may import whom: the house's plan, enforced."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import kdresearch

PACKAGE = Path(kdresearch.__file__).parent
BASE = {"errors", "structures", "artifacts", "hub"}
ALLOWED = {
    "errors": set(),
    "structures": {"errors"},
    "artifacts": {"errors"},
    "hub": {"errors"},
    "package": BASE,
    "conf_path": set(),
    "losses": set(),
    "objectives": {"losses", "structures", "errors"},
    "strategies": {"objectives", "models", "structures", "errors", "evaluation"},
    "models": BASE,
    "data": BASE,
    "teachers": BASE | {"package", "data", "models", "evaluation"},
    "generation": BASE | {"data"},
    "evaluation": {"structures", "errors"},
    "bench": {"artifacts", "errors"},
    "reporting": {"bench", "evaluation", "structures", "errors"},
}
OUTSIDE_ONLY = {
    "hydra": {"apps", "cli", "reporting"},
    "omegaconf": {"apps", "cli", "reporting"},
    "wandb": {"apps", "cli", "reporting"},
}


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_what_the_plan_allows(file: Path) -> None:
    own = room(file)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "kdresearch" and len(parts) > 1 and own not in ("apps", "cli", "__init__"):
            assert parts[1] in ALLOWED[own] | {own, "__version__"}, f"{own} must not import {name}"
        if parts[0] in OUTSIDE_ONLY:
            assert own in OUTSIDE_ONLY[parts[0]], f"{own} must not import {parts[0]}"
        assert own in ("apps", "cli") or parts[:2] != ["kdresearch", "apps"]


def test_structures_and_losses_stand_on_torch_alone() -> None:
    for file in [PACKAGE / "structures.py", *(PACKAGE / "losses").glob("*.py")]:
        outside = {name.split(".")[0] for name in imports(file)} - {"torch", "kdresearch"} - sys.stdlib_module_names
        assert not outside, f"{file.name} imports {outside}"


def test_no_rooms_without_a_name() -> None:
    assert not [file for file in FILES if file.stem in ("utils", "common", "helpers", "misc")]
    assert len(FILES) > 30
