"""The files of a run's record: their checksums, and how a new record takes the place of an earlier one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdresearch import package
from kdresearch.artifacts import file_sha256
from kdresearch.bench.schema import METRICS, PREDICTIONS, RUN, read_json
from kdresearch.errors import UserError

CURVES, STUDENT, CHECKPOINTS = "metrics.csv", "student", "checkpoints"
FINISHED = "finished"
ENDS = (FINISHED, "diverged")
"""What run.json says of a run that has an outcome."""

_DRAFT = ".next"
_REQUIRED = (METRICS, PREDICTIONS)


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that a run leaves in its folder; the student's are in its own config.json."""
    files = [folder / name for name in (METRICS, PREDICTIONS, CURVES)] + sorted(folder.glob(f"{CHECKPOINTS}/*.ckpt"))
    return {str(file.relative_to(folder)): file_sha256(file) for file in files if file.is_file()}


def damage(folder: Path, facts: Mapping[str, Any]) -> str | None:
    """What is wrong with the files of a finished record, in words; None where they are those that were written.

    Checkpoints and curves may have been removed: nothing reads them any more.

    Args:
        facts: run.json. One of an earlier version has no checksums.
    """
    sums: Mapping[str, str] = facts.get("files") or {}
    for name in dict.fromkeys([*_REQUIRED, *sums]):
        try:
            if name in sums and file_sha256(folder / name) != sums[name]:
                return f"{name} is not the file that was written"
            if not (folder / name).is_file():
                raise FileNotFoundError
        except OSError:
            if name in _REQUIRED:
                return f"{name} is missing"
    try:
        student = package.fingerprint(folder / STUDENT)
    except (OSError, UserError) as error:
        return f"its student cannot be read ({error})"
    if student != (facts.get("student") or {}).get("fingerprint"):
        return "student/ is not the student that was written"
    return None


def place_of_record(folder: Path) -> Path:
    """Where a new record of a run folder grows: the folder itself, or beside the record of a run that finished there.

    That one is dropped when the new one has an outcome too; see ``settle``.
    """
    settle(folder)
    return folder / _DRAFT if read_json(folder / RUN).get("status") == FINISHED else folder


def settle(folder: Path) -> None:
    """Put a record that has an outcome and grew beside an earlier one in its place; killed here, it is done again.

    run.json comes last: until then the earlier one's checksums do not fit the files beside it.
    """
    draft = folder / _DRAFT
    facts = read_json(draft / RUN)
    if facts.get("status") not in ENDS:
        return
    present = {Path(name).parts[0] for name in facts["files"]} | ({STUDENT} if facts["student"] else set())
    for name in {METRICS, PREDICTIONS, CURVES, STUDENT, CHECKPOINTS} - present:
        _remove(folder / name)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == RUN):
        if path.is_dir():
            _remove(folder / path.name)
        path.replace(folder / path.name)
    draft.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
