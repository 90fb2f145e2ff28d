"""A newcomer's way from a bare node to a first answer."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from node.operations import OperationFailed
from protocol.ids import peer_id
from tests.browser.answers import CHAT_MODEL, OWN
from tests.browser.conftest import PageWatch, Visitor
from tests.browser.operations import offer
from tests.browser.world import BrowserWorld


def get_model(page: Page) -> None:
    """Press the one large button."""
    page.locator(".button.large").click()


def test_to_a_first_answer_by_three_presses(visit: Visitor, world: BrowserWorld) -> None:
    world.state.bare()
    page = visit("chat", unlocked=True)
    expect(page.locator(".welcome")).to_contain_text("This node serves no model yet, and is connected with nobody.")
    expect(page.locator(".button.large")).to_have_text(
        "Get a small chat model SmolLM2 135M, 98.0 MB, licence Apache-2.0"
    )
    expect(page.locator(".choice-line")).to_contain_text("Nobody can answer this now: no worker offers $CHAT.")
    get_model(page)
    expect(page.locator(".welcome")).to_contain_text("Getting SmolLM2 135M ready")
    expect(page.locator(".examples")).to_be_visible()
    expect(page.locator(".compose-text")).to_be_focused()
    page.locator(".examples .button").first.click()
    expect(page.locator(".compose-text")).to_have_value("What is the capital of France?")
    page.keyboard.press("Enter")
    expect(page.locator(".message.answer")).to_contain_text("You said: What is the capital of France?")
    names = [name for name, _ in world.operations.called]
    assert names.index("models.pull") < names.index("serving.start")


def test_who_is_no_owner_yet_is_asked_for_the_code(page: Page, world: BrowserWorld) -> None:
    world.state.bare()
    expect(page.locator(".button.large")).to_have_text("Get a small chat model")
    get_model(page)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("mtor open")
    dialog.get_by_label("Code").fill(f"{world.url}/#unlock={world.code()}")
    dialog.get_by_role("button", name="Unlock").click()
    expect(page.locator(".examples")).to_be_visible()
    assert any(each["own"] and each["model"] == CHAT_MODEL for each in world.state.offers)


def test_it_shows_how_far_it_is_and_can_be_stopped(visit: Visitor, world: BrowserWorld) -> None:
    world.state.bare()
    world.operations.pace_seconds = 0.4
    page = visit("chat", unlocked=True)
    get_model(page)
    expect(page.locator(".welcome")).to_contain_text(re.compile(r"Fetching it, \d+0\.0 MB of 100\.0 MB"))
    expect(page.locator(".welcome progress")).to_have_attribute("max", "100000000")
    page.get_by_role("link", name="Network").click()
    page.wait_for_selector("#view-network")
    page.get_by_role("link", name="Chat", exact=True).click()
    expect(page.locator(".welcome")).to_contain_text("Fetching it")  # it went on meanwhile
    page.locator(".welcome").get_by_role("button", name="Stop").click()
    expect(page.locator(".button.large")).to_be_visible()
    assert not any(each["own"] for each in world.state.offers)


def test_what_fails_says_why_and_is_tried_again(visit: Visitor, world: BrowserWorld) -> None:
    world.state.bare()
    world.operations.replies["models.pull"] = OperationFailed("the disk is full: make 300 MB free, and pull again")
    page = visit("chat", unlocked=True)
    get_model(page)
    expect(page.locator(".welcome .problem")).to_contain_text("the disk is full: make 300 MB free")
    del world.operations.replies["models.pull"]
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".examples")).to_be_visible()


def test_a_model_that_is_here_is_only_started(visit: Visitor, world: BrowserWorld) -> None:
    world.state.offers = []
    page = visit("chat", unlocked=True)
    expect(page.locator(".welcome")).to_contain_text("This node is connected, but nobody there offers a chat model")
    expect(page.locator(".button.large")).to_have_text("Start SmolLM2 135M")
    get_model(page)
    expect(page.locator(".examples")).to_be_visible()
    assert "models.pull" not in [name for name, _ in world.operations.called]


def test_other_ways(visit: Visitor, world: BrowserWorld) -> None:
    world.state.bare()
    page = visit("chat", unlocked=True)
    page.get_by_text("Other ways").click()
    ways = page.locator(".other-ways")
    expect(ways).to_contain_text("mtor federation join friends.genesis")
    expect(ways).to_contain_text("SmolLM2 135M 98.0 MB, Apache-2.0")
    ways.get_by_role("button", name="My node").click()
    page.wait_for_selector("#view-owner")


def test_a_node_that_still_loads_goes_on_by_itself(page: Page, world: BrowserWorld) -> None:
    world.state.offers = []
    world.state.loading = [CHAT_MODEL]
    expect(page.locator(".welcome")).to_contain_text(f"The node is loading {CHAT_MODEL}.")
    world.state.loading = []
    world.state.offers = [offer(peer_id(OWN), CHAT_MODEL)]
    expect(page.locator(".examples")).to_be_visible()
    expect(page.locator(".compose-text")).to_be_focused()


def test_a_node_that_is_paused_says_why_and_resumes(visit: Visitor, world: BrowserWorld) -> None:
    offers, world.state.offers, world.state.paused = world.state.offers, [], "a game fills the screen"
    page = visit("chat", unlocked=True)
    expect(page.locator(".welcome")).to_contain_text("a game fills the screen")
    page.get_by_role("button", name="Resume now").click()
    expect(page.locator(".welcome")).to_contain_text("One thing is missing")
    assert ("resume", {}) in world.operations.called
    world.state.offers = offers
    expect(page.locator(".examples")).to_be_visible()


def test_a_wrong_code_is_told(page: Page, world: BrowserWorld, page_watch: PageWatch) -> None:
    page_watch.allow("status of 401")
    world.state.bare()
    get_model(page)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Code").fill("no-such-code")
    dialog.get_by_role("button", name="Unlock").click()
    expect(dialog.locator(".problem")).to_contain_text("mtor open")
    page.keyboard.press("Escape")
    expect(page.locator(".button.large")).to_be_visible()
