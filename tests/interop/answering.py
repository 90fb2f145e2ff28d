"""A worker of every realm, for clients that ask for all of them."""

from node.answers import Bytes, Question
from protocol.messages import ImagineRequest, SpeakRequest
from tests.node.gateway_world import ROUTED, Emit, completed, events, saying

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4, "big") * 2 + bytes(64)


async def any_realm(question: Question, emit: Emit) -> None:
    """What a worker of the question's realm would send: "Hello", some silence, or a picture."""
    if isinstance(question.request, SpeakRequest):
        script = events(ROUTED, Bytes("audio/pcm;rate=24000", bytes(9_600)), completed())
    elif isinstance(question.request, ImagineRequest):
        script = events(ROUTED, Bytes("image/png", PNG), completed())
    else:
        script = saying("Hel", "lo")
    await script(question, emit)
