"""What people with a keyboard, a screen reader or weak eyes need: names, order, contrast."""

from __future__ import annotations

import re
from itertools import pairwise

from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor
from tests.browser.conftest import go as go_on
from tests.browser.test_frame import VIEWS
from tests.browser.world import BrowserWorld

NAMELESS = """() => {
  const wrong = [];
  const text = (id) => (id ? document.getElementById(id)?.textContent.trim() : '');
  const inside = (element) => element.textContent.trim() || element.querySelector('img[alt]')?.alt;
  const named = (element) => element.getAttribute('aria-label')?.trim() || text(element.getAttribute('aria-labelledby'))
    || [...(element.labels || [])].map((label) => label.textContent).join('').trim()
    || (/^(BUTTON|A|SUMMARY)$/.test(element.tagName) && inside(element));
  const controls = 'button, a[href], input, select, textarea, summary, dialog, progress, meter, [tabindex="0"]';
  for (const element of document.querySelectorAll(controls)) {
    if (element.checkVisibility() && !named(element)) wrong.push(`no name: ${element.outerHTML.slice(0, 160)}`);
  }
  for (const image of document.querySelectorAll('img:not([alt])')) wrong.push(`no alt: ${image.src.slice(0, 80)}`);
  const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
  for (const id of new Set(ids)) if (ids.filter((each) => each === id).length > 1) wrong.push(`twice: #${id}`);
  for (const kind of ['aria-describedby', 'aria-labelledby', 'aria-controls', 'for']) {
    for (const element of document.querySelectorAll(`[${kind}]`)) {
      for (const id of element.getAttribute(kind).split(' ')) {
        if (!document.getElementById(id)) wrong.push(`${kind} points to nothing: ${id}`);
      }
    }
  }
  return wrong;
}"""

# The colours of a text and of what lies behind it, as the browser has them; transparent layers are looked through.
CONTRAST = """() => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  const known = new Map();
  const read = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return { r, g, b, a: a / 255 };
  };
  const rgb = (colour) => {
    if (!known.has(colour)) known.set(colour, read(colour));
    return known.get(colour);
  };
  const light = ({ r, g, b }) => {
    const linear = (each) => (each <= 0.04045 * 255 ? each / 255 / 12.92 : ((each / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgb(getComputedStyle(each).backgroundColor);
      if (colour.a > 0.95) return colour;
    }
    return { r: 255, g: 255, b: 255 };
  };
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const words = walker.currentNode.data.trim().slice(0, 40);
    if (!words || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (element.closest(':disabled, .unseen, option, [aria-hidden=true], svg')) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(rgb(style.color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (one + 0.05) / (other + 0.05);
    const large = parseFloat(style.fontSize) >= (style.fontWeight >= 700 ? 18.66 : 24);
    if (ratio < (large ? 3 : 4.5)) wrong.push(`${ratio.toFixed(2)}: ${words} (${element.className})`);
  }
  return [...new Set(wrong)];
}"""

TOKENS = """(names) => {
  const probe = document.createElement('span');
  document.body.append(probe);
  const found = {};
  for (const name of names) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}"""
TEXTS, PAPERS = ("ink", "soft", "accent", "good", "busy", "bad"), ("paper", "card", "sunk")
PAIRS = [(text, paper) for text in TEXTS for paper in PAPERS]
PAIRS += [("on-accent", "accent"), ("ink", "tint"), ("accent", "tint"), ("ink", "bad-tint")]


def luminance(colour: str) -> float:
    """Of "rgb(1, 2, 3)", as WCAG defines it."""
    parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """1 … 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def go(page: Page, view: str) -> None:
    """Another view of the same page, when what it asks for is there."""
    go_on(page, view)
    page.wait_for_timeout(150)


def test_tokens_have_contrast(visit: Visitor, scheme: str) -> None:
    colours = visit("chat", scheme=scheme).evaluate(TOKENS, sorted({each for pair in PAIRS for each in pair}))
    weak = {(text, paper): round(contrast(colours[text], colours[paper]), 2) for text, paper in PAIRS}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}


def test_every_control_has_a_name_and_every_text_contrast(visit: Visitor, scheme: str) -> None:
    page = visit("chat", scheme=scheme, unlocked=True)
    for view in VIEWS:
        go(page, view)
        assert page.evaluate(NAMELESS) == [], view
        assert page.evaluate(CONTRAST) == [], view


def test_a_conversation_has_names_and_contrast(visit: Visitor, scheme: str) -> None:
    page = visit("chat", scheme=scheme)
    for said in ("markdown please", "break please"):
        page.fill(".compose-text", said)
        page.press(".compose-text", "Enter")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("button", name="What the worker must have").click()
    assert page.evaluate(NAMELESS) == [] and page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="Instructions, temperature").click()
    assert page.evaluate(NAMELESS) == [] and page.evaluate(CONTRAST) == []


def test_a_newcomer_s_page_has_names_and_contrast(visit: Visitor, world: BrowserWorld, scheme: str) -> None:
    world.state.bare()
    page = visit("chat", 360, scheme=scheme)
    page.get_by_text("Other ways").click()
    assert page.evaluate(NAMELESS) == [] and page.evaluate(CONTRAST) == []


def test_the_keyboard_reaches_everything_in_order(visit: Visitor) -> None:
    page = visit("chat")
    expect(page.locator(".compose-text")).to_be_focused()
    page.locator(".skip").focus()
    names: list[str] = []
    for _ in range(40):
        names.append(page.evaluate("() => document.activeElement.className"))
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement === document.body"):
            break
    order = ["skip", "brand", "theme", "compose-text"]
    places = [next(at for at, name in enumerate(names) if each in name) for each in order]
    assert all(one < other for one, other in pairwise(places)), names
    expect(page.locator('[tabindex]:not([tabindex="0"], [tabindex="-1"])')).to_have_count(0)


def test_a_dialog_keeps_the_focus_and_gives_it_back(visit: Visitor) -> None:
    page = visit("chat")
    more = page.get_by_role("button", name="Instructions, temperature")
    more.focus()
    page.keyboard.press("Enter")
    for _ in range(12):
        page.keyboard.press("Tab")
        inside = "() => document.activeElement === document.body || Boolean(document.activeElement.closest('dialog'))"
        assert page.evaluate(inside)
    page.keyboard.press("Escape")
    expect(more).to_be_focused()


def test_an_answer_is_told_once_and_not_word_by_word(visit: Visitor, world: BrowserWorld) -> None:
    page = visit("chat")
    log = page.get_by_role("log", name="Conversation")
    expect(log).to_have_attribute("aria-live", "off")
    told = page.locator(".thread > [role=status]")
    page.evaluate(
        """() => {
          window.told = 0;
          const place = document.querySelector('.thread > [role=status]');
          const watch = new MutationObserver(() => { window.told += 1; });
          watch.observe(place, { childList: true, subtree: true, characterData: true });
        }"""
    )
    page.fill(".compose-text", "hold please")
    page.press(".compose-text", "Enter")
    answer = page.get_by_role("article", name="Answer")
    expect(answer).to_have_attribute("aria-busy", "true")
    world.until_asked()
    world.answers.let_go.set()
    expect(told).to_have_text("Answer: The beginning, and the end.")
    expect(answer).to_have_attribute("aria-busy", "false")
    assert page.evaluate("() => window.told") == 1
