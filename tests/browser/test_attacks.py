"""A page of another site, and what strangers' words do in the page: in a real browser, with its own rules in force."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from node.gateway.keys import ApiKeys
from protocol.ids import peer_id
from tests.browser.answers import FAR
from tests.browser.conftest import PAGE_FILES, WAIT_MS, Visitor, go
from tests.browser.world import BrowserWorld

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "spend my credits"}]}

TRIES = """async ([node, files, chat, socket]) => {
  const tried = {};
  const attempt = async (name, work) => {
    try { tried[name] = await work(); } catch (error) { tried[name] = `refused: ${error.name}`; }
  };
  const read = async (response) => `${response.type} ${response.status} ${(await response.text()).length}`;
  const json = { "Content-Type": "application/json" }, text = { "Content-Type": "text/plain" };
  const post = (path, headers, body, mode) => fetch(node + path, { method: "POST", mode, headers, body }).then(read);
  await attempt("json", () => post("/v1/chat/completions", json, chat, "cors"));
  await attempt("simple", () => post("/v1/chat/completions", text, chat, "cors"));
  await attempt("no-cors", () => post("/v1/chat/completions", text, chat, "no-cors"));
  await attempt("unlock", () => post("/mtor/unlock", text, '{"code":"a"}', "no-cors"));
  await attempt("keys", () => post("/mtor/v1/keys.create", text, '{"name":"mine"}', "no-cors"));
  await attempt("models", () => fetch(node + "/v1/models").then(read));
  await attempt("credentials", () => fetch(node + "/v1/models", { credentials: "include" }).then(read));
  await attempt("beacon", async () => String(navigator.sendBeacon(node + "/v1/chat/completions", chat)));
  const loaded = (element) => new Promise((done) => {
    element.onload = () => done("loaded");
    element.onerror = () => done("refused");
    document.body.append(element);
  });
  const made = (tag, source) => Object.assign(document.createElement(tag), source);
  await attempt("script", () => loaded(made("script", { src: files + "main.js" })));
  await attempt("module", () => loaded(made("script", { src: files + "main.js", type: "module" })));
  await attempt("image", () => loaded(made("img", { src: files + "icon.svg" })));
  await attempt("models as a script", () => loaded(made("script", { src: node + "/v1/models" })));
  await attempt("style", () => loaded(made("link", { rel: "stylesheet", href: files + "style.css" })));
  await attempt("socket", () => new Promise((done) => {
    const made = new WebSocket(socket);
    made.onopen = () => done("open");
    made.onerror = () => done("refused");
  }));
  await attempt("form", () => new Promise((done) => {
    const frame = Object.assign(document.createElement("iframe"), { name: "answer" });
    document.body.append(frame);
    const form = Object.assign(document.createElement("form"), {
      action: node + "/v1/chat/completions", method: "post", enctype: "text/plain", target: "answer",
    });
    const field = Object.assign(document.createElement("input"), { name: chat.slice(0, -1) + ',"x":"', value: '"}' });
    form.append(field);
    document.body.append(form);
    frame.onload = () => done("answered");
    form.submit();
    setTimeout(() => done("answered"), 2000);
  }));
  return tried;
}"""


@contextmanager
def other_site() -> Iterator[str]:
    """Another origin: an empty page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>prizes</title><body>")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def foreign(chromium: Browser) -> Iterator[Page]:
    """A page of another site, which the harness does not watch: it does what it should not."""
    context = chromium.new_context()
    context.set_default_timeout(WAIT_MS)
    with other_site() as url:
        page = context.new_page()
        page.goto(url)
        yield page
        context.close()


def test_a_foreign_page_gets_nothing_and_does_nothing(foreign: Page, world: BrowserWorld) -> None:
    socket = world.url.replace("http", "ws") + "/ws"
    tried = foreign.evaluate(TRIES, [world.url, world.url + PAGE_FILES, json.dumps(CHAT), socket])
    for name in ("json", "simple", "models", "credentials"):
        assert tried[name] == "refused: TypeError", tried
    for name in ("no-cors", "unlock", "keys"):
        assert tried[name] in ("opaque 0 0", "refused: TypeError"), tried
    for name in ("script", "module", "image", "models as a script", "style", "socket"):
        assert tried[name].startswith("refused"), tried
    assert tried["form"] == "answered" and world.answers.asked == [] and ApiKeys(world.data).all() == []


def test_a_foreign_page_cannot_show_the_nodes_page(foreign: Page, world: BrowserWorld) -> None:
    foreign.evaluate(
        "(url) => new Promise((done) => { const frame = document.createElement('iframe'); frame.src = url;"
        " frame.onload = done; document.body.append(frame); setTimeout(done, 3000); })",
        world.url,
    )
    shown = [frame for frame in foreign.frames if frame is not foreign.main_frame]
    assert all(frame.locator("#standing").count() == 0 for frame in shown)


def test_a_foreign_page_has_no_hold_on_a_window_that_it_opened(foreign: Page, world: BrowserWorld) -> None:
    with foreign.context.expect_page() as opened:
        foreign.evaluate("(url) => { window.other = open(url) }", world.url)
    opened.value.wait_for_selector("#standing")
    assert opened.value.evaluate("() => window.opener") is None
    assert foreign.evaluate("() => window.other.closed"), "the browser has parted them"


def test_strangers_words_are_words(visit: Visitor, world: BrowserWorld) -> None:
    """What peers say of themselves, in every view; the harness fails on scripts, errors and requests elsewhere."""
    page = visit("chat", unlocked=True)
    hostile = "<img src=x onerror='window.hacked=1'>\u202egnp.exe <script>window.hacked=2</script>"
    for offer in world.state.offers:
        offer["device_name"] = hostile
    world.state.offers.append(world.state.offers[0] | {"node": peer_id(FAR), "own": False, "model": hostile[:64]})
    world.state.name = hostile
    world.state.paused = hostile
    for view in ("chat", "imagine", "speech", "network", "ledger", "owner"):
        go(page, view)
        page.wait_for_timeout(300)
        assert page.evaluate("() => window.hacked === undefined && !document.querySelector('[onerror]')"), view


def test_no_secret_is_in_an_address_or_sent_on(visit: Visitor, world: BrowserWorld) -> None:
    page = visit.open(visit.context())
    seen: list[Any] = []
    page.on("request", lambda request: seen.append((request.url, request.headers.get("referer", ""))))
    code = world.code()
    page.goto(f"{world.url}/#unlock={code}")
    page.wait_for_function("() => localStorage.getItem('mtor.session') !== null")
    token = json.loads(page.evaluate("() => localStorage.getItem('mtor.session')"))
    page.goto(f"{world.url}/#/owner")
    page.wait_for_selector("#view-owner")
    sent = [(url.partition("#")[0], referer) for url, referer in seen]
    assert sent and not any(secret in text for pair in sent for text in pair for secret in (code, token))
    assert not any(referer for _, referer in sent)
    assert code not in page.evaluate("() => location.href") and page.context.cookies() == []
