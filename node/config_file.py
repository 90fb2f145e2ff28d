"""Reading `realms.yml`: every error with file, line, column, and the nearest known key.

Rule: the file is taken whole or not at all. Environment variables (`MTOR_GATEWAY__PORT=9001`) go over the file, and
what the command line says goes over both; a mistake is told where it was made. Relative paths in the file start at the
file's folder.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ValidationError

from node.config import OUTER_ENGINES, NodeConfig, RealmSection
from node.guard.schedule import ScheduleError, parse_hours
from protocol.errors import Malformed
from protocol.ids import parse_peer_id, realm_id

ENVIRONMENT_PREFIX = "MTOR_"
RESERVED = {"MTOR_DATA", "MTOR_MODELS", "MTOR_DEBUG"}
COMMAND_LINE = "the command line"
DEFAULT = "default"
HOST_PROTOCOLS = {"ip4": ipaddress.IPv4Address, "ip6": ipaddress.IPv6Address, "dns": str, "dns4": str, "dns6": str}
HIGHEST_PORT = 65_535

Path_ = tuple[str | int, ...]
Marks = dict[Path_, yaml.Mark]


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to write instead."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where each value comes from: a place in the file, a variable, the command line."""

    path: Path
    marks: Marks
    above: dict[Path_, str] = field(default_factory=dict)  # what stands above the file

    def place(self, at: Path_) -> str:
        """Where to correct the value at `at`, or the nearest thing around it."""
        for key, name in self.above.items():
            if key == at[: len(key)] or at == key[: len(at)]:
                return name
        while at not in self.marks and at:
            at = at[:-1]
        mark = self.marks.get(at)
        return _place(self.path, mark) if mark else str(self.path)

    def origin(self, at: Path_) -> str:
        """Where the value at `at` was set: `DEFAULT` if nowhere."""
        return self.place(at) if at in self.above or at in self.marks else DEFAULT


def load_config(
    path: Path,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    must_exist: bool = False,
) -> NodeConfig:
    """The configuration in `path` (all defaults if there is no such file). Raises `ConfigError`."""
    return read_config(path, environment, overrides, must_exist=must_exist)[0]


def read_config(
    path: Path,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    must_exist: bool = False,
) -> tuple[NodeConfig, Sources]:
    """`load_config`, and where each value comes from. Raises `ConfigError`."""
    if must_exist and not path.exists():
        raise ConfigError(f"{path} does not exist; correct --config, or leave it out")
    return parse_config(path, read_text(path), environment, overrides)


def parse_config(
    path: Path,
    text: str,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    named: str = COMMAND_LINE,
) -> tuple[NodeConfig, Sources]:
    """What a text means as the file's; `named` is whose mistakes those in `overrides` are. Raises `ConfigError`."""
    tree, marks = parse_tree(path, text)
    _anchor(tree, path.absolute().parent)
    environment, flags = os.environ if environment is None else environment, dict(overrides or {})
    variables, _ = _from_environment(environment)
    sources = Sources(path, marks, set_above(environment, flags, named))
    _merge(tree, variables)
    _merge(tree, flags)
    try:
        config = NodeConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(sources, dict(one)) for one in error.errors())) from None
    _check_names(sources, config)
    return config, sources


def set_above(
    environment: Mapping[str, str], overrides: Mapping[str, Any], named: str = COMMAND_LINE
) -> dict[Path_, str]:
    """What is set above the file, and by which variable or by `named`. Raises `ConfigError`."""
    return _from_environment(environment)[1] | dict.fromkeys(_leaves(overrides), named)


def _leaves(tree: Mapping[str, Any]) -> list[Path_]:
    """The settings in a tree: (section, key), or (key,) outside the sections."""
    return [
        (name, key) if key else (name,)
        for name, inner in tree.items()
        for key in (inner if isinstance(inner, Mapping) else [""])
    ]


RELATIVE = (("node", "bootstrap"), ("hardware", "declared"), ("gateway", "tls_certificate"), ("gateway", "tls_key"))


def _anchor(tree: dict[str, Any], folder: Path) -> None:
    """Make relative paths in the file start at its folder, so that it means the same from everywhere."""
    for name, key in RELATIVE:
        part = tree.get(name)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str(folder / Path(part[key]).expanduser())
    realms = tree.get("realms")
    for section in realms if isinstance(realms, list) else []:
        for key in ("model", "api_key_file") if isinstance(section, dict) else ():
            value = section.get(key)
            names_a_path = key != "model" or section.get("engine") not in OUTER_ENGINES  # servers' names have slashes
            if names_a_path and isinstance(value, str) and (key != "model" or "/" in value or os.sep in value):
                section[key] = str(folder / Path(value).expanduser())


def read_text(path: Path) -> str:
    """The file as it is, line ends included; "" if there is none. Raises `ConfigError`."""
    if not path.exists():
        return ""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None


def parse_tree(path: Path, text: str) -> tuple[dict[str, Any], Marks]:
    """The text as plain values, nothing checked but the form; and where each stands. Raises `ConfigError`."""
    marks: Marks = {}
    root = compose(path, text)
    try:
        tree = None if root is None else _plain(path, root, (), marks)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(path, error) from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias stands in what it names") from None
    if tree is None:
        return {}, {}
    if isinstance(tree, dict):  # a section whose lines are all commented out means its defaults
        tree = {key: value for key, value in tree.items() if value is not None}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1:1: the file is a mapping, with keys like `realms:` and `gateway:`")
    return tree, marks


def compose(path: Path, text: str) -> yaml.Node | None:
    """The text as YAML's nodes, which know where they stand; None if there is nothing in it. Raises `ConfigError`."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(path, error) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias stands in what it names") from None


def _not_yaml(path: Path, error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return ConfigError(f"{path}{where}: not valid YAML: {error.problem}")


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


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[Path_, str]]:
    """`MTOR_SECTION__KEY=value`, values read as YAML; and which variable sets what. Other names belong to others."""
    tree: dict[str, Any] = {}
    names: dict[Path_, str] = {}
    for name, value in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name in RESERVED:
            continue
        section, found, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if found:
            tree.setdefault(section, {})[key] = _environment_value(name, value)
            names[section, key] = name
        elif section in NodeConfig.model_fields and not _section(section):
            tree[section] = _environment_value(name, value)
            names[(section,)] = name
        else:
            _refuse_near_miss(name, section)
    return tree, names


def _refuse_near_miss(name: str, said: str) -> None:
    """A variable with one underscore too few would set nothing and say nothing. Raises `ConfigError`."""
    for section in NodeConfig.model_fields:
        key = said.removeprefix(f"{section}_")
        if key != said and key in _section(section):
            meant = f"{ENVIRONMENT_PREFIX}{section}__{key}".upper()
            raise ConfigError(f"{name} sets nothing; write {meant}, with two underscores after the section")


def _section(name: str) -> list[str]:
    """The keys of a section; none for a list."""
    annotation = NodeConfig.model_fields[name].annotation
    return _known_keys((name,)) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


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


def _explain(sources: Sources, error: dict[str, Any]) -> str:
    """One pydantic error in words, with its place."""
    at = tuple(error["loc"])
    place = sources.place(at)
    name = ".".join(str(part) for part in at)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(at[-1]), _known_keys(at[:-1]), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(_known_keys(at[:-1]))}"
        return f"{place}: {name} is not a setting; {hint}"
    if error["type"] == "missing":
        return f"{place}: {name} is missing"
    return f"{place}: {name}: {error['msg']}"


def _place(path: Path, mark: yaml.Mark) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}"


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


def _check_names(sources: Sources, config: NodeConfig) -> None:
    """What types cannot say: realms, peer ids, addresses, and that nothing is served twice. Raises `ConfigError`."""
    served: set[tuple[str, str]] = set()
    for index, section in enumerate(config.realms):
        problem = _realm_problem(section.realm) if section.realm else ""
        if problem:
            raise ConfigError(f"{sources.place(('realms', index, 'realm'))}: {problem}")
        if (section.realm, section.model) in served:
            place = sources.place(("realms", index))
            raise ConfigError(f"{place}: {section.model} serves {section.realm or 'its realm'} twice; raise its slots")
        served.add((section.realm, section.model))
    for index, section in enumerate(config.realms):
        key, problem = _outer_problem(section, config) if section.outer else _local_problem(section)
        if problem:
            raise ConfigError(f"{sources.place(('realms', index, key))}: {problem}")
    for realm, backups in config.backup.items():
        for name in (realm, *backups):
            if problem := _realm_problem(name):
                raise ConfigError(f"{sources.place(('backup', realm))}: {problem}")
    for index, peer in enumerate(config.blocked_peers):
        try:
            parse_peer_id(peer.node)
        except Malformed as error:
            raise ConfigError(f"{sources.place(('blocked_peers', index))}: {error}") from None
    for index, hours in enumerate(config.guard.pause):
        try:
            parse_hours(hours)
        except ScheduleError as error:
            raise ConfigError(f"{sources.place(('guard', 'pause', index))}: {error}") from None
    for key in ("listen", "announce"):
        for index, address in enumerate(getattr(config.node, key)):
            if not _is_address(address):
                place = sources.place(("node", key, index))
                raise ConfigError(f"{place}: {address!r} is not an address like /ip4/0.0.0.0/tcp/9001")


def _local_problem(section: RealmSection) -> tuple[str, str]:
    """What a model that this node loads has no use for: (key, what is wrong)."""
    keys = [key for key in ("url", "api_key_env", "api_key_file") if getattr(section, key)]
    return (keys[0], f"{keys[0]} is for the engines {', '.join(sorted(OUTER_ENGINES))}") if keys else ("", "")


def _outer_problem(section: RealmSection, config: NodeConfig) -> tuple[str, str]:
    """What is wrong with a server's address or key, with the remedy: (key, what is wrong)."""
    if not section.url:
        return "engine", f"{section.engine} asks a server; say where it is: url: http://127.0.0.1:11434/v1"
    if section.api_key_env and section.api_key_file:
        return "api_key_file", "api_key_env holds the key already; keep one"
    try:
        url = urlsplit(section.url)
        right = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        right = False
    if not right:
        return "url", f"{section.url!r} is not an address like http://127.0.0.1:11434/v1"
    if url.username or url.password or url.query or url.fragment:
        return "url", "an address and nothing else; a key belongs into api_key_env or api_key_file"
    with suppress(ValueError):  # a name is looked up, and held to the list, whenever it is asked
        address = ipaddress.ip_address(str(url.hostname).partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if not any(address in network for network in config.workers.allowed):
            return "url", f"{address} is not on the list of allowed addresses; to use it, add it to workers.allowed"
    return "", ""


def _realm_problem(realm: str) -> str:
    try:
        realm_id(realm)
    except Malformed as error:
        return str(error)
    return ""


def _is_address(text: str) -> bool:
    """/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>, with a host and a port that can be."""
    parts = text.split("/")
    if len(parts) != 5 or parts[0] or parts[1] not in HOST_PROTOCOLS or not parts[2] or parts[3] != "tcp":
        return False
    with suppress(ValueError):
        HOST_PROTOCOLS[parts[1]](parts[2])
        return parts[4].isascii() and parts[4].isdecimal() and int(parts[4]) <= HIGHEST_PORT
    return False
