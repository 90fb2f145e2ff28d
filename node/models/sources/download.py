"""One file by HTTP, gone on with where it was cut off.

Rule: what has come is kept beside a note of what it is the beginning of. It is gone on with by Range and If-Range; a
server that has something else now, or knows no ranges, sends it all. The digest decides at the end: a wrong one is
fetched once more from its beginning if a part of it was old, and is refused otherwise. Redirects are counted and stay
with http and https; never more bytes are taken than were announced or than the disk has room for.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import trio

from node.models.errors import ModelError, Progress, step
from node.models.manifest import READ_BYTES, sha256_of
from node.models.place import delete

TIMEOUT_SECONDS = 15.0  # of silence
MOST_REDIRECTS = 5
SPARE_BYTES = 100_000_000  # left free on the disk
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before the next try when nothing came
REPORT_SECONDS = 0.25
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Dropped(Exception):
    """The connection ended too early; another try may go on."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file. `kept` is where it grows; `sha256` is what it has to be."""

    url: str
    sha256: str
    kept: Path
    headers: Mapping[str, str] | None = None

    @property
    def note(self) -> Path:
        """What the unfinished file is the beginning of."""
        return self.kept.with_name(f"{self.kept.name}.note")


async def download(wanted: Wanted, progress: Progress, pauses: Sequence[float] = PAUSES) -> Path:
    """The whole file with the right digest. Raises `ModelError`; what has come stays for the next call."""
    for fresh in (False, True):
        resumed = _size(wanted.kept) > 0
        if not resumed or _read_note(wanted).get("total") != _size(wanted.kept):
            await _all_of_it(wanted, progress, pauses)
        total = _size(wanted.kept)
        await progress(step("verify", total, total))
        if await trio.to_thread.run_sync(sha256_of, wanted.kept) == wanted.sha256:
            wanted.note.unlink(missing_ok=True)
            return wanted.kept
        delete(wanted.kept)
        wanted.note.unlink(missing_ok=True)
        if fresh or not resumed:
            break
    raise ModelError(f"what came from {_shown(wanted.url)} has another digest than {wanted.sha256}; it is not used")


async def _all_of_it(wanted: Wanted, progress: Progress, pauses: Sequence[float]) -> None:
    """Try until all has come. A try that brought something does not count."""
    failed = 0
    while True:
        before = _size(wanted.kept)
        try:
            await trio.to_thread.run_sync(_Try(wanted, progress).run)
            return
        except Dropped as error:
            failed = 0 if _size(wanted.kept) > before else failed + 1
            if failed > len(pauses):
                raise ModelError(
                    f"{_shown(wanted.url)} cannot be fetched: {error}. What has come is kept; pull again to go on"
                ) from None
            pause = pauses[failed - 1] if failed else pauses[0]
            await progress(step("fetch again", message=f"in {pause:.0f} s: {error}"))
            await trio.sleep(pause)


class _Try:
    """One request, in a thread."""

    def __init__(self, wanted: Wanted, progress: Progress) -> None:
        self._wanted = wanted
        self._speed = Speed(progress)

    def run(self) -> None:
        """Raises `Dropped`, `ModelError`, and what ends the pull."""
        try:
            with contextlib.closing(self._open()) as answer:
                self._take(answer)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (http.client.HTTPException, urllib.error.URLError, ssl.SSLError, ConnectionError, TimeoutError) as error:
            raise Dropped(_reason(error)) from None
        except OSError as error:
            raise ModelError(f"the download cannot be written to {self._wanted.kept.parent}: {error}") from None

    def _open(self) -> Any:
        headers = {"Accept-Encoding": "identity", "User-Agent": "mtor"} | dict(self._wanted.headers or {})
        if (have := _size(self._wanted.kept)) > 0:
            headers["Range"] = f"bytes={have}-"
            if validator := _read_note(self._wanted).get("validator"):
                headers["If-Range"] = validator
        request = urllib.request.Request(self._wanted.url, headers=headers)
        return urllib.request.build_opener(_Redirects()).open(request, timeout=TIMEOUT_SECONDS)

    def _take(self, answer: Any) -> None:
        begin, total = _extent(answer, _size(self._wanted.kept))
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ModelError(f"{_shown(self._wanted.url)} comes packed, which was not asked for")
        if total is not None and shutil.disk_usage(self._wanted.kept.parent).free < total - begin + SPARE_BYTES:
            raise ModelError(f"the file has {total:,} bytes, and there is too little room for it; make room")
        _write_note(self._wanted, answer)
        with self._wanted.kept.open("r+b" if begin else "wb") as file:
            file.truncate(begin)
            file.seek(begin)
            self._copy(answer, file, begin, total)

    def _copy(self, answer: Any, file: IO[bytes], done: int, total: int | None) -> None:
        most = shutil.disk_usage(self._wanted.kept.parent).free - SPARE_BYTES + done if total is None else total
        self._speed.begin(done)
        while block := answer.read1(READ_BYTES):
            trio.from_thread.check_cancelled()
            done += len(block)
            if done > most:
                raise ModelError(f"{_shown(self._wanted.url)} sends more than it announced, or than there is room for")
            file.write(block)
            self._speed.report(done, total or 0)
        if total is not None and done < total:
            raise Dropped(f"the connection ended after {done:,} of {total:,} bytes")

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416:  # what is there is as long as the file or longer
            note = _read_note(self._wanted)
            if note.get("total") != _size(self._wanted.kept):
                delete(self._wanted.kept)
                raise Dropped("the file is shorter there than what has come")
            return
        if error.code in (408, 425, 429) or error.code >= 500:
            raise Dropped(f"the server says {error.code}")
        raise ModelError(f"{_shown(self._wanted.url)}: the server says {error.code} {error.reason}")


class Speed:
    """Reports bytes, bytes a second and seconds left, now and then, from a thread."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._began = (0.0, 0)
        self._told = 0.0

    def begin(self, done: int) -> None:
        """Bytes that are there already do not count as speed."""
        self._began = (self._clock(), done)

    def report(self, done: int, total: int) -> None:
        """Tell it if it is time."""
        now = self._clock()
        if now - self._told < REPORT_SECONDS and done != total:
            return
        self._told = now
        trio.from_thread.run(self._progress, step("fetch", done, total, **speed(*self._began, done, total, now)))


def speed(began: float, begun_with: int, done: int, total: int, now: float) -> dict[str, int]:
    """Bytes a second since the beginning, and the seconds that the rest takes at that; nothing while it is unknown."""
    seconds = now - began
    rate = (done - begun_with) / seconds if seconds > 0 else 0.0
    if rate < 1.0:
        return {}
    return {"bytes_per_second": int(rate)} | ({"seconds_left": int((total - done) / rate)} if total else {})


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A few, between http and https, and never from https to http on another machine's word."""

    max_redirections = MOST_REDIRECTS
    max_repeats = 2

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == ("https", "http"):
            fp.close()
            raise ModelError(f"{_shown(req.full_url)} redirects to {after.scheme}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _extent(answer: Any, have: int) -> tuple[int, int | None]:
    """Where the answer's bytes begin in the file, and the file's size if it is told."""
    length = answer.headers.get("Content-Length")
    if answer.status != 206:
        return 0, int(length) if length and length.isdigit() else None
    found = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have:
        raise ModelError("the server answers with another part of the file than it was asked for")
    return have, int(found[2]) if found[2] != "*" else None


def _write_note(wanted: Wanted, answer: Any) -> None:
    """What is needed to go on. A weak tag is no promise that the bytes are the same."""
    tag = answer.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
    _, total = _extent(answer, _size(wanted.kept))
    wanted.note.write_text(json.dumps({"url": wanted.url, "validator": validator, "total": total}))


def _read_note(wanted: Wanted) -> dict[str, Any]:
    try:
        note = json.loads(wanted.note.read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("url") == wanted.url else {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(error).__name__


def _shown(url: str) -> str:
    """An address without its question, which may hold a key."""
    return url.partition("?")[0]
