"""What a client is told when something is wrong: HTTP status and OpenAI's error shape, in one table.

Rule: every error has a status that clients act on, a code that programs compare, and a sentence that names the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from protocol.errors import ErrorCode

RETRY_STATUSES = (429, 503)  # always with `Retry-After`


@dataclass(frozen=True, slots=True)
class HttpMeaning:
    """How an error code looks to an OpenAI client."""

    status: int
    type: str
    code: str


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "",
        code: str = "",
        param: str | None = None,
        retry_ms: int = 0,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or ("invalid_request_error" if status < 500 else "api_error")
        self.code = code or None
        self.param = param
        self.retry_ms = retry_ms
        self._headers = headers

    def body(self) -> dict[str, Any]:
        """OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def ollama_body(self) -> dict[str, Any]:
        """Ollama's shape."""
        return {"error": self.message}

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds where waiting helps, and to the millisecond where that is known."""
        headers = dict(self._headers)
        if self.retry_ms or self.status in RETRY_STATUSES:
            headers["Retry-After"] = str(max(1, -(-self.retry_ms // 1_000)))
        if self.retry_ms:
            headers["retry-after-ms"] = str(self.retry_ms)
        return headers


_INVALID = "invalid_request_error"
_SERVER = "api_error"

MEANINGS: dict[ErrorCode, HttpMeaning] = {
    ErrorCode.INVALID_REQUEST: HttpMeaning(400, _INVALID, "invalid_request"),
    ErrorCode.CONTEXT_OVERFLOW: HttpMeaning(400, _INVALID, "context_length_exceeded"),
    ErrorCode.UNSUPPORTED_FEATURE: HttpMeaning(400, _INVALID, "unsupported_feature"),
    ErrorCode.PAYMENT_REQUIRED: HttpMeaning(402, "insufficient_quota", "payment_required"),
    ErrorCode.INSUFFICIENT_FUNDS: HttpMeaning(402, "insufficient_quota", "insufficient_funds"),
    ErrorCode.QUOTA_EXCEEDED: HttpMeaning(429, "rate_limit_error", "quota_exceeded"),
    ErrorCode.NO_SUCH_MODEL: HttpMeaning(404, _INVALID, "model_not_found"),
    ErrorCode.OVERLOADED: HttpMeaning(503, "overloaded_error", "overloaded"),
    ErrorCode.PAUSED: HttpMeaning(503, "overloaded_error", "paused"),
    ErrorCode.NO_PEER: HttpMeaning(503, _SERVER, "no_peer"),
    ErrorCode.DEADLINE_EXCEEDED: HttpMeaning(504, _SERVER, "deadline_exceeded"),
    ErrorCode.WORKER_LOST: HttpMeaning(502, _SERVER, "worker_lost"),
    ErrorCode.ENGINE_FAILED: HttpMeaning(502, _SERVER, "engine_failed"),
    ErrorCode.CANCELLED: HttpMeaning(499, _SERVER, "cancelled"),
}


def from_code(code: ErrorCode, message: str, retry_ms: int = 0) -> ApiError:
    """The error of a failed query."""
    meaning = MEANINGS.get(code, HttpMeaning(502, _SERVER, code.name.lower()))
    return ApiError(meaning.status, message, type=meaning.type, code=meaning.code, retry_ms=retry_ms)
