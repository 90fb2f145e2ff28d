"""What was found right, so that gigabytes need not be read again before every load.

Rule: a seal is only as good as the file system's word: size, time of change, time of the entry's change and number of
every file as they were when all digests were last compared. A file that was changed within two seconds of that is not
trusted, because a second change could look the same. `mtor models verify` never relies on seals.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEALS = ".checked"
DOUBTFUL_NS = 2_000_000_000  # clocks of file systems are as coarse as that


@dataclass(frozen=True, slots=True)
class Seals:
    """The seals of a store."""

    root: Path

    def holds(self, name: str, digest: str, folder: Path, files: Iterable[str]) -> bool:
        """True if nothing changed since `put`. Blocks."""
        try:
            seal = json.loads(self._path(name).read_text())
            now = _look(folder, files)
        except (OSError, ValueError):
            return False
        if not isinstance(seal, dict) or seal.get("digest") != digest or seal.get("files") != now:
            return False
        return all(max(look[1], look[2]) < seal["at"] - DOUBTFUL_NS for look in now.values())

    def put(self, name: str, digest: str, folder: Path, files: Iterable[str]) -> None:
        """All digests were compared just now. A store that cannot be written has no seals. Blocks."""
        with contextlib.suppress(OSError):
            path = self._path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}")
            new.write_text(json.dumps({"digest": digest, "at": time.time_ns(), "files": _look(folder, files)}))
            new.replace(path)

    def get(self, name: str, folder: Path, files: Iterable[str]) -> str:
        """The digest that was put, if nothing changed since; or nothing."""
        try:
            digest = str(json.loads(self._path(name).read_text())["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return digest if self.holds(name, digest, folder, files) else ""

    def drop(self, name: str) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.root / SEALS / f"{name}.json"


def _look(folder: Path, files: Iterable[str]) -> dict[str, Any]:
    """[bytes, time of change, time of the entry's change, number of file and disk] of each."""
    looks: dict[str, Any] = {}
    for name in files:
        seen = (folder / name).stat()
        looks[name] = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev]
    return looks
