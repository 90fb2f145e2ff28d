"""Names of programs, as an owner writes them."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def named_in(name: str, patterns: Iterable[str]) -> bool:
    """True if a program's name is on the list: in any case, with or without `.exe`, `*` and `?` as in file names. A
    name that Linux cut off at 15 bytes fits the whole one."""
    plain = _plain(name)
    return any(fnmatchcase(plain, _plain(pattern)) or _cut(plain, _plain(pattern)) for pattern in patterns)


def _plain(name: str) -> str:
    return name.strip().lower().removesuffix(".exe")


def _cut(name: str, pattern: str) -> bool:
    return len(name.encode()) == 15 and f"{pattern}.exe".startswith(name)
