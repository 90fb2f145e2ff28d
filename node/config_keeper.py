"""`realms.yml` while the node runs: what is in force, and who may change the file.

Rule: the only writer of the file, one change at a time. It is read anew before each change, so that what its owner
wrote meanwhile stays; what comes out is checked as `mtor config check` does, whole, before a byte is written. A file
that cannot be read is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from node.config import NodeConfig
from node.config_edit import Change, edited, write_whole
from node.config_file import Path_, parse_config, parse_tree, read_config, read_text, set_above

MISTAKE = "that"  # whose mistakes are those in a value that the operator asks for


@dataclass(frozen=True, slots=True)
class Written:
    """What the file says, and what would be in force if the node started now."""

    tree: Mapping[str, Any]
    config: NodeConfig


class ConfigKeeper:
    """The owner of the file, and of the configuration in force."""

    def __init__(
        self,
        path: Path,
        config: NodeConfig,
        flags: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`config` is what the node started with, `flags` what its command line said."""
        self.path = path
        self.in_force = config
        self._flags = dict(flags or {})
        self._environment = dict(os.environ if environment is None else environment)
        self._above = set_above(self._environment, self._flags)
        self._writing = trio.Lock()

    async def read(self) -> Written:
        """The file as it is now. Raises `ConfigError`."""
        return await trio.to_thread.run_sync(self._read)

    def above(self, at: Path_) -> str:
        """What stands above the file at `at`: a variable's name or the command line; "" if nothing does."""
        return self._above.get(at[:2]) or self._above.get(at[:1]) or ""

    async def change(self, decide: Callable[[Written], Sequence[Change]]) -> bool:
        """Change the file as `decide` says when it sees it; True if there was something to change. Raises
        `ConfigError`, and then the file is as it was."""
        async with self._writing:
            return await trio.to_thread.run_sync(self._change, decide)

    async def check(self, at: Path_, value: Any) -> NodeConfig:
        """What would be in force with this value. Raises `ConfigError` that names the nearest key."""
        tree: Any = value
        for key in reversed(at):
            tree = {key: tree}
        text = await trio.to_thread.run_sync(read_text, self.path)
        parse_config(self.path, text, self._environment, self._flags)  # what is wrong already is told with its place
        return parse_config(self.path, text, self._environment, self._flags | tree, MISTAKE)[0]

    def _read(self) -> Written:
        config, _ = read_config(self.path, self._environment, self._flags)
        return Written(parse_tree(self.path, read_text(self.path))[0], config)

    def _change(self, decide: Callable[[Written], Sequence[Change]]) -> bool:
        before = read_text(self.path)
        config, _ = parse_config(self.path, before, self._environment, self._flags)
        changes = decide(Written(parse_tree(self.path, before)[0], config))
        if not changes:
            return False
        after = edited(self.path, before, changes)
        parse_config(self.path, after, self._environment, self._flags)
        write_whole(self.path, after, lambda: read_text(self.path) == before)
        return True
