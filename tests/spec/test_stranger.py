"""An implementation made from the chapters alone passes the vectors: the chapters suffice."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import stranger_runners

HERE = Path(__file__).parent
VECTORS = HERE.parents[1] / "spec" / "vectors"
CASES = [
    pytest.param(kind, case, id=f"{kind}: {case['name']}")
    for kind in stranger_runners.RUNNERS
    for case in json.loads((VECTORS / f"{kind}.json").read_text(encoding="utf-8"))["cases"]
]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_case(kind: str, case: dict[str, Any]) -> None:
    expected = {key: case[key] for key in ("expect", "error") if key in case}
    assert stranger_runners.outcome_of(kind, case["input"]) == expected


OWN = {"chapters", "edwards", *(path.stem for path in HERE.glob("stranger*.py"))}
OTHERS = {
    "__future__",
    "collections.abc",
    "copy",
    "dataclasses",
    "functools",
    "hashlib",
    "json",
    "pathlib",
    "re",
    "typing",
}


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_stranger_knows_the_chapters_alone(name: str) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert imported <= OWN | OTHERS


def test_the_stranger_answers_every_kind() -> None:
    assert {path.stem for path in VECTORS.glob("*.json")} == set(stranger_runners.RUNNERS)
