"""For the tests of this folder: the process's loggers, given back after a node took them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from node.logs import QUIET


@pytest.fixture
def loggers_as_before() -> Iterator[None]:
    """`start_logging` takes the process's loggers; give them back, with their files closed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in ("mtor", *QUIET)}
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
