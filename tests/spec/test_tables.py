"""The tables in `spec/*.md` say what the code does: same names, order, types, bounds, numbers and codes."""

from __future__ import annotations

from typing import Any

import chapters
import pytest
import tables

from protocol import params
from protocol.errors import CODES
from protocol.exchange import MOVES
from protocol.gossip import RULES
from protocol.ids import BUILT_IN_REALMS
from protocol.messages import REGISTRY, Message
from protocol.wishes import FEATURES

REGISTRIES = "07-registries.md"
UNITS = {"MILLISECONDS", "SECONDS", "MINUTES", "HOURS", "DAYS", "KIB", "MIB", "MICRO"}
RECORDS: set[type[Any]] = set().union(*(tables.records_of(cls) for cls in REGISTRY.values()))


def described(name: str, number: str) -> chapters.MessageTable:
    found = [table for table in chapters.message_tables() if table.name == name]
    assert [table.number for table in found] == [number], f"### {name} ({number}) stands once in spec/"
    return found[0]


@pytest.mark.parametrize(("number", "cls"), sorted(REGISTRY.items()), ids=tables.name_of)
def test_each_message_is_described_as_it_is(number: int, cls: type[Message]) -> None:
    assert described(cls.__name__, str(number)).rows == tables.expected_rows(cls)


@pytest.mark.parametrize("record", sorted(RECORDS, key=tables.name_of), ids=tables.name_of)
def test_each_record_is_described_as_it_is(record: type[Any]) -> None:
    assert described(record.__name__, "record").rows == tables.expected_rows(record)


def test_no_chapter_describes_what_does_not_exist() -> None:
    known = {cls.__name__ for cls in REGISTRY.values()} | {cls.__name__ for cls in RECORDS}
    assert {table.name for table in chapters.message_tables()} <= known


def test_message_numbers() -> None:
    listed = {int(row[0]): row[1] for row in chapters.table_after(REGISTRIES, "## Message numbers")}
    assert listed == {number: cls.__name__ for number, cls in REGISTRY.items()}


def test_error_codes() -> None:
    listed = chapters.table_after(REGISTRIES, "## Error codes")
    assert listed == [
        (str(int(code)), code.name, meaning.fault, "yes" if meaning.try_another else "no", meaning.meaning)
        for code, meaning in sorted(CODES.items())
    ]


def test_features_of_models() -> None:
    listed = [row[:3] for row in chapters.table_after(REGISTRIES, "## Features of models")]
    assert listed == [(str(int(feature)), feature.name, meaning) for feature, (_, meaning) in FEATURES.items()]


def test_built_in_realms() -> None:
    listed = [row[0] for row in chapters.table_after(REGISTRIES, "## Realms")]
    assert listed == list(BUILT_IN_REALMS)


def test_limits_and_times() -> None:
    listed = {row[0]: row[1] for row in chapters.all_rows(REGISTRIES, "## Limits and times")}
    named = {name: value for name, value in vars(params).items() if name.isupper() and name not in UNITS}
    assert {name: _value(name, text) for name, text in listed.items()} == named


def _value(name: str, text: str) -> object:
    kind = type(getattr(params, name))
    if kind is bytes:
        return bytes.fromhex(text)
    return chapters.number(text) if kind is int else text


def test_legal_moves() -> None:
    listed = chapters.table_after("04-query.md", "## The legal moves")
    assert listed == [
        (state.name, mover.value, cls.__name__, following.name) for (state, mover, cls), following in MOVES.items()
    ]


def test_gossip_rules() -> None:
    listed = chapters.table_after("03-offers.md", "## Gossip")
    assert listed == [(rule, f"[{verdict.name}]", text) for rule, (verdict, text) in RULES.items()]
