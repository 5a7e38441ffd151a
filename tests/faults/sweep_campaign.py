"""The contract of a sweep under attack: kills at random moments, a damaged record; compared with a sweep left alone.

Run by ``make faults``: python tests/faults/sweep_campaign.py FOLDER [CELLS] [KILLS] prints a table; 1 if they differ.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "import sys; from kdresearch.cli import main; sys.exit(main())", "train", "-m"]
GRID = (
    "data.rows={train: 240, test: 60, unlabelled: 100}", "data.validation=40", "trainer=cpu", "logger=none",
    "threads=1", "evaluation.efficiency=false", "student=bilstm", "student.model.embedding_dim=12",
    "student.model.hidden_dim=8", "student.tokenizer.max_length=24", "student.training.epochs=10", "teacher=ngram",
    "strategy=supervised,soft_label,attention",
)  # fmt: skip
RESULTS = ("metrics.json", "predictions.parquet", "student/model.safetensors")


def start(folder: Path, store: Path, seeds: int) -> subprocess.Popen[str]:
    words = [*COMMAND, *GRID, f"seed={','.join(map(str, range(1, seeds + 1)))}", f"hydra.sweep.dir={folder}"]
    environment = {**os.environ, "KDRESEARCH_HOME": str(store)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(folder: Path) -> dict[str, int]:
    """When the record of each finished cell was written, in nanoseconds."""
    times = {}
    for path in folder.glob("*/run.json"):
        try:
            if json.loads(path.read_text())["status"] == "finished":
                times[path.parent.name] = path.stat().st_mtime_ns
        except (OSError, ValueError, KeyError):
            continue
    return times


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for name in RESULTS for path in folder.glob(f"*/{name}")}


def main(root: Path, cells: int = 24, kills: int = 20, seed: int = 0) -> int:
    rng, seeds = random.Random(seed), cells // 3
    alone = start(root / "alone", root / "alone_store", seeds)
    table, _ = alone.communicate()
    attacked, store = root / "attacked", root / "attacked_store"
    damaged, again, tracebacks = None, 0, 0
    known: dict[str, int] = {}
    for number in range(kills):
        process = start(attacked, store, seeds)
        time.sleep(rng.uniform(0.5, 14))
        os.kill(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        tracebacks += "Traceback" in errors
        now = finished(attacked)
        again += sum(name != damaged and now.get(name) != written for name, written in known.items())
        known = now
        if number == kills // 2 and known:
            damaged = sorted(known)[0]
            path = attacked / damaged / "predictions.parquet"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    process = start(attacked, store, seeds)
    end, errors = process.communicate()
    tracebacks += "Traceback" in errors
    again += sum(name != damaged and finished(attacked).get(name) != written for name, written in known.items())
    left, right = contents(root / "alone"), contents(attacked)
    differing = sum(left.get(name) != right.get(name) for name in left.keys() | right.keys())
    same_table = end.replace("/attacked/", "/alone/") == table
    print("| cells | kills | damaged | exit status | finished, run again | files that differ | table | tracebacks |")
    print("|---:|---:|---:|---:|---:|---:|---|---:|")
    print(
        f"| {3 * seeds} | {kills} | {int(damaged is not None)} | {process.returncode} | "
        f"{again} | {differing} of {len(left)} | {'equal' if same_table else 'differs'} | {tracebacks} |"
    )
    return int(bool(again or differing or tracebacks or not same_table or process.returncode))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
