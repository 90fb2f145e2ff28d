"""How models write calls of tools, and how such calls are found in what they write.

Rule: text is never lost: what only looks like the beginning of a call is released as text. A call of what is no tool of
the request is text as well. Arguments leave as they are written; between a call and the next nothing else is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

HEAD_CHARS = 384  # of a call before its arguments: fewer tokens than a worker may hold back
NAME_AND_ARGS = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(?:\[ARGS\])?\s*(?=\{)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """A family's way to write calls."""

    opener: str  # before a call; "": the answer is nothing but calls
    closer: str  # after a call
    arguments: str  # the key of the arguments
    listed: bool = False  # several calls in one JSON array
    named: bool = False  # the name stands before the arguments, and not in JSON


HERMES = ToolStyle("<tool_call>", "</tool_call>", "arguments")
MISTRAL = ToolStyle("[TOOL_CALLS]", "", "arguments", listed=True)
MISTRAL_NAMED = ToolStyle("[TOOL_CALLS]", "", "arguments", named=True)
LLAMA = ToolStyle("", "", "parameters")
MARKS = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
)  # that may be control tokens, which decoders leave out


def style_of(template: str) -> ToolStyle | None:
    """The style that a chat template teaches; None if it knows no tools, or none of these styles."""
    if "tools" not in template:
        return None
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    return LLAMA if '"parameters": dictionary' in template or '"parameters": ' in template else None


@dataclass(frozen=True, slots=True)
class Found:
    """A call begins, or, without a name, its arguments go on."""

    name: str
    arguments: str


class _State(Enum):
    TEXT = "text"
    HEAD = "head"  # of a call, up to its arguments
    ARGUMENTS = "arguments"
    TAIL = "tail"  # of a call, behind its arguments
    BETWEEN = "between"  # calls
    PLAIN = "plain"  # there will be no calls


class CallFinder:
    """Calls in one answer, however its pieces fall."""

    def __init__(self, style: ToolStyle, names: Collection[str], *, begun: bool = False) -> None:
        """`begun`: a part of the answer's text was written before."""
        self._style = style
        self._names = names
        self._head = re.compile(
            r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)', re.ASCII
        )
        self._held = ""
        self._raw = ""  # what was taken of a call's beginning, should it be none
        self._state = _State.PLAIN if begun and not style.opener else _State.TEXT
        self._nesting = Nesting()
        self.calls = 0  # whole ones

    @property
    def calling(self) -> bool:
        """True from a call's beginning on."""
        return self._state not in (_State.TEXT, _State.PLAIN)

    @property
    def opened(self) -> str | None:
        """What came behind the first opener, while it is not known which tool is called."""
        return self._held if self._state is _State.HEAD and not self.calls else None

    def push(self, text: str) -> Iterator[str | Found]:
        """What the text so far gives: text, and parts of calls."""
        self._held += text
        steps = {
            _State.TEXT: self._text,
            _State.HEAD: self._read_head,
            _State.ARGUMENTS: self._arguments,
            _State.TAIL: self._tail,
            _State.BETWEEN: self._between,
            _State.PLAIN: self._plain,
        }
        while True:
            before = (self._state, len(self._held))
            yield from steps[self._state]()
            if (self._state, len(self._held)) == before or not self._held:
                return

    def flush(self) -> Iterator[str | Found]:
        """The answer is over: what was held is no call."""
        if self._state in (_State.TEXT, _State.PLAIN, _State.HEAD) and self._raw + self._held:
            yield self._raw + self._held
        self._held = self._raw = ""

    # --- states --------------------------------------------------------------------------------------

    def _text(self) -> Iterator[str | Found]:
        opener = self._style.opener
        if not opener:
            began = self._held.lstrip()
            if began:
                self._state = _State.HEAD if began[0] == "{" else _State.PLAIN
            return
        place = self._held.find(opener)
        if place >= 0:
            released, self._raw, self._held = self._held[:place], opener, self._held[place + len(opener) :]
            self._state = _State.HEAD
        else:
            keep = _begins(self._held, opener)
            released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if released:
            yield released

    def _read_head(self) -> Iterator[str | Found]:
        style, begun = self._style, self._held.lstrip()
        if style.listed and begun.startswith("["):
            self._raw += self._held[: self._held.index("[") + 1]
            self._held = begun[1:]
            return
        match = (NAME_AND_ARGS if style.named else self._head).match(self._held)
        if match is not None and match[1] in self._names:
            self._held, self._raw = self._held[match.end() :], ""
            self._state, self._nesting = _State.ARGUMENTS, Nesting()
            yield Found(match[1], "")
            return
        possible = not begun or style.named or begun[0] == "{"
        if match is not None or not possible or len(self._held) > HEAD_CHARS:
            yield from self._no_call()
            return
        end = 0 if style.named else Nesting().end_in(self._held)
        if end:  # an object in another order: it is known as a whole only
            yield from self._whole(self._held[:end], end)

    def _whole(self, text: str, end: int) -> Iterator[str | Found]:
        call = _call_in(text)
        if call is None or call.name not in self._names:
            yield from self._no_call()
            return
        self._held, self._raw = self._held[end:], ""
        self._called()
        yield call

    def _no_call(self) -> Iterator[str | Found]:
        released, self._held, self._raw = self._raw + self._held, "", ""
        self._state = _State.BETWEEN if self.calls else _State.PLAIN
        if not self.calls:
            yield released

    def _arguments(self) -> Iterator[str | Found]:
        end = self._nesting.end_in(self._held)
        part, self._held = (self._held[:end], self._held[end:]) if end else (self._held, "")
        if end:
            self._nesting = Nesting(depth=1)
            self._state = _State.TAIL
            if self._style.named:
                self._called()
        if part:
            yield Found("", part)

    def _tail(self) -> Iterator[str | Found]:
        """Up to the end of the object that the arguments are a part of."""
        end = self._nesting.end_in(self._held)
        self._held = self._held[end:] if end else ""
        if end:
            self._called()
        return iter(())

    def _between(self) -> Iterator[str | Found]:
        following = self._style.opener or "{"
        if self._style.listed and not self._style.named:
            following = "{"
        place = self._held.find(following)
        if place < 0:
            keep = _begins(self._held, following)
            self._held = self._held[len(self._held) - keep :]
            return iter(())
        self._held = self._held[place if following == "{" else place + len(following) :]
        self._state = _State.HEAD
        return iter(())

    def _plain(self) -> Iterator[str | Found]:
        released, self._held = self._held, ""
        if released:
            yield released

    def _called(self) -> None:
        self.calls += 1
        self._state = _State.BETWEEN


class Nesting:
    """Where a JSON value's end is, however its pieces fall."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = self._escaped = False

    def end_in(self, text: str) -> int:
        """The place behind the end of the outermost brackets, 0 if they do not end in this text."""
        for index, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return index + 1
        return 0


def _begins(text: str, word: str) -> int:
    """The length of the longest end of `text` that begins `word`."""
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return next((length for length in lengths if word.startswith(text[len(text) - length :])), 0)


def _call_in(text: str) -> Found | None:
    """The call that a JSON text is."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters")) or {}
    if isinstance(arguments, str):  # JSON in JSON
        return Found(value["name"], arguments)
    return Found(value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


# --- grammars, in llguidance's dialect of Lark -----------------------------------------------------------


def calls_grammar(style: ToolStyle, calls: dict[str, str], *, one: bool, opened: bool, mark: str = "") -> str | None:
    """What an answer of calls alone may be; None where the style has none here. `calls`: the schema of each tool's
    arguments. `opened`: the first opener is written already. `mark`: the opener's spelling if it is a control token."""
    if style.named:
        return None
    each = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, style.arguments: json.loads(schema or '{"type":"object"}')},
            "required": ["name", style.arguments],
            "additionalProperties": False,
        }
        for name, schema in calls.items()
    ]
    call: dict[str, Any] = {"anyOf": each} if len(each) > 1 else each[0]
    opener = mark or (json.dumps(style.opener) if style.opener else "")
    if style is HERMES:
        first = f'"\\n" call "\\n{style.closer}"'
        rest = "" if one else f' ("\\n" {opener} {first})*'
        return f"start: {'' if opened else opener} {first}{rest}\ncall: %json {_json(call)}\n"
    if style.listed:
        bound = {"maxItems": 1} if one else {}
        call = {"type": "array", "items": call, "minItems": 1} | bound
    return f"start: {'' if opened else opener} call\ncall: %json {_json(call)}\n"


def text_grammar(schema: str) -> str:
    """What an answer by a JSON schema may be."""
    return f"start: %json {_json(json.loads(schema))}\n"


def _json(schema: dict[str, Any]) -> str:
    """A schema with blanks where models write them, and nowhere else: a small model would write blanks for ever."""
    spelling = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps(schema | {"x-guidance": spelling})
