"""Chat requests in short, for tests, benchmarks and probes.

Rule: every field has the value that asks for nothing special: greedy, no penalties, as long as the engine allows.
"""

from __future__ import annotations

from protocol.messages import ChatRequest, Turn


def chat_request(
    *texts: str,
    system: str = "",
    max_tokens: int = 0,
    temperature: int = 0,
    top_p: int = 1_000,
    top_k: int = 0,
    repetition_penalty: int = 1_000,
    frequency_penalty: int = 2_000,
    presence_penalty: int = 2_000,
    seed: int = 0,
    stop: tuple[str, ...] = (),
) -> ChatRequest:
    """A conversation of `texts`, the user's and the assistant's in turn, in the units of `ChatRequest`."""
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[index % 2], text) for index, text in enumerate(texts))
    return ChatRequest(
        turns=(Turn("system", system), *turns) if system else turns,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
        stop=stop,
    )
