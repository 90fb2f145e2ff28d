"""`/openapi.json`: what this gateway takes and answers, for programs.

Rule: nothing is written twice. Requests come from the shapes that check them, errors from the table that makes them,
routes from the table that registers them; what is written here is how they are put together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http.client import responses
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from node.gateway.answer_shapes import ErrorAnswer, OllamaError
from node.gateway.failures import RETRY_STATUSES
from node.gateway.routes import FORM, JSON, Answered, Family, Route

Json = dict[str, Any]

OPENAPI = "3.1.0"
REFERENCE = "#/components/schemas/{model}"
FAMILIES: dict[Family, str] = {
    "openai": "OpenAI's interface.",
    "ollama": "Ollama's interface.",
    "node": "The node itself: health, metrics, this description.",
    "operator": "The operator's side; always wants the operator's token.",
}
SECURITY: dict[Family, list[Json]] = {
    "openai": [{}, {"key": []}],
    "ollama": [{}, {"key": []}],
    "node": [{}],
    "operator": [{"operator": []}],
}
ABOUT = (
    "One node of an MTOR federation. It answers in the shapes of OpenAI and of Ollama and routes each query to a node "
    "that can answer it. Errors that come after a stream has begun are its last event."
)


def describe(table: Sequence[Route], version: str) -> Json:
    """The whole description, as OpenAPI 3.1."""
    schemas = _Schemas(table)
    paths: dict[str, Json] = {}
    for route in table:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": OPENAPI,
        "info": {"title": "MTOR node", "version": version, "description": ABOUT, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in FAMILIES.items()],
        "paths": paths,
        "components": {"schemas": schemas.all, "securitySchemes": _security_schemes()},
    }


class _Schemas:
    """The shapes of all requests and answers, each once."""

    def __init__(self, table: Iterable[Route]) -> None:
        taken = [(route.takes, "validation") for route in table if route.takes]
        given = [(each.shape, "serialization") for route in table for each in route.answers if each.shape]
        errors = [(ErrorAnswer, "serialization"), (OllamaError, "serialization")]
        wanted: list[Any] = list(dict.fromkeys([*taken, *given, *errors]))
        self._references, document = models_json_schema(wanted, ref_template=REFERENCE)
        self.all: Json = document.get("$defs", {})

    def taken(self, shape: type[BaseModel]) -> Json:
        return self._references[shape, "validation"]

    def given(self, shape: type[BaseModel]) -> Json:
        return self._references[shape, "serialization"]


def _operation(route: Route, schemas: _Schemas) -> Json:
    operation: Json = {
        "operationId": _name(route),
        "summary": route.summary,
        "tags": [route.family],
        "security": SECURITY[route.family],
        "responses": _answers(route, schemas) | _errors(route, schemas),
    }
    if names := re.findall(r"\{(\w+)\}", route.template):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if route.takes:
        content: Json = {route.takes_kind: {"schema": schemas.taken(route.takes)}}
        if route.takes_kind == FORM:
            content[FORM]["encoding"] = {"file": {"contentType": "application/octet-stream"}}
        operation["requestBody"] = {"required": route.family != "operator", "content": content}
    return operation


def _name(route: Route) -> str:
    return re.sub(r"\W+", "_", f"{route.method.lower()}{route.template}").strip("_")


def _answers(route: Route, schemas: _Schemas) -> Json:
    found: Json = {}
    for answer in route.answers:
        told = found.setdefault(str(answer.status), {"description": responses[answer.status], "content": {}})
        told["content"][answer.media_type] = _shape(answer, schemas)
    return found


def _shape(answer: Answered, schemas: _Schemas) -> Json:
    """The shape of JSON. What comes in events or lines, as sound or as text has none in this language."""
    if answer.shape:
        return {"schema": schemas.given(answer.shape)}
    return {"schema": {"type": "object"}} if answer.media_type == JSON else {}


def _errors(route: Route, schemas: _Schemas) -> Json:
    shape = schemas.given(OllamaError if route.family == "ollama" else ErrorAnswer)
    answered = {each.status for each in route.answers}
    return {
        str(status): {"description": _phrase(status), "content": {JSON: {"schema": shape}}} | _retry(status)
        for status in route.all_errors
        if status not in answered
    }


def _phrase(status: int) -> str:
    return responses.get(status, "Cancelled")  # 499 stands in no registry


def _retry(status: int) -> Json:
    """`Retry-After` where waiting helps."""
    if status not in RETRY_STATUSES:
        return {}
    seconds = {"description": "Seconds after which it may go better.", "schema": {"type": "integer", "minimum": 1}}
    return {"headers": {"Retry-After": seconds}}


def _security_schemes() -> Json:
    return {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of `mtor keys create`. On loopback the gateway answers without one.",
        },
        "operator": {
            "type": "http",
            "scheme": "bearer",
            "description": "The operator's token: the file admin.token in the node's data folder.",
        },
    }
