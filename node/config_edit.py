"""Changing `realms.yml` and leaving the rest of it as its owner wrote it.

Rule: text in, text out; what is not changed stays to the byte, comments, order and quotes included. The changed text is
read again: unless it says what was meant and nothing else, it is refused with the place where to write it by hand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from node.config_file import ConfigError, Path_, compose, parse_tree
from node.private_files import sync_folder

HEAD = "# What this node serves, and how: docs/operating.md; every setting is in realms.example.yml.\n\n"
NEW_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Put:
    """Set the value at `at`, in a section that may not exist yet."""

    at: Path_
    value: Any


@dataclass(frozen=True, slots=True)
class Append:
    """One more item at the end of the list at `at`, which may not exist yet."""

    at: Path_
    item: Any


@dataclass(frozen=True, slots=True)
class Drop:
    """Take the item at `index` out of the list at `at`."""

    at: Path_
    index: int


Change = Put | Append | Drop


def edited(path: Path, text: str, changes: Sequence[Change]) -> str:
    """The text after the changes, one by one. Raises `ConfigError` if it cannot be read, or not be changed so."""
    for change in changes:
        text = _edited(path, text, change)
    return text


def _edited(path: Path, text: str, change: Change) -> str:
    wanted = parse_tree(path, text)[0]
    _apply(wanted, change)
    root = compose(path, text)
    try:
        fresh = _write(text or HEAD, root, change)
        done = parse_tree(path, fresh)[0] == wanted
    except (ConfigError, ValueError):
        done = False
    if not done:
        raise ConfigError(f"{_where(path, root, change.at)}: this cannot be changed from here; write {_said(change)}")
    return fresh


def _apply(tree: dict[str, Any], change: Change) -> None:
    """What the text means after the change."""
    *way, last = change.at
    inner: Any = tree
    for key in way:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    if isinstance(change, Put):
        inner[last] = change.value
    elif isinstance(change, Append):
        inner.setdefault(last, []).append(change.item)
    else:
        del inner[last][change.index]


def _said(change: Change) -> str:
    name = ".".join(map(str, change.at))
    if isinstance(change, Drop):
        return f"{name} there without its item {change.index + 1}"
    return f"there {name}: {_flow(change.value if isinstance(change, Put) else [change.item])}"


def _where(path: Path, root: yaml.Node | None, at: Path_) -> str:
    found, _ = _reached(root, at)
    mark = found[-1].start_mark if found else None
    return f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)


# --- finding ---------------------------------------------------------------------------------------------


def _reached(root: yaml.Node | None, at: Path_) -> tuple[list[yaml.Node], Path_]:
    """The nodes on the way as far as they exist, the file's root first, and the keys that do not."""
    nodes: list[yaml.Node] = [] if root is None else [root]
    for done, key in enumerate(at):
        inner = _child(nodes[-1], key) if nodes else None
        if inner is None:
            return nodes, at[done:]
        nodes.append(inner)
    return nodes, ()


def _child(node: yaml.Node, key: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        return node.value[key] if key < len(node.value) else None
    entry = _entry(node, key)
    return entry[1] if entry else None


def _entry(node: yaml.Node, key: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """A mapping's key and value."""
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return next((entry for entry in entries if entry[0].value == key), None)


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _is_empty(node: yaml.Node) -> bool:
    """A key with nothing behind it."""
    return isinstance(node, yaml.ScalarNode) and node.start_mark.index == node.end_mark.index


def _end(text: str, node: yaml.Node) -> int:
    """Behind the last character of its content. A block's own end mark is behind the comments that follow it."""
    if _is_block(node):
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return len(text[:end].rstrip()) if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">") else end


def _colon(text: str, key: yaml.Node) -> int:
    """Behind a key's colon."""
    return text.index(":", key.end_mark.index) + 1


def _next_line(text: str, index: int) -> int:
    """Where the next line begins."""
    end = text.find("\n", index)
    return len(text) if end < 0 else end + 1


def _behind(text: str, index: int, column: int) -> int:
    """Where the line after `index` begins, and after the comments that are indented deeper than `column`."""
    place = _next_line(text, index)
    while place < len(text):
        line = text[place : _next_line(text, place)]
        words = line.lstrip(" ")
        if not words.startswith("#") or len(line) - len(words) <= column:
            break
        place += len(line)
    return place


# --- writing ---------------------------------------------------------------------------------------------


def _write(text: str, root: yaml.Node | None, change: Change) -> str:
    nodes, missing = _reached(root, change.at)
    if isinstance(change, Put):
        return _add(text, nodes, missing, change.value) if missing else _replace(text, nodes, change.at, change.value)
    if isinstance(change, Append):
        return _add(text, nodes, missing, [change.item]) if missing else _append(text, nodes, change)
    return _drop(text, nodes, change)


def _replace(text: str, nodes: Sequence[yaml.Node], at: Path_, value: Any) -> str:
    node = nodes[-1]
    start, end = node.start_mark.index, _end(text, node)
    entry = _entry(nodes[-2], at[-1])
    if _is_block(node) and entry:
        start = _colon(text, entry[0])
        return f"{text[:start]} {_flow(value)}{text[start : _next_line(text, start)]}{text[_next_line(text, end) :]}"
    return text[:start] + (" " if _is_empty(node) else "") + _flow(value) + text[end:]


def _add(text: str, nodes: Sequence[yaml.Node], missing: Path_, value: Any) -> str:
    """A setting that is not there yet, in the innermost section that is."""
    tree = value
    for key in reversed(missing):
        tree = {key: tree}
    if not nodes or (len(nodes) == 1 and _is_block(nodes[0])):  # behind all comments: those may belong to a section
        return _insert(text, len(text), _block(tree, 0))
    inner = nodes[-1]
    if isinstance(inner, yaml.ScalarNode):  # a section that is empty, or null
        if not _is_empty(inner):
            return text[: inner.start_mark.index] + _flow(tree) + text[inner.end_mark.index :]
        return _insert(text, _next_line(text, inner.end_mark.index), _block(tree, _column_of(nodes) + 2))
    if not _is_block(inner):
        close = inner.end_mark.index - 1
        return text[:close] + (", " if inner.value else "") + _flow(tree)[1:-1] + text[close:]
    column = inner.start_mark.column
    return _insert(text, _behind(text, _end(text, inner), column - 1), _block(tree, column))


def _append(text: str, nodes: Sequence[yaml.Node], change: Append) -> str:
    node = nodes[-1]
    if _is_block(node):
        column = node.start_mark.column
        return _insert(text, _behind(text, _end(text, node), column), _block([change.item], column))
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.SequenceNode) and node.value:
        last = _end(text, node.value[-1])
        return f"{text[:last]}, {_flow(change.item)}{text[last:]}"
    if not _is_block(nodes[-2]):
        return f"{text[:start]}[{_flow(change.item)}]{text[end:]}"
    text = text[:start].rstrip(" ") + text[end:] if start < end else text
    return _insert(text, _next_line(text, start - 1), _block([change.item], _column_of(nodes) + 2))


def _drop(text: str, nodes: Sequence[yaml.Node], change: Drop) -> str:
    node = nodes[-1]
    items: list[yaml.Node] = node.value
    if len(items) == 1:
        return _replace(text, nodes, change.at, [])
    item = items[change.index]
    if not _is_block(node):
        first = item.start_mark.index if change.index == 0 else _end(text, items[change.index - 1])
        last = items[1].start_mark.index if change.index == 0 else _end(text, item)
        return text[:first] + text[last:]
    lowest = _end(text, items[change.index - 1]) if change.index else node.start_mark.index
    dash = text.rindex("-", lowest, item.start_mark.index)
    begin = text.rfind("\n", 0, dash) + 1
    return text[:begin] + text[_behind(text, _end(text, item), node.start_mark.column) :]


def _column_of(nodes: Sequence[yaml.Node]) -> int:
    """Where the keys stand among which the last node is a value."""
    return int(nodes[-2].start_mark.column)


def _insert(text: str, place: int, lines: Sequence[str]) -> str:
    """Whole lines, ended as the others are."""
    newline = "\r\n" if "\r\n" in text else "\n"
    before = text[:place] + (newline if text[:place] and not text[:place].endswith("\n") else "")
    return before + "".join(line + newline for line in lines) + text[place:]


def _block(value: Any, column: int) -> list[str]:
    """A section, or a list's items, in lines; what is in them stands in one line."""
    space = " " * column
    if isinstance(value, Mapping):
        lines = []
        for key, inner in value.items():
            deep = isinstance(inner, Mapping) or (isinstance(inner, list) and inner and isinstance(inner[0], Mapping))
            lines += (
                [f"{space}{_flow(key)}:", *_block(inner, column + 2)]
                if deep
                else [f"{space}{_flow(key)}: {_flow(inner)}"]
            )
        return lines
    lines = []
    for item in value:
        inner_lines = _block(item, column + 2) if isinstance(item, Mapping) else [f"{space}  {_flow(item)}"]
        lines += [f"{space}- {inner_lines[0].lstrip()}", *inner_lines[1:]]
    return lines


def _flow(value: Any) -> str:
    """A value in one line, good wherever a value may stand."""
    text = yaml.safe_dump([value], default_flow_style=True, width=sys.maxsize, allow_unicode=True, sort_keys=False)
    return str(text).strip()[1:-1]


# --- the file --------------------------------------------------------------------------------------------


def write_whole(path: Path, text: str, unchanged: Callable[[], bool]) -> None:
    """Replace the file, or make it; its mode stays. It is on the disk when this returns, and a crash leaves the old one
    or the new one. `unchanged` is asked last. Raises `ConfigError`."""
    real = path.resolve()  # of a link, what it names is written
    fresh = real.with_name(f".{real.name}.{os.getpid()}")
    try:
        mode = real.stat().st_mode & 0o777 if real.exists() else NEW_MODE
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(mode)
        if not unchanged():
            raise ConfigError(f"{path} was changed by somebody else at this moment; try again")
        fresh.replace(real)
        sync_folder(real.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}; make it writable") from None
    finally:
        fresh.unlink(missing_ok=True)
