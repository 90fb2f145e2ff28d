"""The shapes of answers, for `/openapi.json`.

Rule: these describe and check nothing while the node runs; a test holds the answers to them. What clients rely on is
listed, and more may come with it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of answers: what is listed is there, and there may be more."""

    model_config = ConfigDict(extra="allow")


class ErrorFacts(Answer):
    """OpenAI's four keys."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """What is wrong, whose fault it is, and what would help."""

    error: ErrorFacts


class OllamaError(Answer):
    """What is wrong and what would help."""

    error: str


class ModelFactsAnswer(Answer):
    """What the federation offers of one model. Prices are µcredits for 1,000 units, of the cheapest worker."""

    realm: str
    workers: int
    context_tokens: int
    features: list[str]
    price_in: int
    price_out: int


class ModelAnswer(Answer):
    """One model on offer."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    mtor: ModelFactsAnswer


class ModelListAnswer(Answer):
    """All models on offer."""

    object: Literal["list"]
    data: list[ModelAnswer]


class Usage(Answer):
    """Tokens, or the units of another realm."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChoicesAnswer(Answer):
    """A chat completion or a completion."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage
    mtor: dict[str, Any]


class ResponseAnswer(Answer):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]
    store: Literal[False]
    mtor: dict[str, Any]


class PicturesAnswer(Answer):
    """Pictures as base64."""

    created: int
    data: list[dict[str, Any]]
    usage: dict[str, Any]


class TranscriptAnswer(Answer):
    """What was said."""

    text: str


class OllamaChatAnswer(Answer):
    """The next message."""

    model: str
    created_at: str
    message: dict[str, Any]
    done: bool


class OllamaGenerateAnswer(Answer):
    """The next text."""

    model: str
    created_at: str
    response: str
    done: bool


class OllamaModelsAnswer(Answer):
    """Models that a conversation can be held with."""

    models: list[dict[str, Any]]


class OllamaShowAnswer(Answer):
    """One model."""

    details: dict[str, Any]
    model_info: dict[str, Any]
    capabilities: list[str]


class OllamaVersionAnswer(Answer):
    """The version of Ollama whose interface this is."""

    version: str


class HealthAnswer(Answer):
    """The gateway runs."""

    ok: Literal[True]


class ReadyAnswer(Answer):
    """Whether a query could be answered now."""

    ready: bool
    reason: str
