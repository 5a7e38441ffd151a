"""Who may import whom: the house's plan, enforced."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
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
    "package": BASE | {"data"},
    "conf_path": set(),
    "losses": set(),
    "objectives": {"losses", "structures", "errors"},
    "strategies": {"objectives", "structures", "errors", "evaluation", "models"},
    "models": BASE,
    "data": BASE,
    "teachers": BASE | {"package", "data", "models", "evaluation", "objectives"},
    "generation": BASE | {"data"},
    "evaluation": {"structures", "errors"},
    "reporting": {"evaluation", "structures", "errors", "bench", "artifacts"},
}
EVERYTHING = ("commands", "cli", "__init__")
OUTSIDE_ONLY = {"hydra": {"commands"}, "omegaconf": {"commands"}, "wandb": {"commands", "reporting"}}
# What the report knows of the bench: what a run is.
RECORDS = {"identity"}


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
    here = room(file)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "kdresearch" and len(parts) > 1 and here not in EVERYTHING:
            if here == "bench":
                assert parts[1] not in ("commands", "cli", "reporting"), f"bench must not import {name}"
            else:
                assert parts[1] in ALLOWED[here] | {here, "__version__"}, f"{here} must not import {name}"
        if here == "reporting" and parts[:2] == ["kdresearch", "bench"]:
            assert parts[2] in RECORDS, f"reporting must not import {name}"
        if parts[0] in OUTSIDE_ONLY:
            assert here in OUTSIDE_ONLY[parts[0]], f"{here} must not import {parts[0]}"
        assert here in ("commands", "cli") or parts[:2] != ["kdresearch", "commands"], f"{here} must not import {name}"


def test_structures_and_losses_stand_on_torch_alone() -> None:
    for file in [PACKAGE / "structures.py", *(PACKAGE / "losses").glob("*.py")]:
        outside = {name.split(".")[0] for name in imports(file)} - {"torch", "kdresearch"} - sys.stdlib_module_names
        assert not outside, f"{file.name} imports {outside}"


def test_no_rooms_without_a_name() -> None:
    assert not [file for file in FILES if file.stem in ("utils", "common", "helpers", "misc")]
    assert len(FILES) > 30


@pytest.mark.parametrize("name", ["import kdresearch", "import kdresearch as kd; dir(kd); kd.__version__"])
def test_the_package_costs_nothing_until_it_is_used(name: str) -> None:
    heavy = ("torch", "lightning", "hydra", "omegaconf", "numpy", "transformers", "wandb", "pyarrow")
    script = f"{name}\nimport sys\nprint(*(name for name in {heavy} if name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True, env=os.environ) == "\n"

    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", name], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) <= 0.3
