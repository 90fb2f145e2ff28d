"""The credits: balance, why, history, receipts, accounts, the check and the copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from node.operations import OperationFailed
from protocol.ids import peer_id
from tests.browser.conftest import PageWatch, Visitor
from tests.browser.owner_operations import SUB_ACCOUNT, owner_world, owners
from tests.browser.world import BrowserWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[BrowserWorld]:
    """A node whose owner's side is whole."""
    with owner_world(tmp_path) as running:
        yield running


@pytest.fixture
def ledger(visit: Visitor) -> Page:
    """The credits, unlocked."""
    return visit("ledger", unlocked=True)


def tab(page: Page, name: str) -> Any:
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel")


# --- locked ----------------------------------------------------------------------------------------------


def test_locked_credits_explain_themselves_and_unlock(visit: Visitor, world: BrowserWorld) -> None:
    page = visit("ledger")
    expect(page.locator("#view-ledger")).to_contain_text("mtor open")
    assert not [name for name, _ in world.operations.called if name.startswith("ledger")]
    page.locator("#view-ledger").get_by_role("button", name="Unlock").click()
    page.get_by_role("dialog").get_by_label("Code").fill(f"{world.url}/#unlock={world.code()}")
    page.get_by_role("dialog").get_by_role("button", name="Unlock").click()
    expect(page.locator(".figures")).to_contain_text("41.234567 cr")


# --- balance and why -------------------------------------------------------------------------------------


def test_shows_what_there_is_to_the_last_microcredit(ledger: Page) -> None:
    figures = ledger.locator(".figures")
    for told in ("41.234567 cr", "2 cr", "0.000001 cr of it is promised", "52 cr", "and 0.1 cr promised", "9 cr"):
        expect(figures).to_contain_text(told)


def test_why_is_a_sum_that_adds_up(ledger: Page) -> None:
    panel = ledger.get_by_role("tabpanel")
    expect(panel.locator(".sum")).to_contain_text("granted by the issuer")
    expect(panel.locator(".sum tfoot")).to_contain_text("41 cr")
    expect(panel).to_contain_text("It adds up")
    expect(panel.locator("svg.bars")).to_have_count(9)
    panel.get_by_role("button", name="by day").click()
    expect(panel.locator(".chart")).to_contain_text("2026-11-29")
    expect(panel.locator("svg.bars")).to_have_count(20)
    expect(panel.locator("svg.bars").first).to_have_attribute("aria-label", "went 0.1 cr, came 1 cr")


def test_says_what_does_not_add_up(visit: Visitor, world: BrowserWorld) -> None:
    owners(world).missing = ["the lines add up to 3 µcr, the balance is 4 µcr: 1 µcr are not explained"]
    page = visit("ledger", unlocked=True)
    expect(page.get_by_role("tabpanel").get_by_role("alert")).to_contain_text("1 µcr are not explained")


def test_a_failure_is_said_and_tried_again(visit: Visitor, world: BrowserWorld, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    world.operations.replies["ledger.why"] = OperationFailed("the disk is full; make room")
    page = visit("ledger", unlocked=True)
    problem = page.get_by_role("tabpanel").get_by_role("alert")
    expect(problem).to_contain_text("the disk is full; make room")
    del world.operations.replies["ledger.why"]
    problem.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("tabpanel")).to_contain_text("It adds up")


# --- history ---------------------------------------------------------------------------------------------


def test_history_goes_back_page_by_page(ledger: Page) -> None:
    panel = tab(ledger, "History")
    entries = panel.locator(".entries li")
    expect(entries).to_have_count(50)
    expect(entries.first).to_contain_text("Query number 129")
    expect(entries.first).to_contain_text("+0.000229 cr")
    panel.get_by_role("button", name="Show older entries").click()
    expect(entries).to_have_count(100)
    panel.get_by_role("button", name="Show older entries").click()
    expect(entries).to_have_count(130)
    expect(panel.get_by_role("button", name="Show older entries")).to_have_count(0)


def test_history_finds_what_is_looked_for_in_older_pages(ledger: Page) -> None:
    panel = tab(ledger, "History")
    panel.get_by_label("Kind").select_option("grant")
    expect(panel).to_contain_text("older entries may")
    panel.get_by_role("button", name="Show older entries").click()
    expect(panel.locator(".entries li")).to_have_count(1)
    expect(panel.locator(".entries li")).to_contain_text("granted you 50 cr")
    panel.get_by_label("Kind").select_option("")
    panel.get_by_label("Search").fill("number 77.")
    expect(panel.locator(".entries li")).to_have_count(1)


def test_new_entries_come_by_themselves(ledger: Page, world: BrowserWorld) -> None:
    panel = tab(ledger, "History")
    expect(panel.locator(".entries li")).to_have_count(50)
    newest = owners(world).entries[-1]
    owners(world).entries.append(newest | {"id": "ee" * 32, "sentence": "Something new."})
    expect(panel.locator(".entries li").first).to_contain_text("Something new", timeout=15_000)


def test_names_in_the_history_are_text(ledger: Page) -> None:
    panel = tab(ledger, "History")
    hostile = panel.locator(".entries li").nth(1)
    expect(hostile).to_contain_text('<img src=x onerror="window.hacked=9">')
    assert "\u202e" not in (hostile.text_content() or "")
    assert ledger.evaluate("() => window.hacked") is None


def test_a_receipt_has_a_page_of_its_own(ledger: Page, world: BrowserWorld) -> None:
    panel = tab(ledger, "History")
    panel.locator(".entries li").nth(2).get_by_role("link").click()
    page = ledger.get_by_role("tabpanel")
    expect(page.get_by_role("heading")).to_have_text("Receipt of a query")
    for told in (
        "You asked",
        "mtor-eyes in $CHAT",
        "147 in, 40 out",
        "0.001 cr per 1,000 in",
        "not yet: the channel is still open",
        "signed by the payer",
        "It adds up",
    ):
        expect(page).to_contain_text(told)
    ledger.reload()
    expect(ledger.get_by_role("tabpanel").get_by_role("heading")).to_have_text("Receipt of a query")
    ledger.go_back()
    expect(ledger.locator(".entries li").first).to_be_visible()


def test_an_id_that_is_not_there_is_said(visit: Visitor, world: BrowserWorld, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    page = visit("ledger", unlocked=True)
    page.goto(f"{world.url}/#/ledger/history/abcdef12")
    expect(page.get_by_role("tabpanel").get_by_role("alert")).to_contain_text(
        "nothing in this ledger begins with abcdef12"
    )


# --- accounts --------------------------------------------------------------------------------------------


def test_makes_a_sub_account_and_moves_credits(ledger: Page, world: BrowserWorld) -> None:
    panel = tab(ledger, "Accounts")
    panel.get_by_label("Name", exact=True).fill("tablet")
    panel.get_by_label("Credits moved to it").fill("1.5")
    panel.get_by_role("button", name="Create it").click()
    expect(panel.locator("tbody tr", has_text="tablet")).to_contain_text("1.5 cr")
    panel.get_by_label("From").select_option(label="phone")
    panel.get_by_label("To", exact=True).select_option(label="tablet")
    panel.get_by_label("Credits", exact=True).fill("all")
    panel.get_by_role("button", name="Move them").click()
    expect(panel.locator("tbody tr", has_text="tablet")).to_contain_text("4.5 cr")
    assert (
        "ledger.move",
        {"source": peer_id(SUB_ACCOUNT), "to": owners(world).accounts[2]["account"], "credits": "all"},
    ) in world.operations.called


def test_a_move_of_too_much_is_refused_at_the_form(ledger: Page, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    panel = tab(ledger, "Accounts")
    panel.get_by_label("From").select_option(label="phone")
    panel.get_by_label("To", exact=True).select_option(label="This node")
    panel.get_by_label("Credits", exact=True).fill("99")
    panel.get_by_role("button", name="Move them").click()
    expect(panel.get_by_role("alert")).to_contain_text("99 cr are more than the account has")


def test_why_of_a_sub_account(ledger: Page, world: BrowserWorld) -> None:
    panel = tab(ledger, "Accounts")
    panel.get_by_role("button", name="Why has phone this balance?").click()
    expect(ledger.get_by_role("tabpanel")).to_contain_text("Why has this account what it has?")
    assert (
        "ledger.why",
        {"account": peer_id(SUB_ACCOUNT), "by": "counterparty", "limit": 30},
    ) in world.operations.called


# --- the whole ledger ------------------------------------------------------------------------------------


def test_tells_the_federation_and_its_epoch(ledger: Page) -> None:
    panel = tab(ledger, "Ledger")
    expect(panel).to_contain_text("9,007,199,254.740991 cr")
    expect(panel).to_contain_text("no answer within 5 s")
    expect(panel).to_contain_text("votes, epoch 2")


def test_checks_the_ledger_with_progress(ledger: Page, world: BrowserWorld) -> None:
    owners(world).pace_seconds = 0.2
    panel = tab(ledger, "Ledger")
    panel.get_by_role("button", name="Check the ledger").click()
    expect(panel).to_contain_text("of 100 records")
    expect(panel).to_contain_text(
        "Whole and true: 100 orders, 4 accounts, 12 channels; all balances and holds add up to 0 cr"
    )
    assert ("ledger.verifying", {"signatures": True}) in world.operations.called
    owners(world).report_problems = ["account …x is 1 µcr short"]
    panel.get_by_role("button", name="Check the ledger").click()
    expect(panel.get_by_role("alert")).to_contain_text("account …x is 1 µcr short")


def test_saves_a_copy_as_a_file(ledger: Page, tmp_path: Path) -> None:
    panel = tab(ledger, "Ledger")
    with ledger.expect_download() as caught:
        panel.get_by_role("button", name="Save a copy").click()
    assert caught.value.suggested_filename.startswith("mtor-ledger-ffffffff-")
    caught.value.save_as(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"MTOR ledger export 1\n" + bytes(range(256)) * 40


def test_a_copy_that_breaks_off_is_no_file(ledger: Page, world: BrowserWorld) -> None:
    world.operations.replies["ledger.export"] = OperationFailed("the disk cannot be read")
    panel = tab(ledger, "Ledger")
    panel.get_by_role("button", name="Save a copy").click()
    expect(panel.get_by_role("alert")).to_contain_text("the disk cannot be read")


def test_settles(ledger: Page) -> None:
    tab(ledger, "Ledger").get_by_role("button", name="Settle now").click()
    expect(ledger.locator("#toasts")).to_contain_text("1 channel settled; 2 vouchers could not be delivered yet")


def test_the_tabs_are_used_by_keyboard_and_keep_their_place(ledger: Page) -> None:
    ledger.get_by_role("tab", name="Why").focus()
    ledger.keyboard.press("ArrowRight")
    expect(ledger.get_by_role("tab", name="History")).to_be_focused()
    expect(ledger.get_by_role("tab", name="History")).to_have_attribute("aria-selected", "true")
    assert ledger.url.endswith("#/ledger/history")
    ledger.keyboard.press("End")
    ledger.keyboard.press("ArrowRight")
    expect(ledger.get_by_role("tab", name="Why")).to_be_focused()
