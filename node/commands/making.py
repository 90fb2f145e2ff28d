"""`mtor imagine`, `mtor say` and `mtor transcribe`: pictures and sounds in files.

Rule: a file appears whole or not at all, and none that exists is written over unless told so. What the node says beside
the result goes to standard error, so that results can be piped.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from node.commands.asking import given, print_bill, wishes
from node.commands.client import Json, NodeClient, UsageError
from node.commands.screen import Show, StatusLine, print_json, printable, progress_shown, waiting_words
from node.paths import data_folder
from protocol.params import MAX_INPUT_BYTES

NAME_LENGTH = 40


def imagine(options: argparse.Namespace) -> int:
    """One picture."""
    _refuse_empty(options.text)
    target = _target(options, options.text, ".png")
    client = NodeClient(data_folder(options.data))
    body = given(
        prompt=options.text,
        model=options.model,
        size=options.size,
        steps=options.steps,
        seed=options.seed,
        guidance=options.guidance,
        negative_prompt=options.negative,
        stream=True,
        partial_images=0,
        mtor=wishes(options),
    )
    done: Json = {}
    with ExitStack() as stack:
        painted = _Painted(stack, hidden=options.json)
        for chunk in client.events("/v1/images/generations", body):
            if chunk["type"] == "image_generation.completed":
                done = chunk
            else:
                painted.show(chunk["mtor"])
    _write(target, [base64.b64decode(done["b64_json"])])
    return _told(options, target, done["mtor"])


class _Painted:
    """What is waited for, then how far the picture is: the bar appears with its first step."""

    def __init__(self, stack: ExitStack, *, hidden: bool) -> None:
        self._stack = stack
        self._hidden = hidden  # with --json the waiting is not shown
        self._line = StatusLine()
        self._bar: Show | None = None
        stack.callback(self._line.clear)

    def show(self, about: Json) -> None:
        """The `mtor` object of an event."""
        if "done" in about:
            if self._bar is None:
                self._line.clear()
                self._bar = self._stack.enter_context(progress_shown())
            self._bar({"step": "paint", "done_count": about["done"], "total_count": about["total"]})
        elif not self._hidden and self._line.seen and (words := waiting_words(about)):
            if self._bar is None:
                self._line.show(words)
            else:  # a bar is being drawn: a line beside it would be written over
                self._bar({"step": printable(words), "done_count": 0, "total_count": 0})


def say(options: argparse.Namespace) -> int:
    """Text to a WAV file."""
    text = sys.stdin.read() if options.text == "-" else options.text
    _refuse_empty(text)
    target = _target(options, text, ".wav")
    client = NodeClient(data_folder(options.data))
    body = given(input=text, model=options.model, voice=options.voice, speed=options.speed, mtor=wishes(options))
    if options.out == "-":
        for piece in client.download("/v1/audio/speech", body | {"response_format": "wav"}):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return 0
    sound, facts = speech(client, body)
    _write(target, [sound])
    return _told(options, target, facts)


def _refuse_empty(text: str) -> None:
    if not text.strip():
        raise UsageError("the text is empty; say what it should be made of")


def speech(client: NodeClient, body: Json) -> tuple[bytes, Json]:
    """(a whole WAV, the node's facts about it)."""
    parts: list[bytes] = []
    facts: Json = {}
    streamed = body | {"response_format": "wav", "stream_format": "sse"}
    for chunk in client.events("/v1/audio/speech", streamed):
        facts = chunk.get("mtor", facts)
        parts.append(base64.b64decode(chunk.get("audio", "")))
    return _with_length(b"".join(parts)), facts


def transcribe(options: argparse.Namespace) -> int:
    """The text of a sound."""
    sound = read_media(options.file)
    client = NodeClient(data_folder(options.data))
    route = "/v1/audio/translations" if options.translate else "/v1/audio/transcriptions"
    fields = given(
        model=options.model,
        language=options.language,
        prompt=options.prompt,
        response_format="vtt" if options.timestamps else "json",
        mtor=wishes(options, as_text=True),
    )
    answer = client.form(route, {name: str(value) for name, value in fields.items()}, options.file.name, sound)
    if options.timestamps:
        captions = answer.decode(errors="replace")
        print(printable(captions), end="")
        if "-->" not in captions:
            _say_silence()
        return 0
    facts = NodeClient.parsed(answer)
    if options.json:
        print_json({"text": facts["text"], **facts["mtor"]})
    else:
        if facts["text"].strip():
            print(printable(facts["text"]))
        else:
            _say_silence()
        print_bill(facts["mtor"])
    return 0


def _say_silence() -> None:
    """On standard error: what was heard is what goes on, and that is nothing."""
    print("nothing was heard", file=sys.stderr)


def read_media(path: Path) -> bytes:
    """A picture or sound of the user's. Raises `UsageError`."""
    try:
        size = path.stat().st_size
        if size > MAX_INPUT_BYTES:
            raise UsageError(f"{path} has {size:,} bytes; at most {MAX_INPUT_BYTES:,} can be sent: make it smaller")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    if not data:
        raise UsageError(f"{path} is empty")
    return data


def _target(options: argparse.Namespace, text: str, ending: str) -> Path:
    """Where the result goes: what was asked for, or a free name made of the text. Raises `UsageError`."""
    if options.out and options.out != "-":
        path = Path(options.out)
        if path.exists() and not options.force:
            raise UsageError(f"{path} exists; take another name, or --force")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.absolute().parent}; make it first")
        return path
    stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:NAME_LENGTH].rstrip("-") or "result"
    names = [f"{stem}{ending}", *(f"{stem}-{number}{ending}" for number in range(2, 10_000))]
    return next(path for path in map(Path, names) if not path.exists())


def _write(path: Path, parts: Iterable[bytes]) -> None:
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        umask = os.umask(0)
        os.umask(umask)
        Path(partial).chmod(0o666 & ~umask)
        Path(partial).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(partial).unlink()
        raise


def _with_length(wav: bytes) -> bytes:
    """A streamed WAV has no lengths in its header; a file should."""
    if wav[:4] != b"RIFF" or wav[36:40] != b"data":
        return wav
    sizes = (len(wav) - 8).to_bytes(4, "little"), (len(wav) - 44).to_bytes(4, "little")
    return wav[:4] + sizes[0] + wav[8:40] + sizes[1] + wav[44:]


def _told(options: argparse.Namespace, path: Path, facts: Json) -> int:
    if options.json:
        print_json({"file": str(path), **facts})
    else:
        print(path)
        print_bill(facts)
    return 0
