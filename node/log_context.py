"""What a log line belongs to: the query that is being worked on, and for whom.

Rule: set once where a query comes in, inherited by every task that works on it, also across the bridge between the
loops; nothing but the log reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ANONYMOUS = "anonymous"

_query: ContextVar[str] = ContextVar("mtor_query", default="")
_client: ContextVar[str] = ContextVar("mtor_client", default=ANONYMOUS)


def current_query() -> str:
    """The id (hex) of the query that this task works on; "" if it works on none."""
    return _query.get()


def current_client() -> str:
    """Who asked, in the words of the log: a key's name, `operator` or `anonymous`."""
    return _client.get()


@contextmanager
def query_named(query: str) -> Iterator[None]:
    """Lines of the block, and of the tasks that it starts, belong to this query (hex)."""
    token = _query.set(query)
    try:
        yield
    finally:
        _query.reset(token)


@contextmanager
def client_named(client: str) -> Iterator[None]:
    """Queries of the block are asked by this client."""
    token = _client.set(client)
    try:
        yield
    finally:
        _client.reset(token)
