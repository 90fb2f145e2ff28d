"""The HTTP server: routes, checks around them, start and stop.

Rule: every answer that is an error has OpenAI's shape; nothing a client sends ends the server; the address and the
operator's token are in files that only the owner can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from node.certificates import CertificateError
from node.config import GatewaySection
from node.gateway import openapi
from node.gateway.access import AccessOperations
from node.gateway.admin import AdminRoutes
from node.gateway.answer_shapes import HealthAnswer, ReadyAnswer
from node.gateway.asking import QUERY_ID, REQUEST_NAME, Asker
from node.gateway.audio import FORM_ROUTES, AudioRoutes
from node.gateway.bodies import Bodies
from node.gateway.bridge import Bridge, NodeStopping
from node.gateway.chat import ChatRoutes
from node.gateway.completions import CompletionRoutes
from node.gateway.cross_origin import CrossOrigin, no_such_route
from node.gateway.embeddings import EmbeddingRoutes
from node.gateway.failures import ApiError
from node.gateway.fetching import Fetcher
from node.gateway.guards import Guards, is_loopback
from node.gateway.hardening import harden, only_by_tls
from node.gateway.images import ImageRoutes
from node.gateway.key_usage import KeyUsage
from node.gateway.keys import ApiKeys
from node.gateway.listening import Door, begin
from node.gateway.metrics import render
from node.gateway.models import ModelRoutes
from node.gateway.ollama import OllamaRoutes
from node.gateway.page import PageRoutes
from node.gateway.ports import Answers, GatewayFacts
from node.gateway.responses import ResponseRoutes
from node.gateway.routes import Answered, Handler, Route, Routes, register
from node.gateway.sessions import Sessions, link
from node.gateway.tls import Tls, client_name, link_host, tls_of
from node.gateway.watching import Watching
from node.gateway.websocket import SocketRoutes
from node.measures import Figure, Measures
from node.operations import Operations
from node.private_files import write_private
from node.version import VERSION

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger("mtor.gateway")

ADDRESS_FILE = "gateway.json"
TOKEN_FILE = "admin.token"
USAGE_SECONDS = 5.0  # between two writings of what keys have spent
SHUTDOWN_SECONDS = 3.0  # for answers that are being written when the node stops
SOCKET_ROUTE = "/ws"
OLLAMA_PREFIX = "/api/"
UNMATCHED = "unmatched"  # the route of requests that have none: their paths are their own words
NOT_OF_IDS = re.compile(r"[^A-Za-z0-9._:/+=-]")  # left out of a client's own name for a request
REQUEST_ID_CHARACTERS = 128
CLIENT_GONE = 499


class GatewayError(Exception):
    """The gateway cannot start; the message names the fix."""


class Gateway:
    """The HTTP side of one node."""

    def __init__(
        self, config: GatewaySection, data: Path, answers: Answers, operations: Operations, facts: GatewayFacts
    ) -> None:
        self._config = config
        self._data = data
        self._facts = facts
        self._bridge = Bridge()
        self._http = Measures()  # of this side of the bridge
        self._sockets = 0
        self._keys = ApiKeys(data)
        self._usage = KeyUsage(data)
        self._sessions = Sessions()
        self._tls: Tls | None = None
        token = _admin_token(data)
        self._guards = Guards(config, self._keys, self._usage, self._sessions, token, self._own_names)
        self._bodies = Bodies(config.max_body_bytes)
        self._door = Door(config.max_connections, self._guards.group)
        self._url = self._page_url = ""
        self._asker = asker = Asker(self._bridge, answers, config.max_concurrent, self._guards)
        ask_node = partial(self._bridge.call, operations.call)
        access = AccessOperations(config, self._keys, self._guards.usage, self.page_link, ask_node)
        seen_by_others = not is_loopback(config.host) or bool(config.trusted_proxies)
        watching = Watching(self._bridge, facts, asker, discreet=seen_by_others)
        self._socket = SocketRoutes(config, self._guards, asker, watching)
        parts: tuple[Routes, ...] = (
            PageRoutes(),
            ModelRoutes(self._bridge, facts),
            ChatRoutes(asker, Fetcher().inlined if config.fetch_pictures else None),
            ImageRoutes(asker),
            AudioRoutes(asker),
            ResponseRoutes(asker),
            CompletionRoutes(asker),
            OllamaRoutes(asker, self._bridge, facts),
            EmbeddingRoutes(),
            AdminRoutes(self._bridge, operations, access, self._guards),
            self._socket,
        )
        self.table: tuple[Route, ...] = (*self._own_routes(), *(route for part in parts for route in part.routes()))
        self._cross_origin = CrossOrigin(config.allowed_origins)

    def page_link(self) -> str:
        """A link that opens the page as the operator's: one use, ten minutes. From any thread, while it runs."""
        return link(self._page_url, self._sessions.code())

    def _own_names(self) -> Collection[str]:
        return self._tls.hosts if self._tls is not None else ()

    async def run(self, task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started with the URL. Raises `GatewayError`."""
        self._check_exposure()
        try:
            self._tls = tls_of(self._config)
        except CertificateError as error:
            raise GatewayError(str(error)) from None
        token = trio.lowlevel.current_trio_token()
        failure: list[OSError] = []

        async def program(stop: asyncio.Event) -> None:
            try:
                await self._serve(stop, lambda url: token.run_sync_soon(task_status.started, url))
            except OSError as error:
                failure.append(error)

        try:
            await self._bridge.run(program)
        finally:
            (self._data / ADDRESS_FILE).unlink(missing_ok=True)
            if usage := self._guards.unsaved_usage():  # with what was charged while the last queries ended
                self._usage.write(usage)
        if failure:
            raise GatewayError(_bind_error(self._config, failure[0]))

    def admit(self, max_concurrent: int) -> None:
        """From the next request on; those that are being answered are."""
        self._asker.max_concurrent = max_concurrent

    def _check_exposure(self) -> None:
        if not is_loopback(self._config.host) and not self._keys.all():
            raise GatewayError(
                f"gateway.host is {self._config.host}, which others can reach, and there is no API key: "
                "make one with `mtor keys create NAME`, or set gateway.host to 127.0.0.1"
            )

    async def _serve(self, stop: asyncio.Event, started: Callable[[str], None]) -> None:
        runner = web.AppRunner(self._app(), handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        assert runner.server is not None
        watching = None
        try:
            context = self._tls.context if self._tls is not None else None
            listener = await self._door.listen(runner.server, self._config.host, self._config.port, context)
            watching = asyncio.get_running_loop().create_task(self._door.watch())
            try:
                self._reached_at(*listener.sockets[0].getsockname()[:2])
                started(self._url)
                while not await _happens(stop, USAGE_SECONDS):
                    await self._keep_up()
            finally:
                listener.close()
        finally:
            if watching is not None:
                watching.cancel()
            await runner.cleanup()

    async def _keep_up(self) -> None:
        """What is done from time to time."""
        if usage := self._guards.unsaved_usage():
            await asyncio.to_thread(self._usage.write, usage)
        if self._tls is not None and self._tls.renew():
            self._tell_address()

    def _reached_at(self, host: str, port: int) -> None:
        """Where it listens is known now."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        scheme = "https" if self._tls is not None else "http"
        shown = host
        if self._tls is not None:
            shown = link_host(self._tls.certificate, host, {*self._config.allowed_hosts, *self._tls.hosts})
        self._url, self._page_url = (
            f"{scheme}://{f'[{each}]' if ':' in each else each}:{port}" for each in (host, shown)
        )
        self._tell_address()

    def _tell_address(self) -> None:
        """For `mtor`: where this node is, and what it shows of itself there."""
        facts: dict[str, Any] = {"url": self._url, "pid": os.getpid()}
        if self._tls is not None:
            shown = self._tls.certificate
            facts["tls"] = {"certificate": shown.pem, "name": client_name(shown)}
        write_private(self._data / ADDRESS_FILE, json.dumps(facts))

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=self._config.max_body_bytes, middlewares=[self._around])
        app.on_response_prepare.append(_name)
        app.on_response_prepare.append(harden)
        if self._tls is not None and not is_loopback(self._config.host):
            app.on_response_prepare.append(only_by_tls)
        app.on_shutdown.append(self._socket.say_goodbye)
        app.on_response_prepare.append(self._cross_origin.prepare)
        register(app, self.table)
        return app

    def _own_routes(self) -> tuple[Route, ...]:
        text = Answered("text/plain")
        health, ready = Answered(shape=HealthAnswer), Answered(shape=ReadyAnswer)
        not_ready = Answered(shape=ReadyAnswer, status=503)
        return (
            Route("GET", "/healthz", _healthz, "node", "Whether the gateway runs.", (health,)),
            Route("GET", "/readyz", self._readyz, "node", "Whether queries can be answered.", (ready, not_ready)),
            Route("GET", "/metrics", self._metrics_text, "node", "Figures for Prometheus.", (text,)),
            Route("GET", "/openapi.json", self._openapi, "node", "This description.", (Answered(),)),
        )

    # --- around every request ------------------------------------------------------------------------

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began, status = time.monotonic(), CLIENT_GONE
        end = begin(request)
        self._sockets += _route(request) == SOCKET_ROUTE
        try:
            response = await self._answered(request, handler)
            status = response.status
            return response
        finally:
            end()
            self._sockets -= _route(request) == SOCKET_ROUTE
            self._http.count("mtor_http_requests", _route(request), str(status))
            took = (time.monotonic() - began) * 1_000
            log.debug("%s %s %d in %.0f ms", request.method, _route(request), status, took)

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[REQUEST_NAME] = _request_name(request)
        try:
            self._guards.check(request)
            if request.method == "OPTIONS":
                return self._cross_origin.options(request)
            with self._bodies.room_for(request, self._guards.address(request).counted):
                if request.path not in FORM_ROUTES:
                    await self._bodies.read(request)
                response = await handler(request)
        except ApiError as error:
            response = self._error_response(request, error)
        except web.HTTPException as error:
            response = self._error_response(request, self._from_aiohttp(request, error))
        except NodeStopping:
            response = self._error_response(
                request, ApiError(503, "the node is stopping", code="stopping", retry_ms=5_000)
            )
        except (web.RequestPayloadError, HttpProcessingError) as error:
            message = f"the body cannot be read: {' '.join(str(error).split())}; send it whole and as its headers say"
            response = self._error_response(request, ApiError(400, message, code="invalid_body"))
        except (asyncio.CancelledError, ConnectionError):
            raise  # the client went away
        except Exception:
            log.exception("request to %s failed", _route(request))
            response = self._error_response(
                request, ApiError(500, "the node failed in a way it cannot name; see its log")
            )
        return response

    def _error_response(self, request: web.Request, error: ApiError) -> web.Response:
        self._http.count("mtor_http_errors", error.code or "none")
        body = error.ollama_body() if request.path.startswith(OLLAMA_PREFIX) else error.body()
        return web.json_response(body, status=error.status, headers=error.headers())

    def _from_aiohttp(self, request: web.Request, error: web.HTTPException) -> ApiError:
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            limit = self._config.max_body_bytes
            message = f"the body is larger than {limit} bytes (gateway.max_body_bytes); send less"
            return ApiError(413, message, code="request_too_large")
        if isinstance(error, web.HTTPNotFound):
            return no_such_route(request)
        if isinstance(error, web.HTTPMethodNotAllowed):
            allowed = ", ".join(sorted(error.allowed_methods))
            return ApiError(405, f"{request.path} takes {allowed}, not {request.method}", code="method_not_allowed")
        return ApiError(error.status, error.reason or "the request cannot be answered")

    # --- small routes --------------------------------------------------------------------------------

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, reason = await self._bridge.call(self._facts.readiness)
        return web.json_response({"ready": ready, "reason": reason}, status=200 if ready else 503)

    async def _metrics_text(self, request: web.Request) -> web.Response:
        measured = [*await self._bridge.call(self._facts.figures), *self._http.measured()]
        measured.append(Figure("mtor_websocket_sockets", (), self._sockets))
        body, content_type = render(measured, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.json_response(self._description)

    @cached_property
    def _description(self) -> dict[str, Any]:
        return openapi.describe(self.table, VERSION)


async def _healthz(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """True once it does, False if it does not in this time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _name(request: web.Request, response: web.StreamResponse) -> None:
    """Before the headers of any answer leave: what it can be found by, here and in other nodes' logs."""
    query = request.get(QUERY_ID, "")
    if query:
        response.headers.setdefault("x-mtor-query", query)
    if named := request.get(REQUEST_NAME) or query:
        response.headers["x-request-id"] = named


def _request_name(request: web.Request) -> str:
    """The client's own name for its request, without what no such name needs; "" if it sent none."""
    return NOT_OF_IDS.sub("", request.headers.get("x-request-id", "")[: 4 * REQUEST_ID_CHARACTERS])[
        :REQUEST_ID_CHARACTERS
    ]


def _route(request: web.Request) -> str:
    """The template of the route, which holds none of the client's words."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else UNMATCHED


def _admin_token(data: Path) -> str:
    """The operator's token, made at the first start. An empty file is no token: everybody would have it."""
    path = data / TOKEN_FILE
    with contextlib.suppress(FileNotFoundError):
        if token := path.read_text().strip():
            return token
    token = secrets.token_urlsafe(32)
    write_private(path, token)
    return token


def _bind_error(config: GatewaySection, error: OSError) -> str:
    where = f"{config.host}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {config.port} is in use: choose another (gateway.port, `mtor up --port`), or end the other program"
        )
    return f"the gateway cannot listen on {where} ({error.strerror or error}); check gateway.host and gateway.port"
