"""From a line of the configuration to an engine.

Rule: whatever is wrong with it is said before the node starts, with the remedy; secrets come from a variable or a file
and are never part of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.engines.outer.a1111 import WebUiServer
from node.engines.outer.engine import OuterEngine, Server
from node.engines.outer.http import (
    FIRST_PAUSE_SECONDS,
    LOOPBACK,
    MAX_RESPONSE_BYTES,
    READ_SECONDS,
    Access,
    Network,
    OuterHttp,
)
from node.engines.outer.openai import FEATURES, OpenAIServer, feature_names
from node.engines.outer.predict import PredictServer
from node.engines.process import EngineStartError
from protocol.messages import (
    NUMBERS,
    ChatRequest,
    ImagineRequest,
    Message,
    SpeakRequest,
    TranscribeRequest,
    VisionRequest,
)

SERVERS: Mapping[str, Callable[[OuterHttp, str, Mapping[str, str]], Server]] = {
    "openai": OpenAIServer,
    "a1111": WebUiServer,
    "predict": PredictServer,
}
SERVES: Mapping[str, tuple[type[Message], ...]] = {
    "chat": (ChatRequest,),
    "vision": (ChatRequest, VisionRequest),
    "imagine": (ImagineRequest,),
    "transcribe": (TranscribeRequest,),
    "speak": (SpeakRequest,),
}
USUAL = {"$CHAT": "chat", "$VISION": "vision", "$IMAGINE": "imagine"}  # of a realm whose line does not say
OPTIONS: Mapping[str, frozenset[str]] = {
    "openai": frozenset({"serves", "continuation", "can", "steps", "voice"}),
    "a1111": frozenset({"serves", "steps", "side", "guidance", "sampler"}),
    "predict": frozenset({"serves", "model_type", "type", "steps"}),
}
NUMERIC = ("steps", "side")
CONTINUATIONS = ("auto", "prefill", "flags", "none")


@dataclass(frozen=True, slots=True)
class OuterModel:
    """One model of one server."""

    engine: str  # of `SERVERS`
    realm: str
    model: str
    url: str
    options: Mapping[str, str] = field(default_factory=dict)
    key_variable: str = ""
    key_file: Path | None = None
    max_response_bytes: int = MAX_RESPONSE_BYTES
    allowed: tuple[Network, ...] = LOOPBACK
    context_tokens: int = 0  # 0: as the server says
    read_seconds: float = READ_SECONDS  # without a byte of a chat answer
    first_pause_seconds: float = FIRST_PAUSE_SECONDS  # before a second attempt


def outer_engine(model: OuterModel, environment: Mapping[str, str]) -> OuterEngine:
    """The engine; it connects once it runs. Raises `EngineStartError` with the remedy."""
    _check_options(model)
    access = Access(
        model.url.rstrip("/"),
        model.allowed,
        _key(model, environment),
        model.max_response_bytes,
        read_seconds=model.read_seconds,
        first_pause_seconds=model.first_pause_seconds,
    )
    try:
        server = SERVERS[model.engine](OuterHttp(access), model.model, model.options)
    except ValueError as error:
        raise EngineStartError(f"{model.model}: {error}") from None
    return OuterEngine(model.model, server, tuple(NUMBERS[kind] for kind in _kinds(model)), model.context_tokens)


def _kinds(model: OuterModel) -> Sequence[type[Message]]:
    """The requests that it takes."""
    usual = "imagine" if model.engine == "a1111" else USUAL.get(model.realm, "chat")
    if model.realm == "$SPEECH" and "serves" not in model.options:
        raise EngineStartError(f"{model.model} in $SPEECH: say options: {{serves: transcribe}} or {{serves: speak}}")
    names = model.options.get("serves", usual).replace(",", " ").split()
    unknown = [name for name in names if name not in SERVES]
    if unknown or not names:
        raise EngineStartError(f"{model.model}: serves is some of {', '.join(SERVES)}, not {', '.join(unknown)}")
    if model.engine == "a1111" and names != ["imagine"]:
        raise EngineStartError(f"{model.model}: a1111 serves imagine and nothing else")
    return tuple(dict.fromkeys(kind for name in names for kind in SERVES[name]))


def _check_options(model: OuterModel) -> None:
    for name, value in model.options.items():
        if name not in OPTIONS[model.engine]:
            known = ", ".join(sorted(OPTIONS[model.engine]))
            raise EngineStartError(f"{model.model}: {model.engine} has no option {name}; it has {known}")
        if name in NUMERIC and not (value.isascii() and value.isdecimal() and int(value) > 0):
            raise EngineStartError(f"{model.model}: the option {name} is a whole number above 0, not {value!r}")
    continuation = model.options.get("continuation", "auto")
    if continuation not in CONTINUATIONS:
        raise EngineStartError(f"{model.model}: continuation is one of {', '.join(CONTINUATIONS)}, not {continuation}")
    unknown = [name for name in feature_names(model.options.get("can", "")) if name not in FEATURES]
    if unknown:
        raise EngineStartError(f"{model.model}: can is some of {', '.join(FEATURES)}, not {', '.join(unknown)}")
    try:
        float(model.options.get("guidance", 0))
    except ValueError:
        raise EngineStartError(f"{model.model}: the option guidance is a number") from None


def _key(model: OuterModel, environment: Mapping[str, str]) -> str:
    key, source = "", ""
    if model.key_variable:
        key, source = environment.get(model.key_variable, ""), f"the variable {model.key_variable}"
    elif model.key_file is not None:
        source = str(model.key_file)
        try:
            key = model.key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EngineStartError(f"{model.model}: {source} cannot be read: {error}") from None
    key = key.strip()
    if source and not (key and key.isascii() and key.isprintable()):
        raise EngineStartError(f"{model.model}: {source} holds no key; it must be set to one line of plain characters")
    return key
