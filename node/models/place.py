"""Where a pull works: a folder that goes with it, and unfinished downloads that outlive it.

Rule: unfinished downloads lie in `.partial` under the digest of what they will be, one process at a time at each, and
are deleted when nobody went on with them for two weeks. Room on the disk is looked at before anything is fetched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from node.models.errors import ModelError, Progress
from node.models.locks import alone, turn
from node.models.manifest import About

PARTIAL = ".partial"
PARTIAL_SECONDS = 14 * 86_400


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model as its source gave it, checked: not in the store yet."""

    folder: Path
    about: About


@dataclass(frozen=True, slots=True)
class Place:
    """One pull's place in the store."""

    root: Path
    work: Path  # goes when the pull ends, however it ends

    def partial(self, key: str) -> Path:
        """The unfinished download of what `key` is the digest of: a file or a folder, as its source likes."""
        return self.root / PARTIAL / key

    def turn(self, key: str, progress: Progress) -> AbstractAsyncContextManager[None]:
        """Have an unfinished download alone."""
        return turn(self.root / PARTIAL / f"{key}.lock", progress)

    def need(self, needed: int) -> None:
        """Raises `ModelError` if there is too little room."""
        check_space(self.root, needed)


def check_space(root: Path, needed: int) -> None:
    """Raises `ModelError` if less than `needed` bytes are free."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ModelError(f"the pull needs {needed:,} bytes in {root}, {free:,} are free; make room")


@contextlib.contextmanager
def working_place(root: Path, name: str) -> Iterator[Place]:
    """A place for the pull of `name`, whose turn it is. What killed pulls of it left is swept."""
    (root / PARTIAL).mkdir(parents=True, exist_ok=True)
    sweep_partial(root)
    for left in root.glob(f".pulling-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".pulling-{name}-", dir=root))
    try:
        yield Place(root, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def partial_bytes(root: Path) -> int:
    """What unfinished downloads take. Blocks."""
    return folder_bytes(root / PARTIAL)


def folder_bytes(folder: Path) -> int:
    """What lies in a folder; what goes away meanwhile counts nothing. Blocks."""
    return sum(_size(path) for path in _files(folder))


def sweep_partial(root: Path, now: float | None = None) -> None:
    """Delete unfinished downloads that nobody went on with for `PARTIAL_SECONDS`. Blocks."""
    oldest = (time.time() if now is None else now) - PARTIAL_SECONDS
    for path in (root / PARTIAL).glob("*"):
        if path.suffix == ".lock" or _touched(path) >= oldest:
            continue
        with contextlib.suppress(OSError), alone(path.with_name(f"{path.name.partition('.')[0]}.lock")) as free:
            if free:
                delete(path)


def delete(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _touched(path: Path) -> float:
    return max((entry.stat().st_mtime for entry in [path, *_files(path)] if entry.exists()), default=0.0)


def _files(folder: Path) -> list[Path]:
    return [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
