"""Where things lie on this machine.

Rule: one data folder a node, for its owner alone; one process at a time has it. Models may be shared between nodes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_data_path

DATA_VARIABLE = "MTOR_DATA"
MODELS_VARIABLE = "MTOR_MODELS"
LOCK_FILE = "node.lock"
TURN_SECONDS = 5.0  # for another process to write a small file


class DataFolderError(Exception):
    """The data folder cannot be used; the message names the fix."""


def data_folder(wanted: Path | None = None) -> Path:
    """The data folder (made if needed, mode 0700): what was asked for, $MTOR_DATA, or the platform's place."""
    folder = wanted or _from_environment(DATA_VARIABLE) or user_data_path("mtor", appauthor=False)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataFolderError(f"{folder} cannot be made: {error.strerror}; choose another with --data") from None
    return folder.resolve()


def models_folder(data: Path) -> Path:
    """The model store: $MTOR_MODELS, or a folder in the data folder."""
    return _from_environment(MODELS_VARIABLE) or data / "models"


def config_file(data: Path, wanted: Path | None = None) -> Path:
    """`realms.yml`: what was asked for, or the one in the data folder (which need not exist)."""
    return wanted or data / "realms.yml"


@contextmanager
def exclusive(data: Path) -> Iterator[None]:
    """Have the data folder for this process. Raises `DataFolderError` if another process has it, or if it cannot be
    written."""
    try:
        opened = (data / LOCK_FILE).open("a+")
    except OSError as error:
        raise DataFolderError(
            f"{data} cannot be written: {error.strerror}; make it writable, or choose another with --data"
        ) from None
    with opened as file:
        if not _lock(file.fileno()):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise DataFolderError(
                f"a node (process {holder}) runs on {data} already; end it with `mtor stop`, or choose another "
                "folder with --data"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Have a lock file for this process while it reads and writes again what several may write. Raises
    `DataFolderError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a+") as file:
        until = time.monotonic() + TURN_SECONDS
        while not _lock(file.fileno()):
            if time.monotonic() > until:
                raise DataFolderError(f"another process keeps {path} locked; end it and try again")
            time.sleep(0.01)
        yield


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value).expanduser() if value else None


def _lock(descriptor: int) -> bool:
    """An advisory lock that ends with the process, however it ends. False if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock_windows(descriptor: int) -> bool:
    import importlib

    msvcrt = importlib.import_module("msvcrt")
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the text, so that others can read who holds it
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        return True
    return False
