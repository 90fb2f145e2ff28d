"""Pictures: drawn, seen in the making, stopped, failed, kept and found again."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from protocol.messages import ImagineRequest
from tests.browser.conftest import Visitor
from tests.browser.world import BrowserWorld, until


@pytest.fixture
def page(visit: Visitor) -> Page:
    """The view of pictures."""
    return visit("imagine")


def draw(page: Page, prompt: str) -> None:
    page.get_by_label("What should the picture show?").fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()


def test_a_picture_is_drawn_kept_and_found_again(page: Page, world: BrowserWorld) -> None:
    draw(page, "a red apple")
    card = page.locator(".making article")
    expect(card.get_by_alt_text("a red apple", exact=True)).to_be_visible()
    expect(card).to_contain_text("Answered by")
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "a-red-apple.png"
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    page.reload()
    page.get_by_role("listitem", name="Show: a red apple").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("a red apple")
    dialog.get_by_role("button", name="Use these wishes").click()
    expect(page.get_by_label("What should the picture show?")).to_have_value("a red apple")
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    expect(page.get_by_text("No pictures yet")).to_be_visible()


def test_wishes_reach_the_worker(page: Page, world: BrowserWorld) -> None:
    page.get_by_text("More wishes").click()
    page.get_by_label("Not in the picture").fill("worms")
    page.get_by_label("Size").select_option("256x256")
    page.get_by_label("Pictures", exact=True).select_option("2")
    page.get_by_label("Steps").fill("7")
    page.get_by_label("Guidance").fill("2.5")
    page.get_by_label("Seed").fill("41")
    draw(page, "an apple")
    world.until_asked(2)
    requests = [asked.request for asked in world.answers.asked]
    assert all(isinstance(request, ImagineRequest) for request in requests)
    first = requests[0]
    assert isinstance(first, ImagineRequest)
    assert (first.negative_prompt, first.width, first.height, first.steps) == ("worms", 256, 256, 7)
    assert first.guidance == 2_500 and first.previews
    assert sorted(getattr(request, "seed", 0) for request in requests) == [41, 42]
    expect(page.locator(".making article")).to_have_count(2)


def test_a_picture_in_the_making_is_seen_and_can_be_stopped(page: Page, world: BrowserWorld) -> None:
    draw(page, "hold please: a slow apple")
    expect(page.get_by_alt_text("unfinished: hold please: a slow apple")).to_be_visible()
    expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute("value", "1")
    world.answers.let_go.set()
    expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute("value", "2")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".making article")).to_have_count(0)
    until(lambda: world.answers.cancelled == 1)


def test_a_failure_says_what_to_do_and_can_be_tried_again(page: Page, world: BrowserWorld) -> None:
    draw(page, "fail please")
    expect(page.get_by_role("alert")).to_contain_text("no connected peer offers")
    page.get_by_role("button", name="Try again").click()
    world.until_asked(2)


def test_nothing_is_drawn_of_nothing(page: Page, world: BrowserWorld) -> None:
    draw(page, "   ")
    expect(page.get_by_label("What should the picture show?")).to_be_focused()
    assert not world.answers.asked
