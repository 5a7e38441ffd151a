"""A verified download that shows its progress and goes on where it was cut off."""

from __future__ import annotations

import hashlib
import http.client
import sys
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from kdresearch.artifacts import Store, file_sha256
from kdresearch.errors import UserError

LIMIT = 1 << 30  # bytes of a download: a server that never ends does not fill the disk


def fetch(url: str, sha256: str, folder: Path | None = None, timeout: float = 10.0) -> Path:
    """The file behind a URL, downloaded once into ``folder`` (the store's ``downloads``) and checked.

    A part that was fetched before is continued with a range request.

    Raises:
        UserError: the host cannot be reached, or what came has another checksum or is beyond LIMIT (it is removed).
    """
    folder = folder or Store().root / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / url.rsplit("/", 1)[-1]
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        part = target.with_name(f"{target.name}.part-{hashlib.sha256(url.encode()).hexdigest()[:8]}")
        try:
            _continue(url, part, timeout)
        except UserError:
            part.unlink(missing_ok=True)
            raise
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"cannot download {url} ({reason}); fetch it yourself and give its place with data.path=FILE"
            ) from error
        if file_sha256(part) != sha256:
            part.unlink()
            raise UserError(f"what {url} gave has another checksum than the published archive; it was removed")
        part.replace(target)
    return target


def _continue(url: str, part: Path, timeout: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # the file is complete already
            return
        raise
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else None
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress("{task.description}", *columns, console=Console(file=sys.stderr)) as progress:
            task = progress.add_task(part.name.split(".part-")[0], total=total, completed=have if resumed else 0)
            with part.open("ab" if resumed else "wb") as file:
                while block := response.read(1 << 18):
                    file.write(block)
                    if file.tell() > LIMIT:
                        raise UserError(f"{url} gave more than {LIMIT:,} bytes; what came was removed")
                    progress.advance(task, len(block))
        if total is not None and part.stat().st_size < total:
            raise OSError("the connection was cut off")
