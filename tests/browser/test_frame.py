"""The page's frame: views, standing, no sideways scrolling, what is refused."""

from __future__ import annotations

import time

from playwright.sync_api import Page, expect

from tests.browser.conftest import WAIT_MS, PageWatch, Visitor, go
from tests.browser.world import BrowserWorld

VIEWS = ("chat", "imagine", "speech", "network", "ledger", "owner")


def test_says_how_the_node_stands(page: Page, world: BrowserWorld) -> None:
    expect(page.locator("#standing")).to_contain_text("2 peers")
    world.state.paused = "a game runs"
    expect(page.locator("#standing")).to_contain_text("Paused")


def test_unlocks_by_an_address(page: Page, world: BrowserWorld) -> None:
    page.goto(f"{world.url}/#unlock={world.code()}")
    page.wait_for_function("() => localStorage.getItem('mtor.session') !== null")
    assert "unlock" not in page.url
    page.goto(f"{world.url}/#/owner")
    expect(page.get_by_role("tabpanel")).to_be_visible()


def test_says_that_a_code_was_used(page: Page, world: BrowserWorld, page_watch: PageWatch) -> None:
    page_watch.allow("status of 401", "status of 400", "status of 403")
    page.goto(f"{world.url}/#unlock=used-already")
    expect(page.locator("#toasts .bad")).to_be_visible()


def test_no_view_scrolls_sideways(visit: Visitor, width: int) -> None:
    page = visit("chat", width, unlocked=True)
    for view in VIEWS:
        go(page, view)
        wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{view} is {wide} pixels too wide at {width}"


def test_a_guarded_page_cannot_do_what_it_should_not(page: Page, page_watch: PageWatch) -> None:
    """The watch itself: errors, inline scripts and other hosts are seen."""
    page.evaluate("() => { console.error('an error'); setTimeout(() => { throw new Error('thrown') }) }")
    page.evaluate("() => { const image = new Image(); image.src = 'http://192.0.2.1/pixel.png'; }")
    page.evaluate("() => { const script = document.createElement('script'); try { script.text = '1' } catch {} }")
    ends = time.monotonic() + WAIT_MS / 1_000
    while missing := [each for each in ("an error", "thrown", "192.0.2.1") if each not in "\n".join(page_watch.wrong)]:
        assert time.monotonic() < ends, missing
        page.wait_for_timeout(20)
    page_watch.wrong.clear()
