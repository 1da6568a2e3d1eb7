"""The lock of an output folder: one process at a time writes there. `.lock` says which: host, pid, command and time.

It is an `flock`, which the kernel lets go of when its owner dies, however that happened. On file systems without one,
the file itself is the lock, and whether its owner still runs is asked of this host's processes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from dudi.errors import DudiError

LOCK = ".lock"
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What `flock` answers on a file system that has none."""


@dataclass(frozen=True)
class Owner:
    """Who holds a folder. born: when its process was created, since a pid alone is given to others later."""

    host: str
    pid: int
    since: str
    command: str
    born: float

    @staticmethod
    def me() -> Owner:
        """This process."""
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        return Owner(socket.gethostname(), os.getpid(), now, command, psutil.Process().create_time())

    def runs(self) -> bool:
        """Whether it may still run: on another host nobody can tell from here."""
        if self.host != socket.gethostname():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.born) < 1
        except psutil.NoSuchProcess:
            return False


def check_free(folder: Path) -> None:
    """Raises `DudiError` where another process holds the folder; nothing is written, and the lock is not taken."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return  # nobody's, or no folder that could be locked, which whoever wants to write there finds out
    try:
        if not _free(handle, made=False):
            raise _held(folder)
    finally:
        os.close(handle)


def beside_lock(folder: Path) -> list[Path]:
    """What lies in a folder, its lock left out; nothing where there is no folder."""
    return sorted(one for one in folder.iterdir() if one.name != LOCK) if folder.is_dir() else []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's own within; it is made if need be, and gone again if nothing was put into it.

    Raises `DudiError` with whose it is and since when.
    """
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder)
    except OSError as error:
        _leave(new)
        raise _unusable(folder, error) from None
    try:
        yield
    finally:
        _let_go(handle, folder / LOCK)
        _leave(new)


def _leave(new: Sequence[Path]) -> None:
    """Folders that were made for the lock go again, unless something was put into them."""
    with suppress(OSError):
        for folder in new:
            folder.rmdir()


def _take(folder: Path) -> int:
    """The open lock file, with this process as its owner."""
    file, me = folder / LOCK, Owner.me()
    while True:
        try:
            handle, made = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            handle, made = os.open(file, os.O_RDWR | os.O_CREAT, 0o644), False
        if not _free(handle, made):
            os.close(handle)
            raise _held(folder)
        if _is(handle, file):
            break
        os.close(handle)  # its last owner took it away between the two calls
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(me), ensure_ascii=False).encode(), 0)
    except OSError:
        _let_go(handle, file)
        raise
    return handle


def _let_go(handle: int, file: Path) -> None:
    if _is(handle, file):
        with suppress(OSError):  # the kernel lets go of it in any case
            file.unlink()  # first: whoever comes next makes a file of its own
    os.close(handle)


def _is(handle: int, file: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _free(handle: int, made: bool) -> bool:
    """Take the lock of an open lock file, `made` by this process or found; False where another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
    owner = _owner(os.pread(handle, 1 << 16, 0))
    return made or (owner is not None and not owner.runs())


def _owner(text: bytes) -> Owner | None:
    """Who a lock file names; None where it is empty or cut, as a kill may leave it."""
    try:
        found: dict[str, Any] = json.loads(text)
        return Owner(str(found["host"]), int(found["pid"]), str(found["since"]), str(found["command"]), found["born"])
    except (ValueError, KeyError, TypeError):
        return None


def _held(folder: Path) -> DudiError:
    owner = _owner((folder / LOCK).read_bytes()) if (folder / LOCK).is_file() else None
    whose = "another process"
    if owner is not None:
        whose = f"process {owner.pid} on {owner.host} since {owner.since} (`{owner.command:.100}`)"
    return DudiError(
        f"output folder {str(folder)!r} is in use by {whose}: wait for it or stop it, or choose another folder with"
        f" --output; if that host is gone, remove {str(folder / LOCK)!r}"
    )


def _unusable(folder: Path, error: OSError) -> DudiError:
    why = "it is a file" if folder.is_file() else error.strerror
    return DudiError(f"output folder {str(folder)!r} cannot be locked: {why}; choose another with --output")
