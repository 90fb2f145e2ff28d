"""What a browser fetches: the view that is shown, once; and what happens where that does not come."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import PAGE_FILES, PageWatch, Visitor, go, shown
from tests.browser.world import BrowserWorld

FETCHED = """() => performance.getEntriesByType('resource').filter((each) => each.transferSize > 0)
  .map((each) => new URL(each.name).pathname)"""
HELD = "**/views/network.js"


@pytest.fixture
def fresh(visit: Visitor) -> Page:
    """The chat in a browser that was never here."""
    return visit.open(visit.context())


def test_a_view_comes_when_it_is_shown(fresh: Page) -> None:
    names = {path.removeprefix(PAGE_FILES) for path in fresh.evaluate(FETCHED)}
    assert {"main.js", "style.css", "views/chat.js", "markdown.js"} <= names
    assert not [name for name in names if name.startswith("views/") and name != "views/chat.js"]
    assert not {"voice.js", "sound.js", "table.js", "pieces.js"} & names
    go(fresh, "network")
    now = {path.removeprefix(PAGE_FILES) for path in fresh.evaluate(FETCHED)}
    assert "views/network.js" in now and not [name for name in now if name.startswith(("views/owner", "views/ledger"))]


def test_a_second_visit_fetches_no_file(fresh: Page) -> None:
    assert fresh.evaluate(FETCHED)
    fresh.goto("about:blank")
    fresh.go_back()
    shown(fresh, "chat")
    assert fresh.evaluate(FETCHED) == []


def test_a_view_that_was_left_is_not_put_over_the_next(fresh: Page) -> None:
    waiting: list[Route] = []
    fresh.route(HELD, lambda route: waiting.append(route))
    with fresh.expect_request(HELD):
        fresh.evaluate("() => { location.hash = '#/network' }")
    expect(fresh.locator("#view-network[aria-busy] .spinner")).to_be_visible()
    go(fresh, "ledger")
    while not waiting:
        fresh.wait_for_timeout(10)
    waiting[0].continue_()
    fresh.evaluate("(module) => import(module)", f"{PAGE_FILES}views/network.js")
    expect(fresh.locator("main > .view")).to_have_count(1)
    expect(fresh.locator("#view-ledger")).to_contain_text("Credits are shown to the owner")
    expect(fresh).to_have_title("Credits · MTOR")
    go(fresh, "network")
    expect(fresh.locator(".marks > .mark.own")).to_be_visible()


def test_a_view_that_does_not_come_is_said_and_tried_again(
    fresh: Page, world: BrowserWorld, page_watch: PageWatch
) -> None:
    page_watch.allow("WebSocket connection", "ERR_CONNECTION_REFUSED")
    world.stop()
    fresh.get_by_role("link", name="Network").click()
    problem = fresh.locator("#view-network [role=alert]")
    expect(problem).to_contain_text("Network could not be loaded")
    problem.get_by_role("button", name="Try again").click()
    expect(problem).to_contain_text("the node does not answer; is it running?")
    go(fresh, "chat")
    expect(fresh.locator(".compose-text")).to_be_visible()
    go(fresh, "network")
    expect(problem).to_contain_text("Network could not be loaded")
    world.start(int(world.url.rpartition(":")[2]))
    problem.get_by_role("button", name="Try again").click()
    expect(fresh.locator(".marks > .mark.own")).to_be_visible()


def test_the_voice_comes_when_it_is_wanted_and_says_what_hinders_it(fresh: Page, page_watch: PageWatch) -> None:
    page_watch.allow("ERR_FAILED")
    fresh.route("**/voice.js", lambda route: route.abort())
    speak = fresh.get_by_role("button", name="Speak instead of writing")
    speak.click()
    expect(fresh.locator("#toasts .bad")).to_contain_text("voice.js")
    expect(speak).to_have_attribute("aria-pressed", "false")
