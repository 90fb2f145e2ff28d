"""Reading `realms.yml`: every error with file, line, column, and the nearest known key.

Rule: the file is taken whole or not at all. Environment variables (`MTOR_GATEWAY__PORT=9001`) go over the file, and
what the command line says goes over both.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from node.config import NodeConfig
from protocol.errors import Malformed
from protocol.ids import parse_peer_id, realm_id

ENVIRONMENT_PREFIX = "MTOR_"
RESERVED = {"MTOR_DATA", "MTOR_MODELS", "MTOR_DEBUG"}

Path_ = tuple[str | int, ...]
Marks = dict[Path_, yaml.Mark]


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to write instead."""


def load_config(
    path: Path, environment: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> NodeConfig:
    """The configuration in `path` (all defaults if there is no such file). Raises `ConfigError`."""
    tree, marks = _read(path) if path.exists() else ({}, {})
    _merge(tree, _from_environment(os.environ if environment is None else environment))
    _merge(tree, dict(overrides or {}))
    try:
        config = NodeConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, marks, dict(one)) for one in error.errors())) from None
    _check_names(path, marks, config)
    return config


def _read(path: Path) -> tuple[dict[str, Any], Marks]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None
    marks: Marks = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = None if root is None else _plain(path, root, (), marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias stands in what it names") from None
    if tree is None:
        return {}, {}
    if isinstance(tree, dict):  # a section whose lines are all commented out means its defaults
        tree = {key: value for key, value in tree.items() if value is not None}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1:1: the file is a mapping, with keys like `realms:` and `gateway:`")
    return tree, marks


def _plain(path: Path, node: yaml.Node, at: Path_, marks: Marks) -> Any:
    """A node as plain values; notes where each stands, and refuses a key that comes twice."""
    marks.setdefault(at, node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(path, item, (*at, index), marks) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(path, node)
    plain: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if key in plain:
            raise ConfigError(f"{_place(path, key_node.start_mark)}: {key} stands here a second time; keep one")
        marks[(*at, key)] = key_node.start_mark
        plain[key] = _plain(path, value_node, (*at, key), marks)
    return plain


def _scalar(path: Path, node: yaml.Node) -> Any:
    """One value. Texts that look like a date and are none make the loader fail."""
    try:
        return yaml.SafeLoader("").construct_object(node)
    except ValueError as error:
        raise ConfigError(f"{_place(path, node.start_mark)}: not valid YAML: {error}; put a text in quotes") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """`MTOR_SECTION__KEY=value`; values are read as YAML scalars. Names without `__` belong to others."""
    tree: dict[str, Any] = {}
    for name, value in environment.items():
        section, found, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if name.startswith(ENVIRONMENT_PREFIX) and found and name not in RESERVED:
            tree.setdefault(section, {})[key] = _environment_value(name, value)
    return tree


def _environment_value(name: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{name}: {value!r} is not a YAML value; put a text in quotes") from None


def _merge(tree: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _explain(path: Path, marks: Marks, error: dict[str, Any]) -> str:
    """One pydantic error in words, with its place."""
    at = tuple(error["loc"])
    place = _place(path, _mark(marks, at))
    name = ".".join(str(part) for part in at)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(at[-1]), _known_keys(at[:-1]), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(_known_keys(at[:-1]))}"
        return f"{place}: {name} is not a setting; {hint}"
    if error["type"] == "missing":
        return f"{place}: {name} is missing"
    return f"{place}: {name}: {error['msg']}"


def _mark(marks: Marks, at: Path_) -> yaml.Mark | None:
    """Where a path stands, or the nearest thing above it."""
    while at not in marks and at:
        at = at[:-1]
    return marks.get(at)


def _place(path: Path, mark: yaml.Mark | None) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else f"{path} (or an MTOR_ variable)"


def _known_keys(at: Path_) -> list[str]:
    """The keys that a section has, found by walking the models."""
    model: Any = NodeConfig
    for part in at:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [
            a
            for a in getattr(annotation, "__args__", (annotation,))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        model = inner[0] if inner else annotation
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _check_names(path: Path, marks: Marks, config: NodeConfig) -> None:
    """What the types cannot say: realm names, peer ids, addresses, and that nothing is served twice."""
    served: set[tuple[str, str]] = set()
    for index, section in enumerate(config.realms):
        at = ("realms", index)
        _checked(path, marks, (*at, "realm"), lambda name=section.realm: realm_id(name))
        if section.realm != "$CHAT":
            raise ConfigError(
                f"{_place(path, _mark(marks, (*at, 'realm')))}: {section.realm}: this version serves $CHAT only"
            )
        if (section.realm, section.model) in served:
            raise ConfigError(
                f"{_place(path, _mark(marks, at))}: {section.model} serves {section.realm} twice; raise its slots"
            )
        served.add((section.realm, section.model))
    for index, peer in enumerate(config.blocked_peers):
        _checked(path, marks, ("blocked_peers", index), lambda text=peer: parse_peer_id(text))
    for key in ("listen", "announce"):
        for index, address in enumerate(getattr(config.node, key)):
            if not address.startswith(("/ip4/", "/ip6/", "/dns4/", "/dns6/", "/dns/")) or "/tcp/" not in address:
                place = _place(path, _mark(marks, ("node", key, index)))
                raise ConfigError(f"{place}: {address!r} is not an address like /ip4/0.0.0.0/tcp/9001")


def _checked(path: Path, marks: Marks, at: Path_, check: Any) -> None:
    try:
        check()
    except Malformed as error:
        raise ConfigError(f"{_place(path, _mark(marks, at))}: {error}") from None
