"""Conversations that come in another shape than a chat completion's: the same checks, the client's own names.

Rule: there is one reading of a conversation, `read_chat_request`. Other routes put theirs into its shape, and what is
wrong is told by the names that their clients used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.answers import AnswerEvent, Completed, Delta, Question, Routed, TokenLogprob, ToolCalled
from node.gateway.asking import Asking
from node.gateway.failures import ApiError
from node.gateway.openai import read_chat_request

MESSAGE = re.compile(r"\bmessages\.(\d+)(\.content)?")


def chat_questions(fields: Mapping[str, Any], places: Sequence[str]) -> tuple[Question, ...]:
    """The queries of a chat completion with these fields, one a choice. `places` are the client's names of the
    messages. Raises `ApiError`."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return read_chat_request(json.dumps(given).encode()).questions
    except ApiError as error:
        raise _renamed(error, places) from None


def _renamed(error: ApiError, places: Sequence[str]) -> ApiError:
    def place(found: re.Match[str]) -> str:
        number = int(found[1])
        name = places[number] if number < len(places) else places[-1]
        return name + (found[2] or "" if name[-1].isdigit() else "")

    param = MESSAGE.sub(place, error.param) if error.param else None
    if param == "messages":
        param = places[0].partition(".")[0]
    message = MESSAGE.sub(place, error.message)
    return ApiError(error.status, message, type=error.type, code=error.code or "", param=param, retry_ms=error.retry_ms)


@dataclass(slots=True)
class Said:
    """What an answer has said so far."""

    model: str = ""
    parts: list[str] = field(default_factory=list)
    calls: list[ToolCalled] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.parts)

    def take(self, item: AnswerEvent | None) -> None:
        """One event."""
        if isinstance(item, Routed):
            self.model = self.model or item.model
        if isinstance(item, Delta):
            self.parts.append(item.text)
            self.logprobs += item.logprobs
        if isinstance(item, ToolCalled):
            self.calls.append(item)


async def whole(asking: Asking) -> tuple[Said, Completed]:
    """An answer to its end. Raises `ApiError`."""
    said = Said()
    async for item in asking.events():
        said.take(item)
    assert asking.completed is not None
    return said, asking.completed
