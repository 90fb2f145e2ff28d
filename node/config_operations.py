"""What the operator may see and change of the configuration while the node runs.

Rule: a value is checked as `mtor config check` does before it is written; what can be applied at once is, and of what
cannot it is said that it waits for a restart. Nothing that is secret is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from node.config import NodeConfig
from node.config_edit import Put
from node.config_file import ConfigError, Path_
from node.config_keeper import MISTAKE, ConfigKeeper
from node.operations import Json, Method, OperationFailed

ELSEWHERE = {
    "realms": "`mtor serve` and `mtor unserve` change what is served (serving.start, serving.stop)",
    "blocked_peers": "`mtor peers block` and `unblock` change who is blocked (peers.block, peers.unblock)",
}
SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)  # names of an engine's options that are not shown
KINDS: tuple[tuple[type, str], ...] = ((bool, "bool"), (int, "int"), (tuple, "list"), (dict, "map"))

Apply = Callable[[NodeConfig], None]


class ConfigOperations:
    """Its `methods` are some of `OPERATIONS`."""

    def __init__(self, keeper: ConfigKeeper, live: Mapping[str, Apply]) -> None:
        """`live`: by key, what puts a new value in force."""
        self._keeper = keeper
        self._live = live
        self.methods: dict[str, Method] = {"config.show": self.show, "config.set": self.set}

    async def show(self) -> Json:
        """Every setting: what is in force, and what the file says for the next start where that differs."""
        facts: Json = {"path": str(self._keeper.path)}
        try:
            coming = (await self._keeper.read()).config
        except ConfigError as error:
            coming = self._keeper.in_force
            facts["problem"] = str(error)
        return facts | {"settings": [self._setting(at, field, coming) for at, field in _settings()]}

    def _setting(self, at: Path_, field: FieldInfo, coming: NodeConfig) -> Json:
        key, now, then = ".".join(map(str, at)), _value(self._keeper.in_force, at), _value(coming, at)
        above = self._keeper.above(at)
        facts = {
            "key": key,
            "value": now,
            "default": _value(NodeConfig(), at),
            "description": field.description or "",
            "kind": _kind(field),
            "live": key in self._live or key in ELSEWHERE,
        }
        more = {
            "choices": list(get_args(field.annotation)) if get_origin(field.annotation) is Literal else [],
            "after_restart": then if then != now and key not in ELSEWHERE else None,
            "set_by": above,
            "changed_by": ELSEWHERE.get(key, ""),
        }
        return facts | {name: value for name, value in more.items() if value not in (None, "", [])}

    async def set(self, key: str, value: Any) -> Json:
        """Set one value, in the file and, where it can be, in force."""
        at: Path_ = tuple(key.split("."))
        if at[0] in ELSEWHERE:
            raise OperationFailed(f"{key} is not set by hand here: {ELSEWHERE[str(at[0])]}")
        field = dict(_settings()).get(at)
        if field is not None and _kind(field) == "list" and isinstance(value, str):
            value = [value] if value else []
        try:
            config = await self._keeper.check(at, value)
            kept = value if field is None or Path in get_args(field.annotation) else _value(config, at)
            await self._keeper.change(lambda _: [Put(at, kept)])
        except ConfigError as error:
            raise OperationFailed(str(error).replace(f"{MISTAKE}: ", "")) from None
        return {"key": key, "value": kept} | self._put_in_force(at, key, config)

    def _put_in_force(self, at: Path_, key: str, config: NodeConfig) -> Json:
        above, wanted = self._keeper.above(at), _value(config, at)
        applied = key in self._live
        if applied:
            self._keeper.in_force = _with(self._keeper.in_force, config, at)
            self._live[key](self._keeper.in_force)
        restart = not applied and wanted != _value(self._keeper.in_force, at)
        note = f"{above} sets it too, and goes over realms.yml at the next start; take it out there"
        return {"restart": restart} | ({"note": note} if above else {})


def _settings() -> Iterator[tuple[Path_, FieldInfo]]:
    """Every setting, in the order of realms.example.yml."""
    for name, field in NodeConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for key, inner in kind.model_fields.items():
                yield (name, key), inner
        else:
            yield (name,), field


def _kind(field: FieldInfo) -> str:
    kind: Any = get_origin(field.annotation) or field.annotation
    return next((name for of, name in KINDS if isinstance(kind, type) and issubclass(kind, of)), "text")


def _value(config: NodeConfig, at: Path_) -> Any:
    """As JSON has it."""
    tree: Any = config.model_dump(mode="json", include={str(at[0])})
    if at == ("realms",):
        return [_shown(section) for section in tree["realms"]]
    for key in at:
        tree = tree[key]
    return tree


def _shown(section: Json) -> Json:
    """A model's settings; of an engine's own only those that are no secret."""
    options = {name: "(not shown)" if SECRET.search(name) else value for name, value in section["options"].items()}
    return section | {"options": options}


def _with(config: NodeConfig, other: NodeConfig, at: Path_) -> NodeConfig:
    """The one with a value of the other."""
    section, *rest = map(str, at)
    new = getattr(other, section)
    if rest:
        new = getattr(config, section).model_copy(update={rest[0]: getattr(new, rest[0])})
    return config.model_copy(update={section: new})
