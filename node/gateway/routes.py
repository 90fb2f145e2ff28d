"""What a route is, and the one table of them.

Rule: a route exists by standing in the table. The server registers what stands there and `/openapi.json` describes what
stands there, so neither can have more than the other.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from aiohttp import web
from pydantic import BaseModel

from node.gateway.failures import MEANINGS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Family = Literal["openai", "ollama", "node", "operator"]

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
FORM = "multipart/form-data"

ANY_ERRORS = (400, 403, 413, 500, 503)  # of any route: what cannot be read, foreign pages, floods, bugs, the end
KEY_ERRORS = (401, 429)  # where a key may be wanted
BODY_ERRORS = (408, 415)
ASKING_ERRORS = tuple(sorted({meaning.status for meaning in MEANINGS.values()}))  # of what asks a worker


@dataclass(frozen=True, slots=True)
class Answered:
    """One thing that a route answers when all is well: its kind, and its shape where it is JSON."""

    media_type: str = JSON
    shape: type[BaseModel] | None = None
    status: int = 200


@dataclass(frozen=True, slots=True)
class Route:
    """One route: where it is, who answers, and what goes in and out."""

    method: str
    path: str  # as aiohttp writes it
    handler: Handler
    family: Family
    summary: str
    answers: tuple[Answered, ...] = ()
    takes: type[BaseModel] | None = None
    takes_kind: str = JSON
    asks: bool = False  # True: it asks a worker, and fails as queries fail
    errors: tuple[int, ...] = ()  # beside those of all routes of its kind

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", self.path)

    @property
    def all_errors(self) -> tuple[int, ...]:
        """Every status that is no success."""
        found = {*ANY_ERRORS, *self.errors}
        if self.family != "node":
            found |= {*KEY_ERRORS}
        if self.method == "POST":
            found |= {*BODY_ERRORS}
        if self.asks:
            found |= {*ASKING_ERRORS}
        return tuple(sorted(found))


class Routes(Protocol):
    """A part of the gateway that answers requests."""

    def routes(self) -> Iterable[Route]:
        """Its part of the table."""


def register(app: web.Application, table: Iterable[Route]) -> None:
    """Have the server answer the table's routes. What is read with GET is asked about with HEAD."""
    for route in table:
        if route.method == "GET":
            app.router.add_get(route.path, route.handler)
        else:
            app.router.add_route(route.method, route.path, route.handler)
