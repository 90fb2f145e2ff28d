"""The map of the network: who is there, what each offers, and what can be done with a peer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from protocol.ids import peer_id
from tests.browser.answers import CHAT_MODEL, NEAR, OWN, PAINTER
from tests.browser.conftest import Visitor
from tests.browser.operations import offer
from tests.browser.owner_operations import HOSTILE, crowd, owner_world, stranger
from tests.browser.world import BrowserWorld, until

NEAR_NAME = f"…{peer_id(NEAR)[-8:]}"
PLACES = """() => Object.fromEntries([...document.querySelectorAll(".marks > .mark:not(.coming)")].map(
    (each) => [each.dataset.peer, each.style.transform]))"""

NEAREST = """() => {
    const marks = [...document.querySelectorAll(".marks > .mark")];
    const places = marks.map((each) => each.style.transform.match(/-?[\\d.]+/g).map(Number));
    let nearest = Infinity;
    for (const [index, one] of places.entries()) {
        for (const other of places.slice(index + 1)) {
            nearest = Math.min(nearest, Math.hypot(one[0] - other[0], one[1] - other[1]));
        }
    }
    return nearest; }"""
OUTSIDE = """() => {
    const map = document.querySelector(".map").getBoundingClientRect();
    const faces = [...document.querySelectorAll(".marks > .mark .face")].map((each) => each.getBoundingClientRect());
    const beside = (face) => face.left < map.left || face.right > map.right;
    return faces.filter((face) => beside(face) || face.top < map.top || face.bottom > map.bottom).length; }"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[BrowserWorld]:
    """A node whose owner's side is whole."""
    with owner_world(tmp_path) as running:
        yield running


@pytest.fixture
def network(visit: Visitor) -> Page:
    """The map, not unlocked."""
    page = visit("network")
    expect(page.locator(".marks > .mark.own")).to_be_visible()
    return page


def mark(page: Page, node: str) -> Any:
    return page.locator(f'.marks > .mark[data-peer="{node}"]')


def remembered(page: Page, name: str) -> Any:
    return json.loads(page.evaluate(f"() => localStorage.getItem('mtor.{name}')") or "null")


# --- what is shown ---------------------------------------------------------------------------------------


def test_shows_each_peer_with_what_it_serves_and_how_busy_it_is(network: Page) -> None:
    expect(network.locator(".marks > .mark")).to_have_count(3)
    expect(mark(network, peer_id(NEAR))).to_have_attribute(
        "aria-label", f"Peer {NEAR_NAME}: serves $CHAT, $IMAGINE; 2 of 6 slots busy, 3 waiting"
    )
    expect(mark(network, peer_id(NEAR)).locator(".badge")).to_have_text("3")
    expect(mark(network, peer_id(NEAR)).locator(".ring")).to_have_count(2)


def test_follows_what_changes_without_moving_others(network: Page, world: BrowserWorld) -> None:
    crowd(world.state, 9)
    expect(network.locator(".marks > .mark:not(.coming)")).to_have_count(12)
    before = network.evaluate(PLACES)
    gone = peer_id(stranger(4))
    world.state.peers = [each for each in world.state.peers if each["node"] != gone]
    world.state.offers = [each for each in world.state.offers if each["node"] != gone]
    expect(network.locator(".marks > .mark:not(.coming)")).to_have_count(11)
    after = network.evaluate(PLACES)
    assert after == {node: place for node, place in before.items() if node != gone}


def test_places_follow_from_ids_alone(visit: Visitor, world: BrowserWorld) -> None:
    crowd(world.state, 30)
    first = visit("network")
    expect(first.locator(".marks > .mark:not(.coming)")).to_have_count(33)
    second = visit("network")
    expect(second.locator(".marks > .mark:not(.coming)")).to_have_count(33)
    assert first.evaluate(PLACES) == second.evaluate(PLACES)


def test_a_lone_node_is_a_map_of_one(visit: Visitor, world: BrowserWorld) -> None:
    world.state.bare()
    page = visit("network")
    expect(page.locator(".marks > .mark")).to_have_count(1)
    expect(page.locator(".peer-panel")).to_contain_text("It serves no model")
    expect(page.locator(".map-card + .peer-panel, .peer-panel")).to_be_visible()
    expect(page.locator("tr.nothing")).to_contain_text("Nobody offers a model now")


def test_two_hundred_peers_stay_apart_and_more_are_said(visit: Visitor, world: BrowserWorld) -> None:
    crowd(world.state, 230)
    page = visit("network")
    expect(page.locator(".marks > .mark:not(.coming)")).to_have_count(201)
    expect(page.locator(".network-head")).to_contain_text("The map shows 200; the table has all")
    nearest = page.evaluate(NEAREST)
    assert nearest > 9, f"two peers are {nearest} pixels apart"
    outside = page.evaluate(OUTSIDE)
    assert outside == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_names_of_strangers_break_nothing(visit: Visitor, world: BrowserWorld, width: int) -> None:
    node = peer_id(stranger(1))
    world.state.peers.append({"node": node, "connected": True})
    world.state.offers.append(offer(node, HOSTILE, "$CHAT", device_name=HOSTILE, features=[HOSTILE]))
    page = visit("network", width)
    mark(page, node).click()
    told = page.locator(".peer-panel .offer").text_content() or ""
    assert "evil <img" in told and not any(sign in told for sign in "\u202e\x1b") and len(told) < 500
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("main img").count() == 0
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0


# --- one peer --------------------------------------------------------------------------------------------


def test_a_peer_tells_its_offers(network: Page) -> None:
    mark(network, peer_id(NEAR)).hover()
    panel = network.locator(".peer-panel")
    expect(panel.locator("h2")).to_have_text(NEAR_NAME)
    for told in ("$IMAGINE", PAINTER, CHAT_MODEL, "2 of 2 busy, 3 waiting", "NVIDIA GeForce RTX 4070, 12 GiB"):
        expect(panel).to_contain_text(told)
    expect(panel).to_contain_text("0.001 cr in, 0.002 cr out per 1,000")


def test_goes_through_the_map_by_keyboard(network: Page) -> None:
    network.locator(".marks > .mark.own").focus()
    network.keyboard.press("ArrowRight")
    network.keyboard.press("Enter")
    chosen = network.locator(".marks > .mark.chosen")
    expect(chosen).to_have_count(1)
    expect(chosen).to_be_focused()
    expect(chosen).to_have_attribute("aria-pressed", "true")
    assert network.locator('.marks > .mark[tabindex="0"]').count() == 1


def test_asks_this_peer(network: Page) -> None:
    mark(network, peer_id(NEAR)).click()
    network.locator(".peer-panel").get_by_role("button", name="Ask this peer").click()
    expect(network.locator("#view-chat")).to_be_visible()
    wish = remembered(network, "choice.chat")["$CHAT"]
    assert wish["worker"] == peer_id(NEAR) and wish["model"] == "auto"


def test_asks_for_one_offer_where_its_kind_is_asked(network: Page) -> None:
    mark(network, peer_id(NEAR)).click()
    offered = network.locator(".offer", has_text=PAINTER)
    offered.get_by_role("button", name="Ask for this").click()
    expect(network.locator("#view-imagine")).to_be_visible()
    wish = remembered(network, "choice.imagine")["$IMAGINE"]
    assert wish["worker"] == peer_id(NEAR) and wish["model"] == PAINTER


def test_own_experience_is_shown_to_the_owner(visit: Visitor) -> None:
    locked = visit("network")
    mark(locked, peer_id(NEAR)).click()
    expect(locked.locator(".peer-panel")).to_contain_text("Unlock to see your experience")
    page = visit("network", unlocked=True)
    mark(page, peer_id(NEAR)).click()
    expect(page.locator(".peer-panel")).to_contain_text(
        "14 answers of 16 came whole, first word after 0.2 s, 28.0 tokens"
    )


def test_blocks_and_unblocks(visit: Visitor, world: BrowserWorld) -> None:
    page = visit("network", unlocked=True)
    panel = page.locator(".peer-panel")
    mark(page, peer_id(NEAR)).click()
    panel.get_by_role("button", name="Block", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert not world.state.blocked
    panel.get_by_role("button", name="Block", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Block it").click()
    expect(mark(page, peer_id(NEAR))).to_have_count(0)
    assert [each["node"] for each in world.state.blocked] == [peer_id(NEAR)]
    expect(panel).to_contain_text("not known any more")


def test_blocking_needs_the_owner(network: Page, world: BrowserWorld) -> None:
    mark(network, peer_id(NEAR)).click()
    network.locator(".peer-panel").get_by_role("button", name="Block", exact=True).click()
    expect(network.get_by_role("dialog")).to_contain_text("Only the owner")
    assert not world.state.blocked


# --- the table -------------------------------------------------------------------------------------------


def test_sorts_and_filters_the_offers(network: Page, world: BrowserWorld) -> None:
    rows = network.locator("#view-network tbody tr")
    expect(rows).to_have_count(7)
    network.get_by_role("button", name="Out per 1,000").click()
    expect(rows.first).to_contain_text("9 cr")
    expect(network.locator("th", has_text="Out per 1,000")).to_have_attribute("aria-sort", "descending")
    network.get_by_role("button", name="Out per 1,000").click()
    expect(rows.first).to_contain_text("free")
    network.get_by_label("Realm", exact=True).select_option("$IMAGINE")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(PAINTER)


def test_a_row_shows_its_peer_on_the_map(network: Page) -> None:
    network.get_by_role("button", name=f"Show {NEAR_NAME} on the map").first.click()
    expect(mark(network, peer_id(NEAR))).to_have_attribute("aria-pressed", "true")
    expect(network.locator(".peer-panel h2")).to_have_text(NEAR_NAME)


def test_says_when_the_node_pauses_or_loads(network: Page, world: BrowserWorld) -> None:
    world.state.paused = "a game fills the screen"
    expect(network.locator(".peer-panel")).to_contain_text("Paused: a game fills the screen")
    world.state.loading = ["llama"]
    expect(network.locator(".peer-panel")).to_contain_text("Loading llama")
    expect(mark(network, peer_id(OWN))).to_be_visible()


def test_a_lost_node_is_shown_as_old(network: Page, world: BrowserWorld, page_watch: Any) -> None:
    page_watch.allow("WebSocket connection", "ERR_CONNECTION_REFUSED")
    world.stop()
    expect(network.locator("#view-network.stale")).to_be_visible()
    world.start(int(world.url.rpartition(":")[2]))
    expect(network.locator("#view-network:not(.stale)")).to_be_visible(timeout=20_000)


def test_the_table_keeps_the_keyboards_place(network: Page, world: BrowserWorld) -> None:
    first = network.get_by_role("button", name=f"Show {NEAR_NAME} on the map").first
    first.focus()
    world.state.offers[2]["busy"] = 1
    expect(mark(network, peer_id(NEAR))).to_have_attribute(
        "aria-label", f"Peer {NEAR_NAME}: serves $CHAT, $IMAGINE; 1 of 6 slots busy, 3 waiting"
    )
    expect(first).to_be_focused()
    until(lambda: "1 of 2, +3" in (network.locator("#view-network tbody").text_content() or ""))


def test_on_a_phone_rows_are_cards_that_a_list_sorts(visit: Visitor) -> None:
    page = visit("network", 360)
    rows = page.locator("#view-network tbody tr")
    expect(rows).to_have_count(7)
    expect(page.get_by_role("button", name="Out per 1,000")).not_to_be_in_viewport()
    page.get_by_label("Sorted by").select_option(label="sorted by: out per 1,000")
    expect(rows.first).to_contain_text("9 cr")
    assert page.get_by_role("row").count() == 8
