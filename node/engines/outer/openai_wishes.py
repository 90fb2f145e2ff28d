"""Tools, JSON and log probabilities in OpenAI's protocol, as an operator's server is asked for them and answers.

Rule: ids of calls are made here: the wire has none. Log probabilities that a server sends in another shape, or that
nobody asked for, are left out; the text counts.
"""

from __future__ import annotations

import json
from typing import Any

from node.engines.outer.engine import clean
from node.engines.outer.json_shapes import at, list_at, text_at
from protocol.messages import Chosen, Likelihood, Wishes
from protocol.params import MAX_CHUNK_TOKENS, MAX_INTEGER, MAX_TOKEN_BYTES

ANY_OBJECT = {"type": "object"}


def wished(wishes: Wishes) -> dict[str, Any]:
    """The fields of a request."""
    fields: dict[str, Any] = {}
    if wishes.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(tool.parameters or '{"type":"object","properties":{}}'),
                },
            }
            for tool in wishes.tools
        ]
        fields["tool_choice"] = "required" if wishes.must_call else "auto"
        fields |= {"parallel_tool_calls": False} if wishes.one_call else {}
    if wishes.schema:
        schema = json.loads(wishes.schema)
        named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        fields["response_format"] = {"type": "json_object"} if schema == ANY_OBJECT else named
    if wishes.logprobs:
        fields |= {"logprobs": True, "top_logprobs": wishes.likeliest}
    return fields


def told_of_wishes(messages: list[dict[str, Any]], wishes: Wishes) -> None:
    """Put calls into the conversation, and the id of its call to each result."""
    for number, call in enumerate(wishes.calls):
        name = f"call{number:05}"
        shown = {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        messages[call.turn].setdefault("tool_calls", []).append(shown)
        if call.answer:
            messages[call.answer]["tool_call_id"] = name


def chosen_in(choice: Any, wishes: Wishes) -> tuple[Chosen, ...]:
    """The tokens of a choice's next text."""
    if not wishes.logprobs:
        return ()
    told = list_at(choice, "logprobs", "content")[:MAX_CHUNK_TOKENS]
    return tuple(_chosen(each, wishes.likeliest) for each in told if _nats(each) is not None)


def _chosen(value: Any, likeliest: int) -> Chosen:
    others = [each for each in list_at(value, "top_logprobs") if _nats(each) is not None][:likeliest]
    return Chosen(
        _token(value), _nats(value) or 0, tuple(Likelihood(_token(each), _nats(each) or 0) for each in others)
    )


def _token(value: Any) -> bytes:
    told = list_at(value, "bytes")
    exact = all(type(byte) is int and 0 <= byte < 256 for byte in told)
    token = bytes(told) if told and exact else clean(text_at(value, "token")).encode()
    return token[:MAX_TOKEN_BYTES]


def _nats(value: Any) -> int | None:
    """Millionths of the negative logarithm; None if there is none."""
    told = at(value, "logprob")
    if not isinstance(told, int | float) or isinstance(told, bool) or told != told:
        return None
    return round(min(max(-float(told), 0.0) * 1_000_000, MAX_INTEGER))
