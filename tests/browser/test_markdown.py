"""Markdown in the browser: what it looks like, that it is safe whatever the text is, and that it takes linear time."""

from __future__ import annotations

import random
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.answers import HOSTILE, MARKDOWN
from tests.browser.conftest import PAGE_FILES

BLOCKS = ["div", "p", "br", "hr", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "button"]
TABLES = ["table", "thead", "tbody", "tr", "th", "td"]
ELEMENTS = [*BLOCKS, *TABLES, "span", "a", "em", "strong", "del", "code"]
ATTRIBUTES = {
    "a": {"href", "target", "rel"},
    "button": {"type", "class", "aria-label", "title"},
    "ol": {"start"},
    "th": {"scope", "class"},
    "td": {"class"},
    "div": {"class"},
    "span": {"class"},
}
DEEPEST = 60  # elements in each other: lists and quotes of eight levels, and what is in them

IMPORTED = f"(await import('{PAGE_FILES}markdown.js'))"
RENDER = f"async (text) => {IMPORTED}.markdown(text).outerHTML"
APPEND = f"async (text) => document.querySelector('main').append({IMPORTED}.markdown(text))"
STREAM = (
    f"async (all) => {{ const {{ MarkdownView, markdown }} = {IMPORTED};"
    + """
  const stream = async ([text, sizes]) => {
    const view = new MarkdownView();
    let at = 0;
    for (const size of sizes) {
      view.append(text.slice(at, at + size));
      at += size;
      if (size % 3 === 0) await new Promise((next) => requestAnimationFrame(next));
    }
    view.append(text.slice(at));
    view.finish();
    return [view.element.outerHTML, markdown(text).outerHTML];
  };
  return Promise.all(all.map(stream));
}"""
)
LOOK = (
    f"async ([texts, elements, attributes, deepest]) => {{ const {{ markdown }} = {IMPORTED};"
    + """
  const wrong = [];
  const walk = (element, depth, text) => {
    const name = element.localName;
    if (depth > deepest) return wrong.push(`too deep in ${text}`);
    if (!elements.includes(name)) wrong.push(`<${name}> of ${text}`);
    for (const each of element.getAttributeNames()) {
      if (!(attributes[name] || []).includes(each)) wrong.push(`${each} of <${name}> of ${text}`);
    }
    if (name === 'a') {
      if (!['http:', 'https:', 'mailto:'].includes(element.protocol)) wrong.push(`${element.href} of ${text}`);
      if (element.rel !== 'noopener noreferrer nofollow') wrong.push(`a link that tells of this page of ${text}`);
      if (element.target !== '_blank') wrong.push(`a link in place of this page of ${text}`);
      if (element.parentElement.closest('a')) wrong.push(`a link in a link of ${text}`);
      const where = element.host || element.pathname;
      if (!element.parentElement.textContent.includes(where)) wrong.push(`a link that hides ${where} of ${text}`);
    }
    for (const child of element.children) walk(child, depth + 1, text);
  };
  for (const text of texts) walk(markdown(text), 0, JSON.stringify(text));
  return wrong;
}"""
)
MARKS = ["*", "**", "_", "__", "~~", "`", "``", "```", "~~~", "# ", "###### ", "> ", "- ", "* ", "+ ", "1. ", "12) "]
SPACES = ["\n", "\n\n", "\n\n\n", "  ", "    ", "\t", "\r\n", "\0", "\u202e", "\ud83d", "😀", "word", "ünï"]
FRAMES = ["|", "|-", ":-:|", "---", "[", "]", "(", ")", "![", "<", ">", "\\", "&amp;", '"', "'"]
ADDRESSES = ["http://", "https://a.example/x_(y)", "javascript:alert(1)", "mailto:a@b.example", "data:text/html,x"]
LINKS = ["[x](https://b.example)", "[x](  https://u:p@evil.example  )", "[x](<https://a.example>)"]
TRAPS = ["[x](javascript:alert(1))", "<script>", "</script>", "<img src=x onerror=alert(1)>", "[x](vbscript:x)"]
PIECES = [*MARKS, *SPACES, *FRAMES, *ADDRESSES, *LINKS, *TRAPS]


def render(page: Page, text: str) -> str:
    """Its HTML, without the frame that all have."""
    html: str = page.evaluate(RENDER, text)
    return html.removeprefix('<div class="markdown"><div class="blocks">').removesuffix("</div></div>")


@pytest.fixture
def blank(visit: Any, world: Any) -> Page:
    """A page that shows nothing else."""
    page: Page = visit("network")
    return page


SHAPES = (
    ("plain", "<p>plain</p>"),
    ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    ("**a** *b* __c__ _d_ ~~e~~", "<p><strong>a</strong> <em>b</em> <strong>c</strong> <em>d</em> <del>e</del></p>"),
    ("***a***", "<p><em><strong>a</strong></em></p>"),
    ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    ("snake_case_name 2 * 3 * 4 *", "<p>snake_case_name 2 * 3 * 4 *</p>"),
    (r"\*a\* `*b*` `` ` ``", "<p>*a* <code>*b*</code> <code>`</code></p>"),
    ("# A #\n## B\n####### C", "<h3>A</h3><h4>B</h4><p>####### C</p>"),
    ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("1. a\n   - b\n\n   more\n2. c", "<ol><li>a<ul><li>b</li></ul><p>more</p></li><li>c</li></ol>"),
    ("- a\n\n- b", "<ul><li>a</li><li>b</li></ul>"),
    ("Born in\n1984. That was it.", "<p>Born in<br>1984. That was it.</p>"),
    ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
    ("a\n***\nb", "<p>a</p><hr><p>b</p>"),
    ("<b>x</b> &amp; <!-- y -->", "<p>&lt;b&gt;x&lt;/b&gt; &amp;amp; &lt;!-- y --&gt;</p>"),
    ("[x](javascript:alert(1)) [y](/relative)", "<p><span>x</span> <span>y</span></p>"),
    ("[x] (y) [z", "<p>[x] (y) [z</p>"),
)


def test_shapes(blank: Page) -> None:
    for text, html in SHAPES:
        assert render(blank, text) == html


def test_tables_code_and_links(blank: Page) -> None:
    html = render(blank, MARKDOWN)
    assert '<th class="right" scope="col">grams</th>' in html and '<td class="right">200</td>' in html
    assert "<span>python</span>" in html and 'return "hot"</code></pre>' in html
    assert (
        'href="https://example.org/soup" target="_blank" rel="noopener noreferrer nofollow">a page about soup</a>'
        in html
    )
    assert '<span class="where"> (example.org)</span>' in html
    assert "cells" in render(blank, "| a | b |\n|--|--|\n| cells | `x\\|y` | too many |")
    assert "<code>x|y</code>" in render(blank, "| a | b |\n|--|--|\n| cells | `x\\|y` |")
    assert render(blank, "see https://a.example/b_(c).").endswith(">https://a.example/b_(c)</a></span>.</p>")


def test_a_link_shows_where_it_really_goes(blank: Page) -> None:
    assert "(evil.example)" in render(blank, "[https://bank.example](https://bank.example@evil.example/)")
    assert "(xn--" in render(blank, "[bank](https://bаnk.example/)")  # a Cyrillic letter


def wrong_in(page: Page, texts: list[str]) -> list[str]:
    """Every element, attribute, address or depth that should not be."""
    allowed = {name: sorted(each) for name, each in ATTRIBUTES.items()}
    found: list[str] = page.evaluate(LOOK, [texts, ELEMENTS, allowed, DEEPEST])
    return found


def test_hostile_text_stays_text(blank: Page) -> None:
    assert wrong_in(blank, [HOSTILE]) == []
    html = render(blank, HOSTILE)
    assert "&lt;script&gt;window.hacked=2&lt;/script&gt;" in html and "&lt;img src=x" in html
    blank.evaluate(APPEND, HOSTILE)
    assert blank.evaluate("() => window.hacked === undefined")


def made_up(random_: random.Random) -> str:
    """A text that somebody might have made to do harm."""
    return (
        "".join(random_.choice(PIECES) for _ in range(random_.randrange(1, 120)))
        .encode("utf-16", "replace")
        .decode("utf-16")
    )


def test_whatever_the_text_nothing_else_comes_out(blank: Page) -> None:
    random_ = random.Random(7)
    assert wrong_in(blank, [made_up(random_) for _ in range(1_000)]) == []


def test_pieces_come_to_the_same_as_the_whole(blank: Page) -> None:
    random_ = random.Random(8)
    made = [MARKDOWN, HOSTILE, MARKDOWN * 3] + [made_up(random_) for _ in range(25)]
    texts = [text.replace("\0", " ") for text in made]
    sizes = [[random_.randrange(1, 9) for _ in range(len(text) // 6)] for text in texts]
    streamed = blank.evaluate(STREAM, list(zip(texts, sizes, strict=True)))  # at once: all wait for the same frames
    for text, (in_pieces, whole) in zip(texts, streamed, strict=True):
        assert in_pieces == whole, text


def test_complete_blocks_are_not_made_again(blank: Page) -> None:
    kept = blank.evaluate(
        f"async () => {{ const {{ MarkdownView }} = {IMPORTED};"
        + """
          const frame = () => new Promise((next) => setTimeout(next, 5));
          const view = new MarkdownView();
          view.append('first\\n\\n```js\\nline one\\n');
          while (!view.element.querySelector('code')) await frame();
          const [paragraph, code] = [view.element.querySelector('p'), view.element.querySelector('code')];
          view.append('line two\\n');
          while (!code.textContent.includes('two')) await frame();
          const same = view.element.querySelector('p') === paragraph && view.element.querySelector('code') === code;
          return [same, code.textContent];
        }"""
    )
    assert kept == [True, "line one\nline two\n"]


HARD = {
    "stars": "*a ",
    "closers": "a* *b ",
    "brackets": "[",
    "links": "[a](",
    "ticks": "`a``b```c",
    "angles": "<",
    "quotes": ">",
    "lists": "- ",
    "lines of lists": "- a\n",
    "deeper quotes": "> a\n>> b\n",
    "tables": "|a|b|\n|-|-|\n",
    "pipes": "|-",
    "fences": "```\n",
    "tildes": "~~~a`",
    "underscores": "_a__b_",
    "addresses": "https://a.example/.....",
    "escapes": "\\*",
    "h": "h",
}


def test_time_is_linear(blank: Page) -> None:
    """A text takes about as long as its 32 parts one after the other, and not 32 times as long, as its square would."""
    ratios = blank.evaluate(
        f"async (hard) => {{ const {{ markdown }} = {IMPORTED};"
        + """
          const time = (text, times) => {
            const began = performance.now();
            for (let count = 0; count < times; count += 1) markdown(text);
            return performance.now() - began;
          };
          const found = {};
          for (const [name, piece] of Object.entries(hard)) {
            const part = piece.repeat(Math.ceil(1000 / piece.length));
            const ratio = () => time(part.repeat(32), 1) / Math.max(time(part, 32), 1);
            found[name] = ratio();
            if (found[name] > 10) found[name] = ratio(); // another program may have had the processor
          }
          return found;
        }""",
        HARD,
    )
    assert {name: ratio for name, ratio in ratios.items() if ratio > 10} == {}


def test_code_is_copied(blank: Page) -> None:
    blank.context.grant_permissions(["clipboard-read", "clipboard-write"])
    blank.evaluate(APPEND, "```py\nx = 1\n```")
    blank.get_by_role("button", name="Copy this code").click()
    blank.get_by_text("Copied").wait_for()
    assert blank.evaluate("() => navigator.clipboard.readText()") == "x = 1"
