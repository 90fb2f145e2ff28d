"""A real Chromium, and pages that tell of everything a page should not do.

Rule: a test fails on any error in the console, any error of a script, any violation of the page's policy and any
request to another host, unless it says beforehand that it expects it (`page_watch.allow`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.browser.world import BrowserWorld, browser_world

WIDTHS = {360: 740, 768: 1024, 1280: 800}  # of a phone, a tablet, a laptop, each with its height
SCHEMES = ("light", "dark")
WAIT_MS = 10_000
PLACES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
    "/usr/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
FLAGS = (
    "--no-sandbox",  # its pages are this repository's own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def find_chromium() -> str | None:
    """The program, from MTOR_CHROMIUM or where it usually is."""
    return next(
        (found for each in (os.environ.get("MTOR_CHROMIUM", ""), *PLACES) if (found := shutil.which(each))), None
    )


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """One Chromium for all tests of this folder. Its end comes before other folders' tests: it holds an event loop."""
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium, Chrome or Edge here; install one, or name it in MTOR_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[BrowserWorld]:
    """A gateway of this test's own."""
    with browser_world(tmp_path) as running:
        yield running


class PageWatch:
    """What pages did that they should not do."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._allowed: list[str] = []
        self.wrong: list[str] = []

    def allow(self, *parts: str) -> None:
        """Expect complaints that hold one of these texts."""
        self._allowed += parts

    def follow(self, page: Page) -> None:
        """Listen to a page."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        page.on("request", lambda request: self._address(request.url))
        page.on("websocket", lambda socket: self._address(socket.url.replace("ws:", "http:", 1)))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.wrong.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _address(self, url: str) -> None:
        if not url.startswith((self._url, "data:", "blob:")):
            self.wrong.append(f"request to {url}")

    def check(self) -> None:
        """Fail for what was not allowed."""
        left = [each for each in self.wrong if not any(part in each for part in self._allowed)]
        assert not left, "the page: " + "; ".join(left)


@pytest.fixture
def page_watch(world: BrowserWorld) -> Iterator[PageWatch]:
    """What the pages of this test did; checked at its end."""
    watch = PageWatch(world.url)
    yield watch
    watch.check()


class Visitor:
    """Opens pages of the world, each in a fresh context."""

    def __init__(self, chromium: Browser, world: BrowserWorld, watch: PageWatch) -> None:
        self._chromium = chromium
        self._world = world
        self._watch = watch
        self._contexts: list[BrowserContext] = []

    def context(self, width: int = 1280, scheme: Any = "light", **more: Any) -> BrowserContext:
        """A browser's profile without a past."""
        size = {"width": width, "height": WIDTHS.get(width, 800)}
        settings = {"viewport": size, "color_scheme": scheme, "locale": "en-GB", "reduced_motion": "reduce"}
        made = self._chromium.new_context(**(settings | more))
        made.set_default_timeout(WAIT_MS)
        self._contexts.append(made)
        return made

    def __call__(
        self, view: str = "chat", width: int = 1280, scheme: Any = "light", *, unlocked: bool = False, **more: Any
    ) -> Page:
        """A page that shows a view, connected to the node."""
        return self.open(self.context(width, scheme, **more), view, unlocked=unlocked)

    def open(self, context: BrowserContext, view: str = "chat", *, unlocked: bool = False) -> Page:
        """A page in a context that is there already."""
        page = context.new_page()
        self._watch.follow(page)
        if unlocked:
            page.goto(f"{self._world.url}/#unlock={self._world.code()}")
            page.wait_for_function("() => localStorage.getItem('mtor.session') !== null")
        page.goto(f"{self._world.url}/#/{view}")
        page.wait_for_selector(f"#view-{view}")
        page.wait_for_selector("#standing .dot:not(.bad)")
        return page

    def close(self) -> None:
        """End all of them."""
        for context in self._contexts:
            context.close()


@pytest.fixture
def visit(chromium: Browser, world: BrowserWorld, page_watch: PageWatch) -> Iterator[Visitor]:
    """`visit("chat", width=360, scheme="dark", unlocked=True)` opens a page."""
    visitor = Visitor(chromium, world, page_watch)
    yield visitor
    visitor.close()


@pytest.fixture
def page(visit: Visitor) -> Page:
    """The chat view on a laptop, in light colours, not unlocked."""
    return visit("chat")


@pytest.fixture(params=sorted(WIDTHS))
def width(request: pytest.FixtureRequest) -> int:
    """Each of the widths."""
    return int(request.param)


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    """Light and dark."""
    return str(request.param)
