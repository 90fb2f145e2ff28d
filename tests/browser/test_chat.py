"""The chat as a person uses it: asking, waiting, stopping, what goes wrong, what is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from protocol.messages import ChatRequest
from tests.browser.answers import png
from tests.browser.conftest import PageWatch, Visitor
from tests.browser.operations import HOSTILE_NAME
from tests.browser.world import BrowserWorld, until

AT_END = """() => {
  const log = document.querySelector('.messages');
  return log.scrollHeight - log.scrollTop - log.clientHeight < 100;
}"""
HIDE = "(hidden) => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })"


def ask(page: Page, text: str) -> Locator:
    """Ask by the keyboard; the answer's element."""
    answers = page.locator(".message.answer")
    before = answers.count()
    page.fill(".compose-text", text)
    page.press(".compose-text", "Enter")
    return answers.nth(before)


def turns(world: BrowserWorld) -> list[tuple[str, str]]:
    """The conversation that the node got last."""
    request = world.answers.asked[-1].request
    assert isinstance(request, ChatRequest)
    return [(turn.role, turn.text) for turn in request.turns]


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_conversation(page: Page, world: BrowserWorld) -> None:
    expect(page.locator(".choice-line")).to_contain_text("Free at kitchen (this node), at once")
    first = ask(page, "Hello")
    expect(first).to_contain_text("You said: Hello.")
    expect(first.locator(".answered")).to_contain_text("first word after 0.1 s")
    expect(first.locator(".answered")).to_contain_text("0.0001 credits")
    second = ask(page, "And now?")
    expect(second).to_contain_text("You said: And now?.")
    assert turns(world) == [("user", "Hello"), ("assistant", "You said: Hello."), ("user", "And now?")]
    expect(page.locator("h1")).to_have_text("Hello")
    expect(page.locator(".thread [role=status].unseen")).to_have_text("Answer: You said: And now?.")
    expect(page.locator(".compose-text")).to_be_focused()


def test_hostile_answers_and_names_are_text(page: Page, world: BrowserWorld) -> None:
    expect(ask(page, "hostile please")).to_contain_text("<script>window.hacked=2</script>")
    page.get_by_role("button", name="What the worker must have").click()
    expect(page.locator(".choice-workers")).to_contain_text(HOSTILE_NAME)
    expect(page.locator(".choice-model")).to_contain_text(HOSTILE_NAME)
    assert page.evaluate("() => window.hacked === undefined && !document.querySelector('.messages img')")


def test_waiting_in_line(page: Page, world: BrowserWorld) -> None:
    answer = ask(page, "queue please")
    for place in ("3rd in line at", "2nd in line at", "1st in line at"):
        expect(answer.locator(".standing-line")).to_contain_text(place)
        world.answers.let_go.set()
    expect(answer).to_contain_text("It is my turn now.")
    waiting = ask(page, "wait please")
    expect(waiting.locator(".standing-line")).to_contain_text("the worker plays a game now; perhaps 30 s more")
    world.answers.let_go.set()
    expect(waiting).to_contain_text("Here I am.")


def test_stopping_keeps_what_came(page: Page, world: BrowserWorld) -> None:
    answer = ask(page, "slow please")
    expect(answer).to_contain_text("word3")
    page.keyboard.press("Escape")
    expect(answer).to_contain_text("You stopped it here.")
    until(lambda: world.answers.cancelled == 1)
    answer = ask(page, "slow please")
    expect(answer).to_contain_text("word1")
    page.get_by_role("button", name="Stop the answer").click()
    expect(answer).to_contain_text("You stopped it here.")
    assert "word1" in turns_after(page, world, "Go on")


def turns_after(page: Page, world: BrowserWorld, text: str) -> str:
    """What was sent with one more message."""
    count = len(world.answers.asked)
    ask(page, text)
    world.until_asked(count + 1)
    return json.dumps(turns(world))


def test_what_goes_wrong_is_said_where_the_answer_would_be(page: Page, world: BrowserWorld) -> None:
    answer = ask(page, "fail please")
    expect(answer.locator(".problem")).to_contain_text("no connected peer offers $CHAT")
    expect(answer.locator(".problem")).to_contain_text("Nobody can answer now. See Network")
    busy = ask(page, "busy please")
    expect(busy.locator(".problem")).to_contain_text("The node thinks it helps to wait 5.0 s.")
    broken = ask(page, "break please")
    expect(broken).to_contain_text("It begins well,")
    expect(broken.locator(".problem")).to_contain_text("The answer broke off: the worker's model crashed")
    asked = len(world.answers.asked)
    broken.get_by_role("button", name="Try again").click()
    world.until_asked(asked + 1)
    expect(page.locator(".message.answer")).to_have_count(3)


def test_editing_retrying_and_undoing(page: Page, world: BrowserWorld) -> None:
    expect(ask(page, "One")).to_contain_text("You said: One.")
    expect(ask(page, "Two")).to_contain_text("You said: Two.")
    page.locator(".message.answer").last.hover()
    page.locator(".message.answer").last.get_by_role("button", name="Ask again for another answer").click()
    world.until_asked(3)
    expect(page.locator(".message.answer")).to_have_count(2)
    page.press(".compose-text", "ArrowUp")
    page.keyboard.type(" and a half")
    page.keyboard.press("Enter")
    expect(page.locator(".message.answer").last).to_contain_text("You said: Two and a half.")
    page.locator(".message.own").first.hover()
    page.locator(".message.own").first.get_by_role("button", name="Edit").click()
    page.fill(".editing textarea", "Zero")
    page.get_by_role("button", name="Ask again", exact=True).click()
    expect(page.locator(".message.answer")).to_have_count(1)
    expect(page.locator(".message.answer")).to_contain_text("You said: Zero.")
    assert turns(world) == [("user", "Zero")]
    page.locator("#toasts").get_by_role("button", name="Undo").last.click()
    expect(page.locator(".message.answer")).to_have_count(2)
    expect(page.locator(".messages")).to_contain_text("You said: Two and a half.")


def test_keys(page: Page, world: BrowserWorld) -> None:
    box = page.locator(".compose-text")
    box.fill("one")
    box.press("Shift+Enter")
    box.type("two")
    expect(box).to_have_value("one\ntwo")
    page.locator(".choice-model").focus()
    page.keyboard.press("Control+k")
    expect(box).to_be_focused()
    page.get_by_role("button", name="New chat").first.focus()
    page.keyboard.press("/")
    expect(box).to_be_focused()
    expect(box).to_have_value("one\ntwo")
    expect(page.locator(".keys")).to_contain_text("Shift+Enter new line")
    assert not world.answers.asked


def test_settings_of_a_conversation(page: Page, world: BrowserWorld) -> None:
    page.get_by_role("button", name="Instructions, temperature").click()
    page.get_by_label("Instructions that go before").fill("Be brief.")
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_label("Tokens at most").fill("50")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("button", name="Keep").click()
    expect(ask(page, "Hi")).to_contain_text("You said: Hi.")
    request = world.answers.asked[0].request
    assert isinstance(request, ChatRequest)
    assert (request.temperature, request.max_tokens, request.seed) == (0, 50, 7)
    assert turns(world) == [("system", "Be brief."), ("user", "Hi")]


def test_a_long_answer_stays_smooth(page: Page, world: BrowserWorld) -> None:
    page.evaluate(
        """() => {
          window.made = 0;
          new MutationObserver((all) => { for (const each of all) window.made += each.addedNodes.length; })
            .observe(document.querySelector('.messages'), { childList: true, subtree: true });
        }"""
    )
    answer = ask(page, "long please")
    expect(answer.locator(".answered")).to_be_visible(timeout=60_000)
    assert answer.locator("p").count() > 160
    page.wait_for_function(AT_END)  # the page follows the answer
    page.locator(".messages").evaluate("(log) => { log.scrollTop -= 600 }")
    page.get_by_role("button", name="↓ Newest").click()
    page.wait_for_function(AT_END)
    # Were the whole made anew for each piece, that were over a million elements.
    assert page.evaluate("() => window.made") < 60_000


# --- who answers ------------------------------------------------------------------------------------------------------


def test_choosing_a_worker_and_what_it_costs(page: Page, world: BrowserWorld) -> None:
    line = page.locator(".choice-line")
    expect(line).to_contain_text("4 workers can take it")
    page.locator(".choice-model").select_option(label="qwen3-8b")
    expect(line).to_contain_text(
        re.compile(r"About 0\.022 credits for a typical answer \(1,000 tokens: 0\.02 in, 0\.06 out\)")
    )
    page.get_by_role("button", name="What the worker must have").click()
    page.get_by_label("Graphics memory at least").fill("24")
    page.get_by_label("Graphics memory at least").press("Tab")
    expect(line).to_contain_text(
        "Nobody can answer this now: no worker has 24 GB of graphics memory; the most is 12 GB."
    )
    page.get_by_label("Graphics memory at least").fill("8")
    page.get_by_label("Context at least").fill("16000")
    page.get_by_label("Highest price").fill("0.1")
    page.get_by_label("Whole answer within").fill("60")
    page.get_by_label("Device").select_option("cuda")
    expect(line).to_contain_text("About")
    ask(page, "Hello")
    world.until_asked()
    wanted = world.answers.asked[0].requirements
    assert (wanted.model, wanted.min_vram_mib, wanted.min_context_tokens) == ("qwen3-8b", 8192, 16_000)
    assert (wanted.max_price_in, wanted.max_price_out, wanted.device_kind) == (100_000, 100_000, "cuda")
    assert world.answers.asked[0].deadline_ms == 60_000
    page.reload()
    expect(page.locator(".choice-model")).to_have_value('["$CHAT","qwen3-8b"]')
    expect(page.get_by_role("button", name="What the worker must have")).to_have_text("Options (5 requirements)")
    world.state.offers = [each for each in world.state.offers if each["model"] != "qwen3-8b"]
    expect(line).to_contain_text("no worker offers qwen3-8b")


def test_the_line_follows_the_queue(page: Page, world: BrowserWorld) -> None:
    line = page.locator(".choice-line")
    world.state.offers = [each | {"busy": 2, "queued": 4} for each in world.state.offers if each["own"]]
    expect(line).to_contain_text("Free at kitchen (this node), after 4 in line")
    world.state.offers = []
    expect(line).to_contain_text("no worker offers $CHAT")


def test_who_answered_and_why(visit: Visitor, world: BrowserWorld) -> None:
    page = visit("chat", unlocked=True)
    answer = ask(page, "failover please")
    expect(answer.locator(".answered")).to_contain_text("another worker went on after the first was lost")
    answer.get_by_role("button", name="Why this worker").click()
    dialog = page.get_by_role("dialog", name="Who answered")
    expect(dialog.locator("section")).to_have_count(2)
    dialog.get_by_role("button", name="Show the receipt").first.click()
    expect(dialog).to_contain_text("You asked …worker for 20 + 40 tokens")
    assert ("ledger.show", {"id": "ab" * 32}) in world.operations.called
    page.keyboard.press("Escape")
    own = ask(page, "free please")
    expect(own.locator(".answered")).to_contain_text("free (your own node)")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_shown_to_the_model(page: Page, world: BrowserWorld, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(png(3_000, (10, 200, 30)))
    page.locator("input[type=file]").set_input_files([large, large])
    expect(page.locator(".thumb")).to_have_count(2)
    expect(page.locator(".choice-line")).to_contain_text("credits")  # of $VISION, which the own node does not offer
    page.get_by_role("button", name="Remove picture 2").click()
    page.evaluate(
        """(bytes) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([new Uint8Array(bytes)], 'pasted.png', { type: 'image/png' }));
          const how = { bubbles: true, cancelable: true };
          const pasted = new ClipboardEvent('paste', { clipboardData: dataTransfer, ...how });
          document.querySelector('.compose-text').dispatchEvent(pasted);
          document.querySelector('.chat-column').dispatchEvent(new DragEvent('drop', { dataTransfer, ...how }));
        }""",
        list(png(20, (1, 2, 3))),
    )
    expect(page.locator(".thumb")).to_have_count(3)
    answer = ask(page, "What is it?")
    expect(answer).to_contain_text("It shows 3 picture(s).")
    asked = world.answers.asked[0]
    assert asked.realm == "$VISION" and all(each.startswith(b"\xff\xd8") for each in asked.inputs)
    assert max(len(each) for each in asked.inputs) < 200_000
    picture = page.locator(".pictures img").first
    sides = picture.evaluate("(image) => [image.naturalWidth, image.naturalHeight]")
    assert sides == [1_536, 1_536]
    expect(page.locator(".thumb")).to_have_count(0)


def test_what_is_no_picture_is_refused(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    page.locator("input[type=file]").set_input_files(text)
    expect(page.locator("#toasts")).to_contain_text("notes.txt is not a picture")


def test_the_camera(page: Page, world: BrowserWorld) -> None:
    page.get_by_role("button", name="Take a picture with the camera").click()
    page.get_by_role("button", name="Take it").click()
    expect(page.locator(".thumb")).to_have_count(1)
    page.get_by_role("button", name="Take a picture with the camera").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("dialog video")).to_have_count(0)
    expect(page.locator(".thumb")).to_have_count(1)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_conversations_are_kept_found_renamed_and_deleted(page: Page) -> None:
    expect(ask(page, "About apples")).to_contain_text("You said")
    page.get_by_role("button", name="New chat").first.click()
    expect(ask(page, "About pears, and **quinces**")).to_contain_text("You said")
    page.reload()
    rows = page.locator(".conversation-list li")
    expect(rows).to_have_count(2)
    expect(page.locator("h1")).to_have_text("About pears, and **quinces**")
    page.get_by_label("Search conversations").fill("apples said")
    expect(rows).to_have_count(1)
    rows.first.locator(".conversation").click()
    expect(page.locator(".messages")).to_contain_text("You said: About apples.")
    page.get_by_label("Search conversations").fill("")
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Rename, export or delete: About apples").click()
    page.get_by_label("Title").fill("<b>Fruit</b>")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(page.locator("h1")).to_have_text("<b>Fruit</b>")
    page.get_by_role("button", name="Rename, export or delete: <b>Fruit</b>").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as Markdown").click()
    assert saved.value.suggested_filename == "b-fruit-b.md"
    text = Path(saved.value.path()).read_text()
    assert text == "# <b>Fruit</b>\n\n## You\n\nAbout apples\n\n## smollm2-135m\n\nYou said: About apples.\n"
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").last.get_by_role("button", name="Delete", exact=True).click()
    expect(rows).to_have_count(1)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export all").click()
    (kept,) = json.loads(Path(saved.value.path()).read_text())
    assert kept["messages"][1]["text"] == "You said: About pears, and **quinces**."
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    expect(rows.locator(".conversation")).to_have_count(0)
    page.reload()
    expect(page.locator(".conversation-list")).to_contain_text("Your conversations will be listed here.")


def test_a_browser_that_keeps_nothing(visit: Visitor, world: BrowserWorld) -> None:
    context = visit.context()
    context.add_init_script(
        "Object.defineProperty(window, 'indexedDB', { get() { throw new DOMException('no', 'SecurityError') } })"
    )
    page = visit.open(context)
    expect(ask(page, "Hello")).to_contain_text("You said: Hello.")
    expect(page.locator(".kept-note")).to_contain_text("This browser keeps nothing")
    page.get_by_role("button", name="New chat").first.click()
    page.locator(".conversation-list .conversation").click()
    expect(page.locator(".messages")).to_contain_text("You said: Hello.")


def test_an_answer_goes_on_while_another_view_is_shown(page: Page, world: BrowserWorld) -> None:
    answer = ask(page, "hold please")
    expect(answer).to_contain_text("The beginning,")
    page.get_by_role("link", name="Network").click()
    page.wait_for_selector("#view-network")
    world.answers.let_go.set()
    page.get_by_role("link", name="Chat", exact=True).click()
    expect(page.locator(".message.answer")).to_contain_text("The beginning, and the end.")
    expect(page.locator(".message.answer .answered")).to_be_visible()


def test_an_answer_is_taken_up_after_the_page_was_loaded_again(page: Page, world: BrowserWorld) -> None:
    expect(ask(page, "hold please")).to_contain_text("The beginning,")
    page.reload()
    answer = page.locator(".message.answer")
    expect(answer).to_contain_text("The beginning,")
    world.answers.let_go.set()
    expect(answer).to_contain_text("The beginning, and the end.")
    expect(answer.locator(".answered")).to_be_visible()
    assert len(world.answers.asked) == 1


def test_an_answer_is_taken_up_after_the_connection_was_lost(
    visit: Visitor, world: BrowserWorld, page_watch: PageWatch
) -> None:
    page_watch.allow("WebSocket connection", "ERR_INTERNET_DISCONNECTED")
    context = visit.context()
    context.add_init_script(
        """window.sockets = [];
        window.WebSocket = class extends WebSocket {
          constructor(...all) { super(...all); window.sockets.push(this); }
        };"""
    )
    page = visit.open(context)
    answer = ask(page, "hold please")
    expect(answer).to_contain_text("The beginning,")
    page.evaluate("() => window.sockets.at(-1).close()")
    expect(page.locator("#standing")).to_contain_text("Not connected")
    expect(page.locator("#standing")).to_contain_text("2 peers")
    world.answers.let_go.set()
    expect(answer).to_contain_text("The beginning, and the end.")
    assert len(world.answers.asked) == 1


def test_a_node_that_was_restarted(page: Page, world: BrowserWorld, page_watch: PageWatch) -> None:
    page_watch.allow("WebSocket connection")
    answer = ask(page, "hold please")
    expect(answer).to_contain_text("The beginning,")
    world.restart()
    expect(answer.locator(".problem")).to_contain_text("The answer broke off")
    expect(answer).to_contain_text("The beginning,")
    expect(page.locator("#standing")).to_contain_text("2 peers", timeout=20_000)
    expect(ask(page, "Are you back?")).to_contain_text("You said: Are you back?.")


@pytest.mark.parametrize("seen", [True, False])
def test_the_title_says_that_an_answer_is_ready_if_nobody_looks(page: Page, world: BrowserWorld, seen: bool) -> None:
    answer = ask(page, "hold please")
    expect(answer).to_contain_text("The beginning,")
    page.evaluate(HIDE, not seen)
    world.answers.let_go.set()
    expect(answer.locator(".answered")).to_be_visible()
    expect(page).to_have_title("Chat · MTOR" if seen else "● Answer ready · Chat · MTOR")
    page.evaluate(HIDE, False)
    page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
    expect(page).to_have_title("Chat · MTOR")


# --- on a phone, and in colours ---------------------------------------------------------------------------------------


def test_on_a_phone(visit: Visitor) -> None:
    page = visit("chat", 360, has_touch=True)
    expect(page.locator(".side")).to_be_hidden()
    answer = ask_by_button(page, "markdown please")
    expect(answer.locator("table")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Conversations").click()
    drawer = page.get_by_role("dialog", name="Conversations")
    drawer.get_by_role("button", name="New chat").click()
    expect(drawer).to_be_hidden()
    expect(page.locator("h1")).to_have_text("New chat")


def ask_by_button(page: Page, text: str) -> Locator:
    """Ask by touching."""
    page.fill(".compose-text", text)
    page.get_by_role("button", name="Send").click()
    return page.locator(".message.answer").last


def test_colours_are_chosen_and_remembered(page: Page) -> None:
    paper = "() => getComputedStyle(document.body).backgroundColor"
    switch = page.get_by_role("button", name=re.compile("^Colours"))
    light = page.evaluate(paper)
    switch.click()
    assert page.evaluate(paper) == light
    switch.click()
    expect(switch).to_have_attribute("aria-label", "Colours: dark. Change.")
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    expect(switch).to_have_attribute("aria-label", "Colours: dark. Change.")
    assert page.evaluate(paper) == dark
    switch.click()
    assert page.evaluate(paper) == light
