"""The page: files that lie beside the node, under a policy that lets a browser run nothing else.

Rule: the files are read once, from a list made of what is there; no path of a request ever reaches the disk. What
answers hold can be wrong in any way: the policy allows no script, style or address that is not this node's own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from node.gateway.routes import Answered, Route

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
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
    "Cache-Control": "no-cache",  # asked each time, answered by 304: a node that was updated shows its new page
}


@dataclass(frozen=True, slots=True)
class _File:
    """One file as it is sent."""

    body: bytes
    content_type: str
    etag: str


class PageRoutes:
    """Handlers of the page's files."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {path.relative_to(folder).as_posix(): _read(path) for path in _files(folder)}

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        kinds = tuple(Answered(kind) for kind in TYPES.values())
        return (
            Route("GET", "/", self.index, "node", "The page.", (Answered(TYPES[".html"]),)),
            Route("GET", "/page/{name:.+}", self.file, "node", "The page's files.", kinds, errors=(404,)),
        )

    async def index(self, request: web.Request) -> web.Response:
        """The page itself."""
        return self._answer(request, INDEX)

    async def file(self, request: web.Request) -> web.Response:
        """One of its files."""
        return self._answer(request, request.match_info["name"])

    def _answer(self, request: web.Request, name: str) -> web.Response:
        found = self._files.get(name)
        if found is None:
            raise web.HTTPNotFound
        headers = HEADERS | {"ETag": f'"{found.etag}"'}
        if any(tag.value == found.etag for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=found.body, content_type=found.content_type, charset="utf-8", headers=headers)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in TYPES)


def _read(path: Path) -> _File:
    body = path.read_bytes()
    return _File(body, TYPES[path.suffix], hashlib.sha256(body).hexdigest()[:32])
