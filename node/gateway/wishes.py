"""What the routes that ask have in common: JSON checked, the realm and the model that are meant, the `mtor` object.

Rule: what is wrong is told with the parameter's name; a typing error in the `mtor` object is refused, because there an
ignored wish would be a broken promise.
"""

from __future__ import annotations

import re
import secrets
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from node.answers import Question
from node.gateway.failures import ApiError
from protocol import params
from protocol.errors import Malformed
from protocol.ids import QueryId, RealmId, parse_peer_id, realm_id
from protocol.requests import Request
from protocol.routing import Requirements

ANY_MODEL = ("auto", "")  # "$CHAT" and other realms also mean any model of theirs

MOST_VALUES = 20_000  # of a request: a thousand messages with pictures, and a hundred tools, have half
STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # one that does not end, too

Parsed = TypeVar("Parsed", bound=BaseModel)


class Lenient(BaseModel):
    """Base of request shapes: unknown fields are ignored, as OpenAI's own servers do; types are exact."""

    model_config = ConfigDict(extra="ignore", strict=True)


class MtorWishes(BaseModel):
    """The `mtor` object of a request: what the asker insists on. Typing errors here are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    realm: str = Field("", max_length=params.MAX_NAME_BYTES)
    min_vram_mib: int = Field(0, ge=0, le=params.MAX_INTEGER)
    device: Literal["", "cuda", "mps", "cpu"] = ""
    max_price_in: int = Field(0, ge=0, le=params.MAX_INTEGER)
    max_price_out: int = Field(0, ge=0, le=params.MAX_INTEGER)
    min_context_tokens: int = Field(0, ge=0, le=params.MAX_INTEGER)
    worker: str = Field("", max_length=params.MAX_NAME_BYTES)
    deadline_ms: int = Field(params.DEFAULT_DEADLINE, ge=100, le=params.MAX_DEADLINE)


def parse(shape: type[Parsed], body: bytes | str, where: str = "the body") -> Parsed:
    """JSON as a request's shape. Raises `ApiError` (400) that names the parameter."""
    _refuse_many_values(body, where)
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise _wrong_value(error, where) from None
    except RecursionError:
        raise ApiError(400, f"{where} is nested too deeply", code="invalid_json") from None


def _refuse_many_values(body: bytes | str, where: str) -> None:
    """Checking takes time for each value, and all clients wait for it; a long text or a picture is one value."""
    data = body.encode(errors="replace") if isinstance(body, str) else body
    found = _values(data)
    if found > params.MAX_TEXT_BYTES or (found > MOST_VALUES and _values(STRINGS.sub(b"", data)) > MOST_VALUES):
        raise ApiError(400, f"{where} has more than {MOST_VALUES} values; send fewer", code="too_many_values")


def _values(data: bytes) -> int:
    """How many values JSON has at most, if its strings hold none of these."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def question(request: Request, model: str, realm: RealmId, wishes: MtorWishes, inputs: tuple[bytes, ...]) -> Question:
    """A query for the router. Raises `ApiError` (400)."""
    chosen, model = target(model, wishes.realm, realm)
    requirements = Requirements(
        model=model,
        min_vram_mib=wishes.min_vram_mib,
        device_kind=wishes.device,
        max_price_in=wishes.max_price_in,
        max_price_out=wishes.max_price_out,
        min_context_tokens=wishes.min_context_tokens,
        worker=_worker(wishes.worker),
    )
    query_id = QueryId(secrets.token_bytes(16))
    return Question(query_id, chosen, request, requirements, wishes.deadline_ms, None, inputs)


def target(model: str, wished: str, usual: RealmId) -> tuple[RealmId, str]:
    """(realm, model): a realm's name as the model means any model of that realm; `usual` is the route's own realm."""
    if len(model.encode(errors="replace")) > params.MAX_NAME_BYTES:
        message = f"a model's name has at most {params.MAX_NAME_BYTES} bytes"
        raise ApiError(400, message, code="invalid_value", param="model")
    if not model.isprintable():
        raise ApiError(400, "a model's name is printable", code="invalid_value", param="model")
    named_by_model = model.startswith("$")
    try:
        if named_by_model:
            return realm_id(model), ""
        return realm_id(wished or usual), "" if model in ANY_MODEL else model
    except Malformed as error:
        place = "model" if named_by_model else "mtor.realm"
        raise ApiError(400, str(error), code="invalid_value", param=place) from None


def encodable(where: str, text: str) -> str:
    """The text, if it can travel. Raises `ApiError` (400)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"{where} is not valid Unicode (a lone surrogate)"
        raise ApiError(400, message, code="invalid_value", param=where) from None
    return text


def bounded_text(where: str, text: str, most: int) -> str:
    """A text of 1 … `most` bytes that can travel. Raises `ApiError` (400)."""
    size = len(encodable(where, text).encode())
    if not text.strip():
        raise ApiError(400, f"{where} is empty", code="missing_value", param=where)
    if size > most:
        raise ApiError(400, f"{where} has {size} bytes, at most {most} are taken", code="too_long", param=where)
    return text


def thousandths(value: float | None, default: float) -> int:
    """A fraction as it travels."""
    return round((default if value is None else value) * 1_000)


def travelling_seed(seed: int | None) -> int:
    """0 is the wire's "the worker chooses", so a client's own 0 travels as the largest number: the same each time."""
    return 0 if seed is None else seed % (params.MAX_INTEGER + 1) or params.MAX_INTEGER


def following_seed(seed: int, index: int) -> int:
    """The seed of choice `index` of a request; 0, the worker's choice, stays."""
    return (seed + index) % (params.MAX_INTEGER + 1) or params.MAX_INTEGER if seed else 0


def unsupported(parameter: str, reason: str) -> ApiError:
    """What this node cannot do is refused, and not silently left out."""
    message = f"{parameter} is not supported: {reason}"
    return ApiError(400, message, code="unsupported_parameter", param=parameter)


def _wrong_value(error: ValidationError, whole: str) -> ApiError:
    """The innermost of the first problems, which is the one that helps where a value may have several types."""
    found = max(
        error.errors(include_url=False, include_context=False, include_input=False), key=lambda each: len(each["loc"])
    )
    if found["type"] == "json_invalid":
        return ApiError(400, f"{whole} is not valid JSON: {found['msg']}", code="invalid_json")
    where = ".".join(str(part) for part in found["loc"] if not _names_a_type(part))
    return ApiError(400, f"{where or whole}: {found['msg']}", code="invalid_value", param=where or None)


def _names_a_type(part: int | str) -> bool:
    """pydantic puts the tried type into a place: `stop.list[str].1`."""
    return isinstance(part, str) and (part == "str" or part.startswith("list["))


def _worker(text: str) -> str:
    if text:
        try:
            parse_peer_id(text)
        except Malformed as error:
            raise ApiError(400, str(error), param="mtor.worker") from None
    return text
