"""The store of everything costly that is a pure function of its inputs.

An artifact is a folder named by the digest of its key. It is written to one side, checksummed and renamed into
place under a lock, so that it is either complete or absent, and two processes that need it build it once. What is
opened is compared with its checksums, once per process: what is damaged is reported and built anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from kdresearch.errors import UserError

MANIFEST = "artifact.json"
_NAME = re.compile("[0-9a-f]{24}")
_FIELDS = {"kind": str, "key": dict, "created": str, "seconds": int | float, "files": dict}  # of a manifest
_SUM = "sum"  # of a manifest: the digest of its other fields; those of earlier versions have none
_TICK = 100_000_000  # ns: what changed so lately may change again without another time stamp
_log = logging.getLogger(__name__)
_sums: dict[tuple[int, ...], str] = {}
_mentioned: set[str] = set()
_NO_ROOM = 1 << 20  # bytes: a builder that fails where less than this is left failed for want of room


def digest(key: Any) -> str:
    """The hexadecimal name of a JSON-able key: equal keys give equal names on every machine."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def file_sha256(path: Path) -> str:
    """The checksum of a file, which is read once per process as long as its inode, size and times are the same."""
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if identity in _sums:
        return _sums[identity]
    settled = time.time_ns() - max(identity[-2:]) > _TICK
    checksum = _read_sha256(path)
    if settled:
        _sums[identity] = checksum
    return checksum


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_sum(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON-able fields and the digest of them all."""
    return fields | {_SUM: digest(json.loads(json.dumps(fields)))}


def without_sum(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields alone.

    Raises:
        ValueError: they are not those that the digest was taken of. There need be none.
    """
    rest = {name: value for name, value in fields.items() if name != _SUM}
    if fields.get(_SUM, digest(rest)) != digest(rest):
        raise ValueError("it is not what was written")
    return rest


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: what it is, what it was made from, and where it lies."""

    path: Path
    kind: str
    key: dict[str, Any]
    created: str
    seconds: float
    files: dict[str, dict[str, Any]]

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file["bytes"] for file in self.files.values())


class Store:
    """Content-addressed folders below one root: ``root/kind/digest/``.

    Args:
        root: the store's folder; by default ``KDRESEARCH_HOME``, else the platform's cache folder.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        folder = root or os.environ.get("KDRESEARCH_HOME") or platformdirs.user_cache_dir("kdresearch")
        self.root = Path(folder).expanduser().absolute()

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """The folder of an artifact, whether it is there or not."""
        return self.root / kind / digest(key)

    def find(self, kind: str, key: Mapping[str, Any]) -> Path | None:
        """The artifact's folder if it is there and undamaged; else None."""
        path = self.path(kind, key)
        return path if self._is_whole(path) else None

    def warn_if_shared(self) -> None:
        """Warn, once per process, that others may write to the store: what they put there would be believed."""
        for place in (self.root, *self.root.parents) if os.name == "posix" else ():
            try:
                mode = place.stat().st_mode
            except OSError:
                continue
            # In a folder with the sticky bit only an owner may rename; to the store itself only its owner may add.
            if mode & stat.S_IWOTH and (place == self.root or not mode & stat.S_ISVTX):
                _say_once(f"anybody may write to {place}: what they put into the store at {self.root} would be read as "
                          f"yours (chmod o-w {place})")  # fmt: skip
                return

    def build(
        self,
        kind: str,
        key: Mapping[str, Any],
        builder: Callable[[Path], None],
        waiting: Callable[[str], None] | None = None,
    ) -> Path:
        """Return the artifact's folder, calling ``builder(folder)`` to fill it only if no one has yet.

        Args:
            kind: the noun it is filed under.
            key: everything that its content depends on, JSON-able.
            builder: writes the files into the empty folder it is given.
            waiting: called once with a message if another process is building the same artifact.

        Raises:
            UserError: no room or no permission to write; whatever was half-written is removed.
        """
        path = self.path(kind, key)
        self.warn_if_shared()
        if self._is_whole(path):
            return path
        try:
            with self.locked(path, f"building {kind}/{path.name}", waiting):
                if self._is_whole(path):
                    return path
                self._build_into(path, kind, key, builder)
        except OSError as error:
            if self._is_full(error):
                raise UserError(self._full(kind)) from error
            # What a builder may not read elsewhere is no fault of the store's.
            place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else self.root
            ours = place.is_relative_to(self.root) or place in self.root.parents
            if ours and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
                raise UserError(
                    f"cannot write to the store at {self.root} ({error.strerror}): set KDRESEARCH_HOME"
                ) from error
            raise
        return path

    def _full(self, kind: str) -> str:
        return (
            f"the disk of {self.root} is full: the {kind} artifact was not kept; free some room, "
            "or set KDRESEARCH_HOME to a folder that has it"
        )

    def _is_full(self, error: BaseException) -> bool:
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return False
        number = getattr(error, "errno", None)
        if number is not None:
            return number in (errno.ENOSPC, errno.EDQUOT)
        # numpy's tofile, safetensors and tokenizers have errors of their own for it, without the number.
        return _free(self.root) < _NO_ROOM

    @staticmethod
    def locked(path: Path, doing: str, waiting: Callable[[str], None] | None) -> AbstractContextManager[Any]:
        """Hold ``path``'s lock among processes; ``waiting`` is called with what another is ``doing`` if it holds it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        try:
            return lock.acquire(blocking=False)
        except Timeout:
            if waiting is not None:
                waiting(f"another process is {doing}: waiting for it")
            return lock.acquire()

    def _build_into(self, path: Path, kind: str, key: Mapping[str, Any], builder: Callable[[Path], None]) -> None:
        # The lock is ours: whatever lies beside it under this name was left by a process that died.
        for leftover in path.parent.glob(f"{path.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if path.exists():
            self._away(path)
        partial = path.with_name(f"{path.name}.partial-{socket.gethostname()}-{os.getpid()}")
        partial.mkdir()
        started = time.perf_counter()
        try:
            builder(partial)
            files = {
                str(file.relative_to(partial)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            }
            manifest = {
                "kind": kind,
                "key": dict(key),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.perf_counter() - started, 3),
                "files": files,
            }
            text = json.dumps(with_sum(manifest), indent=1, ensure_ascii=False)
            (partial / MANIFEST).write_text(text, encoding="utf-8")
            for file in partial.rglob("*"):
                _fsync(file)
            os.replace(partial, path)
            _fsync(path.parent)
        except BaseException as error:
            full = self._is_full(error)  # before what fills it is removed
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                raise UserError(self._full(kind)) from error
            raise

    def artifacts(self, kind: str | None = None) -> Iterator[Artifact]:
        """Every finished artifact, oldest first; one whose manifest cannot be read is ``damaged`` and has no key."""
        artifacts = []
        for path in self.root.glob(f"{kind or '*'}/*"):
            if _NAME.fullmatch(path.name) and path.is_dir():
                try:
                    artifacts.append(Artifact(path=path, **_manifest(path)))
                except (OSError, ValueError):
                    if path.exists():  # else it was removed between the two looks
                        unknown = {MANIFEST: {"bytes": 0, "sha256": None}}
                        artifacts.append(Artifact(path, path.parent.name, key={}, created="", seconds=0, files=unknown))
        yield from sorted(artifacts, key=lambda artifact: (artifact.created, artifact.path.name))

    def leftovers(self, remove: bool = False) -> list[Path]:
        """Folders half-written by processes that died; those that are being written are not among them."""
        folders = []
        for partial in sorted(self.root.glob("*/*.partial-*")):
            lock = FileLock(partial.with_name(f"{partial.name.split('.')[0]}.lock"))
            try:
                with lock.acquire(blocking=False):
                    folders.append(partial)
                    if remove:
                        shutil.rmtree(partial, ignore_errors=True)
            except OSError:  # its lock is held (a Timeout is one), or cannot be taken in a store that is only read
                continue
        return folders

    def damaged(self, artifact: Artifact) -> list[str]:
        """The files of an artifact that are missing or whose checksum differs, each of them read again."""
        return [name for name, file in artifact.files.items() if not _same(artifact.path / name, file, _read_sha256)]

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact's folder."""
        self._away(artifact.path)

    @staticmethod
    def _away(path: Path) -> None:
        # Renamed first: a reader sees the complete artifact or none.
        trash = path.with_name(f"{path.name}.partial-removed-{os.getpid()}")
        os.replace(path, trash)
        shutil.rmtree(trash, ignore_errors=True)

    @staticmethod
    def _is_whole(path: Path) -> bool:
        """Whether it is there with every file as in its manifest; what is damaged is reported."""
        try:
            files = _manifest(path)["files"]
            damaged = [name for name, file in files.items() if not _same(path / name, file, file_sha256)]
        except (OSError, ValueError):
            damaged = [MANIFEST]
        if damaged and path.exists():
            _say_once(f"{path.parent.name}/{path.name} in the store is damaged ({', '.join(damaged)}): it is not used")
        return not damaged


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        OSError, ValueError: it cannot be read, or is not what was written.
    """
    try:
        manifest = without_sum(json.loads((path / MANIFEST).read_text(encoding="utf-8")))
        files = manifest["files"].items()
        if manifest.keys() != _FIELDS.keys() or not all(
            isinstance(manifest[name], kind) for name, kind in _FIELDS.items()
        ):
            raise ValueError("it has other fields")
        if not all(file.keys() == {"bytes", "sha256"} and isinstance(file["bytes"], int) for _, file in files):
            raise ValueError("its files have other fields")
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged") from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name, _ in files):
        raise ValueError(f"{path / MANIFEST} names a file outside its folder")
    return manifest


def _same(place: Path, file: Mapping[str, Any], sha256: Callable[[Path], str]) -> bool:
    """Whether a file has the size and the checksum of its entry in a manifest."""
    try:
        return place.is_file() and place.stat().st_size == file["bytes"] and sha256(place) == file["sha256"]
    except OSError:
        return False


def _say_once(words: str) -> None:
    if words not in _mentioned:
        _mentioned.add(words)
        _log.warning(words)


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return _NO_ROOM


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
