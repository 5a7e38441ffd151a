"""What ends a run from outside: ^C, the SIGTERM of a scheduler, a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdresearch.errors import UserError

TERMINATED = 128 + signal.SIGTERM
"""The exit status of what a SIGTERM ended, as a shell counts it."""

_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_NO_ROOM = 1 << 20  # bytes: a write that fails where less than this is left failed for want of room
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Interrupted(BaseException):
    """A signal came: no KeyboardInterrupt and no SystemExit, of which Lightning makes exits of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def interruptible() -> Iterator[bool]:
    """Raise Interrupted where a SIGINT or SIGTERM comes that nothing else looks after; gives whether this does.

    Raises:
        KeyboardInterrupt, SystemExit: in place of it, once the block is left; the latter's code is ``TERMINATED``.
    """

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what tidies up is not to be interrupted
        raise Interrupted(number)

    main = threading.current_thread() is threading.main_thread()
    ours = [number for number, default in _DEFAULTS.items() if main and signal.getsignal(number) == default]
    try:
        for number in ours:
            signal.signal(number, interrupt)
        yield bool(ours)
    except Interrupted as error:
        if not ours:  # one around this one looks after it
            raise
        if error.number == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise SystemExit(TERMINATED) from error
    finally:
        for number in ours:
            signal.signal(number, _DEFAULTS[number])


@contextmanager
def full_disk_refused(folder: Path) -> Iterator[None]:
    """Say in one line where a disk is full.

    Raises:
        UserError: in place of whatever a library makes of it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not _is_full(error, folder):
            raise
        raise UserError(
            f"the disk of {folder} is full: free some room, and the same command goes on where this one stopped"
        ) from error


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether an exception, or one that led to it, is for want of room; Rust's and torch's have no number."""
    chain: BaseException | None = error
    while chain is not None:
        if getattr(chain, "errno", None) in _FULL or any(os.strerror(number) in str(chain) for number in _FULL):
            return True
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, OSError) and error.errno is not None:
        return False
    try:
        return shutil.disk_usage(folder).free < _NO_ROOM
    except OSError:
        return False
