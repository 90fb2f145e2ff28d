"""The page: files that lie beside the node, under a policy that lets a browser run nothing else.

Rule: the files are read once, from a list made of what is there; no path of a request ever reaches the disk. What
answers hold can be wrong in any way: the policy allows no script, style or address that is not this node's own.

A browser asks for the index each time. All else lies under a path with the hash of all files, so that it asks for
none of them twice, and no page is ever made of the files of two versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from node.gateway.routes import Answered, Route

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
STYLE = "style.css"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
}
ASKED_EACH_TIME = "no-cache"  # answered by 304: a node that was updated shows its new page
KEPT = "public, max-age=31536000, immutable"  # what has another content has another address


@dataclass(frozen=True, slots=True)
class _File:
    """One file as it is sent."""

    body: bytes
    content_type: str
    etag: str
    caching: str


class PageRoutes:
    """Handlers of the page's files."""

    def __init__(self, folder: Path = FOLDER) -> None:
        found = _one_style({path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(folder)})
        index = found.pop(INDEX)
        self._hash = _hash([index, *(each for name in sorted(found) for each in (name.encode(), found[name]))])
        self.address = f"/page/{self._hash}/"
        self._index = _file(INDEX, index.replace(b'"/page/', f'"{self.address}'.encode()), ASKED_EACH_TIME)
        self._files = {name: _file(name, body, KEPT) for name, body in found.items()}

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        kinds = tuple(Answered(kind) for suffix, kind in TYPES.items() if suffix != ".html")
        files = "The page's files; the version is in the page."
        return (
            Route("GET", "/", self.index, "node", "The page.", (Answered(TYPES[".html"]),)),
            Route("GET", "/page/{version}/{name:.+}", self.file, "node", files, kinds, errors=(404,)),
        )

    async def index(self, request: web.Request) -> web.Response:
        """The page itself."""
        return _answer(request, self._index)

    async def file(self, request: web.Request) -> web.Response:
        """One of its files."""
        found = self._files.get(request.match_info["name"])
        if found is None or request.match_info["version"] != self._hash:
            raise web.HTTPNotFound
        return _answer(request, found)


def _answer(request: web.Request, file: _File) -> web.Response:
    headers = HEADERS | {"ETag": f'"{file.etag}"', "Cache-Control": file.caching}
    if any(tag.value == file.etag for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.body, content_type=file.content_type, charset="utf-8", headers=headers)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in TYPES)


def _one_style(files: dict[str, bytes]) -> dict[str, bytes]:
    """With one style sheet in place of all, the frame's first: a browser shows nothing before it has them."""
    names = sorted((name for name in files if name.endswith(".css")), key=lambda name: (name != STYLE, name))
    style = b"\n".join(files[name] for name in names)
    return {name: body for name, body in files.items() if name not in names} | {STYLE: style}


def _file(name: str, body: bytes, caching: str) -> _File:
    return _File(body, TYPES[Path(name).suffix], _hash([body]), caching)


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:32]
