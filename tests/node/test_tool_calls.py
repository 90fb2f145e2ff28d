"""Calls in what models write: each style, however the pieces fall, and what only looks like a call."""

from __future__ import annotations

import json

import pytest

from node.engines.tool_calls import (
    HEAD_CHARS,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    CallFinder,
    Found,
    ToolStyle,
    calls_grammar,
    style_of,
)

NAMES = ("clock", "weather")
Written = tuple[str, list[tuple[str, str]]]


def found(style: ToolStyle, text: str, size: int, *, begun: bool = False) -> Written:
    """(text, calls) in a text that comes in pieces of `size`."""
    finder = CallFinder(style, NAMES, begun=begun)
    parts: list[str | Found] = []
    for start in range(0, len(text), size):
        parts += finder.push(text[start : start + size])
    parts += finder.flush()
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, Found) and part.name:
            calls.append((part.name, part.arguments))
        elif isinstance(part, Found):
            calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    return "".join(part for part in parts if isinstance(part, str)), calls


PARIS = '{"city": "Paris \\"}{\\" \\\\", "days": [1, {"a": 2}]}'
ONE = '{"name": "weather", "arguments": ' + PARIS + "}"
BOTH: Written = ("", [("weather", PARIS), ("clock", "{}")])
CASES: list[tuple[ToolStyle, str, Written]] = [
    (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", ("", [("weather", PARIS)])),
    (HERMES, f"Let me see.<tool_call>{ONE}</tool_call> Done!", ("Let me see.", [("weather", PARIS)])),
    (
        HERMES,
        f'<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>',
        ("", [("weather", PARIS), ("clock", "{}")]),
    ),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "clock"}</tool_call>', ("", [("clock", '{"a": 1}')])),
    (HERMES, '<tool_call>{"name": "clock"}</tool_call>', ("", [("clock", "{}")])),
    (HERMES, '<tool_call>{"name": "clock", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("clock", '{"a": 1}')])),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {}, "id": 7}</tool_call>', ("", [("clock", "{}")])),
    (MISTRAL, f"[TOOL_CALLS] [{ONE}]", ("", [("weather", PARIS)])),
    (
        MISTRAL,
        f'[TOOL_CALLS][{ONE}, {{"name": "clock", "arguments": {{}}}}]',
        ("", [("weather", PARIS), ("clock", "{}")]),
    ),
    (
        MISTRAL_NAMED,
        f"[TOOL_CALLS]weather[ARGS]{PARIS}[TOOL_CALLS]clock{{}}",
        ("", [("weather", PARIS), ("clock", "{}")]),
    ),
    (LLAMA, '{"name": "clock", "parameters": {"a": 1}}', ("", [("clock", '{"a": 1}')])),
    (
        LLAMA,
        '\n{"name": "clock", "parameters": {}}; {"name": "weather", "parameters": {}}',
        ("", [("clock", "{}"), ("weather", "{}")]),
    ),
]


@pytest.mark.parametrize("size", [1, 3, 7, 1_000])
@pytest.mark.parametrize(("style", "text", "written"), CASES)
def test_calls_are_found_however_the_pieces_fall(style: ToolStyle, text: str, written: Written, size: int) -> None:
    assert found(style, text, size) == written
    assert all(json.loads(arguments) is not None for _, arguments in written[1])


TEXTS: list[tuple[ToolStyle, str]] = [
    (HERMES, "a < b, <tool, <tool_cal"),
    (HERMES, "<tool_call>the name of a tag"),
    (HERMES, '<tool_call>{"name": "delete_all", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "clock", "arg'),
    (HERMES, "<tool_call>[1, 2]</tool_call>"),
    (HERMES, '<tool_call>{"name": 5}'),
    (HERMES, "<tool_call>{]"),
    (HERMES, '<tool_call>{"x": "' + "y" * HEAD_CHARS + '"}</tool_call>'),
    (MISTRAL, "[TOOL_CALLS] [none]"),
    (MISTRAL_NAMED, "[TOOL_CALLS]delete_all{}"),
    (LLAMA, 'In JSON: {"name": "clock", "parameters": {}}'),
    (LLAMA, '{"answer": 42}'),
    (LLAMA, " \n"),
]


@pytest.mark.parametrize("size", [1, 5, 1_000])
@pytest.mark.parametrize(("style", "text"), TEXTS)
def test_what_only_looks_like_a_call_is_text(style: ToolStyle, text: str, size: int) -> None:
    assert found(style, text, size) == (text, [])


def test_what_is_held_back_of_a_call_is_short() -> None:
    finder = CallFinder(HERMES, NAMES)
    assert list(finder.push("yes <tool_call>")) == ["yes "] and finder.calling and finder.opened == ""
    assert list(finder.push('{"name": "clock", "arguments": {"a": "')) == [Found("clock", ""), Found("", '{"a": "')]
    assert list(finder.push("x" * 5_000)) == [Found("", "x" * 5_000)]
    assert finder.calls == 0 and finder.opened is None
    list(finder.push('"}}'))
    assert finder.calls == 1 and list(finder.push("</tool_call> bye")) == [] and list(finder.flush()) == []


def test_an_answer_that_was_begun_is_text_where_calls_have_no_mark() -> None:
    call = '{"name": "clock", "parameters": {}}'
    assert found(LLAMA, call, 5, begun=True) == (call, [])
    assert found(HERMES, f"<tool_call>{ONE}</tool_call>", 5, begun=True)[1] == [("weather", PARIS)]


def test_styles_are_told_by_the_template() -> None:
    assert style_of("{% for tool in tools %}<tool_call>") is HERMES
    assert style_of("{{ tools }}[TOOL_CALLS]") is MISTRAL
    assert style_of("{{ tools }}[TOOL_CALLS][ARGS]") is MISTRAL_NAMED
    assert style_of('{{ tools }}{"name": function name, "parameters": dictionary of argument name}') is LLAMA
    assert style_of("{{ tools }}") is None and style_of("<tool_call>") is None


def test_a_style_without_json_has_no_grammar() -> None:
    assert calls_grammar(MISTRAL_NAMED, {"clock": ""}, one=True, opened=True) is None
