"""One process at a time in a run's folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdresearch.bench.schema import read_json, write_json
from kdresearch.errors import UserError

_LOCK, _HOLDER = ".lock", ".holder.json"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make a run's folder, and have it alone as long as this lasts; a process that dies lets it go.

    Raises:
        UserError: another process has it, and which; or the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(blocking=False)
        write_json(folder / _HOLDER, {"process": os.getpid(), "host": socket.gethostname(), "since": _now()})
    except Timeout:
        holder = read_json(folder / _HOLDER)
        who = "process {process} on {host}, since {since}".format(**holder) if len(holder) == 3 else "another process"
        raise UserError(f"{folder} is in use by {who}: give this run a folder of its own, or wait") from None
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} cannot be a run's folder: {error.strerror}") from error
    try:
        yield
    finally:
        for name in (_HOLDER, _LOCK):  # the lock is still held: whoever opened its file meanwhile sees that it is gone
            (folder / name).unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process has a run's folder; one that died on this host has not, of another host nothing is known."""
    holder = read_json(folder / _HOLDER)
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder["process"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
