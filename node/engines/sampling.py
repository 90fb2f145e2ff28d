"""The next token from logits.

Rule: penalties, then temperature, then top-k, then top-p, in the order that other servers use, so that the same
parameters mean the same. Temperature 0 is greedy and needs no randomness. With a seed, the random number of an
answer's token depends on the seed and the token's place alone, so that a continuation draws what the whole would have.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from protocol.messages import ChatRequest

FEW_TOKENS = (64, 1_024)  # nearly always hold the share that top_p asks for


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
        self._vocabulary = vocabulary
        self._place = len(answered)
        self._seen = dict.fromkeys(prompt + answered)  # in order, each once
        self._counts = Counter(answered)

    @property
    def takes_the_best(self) -> bool:
        """True if neither chance nor what was said before matters."""
        p = self._parameters
        return p.temperature == 0 and p.repetition_penalty == 1.0 and not (p.frequency_penalty or p.presence_penalty)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token. `logits`: (vocabulary,), any float type, any device."""
        if self.takes_the_best:
            return self.take(int(logits.argmax()))
        scores = self._penalised(logits.float().cpu())
        return self.take(int(scores.argmax()) if self._parameters.temperature == 0 else self._sample(scores))

    def take(self, token: int) -> int:
        """Note that `token` is the next one."""
        self._seen[token] = None
        self._counts[token] += 1
        self._place += 1
        return token

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        """`scores`, or a copy of them with the penalties of the few tokens that have any."""
        p = self._parameters
        if p.repetition_penalty != 1.0 and self._seen:
            seen = torch.tensor(list(self._seen))
            held = scores[seen]
            scores = scores.index_copy(
                0, seen, torch.where(held > 0, held / p.repetition_penalty, held * p.repetition_penalty)
            )
        if (p.frequency_penalty or p.presence_penalty) and self._counts:
            used, counts = torch.tensor(list(self._counts)), torch.tensor(list(self._counts.values()))
            scores = scores.index_add(0, used, -(p.frequency_penalty * counts + p.presence_penalty))
        return scores

    def _sample(self, scores: torch.Tensor) -> int:
        p = self._parameters
        probabilities = torch.softmax(scores / p.temperature, dim=-1)
        weights, tokens = _candidates(probabilities, p.top_k, p.top_p)
        total = weights.cumsum(0)
        if p.top_p < 1.0:
            whole = float(total[-1]) if p.top_k else 1.0
            kept = int((total - weights < p.top_p * whole).sum())
            total = total[: max(1, kept)]
        drawn = random.Random(f"{p.seed}:{self._place}").random() * float(total[-1])
        chosen = int(torch.searchsorted(total, drawn, right=True))
        if chosen >= len(total):  # rounding: the last one that can be at all
            chosen = int((weights[: len(total)] > 0).nonzero()[-1])
        return int(tokens[chosen])


def choose_all(asked: Sequence[tuple[Sampler, torch.Tensor]]) -> list[int]:
    """The next token of each answer, as `Sampler.choose` would, those that need no more than the best in one go."""
    best = [index for index, (sampler, _) in enumerate(asked) if sampler.takes_the_best]
    tokens = torch.stack([asked[index][1] for index in best]).float().argmax(-1).tolist() if best else []
    chosen = {index: asked[index][0].take(token) for index, token in zip(best, tokens, strict=True)}
    return [
        chosen[index] if index in chosen else sampler.choose(logits) for index, (sampler, logits) in enumerate(asked)
    ]


def _candidates(probabilities: torch.Tensor, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(probabilities, tokens) to draw from: the best `top_k`, or, best first, enough to hold a share of `top_p`.
    Sorting a whole vocabulary costs more than the few that matter."""
    if not top_k and top_p >= 1.0:
        return probabilities, torch.arange(len(probabilities))
    for few in (top_k,) if top_k else FEW_TOKENS:
        best, tokens = torch.topk(probabilities, min(few, len(probabilities)))
        if top_k or best.sum() >= top_p:
            return best, tokens
    ordered = torch.sort(probabilities, descending=True)
    return ordered.values, ordered.indices
