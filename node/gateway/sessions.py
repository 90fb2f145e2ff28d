"""The operator's sessions: a link with a code that is good once opens one; the page then holds its token.

Rule: codes and tokens are 128 and 256 random bits, kept as hashes in memory alone: a session ends with the node. There
are few of each; the oldest makes room. Links are made on the node's loop and used on the gateway's, hence the lock.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

CODE_BYTES, TOKEN_BYTES = 16, 32
CODE_SECONDS = 600.0
MOST_CODES, MOST_SESSIONS = 16, 32


class Sessions:
    """Codes that were given out, and the sessions that were opened with them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._codes: OrderedDict[bytes, float] = OrderedDict()  # hash -> until when
        self._tokens: OrderedDict[bytes, None] = OrderedDict()  # hashes, the longest unused first

    def code(self) -> str:
        """A new code for one session."""
        code = secrets.token_urlsafe(CODE_BYTES)
        with self._lock:
            self._codes[_digest(code)] = self._clock() + CODE_SECONDS
            while len(self._codes) > MOST_CODES:
                self._codes.popitem(last=False)
        return code

    def unlock(self, code: str) -> str | None:
        """The token of a new session; None if the code is none, was used, or is too old."""
        with self._lock:
            until = self._codes.pop(_digest(code), None)
            if until is None or until < self._clock():
                return None
            token = secrets.token_urlsafe(TOKEN_BYTES)
            self._tokens[_digest(token)] = None
            while len(self._tokens) > MOST_SESSIONS:
                self._tokens.popitem(last=False)
            return token

    def holds(self, token: str) -> bool:
        """True if `token` is a session's."""
        digest = _digest(token)
        with self._lock:
            if digest not in self._tokens:
                return False
            self._tokens.move_to_end(digest)
            return True


def link(url: str, code: str) -> str:
    """What a browser opens. The code stands behind #, which no browser sends to a server."""
    return f"{url}/#unlock={code}"


def _digest(secret: str) -> bytes:
    """By hash, so that how long a look-up takes says nothing about what is kept."""
    return hashlib.sha256(secret.encode()).digest()
