"""The next token from logits.

Rule: penalties, then temperature, then top-k, then top-p, in the order that other servers use, so that the same
parameters mean the same. Temperature 0 is greedy and needs no randomness.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch

from protocol.messages import ChatRequest


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """A request's thousandths as numbers."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int

    @classmethod
    def of(cls, request: ChatRequest) -> SamplingParameters:
        """The parameters of a request; a seed of 0 becomes a random one."""
        return cls(
            temperature=request.temperature / 1_000,
            top_p=request.top_p / 1_000,
            top_k=request.top_k,
            repetition_penalty=request.repetition_penalty / 1_000,
            frequency_penalty=(request.frequency_penalty - 2_000) / 1_000,
            presence_penalty=(request.presence_penalty - 2_000) / 1_000,
            seed=request.seed or secrets.randbits(52),
        )


class Sampler:
    """Chooses one answer's tokens. Knows which tokens the prompt and the answer hold."""

    def __init__(self, parameters: SamplingParameters, vocabulary: int, prompt: list[int], answered: list[int]) -> None:
        self._parameters = parameters
        self._generator = torch.Generator()
        # A continued answer must not repeat the random numbers that its first part used.
        self._generator.manual_seed((parameters.seed + len(answered)) % 2**63)
        self._seen = torch.zeros(vocabulary, dtype=torch.bool)
        self._seen[torch.tensor(prompt + answered, dtype=torch.long)] = True
        self._counts = torch.bincount(torch.tensor(answered, dtype=torch.long), minlength=vocabulary).float()

    def choose(self, logits: torch.Tensor) -> int:
        """The next token. `logits`: (vocabulary,), any float type, any device."""
        scores = self._penalised(logits.float().cpu())
        token = self._greedy(scores) if self._parameters.temperature == 0 else self._sample(scores)
        self._seen[token] = True
        self._counts[token] += 1
        return token

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        p = self._parameters
        if p.repetition_penalty != 1.0:
            divided = torch.where(scores > 0, scores / p.repetition_penalty, scores * p.repetition_penalty)
            scores = torch.where(self._seen, divided, scores)
        if p.frequency_penalty or p.presence_penalty:
            scores = scores - p.frequency_penalty * self._counts - p.presence_penalty * (self._counts > 0)
        return scores

    @staticmethod
    def _greedy(scores: torch.Tensor) -> int:
        return int(scores.argmax())

    def _sample(self, scores: torch.Tensor) -> int:
        p = self._parameters
        kept = min(p.top_k or 1_024, scores.numel())  # what lies below the best 1,024 has no weight worth sorting
        best, tokens = torch.topk(scores / p.temperature, kept)
        probabilities = torch.softmax(best, dim=-1)
        if p.top_p < 1.0:
            before = probabilities.cumsum(0) - probabilities
            probabilities[before > p.top_p] = 0.0
        return int(tokens[torch.multinomial(probabilities, 1, generator=self._generator)])
