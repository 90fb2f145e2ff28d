"""A real gateway for a real browser: its own thread, a free port, and fakes behind it that a test can change.

Rule: the browser meets nothing but the gateway's own HTTP and WebSocket; what lies behind (answers, the owner's
operations, peers and offers) follows the test.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from node.config import GatewaySection
from node.gateway import watching
from node.gateway.http import Gateway
from node.gateway.ports import FederationFacts, ModelFacts, NodeSnapshot, OfferFacts, PeerFacts
from node.measures import Figure, Measured
from protocol.ids import peer_id
from tests.browser.answers import OWN, PromptedAnswers
from tests.browser.operations import NodeState, PanelOperations

START_SECONDS = 30

_ports: list[int] = []  # of the world before, which a browser's cache knows

watching.LOOK_SECONDS = 0.1  # the page learns of a change at once, and no test waits a second for it


class StateFacts:
    """The `GatewayFacts` of the tests: what the state says."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    async def models(self) -> list[ModelFacts]:
        """See `GatewayFacts`."""
        offers = [each for each in self._state.offers if each["slots"]]
        return [ModelFacts(each["realm"], each["model"], 1, each["context_tokens"]) for each in offers]

    async def readiness(self) -> tuple[bool, str]:
        """See `GatewayFacts`."""
        return self._state.ready

    async def figures(self) -> list[Measured]:
        """See `GatewayFacts`."""
        return [Figure("mtor_peers", ("connected",), len(self._state.peers))]

    async def snapshot(self) -> NodeSnapshot:
        """See `GatewayFacts`."""
        state = self._state
        ready, reason = state.ready
        return NodeSnapshot(
            node=peer_id(OWN),
            name=state.name,
            version="0.1.0",
            uptime_seconds=4_000,
            paused=bool(state.paused),
            pause_reason=state.paused,
            ready=ready,
            ready_reason=reason,
            federation=FederationFacts("home", "f" * 64),
            peers=tuple(PeerFacts(**each) for each in state.peers),
            offers=tuple(OfferFacts(**each) for each in state.offers),
            loading=tuple(state.loading),
        )


class BrowserWorld:
    """A gateway that runs, and what lies behind it."""

    def __init__(self, data: Path, **section: Any) -> None:
        self.data = data
        self.answers = PromptedAnswers()
        self.state = NodeState()
        self.operations = PanelOperations(self.state)
        self.url = ""
        self._section = {"port": 0} | section
        self._started: queue.Queue[str | BaseException] = queue.Queue()
        self._gateway: Gateway | None = None
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Serve where the world before did, whose files a browser still has, or on a free port if it is taken now."""
        try:
            self.start(_ports[-1] if _ports else 0)
        except Exception:
            self.start()
        _ports[:] = [int(self.url.rpartition(":")[2])]

    def start(self, port: int = 0) -> None:
        """Serve, on a free port or on the one that a stopped one had. Raises what hindered it."""
        self._section["port"] = port
        self._thread = threading.Thread(target=self._run, name="gateway of a test", daemon=True)
        self._thread.start()
        began = self._started.get(timeout=START_SECONDS)
        if isinstance(began, BaseException):
            raise began
        self.url = began

    def stop(self) -> None:
        """Stop serving."""
        if self._token is not None and self._thread is not None:
            self._token.run_sync_soon(self._scope.cancel)
            self._thread.join(START_SECONDS)
            assert not self._thread.is_alive(), "the gateway did not stop"
        self._thread = None

    def restart(self) -> None:
        """Stop, and serve on the same port again."""
        port = int(self.url.rpartition(":")[2])
        self.stop()
        self.start(port)

    def code(self) -> str:
        """What `mtor open` prints: it unlocks the owner's panel once."""
        assert self._gateway is not None
        return self._gateway.page_link().partition("#unlock=")[2]

    def session(self) -> str:
        """What the page keeps once it is unlocked."""
        body = json.dumps({"code": self.code()}).encode()
        request = urllib.request.Request(f"{self.url}/mtor/unlock", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
            return str(json.load(answer)["token"])

    def until_asked(self, count: int = 1, seconds: float = 15.0) -> None:
        """Wait for the node to have got so many questions."""
        until(lambda: len(self.answers.asked) >= count, seconds)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._started.put(error)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope()
        config = GatewaySection.model_validate(self._section)
        gateway = Gateway(config, self.data, self.answers, self.operations, StateFacts(self.state))
        self._gateway = gateway
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._started.put(await nursery.start(gateway.run))


@contextmanager
def browser_world(data: Path, **section: Any) -> Iterator[BrowserWorld]:
    """A world that serves until the block ends."""
    world = BrowserWorld(data, **section)
    world.begin()
    try:
        yield world
    finally:
        world.answers.let_go.set()
        world.stop()


def until(seen: Any, seconds: float = 15.0) -> None:
    """Wait for what another thread does. Fails, and does not hang, if it never happens."""
    ends = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)
