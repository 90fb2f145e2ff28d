"""One question to whoever can answer it: the running node, or the stored files of one that does not run."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from node.commands.client import Json, NodeClient, NoNode
from node.paths import data_folder


def call(options: argparse.Namespace, name: str, arguments: Json | None = None) -> Json:
    """One operation, by the running node if there is one. Raises `NoNode` or `NodeRefused`."""
    data = data_folder(options.data)
    try:
        return NodeClient(data).call(name, arguments or {})
    except NoNode:  # also when a dead node's process id belongs to another program by now
        from node.commands.offline import call_offline

        return call_offline(data, name, arguments or {})


def stream(options: argparse.Namespace, name: str, arguments: Json, take: Callable[[Json], None]) -> None:
    """A streamed operation, by the running node if there is one; `take` gets each progress object.

    Raises `NoNode` or `NodeRefused`.
    """
    data = data_folder(options.data)
    try:
        for progress in NodeClient(data).stream(name, arguments):
            take(progress)
    except NoNode:
        from node.commands.offline import stream_offline

        stream_offline(data, name, arguments, take)
