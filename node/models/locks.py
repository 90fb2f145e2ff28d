"""Who works on a model, and who uses it, over all processes that share a store.

Rule: locks are the operating system's, so that a process that is killed leaves none; their files stay, because
another process may be waiting at one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from node.models.errors import Progress, step

WAIT_SECONDS = 1.0


@asynccontextmanager
async def turn(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Have the lock `path` alone; while another process has it, say so and wait."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _try_lock(lock):
            await progress(step("wait", message="another process is pulling this model"))
            await trio.sleep(WAIT_SECONDS)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Have the lock `path` alone if nobody else has it; yields whether that is so."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield _try_lock(lock)
    finally:
        os.close(lock)


class Uses:
    """The models that this process uses: shared locks, held until it ends or lets go."""

    def __init__(self) -> None:
        self._held: dict[Path, weakref.finalize[[int], Uses]] = {}

    def hold(self, path: Path) -> None:
        """Use a model. Nothing happens where locks cannot be had (a store that cannot be written)."""
        if path in self._held:
            return
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._held[path] = weakref.finalize(self, os.close, lock)
            _share(lock)

    def release(self, path: Path) -> None:
        """Use it no longer."""
        if path in self._held:
            self._held.pop(path)()


if sys.platform == "win32":
    import msvcrt

    def _try_lock(lock: int) -> bool:
        """True if this process holds the lock now, until it closes the file or ends."""
        try:
            os.lseek(lock, 0, os.SEEK_SET)
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _share(lock: int) -> None:
        """Windows has no shared lock here; files that are in use cannot be deleted there anyway."""

else:
    import fcntl

    def _try_lock(lock: int) -> bool:
        """True if this process holds the lock now, until it closes the file or ends."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _share(lock: int) -> None:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
