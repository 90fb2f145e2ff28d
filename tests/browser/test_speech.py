"""Speech: a microphone that is a browser's fake one, whose sound goes through the page as a real one's would."""

from __future__ import annotations

import struct

import pytest
from playwright.sync_api import Page, expect

from node.answers import Question
from protocol.messages import ChatRequest, SpeakRequest, TranscribeRequest
from tests.browser.conftest import PAGE_FILES, Visitor
from tests.browser.world import BrowserWorld, until


@pytest.fixture
def page(visit: Visitor) -> Page:
    """The view of speech."""
    return visit("speech")


def asked(world: BrowserWorld, kind: type) -> list[Question]:
    return [each for each in world.answers.asked if isinstance(each.request, kind)]


def test_a_question_is_spoken_and_its_answer_is_said(page: Page, world: BrowserWorld) -> None:
    page.get_by_role("button", name="Talk").click()
    expect(page.get_by_text("listening: speak now")).to_be_visible()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Talk").click()
    expect(page.get_by_role("log", name="The talk")).to_contain_text("The quick brown fox.")
    expect(page.get_by_role("log", name="The talk")).to_contain_text("You said: The quick brown fox.")
    until(lambda: bool(asked(world, SpeakRequest)))
    chat = asked(world, ChatRequest)[0].request
    assert isinstance(chat, ChatRequest) and chat.turns[-1].text == "The quick brown fox."
    spoken = asked(world, SpeakRequest)[0].request
    assert isinstance(spoken, SpeakRequest) and spoken.text.startswith("You said: The quick brown fox.")


def test_what_the_microphone_hears_is_a_whole_wav(page: Page, world: BrowserWorld) -> None:
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("button", name="Stop and write down")).to_be_visible()
    page.wait_for_timeout(1_200)  # the fake microphone beeps each second
    page.get_by_role("button", name="Stop and write down").click()
    expect(page.locator(".transcript")).to_have_text("The quick brown fox.")
    question = asked(world, TranscribeRequest)[0]
    wav = question.inputs[0]
    assert wav[:4] == b"RIFF" and struct.unpack_from("<IHHI", wav, 16) == (16, 1, 1, 16_000)
    samples = struct.unpack(f"<{(len(wav) - 44) // 2}h", wav[44:])
    assert len(samples) > 4_000 and max(samples) > 500, "the fake microphone beeps"


def test_a_file_is_written_down(page: Page, world: BrowserWorld) -> None:
    page.get_by_label("translate into English").check()
    page.get_by_label("Or a file").set_input_files({"name": "a.wav", "mimeType": "audio/wav", "buffer": b"RIFFsound"})
    expect(page.locator(".transcript")).to_have_text("The quick brown fox.")
    question = asked(world, TranscribeRequest)[0]
    assert question.inputs == (b"RIFFsound",)
    assert isinstance(question.request, TranscribeRequest) and question.request.translate


def test_text_is_said_and_can_be_kept(page: Page, world: BrowserWorld) -> None:
    page.get_by_label("Text", exact=True).fill("Good morning")
    page.get_by_role("button", name="Say it").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    data = download.value.path().read_bytes()
    assert data[:4] == b"RIFF" and len(data) == 44 + 4 * 1_600
    request = asked(world, SpeakRequest)[0].request
    assert isinstance(request, SpeakRequest) and request.text == "Good morning"


def test_a_failure_is_told(page: Page) -> None:
    page.get_by_label("Text", exact=True).fill("fail please")
    page.get_by_role("button", name="Say it").click()
    expect(page.get_by_role("alert")).to_contain_text("no connected peer offers")


def test_without_a_microphone_the_page_says_why(visit: Visitor) -> None:
    page = visit("speech")
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotFoundError')) }"
    )
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert")).to_contain_text("there is no microphone")


def test_the_wake_word_is_heard_in_what_is_said(page: Page) -> None:
    heard = page.evaluate(
        """async (voice) => {
            const { afterWakeWord, pieces, spokenText } = await import(voice);
            return {
                question: afterWakeWord("Well, Computer! What time is it?", "computer"),
                alone: afterWakeWord("computer.", "computer"),
                never: afterWakeWord("my computers are slow", "computer"),
                two: afterWakeWord("hey mtor, draw a cat", "hey mtor"),
                parts: pieces(`${"A sentence of some length. ".repeat(200)}`).map((part) => part.length),
                plain: spokenText("# Soup\\n**bold** and `code`\\n```js\\nx()\\n``` [a link](https://example.org)"),
            };
        }""",
        f"{PAGE_FILES}voice.js",
    )
    assert heard["question"] == "What time is it?"
    assert heard["alone"] == "" and heard["never"] is None and heard["two"] == "draw a cat"
    assert len(heard["parts"]) > 1 and max(heard["parts"]) <= 1_500
    assert heard["plain"] == "Soup\nbold and code\n(code) a link"


def test_the_wake_word_begins_a_question(page: Page, world: BrowserWorld) -> None:
    """The fake microphone beeps, which is loud; what it is understood as begins with the wake word."""
    page.get_by_label("Wake word").fill("quick")
    page.get_by_label("Wake word").blur()
    page.get_by_role("link", name="Chat", exact=True).click()
    page.get_by_role("link", name="Speech").click()
    page.get_by_role("button", name="Wait for “quick”").click()
    until(lambda: bool(asked(world, ChatRequest)))
    request = asked(world, ChatRequest)[0].request
    assert isinstance(request, ChatRequest) and request.turns[-1].text == "brown fox."
    page.get_by_role("button", name="Wait for “quick”").click()


def test_the_chat_takes_dictation(visit: Visitor, world: BrowserWorld) -> None:
    page = visit("chat")
    speak = page.get_by_role("button", name="Speak instead of writing")
    speak.click()
    expect(speak).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(500)
    speak.click()
    expect(page.locator(".compose-text")).to_have_value("The quick brown fox.")
    expect(speak).to_have_attribute("aria-pressed", "false")
