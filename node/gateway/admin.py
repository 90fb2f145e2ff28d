"""The operator's routes: `POST /mtor/v1/{operation}` with the arguments as JSON, and `POST /mtor/unlock`.

Rule: this file knows no operation. It carries names and arguments to `Operations` and answers back.
"""

from __future__ import annotations

import difflib
import json
import logging
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from node.gateway.access import AccessOperations
from node.gateway.bridge import Bridge
from node.gateway.failures import ApiError
from node.gateway.guards import UNLOCK, Guards
from node.gateway.routes import LINES, Answered, Route
from node.operations import GATEWAY_OPERATIONS, OPERATIONS, STREAMED, Json, OperationFailed, Operations

log = logging.getLogger("mtor.gateway")


UNLOCK_BYTES = 1_024  # of the one body that is read of whoever comes


class OperationArguments(BaseModel):
    """The operation's arguments, by name."""

    model_config = ConfigDict(extra="allow")


class UnlockRequest(BaseModel):
    """`POST /mtor/unlock`."""

    code: str


class SessionAnswer(BaseModel):
    """A session of the page."""

    token: str


class AdminRoutes:
    """Handlers of the operator's routes."""

    def __init__(self, bridge: Bridge, operations: Operations, access: AccessOperations, guards: Guards) -> None:
        self._bridge = bridge
        self._operations = operations
        self._access = access
        self._guards = guards

    def routes(self) -> tuple[Route, ...]:
        """See `Routes`."""
        return (
            Route(
                "POST",
                "/mtor/v1/{operation}",
                self.handle,
                "operator",
                "What `mtor` asks of the node, by name; long operations answer with lines.",
                (Answered(), Answered(LINES)),
                takes=OperationArguments,
                errors=(401, 404),
            ),
            Route(
                "POST",
                UNLOCK,
                self.unlock,
                "operator",
                "A session for the code of a link of `mtor open`.",
                (Answered(shape=SessionAnswer),),
                takes=UnlockRequest,
                errors=(401,),
            ),
        )

    async def unlock(self, request: web.Request) -> web.Response:
        """A session for the code of a link."""
        if len(await request.read()) > UNLOCK_BYTES:
            raise ApiError(413, "a code is much shorter", code="request_too_large", param="code")
        code = (await _arguments(request)).get("code")
        if not isinstance(code, str) or not code.isascii():
            raise ApiError(400, 'send {"code": "…"}, from the link of `mtor open`', code="missing_value", param="code")
        return web.json_response({"token": self._guards.unlock(request, code)})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One operation."""
        name = request.match_info["operation"]
        arguments = await _arguments(request)
        if name in STREAMED:
            return await self._stream(request, name, arguments)
        if name not in OPERATIONS | GATEWAY_OPERATIONS:
            near = difflib.get_close_matches(name, [*OPERATIONS, *GATEWAY_OPERATIONS, *STREAMED], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ApiError(404, f"there is no operation {name!r}{hint}", code="unknown_operation")
        try:
            if name in GATEWAY_OPERATIONS:
                return web.json_response(await self._access.call(name, arguments))
            return web.json_response(await self._bridge.call(self._operations.call, name, arguments))
        except OperationFailed as error:
            raise ApiError(400, str(error), code="operation_failed") from None

    async def _stream(self, request: web.Request, name: str, arguments: Json) -> web.StreamResponse:
        """Progress as lines of JSON; a failure after the first line is a line, too."""

        async def job(emit: Any) -> None:
            await self._operations.stream(name, arguments, emit)

        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"})
        await response.prepare(request)
        async with self._bridge.stream(job) as stream:
            try:
                async for progress in stream:
                    await response.write(json.dumps(progress).encode() + b"\n")
            except ConnectionError:
                raise  # the client went away: there is nobody to tell
            except Exception as error:
                await response.write(
                    json.dumps({"error": {"message": _said(name, error)}, "done": True}).encode() + b"\n"
                )
        await response.write_eof()
        return response


def _said(name: str, error: Exception) -> str:
    """What a failure in mid-stream is called; details of a bug go to the log alone."""
    if isinstance(error, OperationFailed):
        return str(error)
    log.error("%s failed", name, exc_info=error)
    return f"{name} failed in a way that the node cannot name; see its log"


async def _arguments(request: web.Request) -> Json:
    body = await request.read()
    try:
        arguments = json.loads(body) if body else {}
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(arguments, dict):
        raise ApiError(400, "the arguments are a JSON object", code="invalid_json")
    return arguments
