"""Pages of other sites that the operator allowed: what a browser wants to hear before it lets them read.

Rule: who may call is decided in `guards` before anything here; here it is only said, by the page's own name and never
by a wildcard.
"""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from node.gateway.failures import ApiError

ALLOWED_HEADERS = "Authorization, Content-Type"
EXPOSED_HEADERS = "Retry-After, x-mtor-query, x-mtor-worker, x-mtor-queue-position, x-mtor-wait-ms"
SECONDS_TO_REMEMBER = 600


class CrossOrigin:
    """The headers of one gateway."""

    def __init__(self, allowed_origins: Collection[str]) -> None:
        self._allowed = frozenset(allowed_origins)

    def options(self, request: web.Request) -> web.Response:
        """What may be done with a path; also the answer that a browser asks for first. Raises `ApiError` (404)."""
        allowed = _methods(request)
        headers = {"Allow": allowed}
        if self._named(request):
            headers |= {
                "Access-Control-Allow-Methods": allowed,
                "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", ALLOWED_HEADERS),
                "Access-Control-Max-Age": str(SECONDS_TO_REMEMBER),
            }
        return web.Response(status=204, headers=headers)

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """The headers without which a page could not read the answer."""
        if self._named(request):
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
        if self._allowed:
            response.headers["Vary"] = "Origin"

    def _named(self, request: web.Request) -> bool:
        return request.headers.get("Origin") in self._allowed


def _methods(request: web.Request) -> str:
    found = request.match_info.http_exception
    if not isinstance(found, web.HTTPMethodNotAllowed):
        raise no_such_route(request)
    return ", ".join(sorted({*found.allowed_methods, "OPTIONS"}))


def no_such_route(request: web.Request) -> ApiError:
    """What is told where nothing is."""
    message = f"there is no {request.method} {request.path}; see /openapi.json for what there is"
    return ApiError(404, message, code="not_found")
