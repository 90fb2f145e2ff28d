"""The owner's desk: each of its tabs, used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from node.config_file import load_config
from node.gateway.keys import ApiKeys
from node.operations import OperationFailed
from protocol.ids import peer_id
from tests.browser.answers import CHAT_MODEL, EYES, NEAR, OWN, PAINTER, VOICE
from tests.browser.conftest import PageWatch, Visitor
from tests.browser.owner_operations import HOSTILE, SUB_ACCOUNT, owner_world, owners, stranger
from tests.browser.world import BrowserWorld, until

TABS = ("overview", "models", "devices", "workers", "limits", "keys", "blocks", "logs", "connect")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[BrowserWorld]:
    """A node whose owner's side is whole."""
    with owner_world(tmp_path) as running:
        yield running


class Desk:
    """The owner's desk in a browser."""

    def __init__(self, page: Page, world: BrowserWorld) -> None:
        self.page = page
        self.world = world

    @property
    def panel(self) -> Any:
        """The tab that is open."""
        return self.page.get_by_role("tabpanel")

    def open(self, tab: str) -> Any:
        """Go to a tab by its address."""
        self.page.goto(f"{self.world.url}/#/owner/{tab}")
        expect(self.page.locator(f"#owner-tab-{tab}")).to_have_attribute("aria-selected", "true")
        return self.panel

    def press(self, name: str) -> None:
        """A button of the open tab."""
        self.panel.get_by_role("button", name=name, exact=True).click()

    def agree(self, name: str) -> None:
        """A button of the open dialog."""
        self.page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()

    def called(self, name: str) -> list[Any]:
        """With what an operation was called."""
        return [arguments for each, arguments in self.world.operations.called if each == name]


@pytest.fixture
def desk(visit: Visitor, world: BrowserWorld) -> Desk:
    """Unlocked, on a laptop."""
    return Desk(visit("owner", unlocked=True), world)


# --- the frame of it -------------------------------------------------------------------------------------


def test_a_locked_desk_asks_nothing_and_unlocks(visit: Visitor, world: BrowserWorld) -> None:
    page = visit("owner")
    expect(page.locator("#view-owner")).to_contain_text("Only the owner")
    assert not world.operations.called
    page.locator("#view-owner").get_by_role("button", name="Unlock").click()
    page.get_by_role("dialog").get_by_label("Code").fill(world.code())
    page.get_by_role("dialog").get_by_role("button", name="Unlock").click()
    expect(page.get_by_role("tabpanel")).to_contain_text("You come first")


def test_locks_again(desk: Desk) -> None:
    desk.press("Lock this page")
    expect(desk.page.locator("#view-owner")).to_contain_text("Only the owner")
    assert desk.page.evaluate("() => localStorage.getItem('mtor.session')") is None


def test_a_session_that_ended_locks_the_desk(desk: Desk, page_watch: PageWatch) -> None:
    page_watch.allow("status of 401")
    desk.page.evaluate("() => localStorage.setItem('mtor.session', JSON.stringify('ended'))")
    expect(desk.page.locator("#view-owner")).to_contain_text("Only the owner", timeout=15_000)


def test_tabs_go_by_arrows_and_the_address_keeps_them(desk: Desk) -> None:
    desk.page.get_by_role("tab", name="Overview").focus()
    for expected in ("Models", "Devices"):
        desk.page.keyboard.press("ArrowRight")
        expect(desk.page.get_by_role("tab", name=expected)).to_be_focused()
    assert desk.page.url.endswith("#/owner/devices")
    desk.page.reload()
    expect(desk.page.get_by_role("tab", name="Devices")).to_have_attribute("aria-selected", "true")
    assert desk.page.locator('[role="tab"][tabindex="0"]').count() == 1
    desk.page.get_by_role("tab", name="Devices").focus()
    desk.page.keyboard.press("End")
    expect(desk.page.get_by_role("tab", name="Connect")).to_be_focused()


@pytest.mark.parametrize("width", [360, 768])
def test_no_tab_scrolls_sideways(visit: Visitor, world: BrowserWorld, width: int) -> None:
    desk = Desk(visit("owner", width, unlocked=True), world)
    ApiKeys(world.data).create("w" * 64)
    world.operations._peers_block(peer_id(NEAR), HOSTILE)
    for tab in TABS:
        desk.open(tab)
        expect(desk.panel.locator("h2").first).to_be_visible()
        wide = desk.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{tab} is {wide} pixels too wide at {width}"
    assert desk.page.evaluate("() => window.hacked") is None


def test_what_failed_is_said_and_tried_again(visit: Visitor, world: BrowserWorld, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    world.operations.replies["hardware"] = OperationFailed("the driver hangs; restart the machine")
    desk = Desk(visit("owner", unlocked=True), world)
    problem = desk.open("devices").get_by_role("alert")
    expect(problem).to_contain_text("the driver hangs; restart the machine")
    del world.operations.replies["hardware"]
    problem.get_by_role("button", name="Try again").click()
    expect(desk.panel).to_contain_text("NVIDIA GeForce RTX 4070")


# --- overview --------------------------------------------------------------------------------------------


def test_overview_tells_problems_with_their_fix(desk: Desk) -> None:
    owners(desk.world).problems = ["the server of llama3 refuses connections; start it"]
    expect(desk.panel.get_by_role("alert")).to_contain_text("refuses connections; start it", timeout=15_000)


def test_pauses_for_an_hour_and_resumes(desk: Desk) -> None:
    desk.press("Pause for an hour")
    expect(desk.panel).to_contain_text("Paused: paused by hand for 3600 s")
    assert desk.called("pause") == [{"seconds": 3_600}]
    desk.press("Resume")
    expect(desk.panel.locator(".state")).to_contain_text("Serving")
    desk.press("Pause until I resume")
    expect(desk.panel).to_contain_text("Paused: paused by hand")
    assert desk.called("pause")[-1] == {}


def test_serves_anyway_beside_a_game(desk: Desk) -> None:
    owners(desk.world).guard_sees["full screen"] = ("pause", "game.exe fills the screen")
    expect(desk.panel).to_contain_text("Paused: game.exe fills the screen", timeout=15_000)
    expect(desk.panel.get_by_role("button", name="Resume", exact=True)).to_have_count(0)
    desk.panel.get_by_text("What the game guard sees").click()
    expect(desk.panel).to_contain_text("battery: plugged in")
    desk.press("Serve anyway")
    expect(desk.panel.locator(".state")).to_contain_text("Serving")
    assert desk.called("resume") == [{"anyway": True}]


def test_stops_the_node_after_a_question(desk: Desk) -> None:
    desk.press("Stop the node")
    desk.agree("Cancel")
    assert not desk.world.state.stopped
    desk.press("Stop the node")
    desk.agree("Stop it")
    expect(desk.page.locator("#toasts")).to_contain_text("mtor up")
    assert desk.world.state.stopped


# --- models ----------------------------------------------------------------------------------------------


def test_models_tell_what_is_served_and_what_fits(desk: Desk) -> None:
    panel = desk.open("models")
    served = panel.get_by_label("Served now").locator("tbody tr")
    expect(served).to_have_count(3)
    expect(served.filter(has_text="llama-70b")).to_contain_text("loading")
    expect(served.filter(has_text=CHAT_MODEL)).to_contain_text("31.5")
    store = panel.get_by_label("Store").locator("tbody tr")
    expect(store.filter(has_text=CHAT_MODEL)).to_contain_text("fits")
    expect(store.filter(has_text=PAINTER)).to_contain_text("does not fit")
    expect(store.filter(has_text=EYES)).to_contain_text("34.0 MB to fetch")
    expect(panel).to_contain_text("12.0 MB of unfinished downloads, 200.0 GB free")


def test_pulls_a_model_of_the_list_with_progress(desk: Desk) -> None:
    desk.world.operations.pace_seconds = 0.15
    panel = desk.open("models")
    desk.press(f"Pull {EYES}")
    pulling = panel.get_by_role("group", name=f"Pulling {EYES}")
    expect(pulling).to_contain_text("of 100.0 MB")
    expect(pulling.get_by_role("progressbar")).to_be_visible()
    expect(panel.get_by_role("button", name=f"Serve {EYES}")).to_be_visible()
    expect(desk.page.locator("#toasts")).to_contain_text(f"{EYES} is in the store")


def test_stops_a_pull(desk: Desk) -> None:
    desk.world.operations.pace_seconds = 5
    panel = desk.open("models")
    desk.press(f"Pull {EYES}")
    panel.get_by_role("group", name=f"Pulling {EYES}").get_by_role("button", name=f"Stop pulling {EYES}").click()
    expect(panel.get_by_role("group", name=f"Pulling {EYES}")).to_have_count(0)
    expect(panel.get_by_role("button", name=f"Pull {EYES}", exact=True)).to_be_visible()


def test_a_pull_that_fails_says_why_and_goes_on(desk: Desk) -> None:
    desk.world.operations.replies["models.pull"] = OperationFailed("no room: free 90 MB on the disk")
    panel = desk.open("models")
    desk.press(f"Pull {EYES}")
    pulling = panel.get_by_role("group", name=f"Pulling {EYES}")
    expect(pulling.get_by_role("alert")).to_contain_text("free 90 MB")
    del desk.world.operations.replies["models.pull"]
    pulling.get_by_role("button", name="Try again").click()
    expect(panel.get_by_role("button", name=f"Serve {EYES}")).to_be_visible()


def test_a_model_of_a_hub_is_agreed_to_first(desk: Desk) -> None:
    panel = desk.open("models")
    panel.get_by_label("Name").fill("hf:someone/small")
    desk.press("Look")
    dialog = desk.page.get_by_role("dialog")
    expect(dialog).to_contain_text("apache-2.0")
    expect(dialog).to_contain_text("900.0 MB, 2 files")
    desk.agree("Cancel")
    assert not desk.called("models.pull")
    panel.get_by_label("Name").fill("hf:someone/small")
    desk.press("Look")
    desk.agree("Agree to apache-2.0 and pull")
    expect(panel.get_by_role("button", name="Serve small")).to_be_visible()
    assert desk.called("models.pull") == [{"model": "hf:someone/small", "agreed": "c" * 40}]


def test_a_hub_that_has_no_such_model_is_said_at_the_field(desk: Desk, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    desk.world.operations.replies["models.look"] = OperationFailed("the hub has no someone/none")
    desk.open("models").get_by_label("Name").fill("hf:someone/none")
    desk.press("Look")
    expect(desk.panel.get_by_role("alert")).to_contain_text("the hub has no someone/none")


def test_serves_a_model_and_stops_it(desk: Desk) -> None:
    panel = desk.open("models")
    desk.press(f"Serve {PAINTER}")
    dialog = desk.page.get_by_role("dialog")
    dialog.get_by_label("Slots").fill("3")
    dialog.get_by_label("Price out").fill("2500")
    expect(dialog).to_contain_text("0.0025 cr for 1,000 answer tokens")
    dialog.get_by_label("Device").select_option("cpu")
    desk.agree("Serve it")
    served = panel.get_by_label("Served now").locator("tbody tr", has_text=PAINTER)
    expect(served).to_contain_text("0 of 3")
    wish = {"model": PAINTER, "slots": 3, "price_out": 2_500, "keep": True, "device": "cpu"}
    assert desk.called("serving.start") == [wish]
    desk.press(f"Stop serving {PAINTER}")
    desk.agree("Stop serving")
    expect(served).to_have_count(0)
    assert desk.called("serving.stop") == [{"model": PAINTER, "realm": "$IMAGINE"}]


def test_a_model_that_cannot_be_served_says_why_in_its_dialog(desk: Desk) -> None:
    desk.world.operations.replies["serving.start"] = OperationFailed("it needs 40,000 MiB; 7,168 are free")
    desk.open("models")
    desk.press(f"Serve {VOICE}")
    desk.agree("Serve it")
    expect(desk.page.get_by_role("dialog").get_by_role("alert")).to_contain_text("it needs 40,000 MiB")
    expect(desk.page.get_by_role("dialog").get_by_role("button", name="Serve it")).to_be_enabled()


def test_removes_a_model_after_a_question(desk: Desk, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    panel = desk.open("models")
    desk.press(f"Remove {CHAT_MODEL}")
    desk.agree("Remove")
    expect(desk.page.locator("#toasts")).to_contain_text(f"{CHAT_MODEL} is being served")
    desk.world.state.offers = [row for row in desk.world.state.offers if row["model"] != CHAT_MODEL]
    desk.press(f"Remove {CHAT_MODEL}")
    desk.agree("Remove")
    expect(panel.get_by_role("button", name=f"Pull {CHAT_MODEL}")).to_be_visible()
    expect(panel.get_by_role("button", name=f"Remove {PAINTER}")).to_have_count(0)


# --- devices and workers ---------------------------------------------------------------------------------


def test_devices_tell_who_is_on_the_cards(desk: Desk) -> None:
    panel = desk.open("devices")
    expect(panel.locator(".vram").first).to_have_attribute(
        "aria-label", "5.0 GiB of 12 GiB in use, 1.2 GiB by this node"
    )
    for told in ("game.exe", "another", "2.9 GiB", "working 37 % of the time", "Who is on the card cannot be told"):
        expect(panel).to_contain_text(told)
    expect(panel.locator("article", has_text="llama-70b")).to_contain_text("does not fit: it needs 40,000 MiB of 7,168")


def test_a_machine_without_a_card_says_what_to_do(desk: Desk) -> None:
    nothing = {"about": "no driver", "cards": [], "cpu_mib": 4_096, "models": [], "guard": {}}
    desk.world.operations.replies["hardware"] = nothing
    expect(desk.open("devices")).to_contain_text("mtor doctor")


def test_workers_tell_their_last_error(desk: Desk) -> None:
    rows = desk.open("workers").locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(1)).to_contain_text("the server refuses connections; start it")
    expect(rows.nth(0)).to_contain_text("12,345")


def test_lines_that_add_a_server_can_be_used(desk: Desk, tmp_path: Path) -> None:
    """What is shown is what `mtor config check` takes."""
    panel = desk.open("workers")
    for kind in panel.get_by_label("Kind", exact=True).locator("option").all():
        panel.get_by_label("Kind", exact=True).select_option(kind.get_attribute("value"))
        panel.get_by_label("Address", exact=True).fill("http://192.168.1.7:8080/v1")
        path = tmp_path / "realms.yml"
        path.write_text("\n".join(panel.locator(".snippet code").all_text_contents()))
        config = load_config(path, {})
        assert config.outer_models[0].url == "http://192.168.1.7:8080/v1"
        assert len(config.workers.allowed) == 2
    panel.get_by_label("Model", exact=True).fill("odd: name #1")
    path.write_text("\n".join(panel.locator(".snippet code").all_text_contents()))
    assert load_config(path, {}).outer_models[0].model == "odd: name #1"


# --- limits ----------------------------------------------------------------------------------------------


def test_changes_a_setting_that_holds_at_once(desk: Desk) -> None:
    panel = desk.open("limits")
    expect(panel.get_by_label("Limits in force")).to_contain_text("256")
    panel.get_by_label("gateway.max_concurrent", exact=True).fill("9")
    desk.press("Save gateway.max_concurrent")
    expect(panel).to_contain_text("Saved; in force now")
    assert desk.called("config.set") == [{"key": "gateway.max_concurrent", "value": 9}]


def test_what_the_validator_says_stands_at_the_field(desk: Desk, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    panel = desk.open("limits")
    field = panel.get_by_label("gateway.max_concurrent", exact=True)
    field.fill("many")
    field.press("Enter")
    expect(panel.get_by_role("alert")).to_contain_text("'many' is not a whole number from 1 on")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    desk.press("Undo gateway.max_concurrent")
    expect(field).to_have_value("256")
    expect(panel.get_by_role("alert")).to_have_count(0)


def test_a_list_and_a_switch_are_saved_and_want_a_restart(desk: Desk) -> None:
    panel = desk.open("limits")
    panel.get_by_label("gateway.allowed_hosts", exact=True).fill("node.local\n\n gpu.lan ")
    desk.press("Save gateway.allowed_hosts")
    expect(panel).to_contain_text("takes effect after a restart")
    panel.get_by_label("gateway.limit_loopback", exact=True).check()
    desk.press("Save gateway.limit_loopback")
    expect(panel).to_contain_text("Saved; in force now")
    values = [(each["key"], each["value"]) for each in desk.called("config.set")]
    assert values == [("gateway.allowed_hosts", ["node.local", "gpu.lan"]), ("gateway.limit_loopback", True)]


def test_settings_are_found_a_choice_is_a_list_and_what_waits_is_said(desk: Desk) -> None:
    panel = desk.open("limits")
    panel.get_by_label("Search the settings").fill("level")
    panel.get_by_label("log.level", exact=True).select_option("debug")
    desk.press("Save log.level")
    expect(panel).to_contain_text("Saved; in force now")
    panel.get_by_label("Search the settings").fill("reserve")
    expect(panel.get_by_label("hardware.reserve_mib", exact=True)).to_be_visible()
    expect(panel.get_by_label("gateway.max_concurrent", exact=True)).to_be_hidden()
    expect(panel.get_by_label("hardware.reserve_mib", exact=True)).to_have_value("1024")
    expect(panel).to_contain_text("In force until a restart: 512")
    expect(panel).to_contain_text("Set by MTOR_HARDWARE__RESERVE_MIB")
    panel.get_by_label("Search the settings").fill("realms")
    expect(panel).to_contain_text("`mtor serve` and `mtor unserve` change what is served")
    panel.get_by_label("Search the settings").fill("backup")
    panel.get_by_label("backup", exact=True).fill('{"$CHAT": ["$CODE"]}')
    desk.press("Save backup")
    expect(panel).to_contain_text("takes effect after a restart")
    assert desk.called("config.set")[-1] == {"key": "backup", "value": {"$CHAT": ["$CODE"]}}


# --- keys and blocks -------------------------------------------------------------------------------------


def test_makes_a_key_that_is_shown_once_and_revokes_it(desk: Desk) -> None:
    panel = desk.open("keys")
    panel.get_by_label("Name").fill("laptop")
    panel.get_by_label("chat").check()
    panel.get_by_label("Ends").select_option("30")
    panel.get_by_text("Limits and other realms").click()
    panel.get_by_label("Queries a minute").fill("30")
    panel.get_by_label("Credits a month").fill("1.5")
    panel.get_by_label("Other realms").fill("$MAPS")
    panel.get_by_label("Paid by").select_option(label="phone")
    desk.press("Make it")
    key = desk.page.get_by_role("dialog").locator("code.key").text_content() or ""
    desk.agree("I have it")
    made = ApiKeys(desk.world.data).find(key)
    assert made is not None and made.terms.scopes == ("$CHAT", "$MAPS") and made.terms.monthly_micro == 1_500_000
    assert made.terms.requests_per_minute == 30 and made.account == peer_id(SUB_ACCOUNT)
    row = panel.locator("tbody tr", has_text="laptop")
    expect(row).to_contain_text("0 cr of 1.5 cr")
    kept = json.dumps(desk.page.evaluate("() => ({...localStorage})"))
    assert key not in kept and key not in desk.page.content()
    row.get_by_role("button", name="Revoke laptop").click()
    desk.agree("Cancel")
    expect(row).to_have_count(1)
    row.get_by_role("button", name="Revoke laptop").click()
    desk.agree("Revoke")
    expect(row).to_have_count(0)


def test_a_key_that_cannot_be_made_says_why(desk: Desk, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    panel = desk.open("keys")
    panel.get_by_label("Name").fill("x")
    panel.get_by_text("Limits and other realms").click()
    panel.get_by_label("Other realms").fill("$chat")
    desk.press("Make it")
    expect(panel.get_by_role("alert")).to_contain_text("$chat")
    assert ApiKeys(desk.world.data).all() == []


def test_blocks_by_id_and_unblocks(desk: Desk, page_watch: PageWatch) -> None:
    page_watch.allow("status of 400")
    panel = desk.open("blocks")
    panel.get_by_label("Peer id").fill("nonsense")
    desk.press("Block")
    expect(panel.get_by_role("alert")).to_contain_text("it begins with 12D3KooW")
    node = peer_id(stranger(5))
    panel.get_by_label("Peer id").fill(node)
    panel.get_by_label("Why").fill("it floods")
    desk.press("Block")
    expect(panel.locator("tbody tr", has_text=node)).to_contain_text("it floods")
    desk.press(f"Unblock {node}")
    expect(panel).to_contain_text("Nobody is blocked")
    assert desk.world.state.blocked == []


# --- logs ------------------------------------------------------------------------------------------------


def log_line(world: BrowserWorld, message: str, level: str = "info", query: str = "") -> None:
    line = {"time": 1_764_500_100, "level": level, "logger": "mtor.test", "message": message}
    owners(world).logged.append(line | ({"query": query} if query else {}))


def test_logs_follow_and_are_text(desk: Desk) -> None:
    lines = desk.open("logs").locator(".log li")
    expect(lines).to_have_count(33)
    log_line(desk.world, HOSTILE, "warning")
    expect(lines).to_have_count(34)
    expect(lines.last).to_contain_text('<img src=x onerror="window.hacked=9">')
    assert "\u202e" not in (lines.last.text_content() or "")
    assert desk.page.evaluate("() => window.hacked") is None


def test_logs_by_level_and_query(desk: Desk) -> None:
    panel = desk.open("logs")
    lines = panel.locator(".log li")
    expect(lines).to_have_count(33)
    panel.get_by_label("Level").select_option("error")
    expect(lines).to_have_count(6)
    panel.get_by_label("Query").fill(f"{11:032x}")
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text("line 11 went by")


def test_logs_pause_and_go_on(desk: Desk) -> None:
    panel = desk.open("logs")
    lines = panel.locator(".log li")
    expect(lines).to_have_count(33)
    desk.press("Pause")
    log_line(desk.world, "while paused")
    expect(panel).to_contain_text("paused, 1 new")
    expect(lines).to_have_count(33)
    desk.press("Go on")
    expect(lines.last).to_contain_text("while paused")


def test_logs_stay_where_somebody_reads(desk: Desk) -> None:
    panel = desk.open("logs")
    box = panel.locator(".log")
    expect(panel.locator(".log li")).to_have_count(33)
    box.evaluate("(each) => { each.scrollTop = 0; }")
    expect(panel.get_by_role("button", name="↓ Newest")).to_be_visible()
    log_line(desk.world, "far below")
    expect(panel.locator(".log li")).to_have_count(34)
    assert box.evaluate("(each) => each.scrollTop") == 0
    panel.get_by_role("button", name="↓ Newest").click()
    assert box.evaluate("(each) => each.scrollHeight - each.scrollTop - each.clientHeight") < 5


def test_logs_are_bounded(desk: Desk) -> None:
    panel = desk.open("logs")
    expect(panel.locator(".log li")).to_have_count(33)
    for number in range(1_200):
        log_line(desk.world, f"many {number}")
    expect(panel.locator(".log li").last).to_contain_text("many 1199")
    expect(panel.locator(".log li")).to_have_count(1_000)
    expect(panel).to_contain_text("older ones left out")


def test_a_tab_that_is_left_asks_no_more(desk: Desk) -> None:
    desk.open("logs")
    until(lambda: bool(desk.called("logs.tail")))
    desk.open("connect")
    count = len(desk.world.operations.called)
    desk.page.wait_for_timeout(1_500)
    asked = {name for name, _ in desk.world.operations.called[count:]}
    assert asked <= {"status"}


# --- connect ---------------------------------------------------------------------------------------------


def test_connect_shows_lines_with_this_nodes_address(desk: Desk) -> None:
    panel = desk.open("connect")
    for told in (
        f"{desk.world.url}/v1/chat/completions",
        f'base_url="{desk.world.url}/v1"',
        f"OLLAMA_HOST={desk.world.url}",
        peer_id(OWN),
    ):
        expect(panel).to_contain_text(told)


def test_copies(visit: Visitor, world: BrowserWorld) -> None:
    context = visit.context(permissions=["clipboard-read", "clipboard-write"])
    page = visit.open(context, "owner", unlocked=True)
    desk = Desk(page, world)
    desk.open("connect").get_by_role("button", name="Copy: curl").click()
    expect(desk.panel.get_by_role("button", name="Copy: curl")).to_have_text("Copied")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith(f"curl -N {world.url}/v1/chat/completions")
    assert json.loads(copied.split("-d '")[1].rstrip("'"))["messages"] == [{"role": "user", "content": "Hello!"}]
