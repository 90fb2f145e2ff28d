"""Runs every case of `spec/vectors/*.json`, and checks that the generator gives the very same files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edwards
import make_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from runners import RUNNERS, outcome
from vector_json import from_json

from protocol import errors
from protocol.exchange import MOVES, Conversation, Role, State
from protocol.ids import FederationId
from protocol.messages import Message
from protocol.signing import signed_bytes

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


def loaded() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(VECTORS.glob("*.json"))}


CASES = [
    pytest.param(content["kind"], case, id=f"{name}: {case['name']}")
    for name, content in loaded().items()
    for case in content["cases"]
]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_case(kind: str, case: dict[str, Any]) -> None:
    expected = {key: case[key] for key in ("expect", "error") if key in case}
    assert outcome(RUNNERS[kind], case["input"]) == expected


@pytest.mark.parametrize("name", sorted(loaded()))
def test_a_file_has_the_documented_shape(name: str) -> None:
    content = loaded()[name]
    assert set(content) == {"kind", "description", "cases"}
    names = Counter(case["name"] for case in content["cases"])
    assert names and max(names.values()) == 1
    assert all({"name", "input"} < set(case) <= {"name", "input", "expect", "error"} for case in content["cases"])
    assert all(("expect" in case) != ("error" in case) for case in content["cases"])


def test_every_error_is_a_documented_one() -> None:
    named = {case["error"] for content in loaded().values() for case in content["cases"] if "error" in case}
    classes = {cls.__name__ for cls in (errors.Malformed, errors.BadSignature, errors.IllegalMove)}
    assert {name.removeprefix("missing ") for name in named} <= classes | {code.name for code in errors.ErrorCode}


@pytest.mark.parametrize("name", sorted(loaded()))
def test_every_kind_is_documented_with_what_goes_in_and_what_comes_out(name: str) -> None:
    content = loaded()[name]
    lines = (VECTORS / "README.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith(f"| `{content['kind']}` |"))
    for case in content["cases"]:
        results = [] if "error" in case or "type" in case["expect"] else list(case["expect"])  # a message says itself
        assert {*case["input"], *results} <= set(re.findall(r"`(\w+)`", row))


def test_generating_again_gives_the_same_files() -> None:
    for path, text in make_vectors.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run tests/spec/make_vectors.py"


def test_every_legal_move_is_made_in_some_vector() -> None:
    assert set(moves_made()) == set(MOVES)


def moves_made() -> Iterator[tuple[State, Role, type[Message]]]:
    for case in loaded()["exchange.json"]["cases"]:
        conversation = Conversation(Role(case["input"]["view"]))
        legal = case["input"]["moves"] if "expect" in case else case["input"]["moves"][:-1]
        for move in legal:
            message = from_json(move["message"])
            yield conversation.state, Role(move["by"]), type(message)
            own = move["by"] == conversation.role.value
            (conversation.sent if own else conversation.received)(message)


def test_the_offer_vectors_name_the_rule_that_decides() -> None:
    for case in loaded()["offer.json"]["cases"]:
        assert case["name"].startswith(case["expect"]["rule"])


def test_there_are_fourteen_small_order_keys_with_a_forgery_each() -> None:
    small = edwards.small_order_encodings()
    assert len(set(small)) == 14
    forged = [case["input"]["key"] for case in loaded()["verifying.json"]["cases"] if "small-order key" in case["name"]]
    assert forged == [key.hex() for key in small]


def test_a_lax_verifier_accepts_the_forgeries() -> None:
    """Otherwise the vectors would show nothing: any broken signature is refused."""
    accepted = 0
    for case in loaded()["verifying.json"]["cases"]:
        if "small-order key" in case["name"] or "a key with a component" in case["name"]:
            given = {name: bytes.fromhex(text) for name, text in case["input"].items()}
            key = Ed25519PublicKey.from_public_bytes(given["key"])
            key.verify(given["signature"], signed_bytes(FederationId(given["federation"]), given["body"]))
            accepted += 1
    assert accepted == 15
