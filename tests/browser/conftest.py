"""A real Chromium, and pages that tell of everything a page should not do.

Rule: a test fails on any error in the console, any error of a script, any violation of the page's policy and any
request to another host, unless it says beforehand that it expects it (`page_watch.allow`).

Most of a test's time would go into a new profile, a new process for its page, and files that the page before had, too.
So one tab goes from test to test, emptied in between; what needs a profile of its own asks for one (`visit.context`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, sync_playwright

from node.gateway.page import PageRoutes
from tests.browser.world import BrowserWorld, browser_world

PAGE_FILES = PageRoutes().address
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
        self._listening: list[tuple[Page, Any, Any]] = []
        self.wrong: list[str] = []

    def allow(self, *parts: str) -> None:
        """Expect complaints that hold one of these texts."""
        self._allowed += parts

    def follow(self, page: Page) -> None:
        """Listen to a page."""
        self._listen(page, "console", self._console)
        self._listen(page, "pageerror", lambda error: self.wrong.append(f"script: {error}"))
        self._listen(page, "request", lambda request: self._address(request.url))
        self._listen(page, "websocket", lambda socket: self._address(socket.url.replace("ws:", "http:", 1)))

    def _listen(self, page: Page, event: Any, heard: Any) -> None:
        page.on(event, heard)
        self._listening.append((page, event, heard))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.wrong.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _address(self, url: str) -> None:
        if not url.startswith((self._url, "data:", "blob:")):
            self.wrong.append(f"request to {url}")

    def check(self) -> None:
        """Listen no more. Fail for what was not allowed."""
        for page, event, heard in self._listening:
            page.remove_listener(event, heard)
        self._listening.clear()
        left = [each for each in self.wrong if not any(part in each for part in self._allowed)]
        assert not left, "the page: " + "; ".join(left)


@pytest.fixture
def page_watch(world: BrowserWorld) -> Iterator[PageWatch]:
    """What the pages of this test did; checked at its end."""
    watch = PageWatch(world.url)
    yield watch
    watch.check()


def new_context(chromium: Browser, width: int = 1280, scheme: Any = "light", **more: Any) -> BrowserContext:
    """A browser's profile without a past."""
    size = {"width": width, "height": WIDTHS.get(width, 800)}
    settings = {"viewport": size, "color_scheme": scheme, "locale": "en-GB", "reduced_motion": "reduce"}
    made = chromium.new_context(**(settings | more))
    made.set_default_timeout(WAIT_MS)
    return made


class SharedTab:
    """One page that tests use one after the other, with what is cached of the node's files, and nothing else.

    In between it shows a picture of the node, where no script runs: there a page's memory can be emptied.
    """

    def __init__(self, chromium: Browser) -> None:
        self._chromium = chromium
        self._page: Page | None = None

    def take(self, url: str, width: int, scheme: Any, session: str) -> Page:
        """The page, before it goes to a view; `session` unlocks it, "" does not."""
        if self._page is None:
            self._page = new_context(self._chromium).new_page()
        page = self._page
        page.set_viewport_size({"width": width, "height": WIDTHS.get(width, 800)})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.goto(resting_place(url))
        page.evaluate(FORGET)
        if session:
            page.evaluate("(session) => localStorage.setItem('mtor.session', JSON.stringify(session))", session)
        return page

    def rest(self, url: str) -> None:
        """Leave the node that will be stopped. What cannot be left any more is closed."""
        assert self._page is not None
        try:
            self._page.goto(resting_place(url))
            self._page.context.clear_permissions()
            self._page.context.clear_cookies()
        except Error:
            self.close()

    def close(self) -> None:
        """End it."""
        if self._page is not None:
            self._page.context.close()
        self._page = None


FORGET = """async () => {
  localStorage.clear();
  sessionStorage.clear();
  window.name = '';
  const gone = (name) => new Promise((done, failed) => { // once the page that was left has let it go
    const request = indexedDB.deleteDatabase(name);
    request.onsuccess = done;
    request.onerror = () => failed(request.error);
  });
  for (const { name } of await indexedDB.databases()) await gone(name);
}"""


def resting_place(url: str) -> str:
    """A file of the page that is no program."""
    return f"{url}{PAGE_FILES}icon.svg"


@pytest.fixture(scope="package")
def shared_tab(chromium: Browser) -> Iterator[SharedTab]:
    """The tab of this process's tests."""
    tab = SharedTab(chromium)
    yield tab
    tab.close()


class Visitor:
    """Opens pages of the world: the first in the tab that tests share, each other in a fresh context."""

    def __init__(self, chromium: Browser, world: BrowserWorld, watch: PageWatch, tab: SharedTab) -> None:
        self._chromium = chromium
        self._world = world
        self._watch = watch
        self._tab = tab
        self._in_tab = False
        self._contexts: list[BrowserContext] = []

    def context(self, width: int = 1280, scheme: Any = "light", **more: Any) -> BrowserContext:
        """A browser's profile without a past."""
        made = new_context(self._chromium, width, scheme, **more)
        self._contexts.append(made)
        return made

    def __call__(
        self, view: str = "chat", width: int = 1280, scheme: Any = "light", *, unlocked: bool = False, **more: Any
    ) -> Page:
        """A page that shows a view, connected to the node."""
        if more or self._in_tab:
            return self.open(self.context(width, scheme, **more), view, unlocked=unlocked)
        self._in_tab = True
        page = self._tab.take(self._world.url, width, scheme, self._world.session() if unlocked else "")
        return self._show(page, view)

    def open(self, context: BrowserContext, view: str = "chat", *, unlocked: bool = False) -> Page:
        """A page in a context that is there already."""
        page = context.new_page()
        if unlocked:
            page.goto(resting_place(self._world.url))
            page.evaluate(
                "(session) => localStorage.setItem('mtor.session', JSON.stringify(session))", self._world.session()
            )
        return self._show(page, view)

    def _show(self, page: Page, view: str) -> Page:
        self._watch.follow(page)
        page.goto(f"{self._world.url}/#/{view}")
        shown(page, view)
        page.wait_for_selector("#standing .dot:not(.bad)")
        return page

    def close(self) -> None:
        """End all of them."""
        for context in self._contexts:
            context.close()
        if self._in_tab:
            self._tab.rest(self._world.url)


def go(page: Page, view: str) -> None:
    """Another view of the same page."""
    page.evaluate("(view) => { location.hash = `#/${view}` }", view)
    shown(page, view)


def shown(page: Page, view: str) -> None:
    """Wait for a view's module to be there."""
    page.wait_for_selector(f"#view-{view}:not([aria-busy])")


@pytest.fixture
def visit(chromium: Browser, shared_tab: SharedTab, world: BrowserWorld, page_watch: PageWatch) -> Iterator[Visitor]:
    """`visit("chat", width=360, scheme="dark", unlocked=True)` opens a page."""
    visitor = Visitor(chromium, world, page_watch, shared_tab)
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
