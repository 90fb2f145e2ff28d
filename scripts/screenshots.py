"""Pictures of every view of the page, in three widths, light and dark, for somebody to look at.

Rule: what is photographed is the real page in a real Chromium, over the fakes of the browser tests.

    python scripts/screenshots.py FOLDER [VIEW…]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.browser.conftest import FLAGS, SCHEMES, WIDTHS, find_chromium, shown
from tests.browser.world import BrowserWorld, browser_world

SETTLED_MS = 500


def talk(page: Page, world: BrowserWorld) -> None:
    """A conversation with something of everything."""
    for said in ("Hello, who are you?", "markdown please", "break please"):
        page.fill(".compose-text", said)
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="Send").wait_for()
        page.wait_for_timeout(SETTLED_MS)


def begin_waiting(page: Page, world: BrowserWorld) -> None:
    """A place in a queue."""
    page.fill(".compose-text", "queue please")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("in line at").wait_for()


def without_models(page: Page, world: BrowserWorld) -> None:
    """A newcomer's node."""
    world.state.bare()
    page.get_by_text("One thing is missing").wait_for()


def options(page: Page, world: BrowserWorld) -> None:
    """What a worker must have."""
    page.get_by_role("button", name="What the worker must have").click()


def nothing(page: Page, world: BrowserWorld) -> None:
    """As it opens."""


SCENES: dict[str, tuple[str, Callable[[Page, BrowserWorld], None]]] = {
    "chat-empty": ("chat", nothing),
    "chat": ("chat", talk),
    "chat-waiting": ("chat", begin_waiting),
    "chat-options": ("chat", options),
    "welcome": ("chat", without_models),
    "imagine": ("imagine", nothing),
    "speech": ("speech", nothing),
    "network": ("network", nothing),
    "ledger": ("ledger", nothing),
    "owner": ("owner", nothing),
}


def main() -> None:
    """Take them all, or those named."""
    if len(sys.argv) < 2:
        raise SystemExit("where to? python scripts/screenshots.py FOLDER [VIEW…]")
    folder, wanted = Path(sys.argv[1]), sys.argv[2:] or list(SCENES)
    folder.mkdir(parents=True, exist_ok=True)
    program = find_chromium()
    if program is None:
        raise SystemExit("there is no Chromium here; name one in MTOR_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        for name in wanted:
            for width, height in WIDTHS.items():
                for scheme in SCHEMES:
                    view, prepare = SCENES[name]
                    with tempfile.TemporaryDirectory() as data, browser_world(Path(data)) as world:
                        context = browser.new_context(
                            viewport={"width": width, "height": height},
                            color_scheme=scheme,  # type: ignore[arg-type]
                        )
                        page = context.new_page()
                        page.goto(f"{world.url}/#unlock={world.code()}")
                        page.wait_for_selector("#standing .dot.good")
                        page.goto(f"{world.url}/#/{view}")
                        shown(page, view)
                        page.wait_for_timeout(SETTLED_MS)
                        prepare(page, world)
                        page.wait_for_timeout(SETTLED_MS)
                        page.screenshot(path=folder / f"{name}-{width}-{scheme}.png")
                        context.close()
        browser.close()


if __name__ == "__main__":
    main()
