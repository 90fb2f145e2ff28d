"""The second implementation's counts: what a question and an answer can have at most, by chapter 04.

Rule: as in `stranger`: nothing of `protocol/` is imported.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import chapters

Json = Any

REQUESTS = {"ChatRequest", "VisionRequest", "ImagineRequest", "TranscribeRequest", "SpeakRequest"}
CONVERSATIONS = {"ChatRequest", "VisionRequest"}
LIMITS = {row[0]: row[1] for row in chapters.all_rows("07-registries.md", "## Limits and times")}


def limit(name: str) -> int:
    """A number of chapter 07."""
    return chapters.number(LIMITS[name])


def most_in(query: dict[str, Json], request: dict[str, Json]) -> int:
    """The third column's left half of "Counts are the worker's word"."""
    kind, media = request["type"], request.get("media", [])
    if kind in CONVERSATIONS:
        tokens = len(query["payload"]) // 2 + len(query["prefix"].encode()) + limit("PREFIX_TOKEN_ALLOWANCE")
        return int(tokens + limit("PICTURE_TOKENS") * len(media))
    if kind == "TranscribeRequest":
        return int(min(media[0]["size"] // limit("MIN_HEARD_BYTES") + 1, limit("MAX_SOUND_TENTHS")))
    return len(request["text"].encode()) if kind == "SpeakRequest" else 0


NOTHING = {"tools": [], "must_call": 0, "one_call": 0, "calls": [], "schema": "", "logprobs": 0, "likeliest": 0}


def wishes(request: dict[str, Json]) -> dict[str, Json]:
    """What a request asks for beyond text."""
    found: dict[str, Json] = next(iter(request.get("wishes", [])), NOTHING)
    return found


def features(request: dict[str, Json]) -> list[int]:
    """The last column of "Features of models"."""
    asked = wishes(request)
    taken = (asked["tools"] or asked["calls"], asked["must_call"], asked["schema"], asked["logprobs"])
    return [number for number, wanted in enumerate(taken, 1) if wanted]


def good_wishes(request: dict[str, Json]) -> bool:
    """The six rules below the table of Wishes."""
    asked, roles = wishes(request), [turn["role"] for turn in request["turns"]]
    tools, calls = asked["tools"], asked["calls"]
    names = [tool["name"] for tool in tools]
    texts = [tool["parameters"] for tool in tools] + [asked["schema"]]
    answers = [call["answer"] for call in calls if call["answer"]]
    return (
        request["wishes"] != [NOTHING]
        and all(re.fullmatch("[A-Za-z0-9_-]+", name) for name in names + [call["name"] for call in calls])
        and len(set(names)) == len(names)
        and (bool(tools) or not (asked["must_call"] or asked["one_call"]))
        and (bool(asked["logprobs"]) or not asked["likeliest"])
        and all(_is_object(text) for text in texts if text)
        and all(_is_object(call["arguments"]) for call in calls)
        and [call["turn"] for call in calls] == sorted(call["turn"] for call in calls)
        and all(roles[call["turn"] : call["turn"] + 1] == ["assistant"] for call in calls)
        and all(call["turn"] < call["answer"] for call in calls if call["answer"])
        and sorted(answers) == [index for index, role in enumerate(roles) if role == "tool"]
    )


def _is_object(text: str) -> bool:
    try:
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return isinstance(value, dict) and _nested(value) <= limit("MAX_JSON_DEPTH")


def _refuse(name: str) -> None:
    raise ValueError(name)


def _nested(value: Json) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max([_nested(each) for each in inner], default=0) if isinstance(inner, list) else 0


def picture(request: dict[str, Json]) -> int:
    """Units of the picture that is asked for, at most."""
    width, height = (request[name] or limit("MAX_PICTURE_SIDE") for name in ("width", "height"))
    return _rounded_up(width * height * (request["steps"] or limit("MAX_PICTURE_STEPS")), limit("PICTURE_UNIT"))


def most_out(request: dict[str, Json], offered: int) -> int:
    """Units of a whole answer to an asker who reads an offer."""
    named = request["max_tokens"] if request["type"] in CONVERSATIONS else 0
    if request["type"] == "ImagineRequest":
        named = picture(request)
    return int(min(named or offered, offered))


@dataclass(frozen=True)
class Answer:
    """What came so far: bytes of text, bytes of data, and the data's media type."""

    text: int = 0
    data: int = 0
    media_type: str = ""
    calls: int = 0  # of tools

    def may_go_on_with(self, request: dict[str, Json], media_type: str) -> bool:
        """Rule 6; text has the media type ""."""
        if self.media_type not in ("", media_type):
            return False
        if request["type"] == "SpeakRequest":
            return limit("MIN_SOUND_RATE") <= _rate(media_type) <= limit("MAX_SOUND_RATE")
        return media_type == ("image/png" if request["type"] == "ImagineRequest" else "")

    def with_more(self, size: int, media_type: str) -> Answer:
        """The answer after the next part."""
        if media_type:
            return replace(self, data=self.data + size, media_type=media_type)
        return replace(self, text=self.text + size)

    def most_out(self, request: dict[str, Json]) -> int:
        """The last column of "Counts are the worker's word"."""
        if request["type"] == "ImagineRequest":
            return picture(request) if self.data else 0
        if request["type"] == "SpeakRequest":
            return _rounded_up(5 * self.data, _rate(self.media_type)) if self.data else 0
        around = self.calls * limit("CALL_TOKENS")
        return int(self.text + limit("PREFIX_TOKEN_ALLOWANCE") + limit("MAX_STOP_BYTES") + around)


def _rate(media_type: str) -> int:
    match = re.fullmatch("audio/pcm;rate=([1-9][0-9]*)", media_type)
    return int(match[1]) if match else 0


def _rounded_up(number: int, divisor: int) -> int:
    return int(number // divisor + (number % divisor > 0))
