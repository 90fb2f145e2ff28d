"""Many answers of one language model at once.

Rule: queries join and leave between tokens. A step is bounded: a part of one prompt, or one token for every answer that
has been granted more; the two take turns, so that running answers do not wait for a long prompt. What fails in one
answer costs no other. Never more tokens than granted. Knows nothing of pipes or peers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from node.engines.backend import failure
from node.engines.chat_model import ChatModel as ChatModel
from node.engines.guide import Guide
from node.engines.port import CallPart, EngineError, EngineEvent, Finished, Piece, Prompted
from node.engines.prefix_cache import PART_TOKENS, PrefixCache
from node.engines.sampling import Sampler, SamplingParameters, choose_all
from node.engines.text import Detokenizer, StopFilter
from node.engines.tool_calls import CallFinder, Found
from protocol.errors import ErrorCode
from protocol.messages import ChatRequest, Chosen, Likelihood
from protocol.params import MAX_INTEGER
from protocol.wishes import wishes_of

PROMPT_TOKENS = 256  # of a prompt at a time: short enough that a cancel is heard, long enough to be efficient
PROMPT_TOKENS_BESIDE = 64  # while others wait for their next token
FEWEST_PROMPT_TOKENS = 16
PART_SECONDS = 0.5  # that a part of a prompt should take at most, by what the last ones took
PREFIX_CACHE_BYTES = 256 * 2**20

KeyedEvents = list[tuple[int, EngineEvent | EngineError]]


class Sequence:
    """One answer in the making."""

    def __init__(self, model: ChatModel, request: ChatRequest, prefix: str) -> None:
        prompt = model.prompt(request, prefix)
        first_answered = len(prompt.ids) - prompt.answered
        self.prompt = prompt.ids
        self.sampler = Sampler(
            SamplingParameters.of(request), model.vocabulary, prompt.ids[:first_answered], prompt.ids[first_answered:]
        )
        self.memory: Any = model.network.new_memory()
        self.read = 0  # tokens of the prompt
        self.token: int | None = None  # the last one that was chosen, which the network has not seen yet
        self.logits: torch.Tensor | None = None  # after the last token, while it is not decided what follows
        self.cancelled = False
        self._stop_tokens = model.stop_tokens
        self._limit = min(request.max_tokens or model.context_tokens, model.context_tokens - len(prompt.ids))
        self._detokenizer = Detokenizer(model.decode, prompt.ids)
        self._stops = StopFilter(request.stop)
        self._written: list[int] = []
        self._granted = 0
        self._reported = 0
        self._model = model
        self._request = request
        self._wishes = wishes = wishes_of(request)
        self._guide = model.guide(request)
        if self._guide is not None and prompt.answered and not self._guide.follow(prompt.ids[first_answered:]):
            raise EngineError(ErrorCode.INVALID_REQUEST, "what was answered before is not by the schema")
        names = [tool.name for tool in wishes.tools]
        self._calls = CallFinder(model.tool_style, names, begun=bool(prefix)) if model.tool_style and names else None
        self._measured = _Measured(model, wishes.likeliest) if wishes.logprobs else None

    def grant(self, total: int) -> None:
        """Allow `total` output tokens in all."""
        self._granted = max(self._granted, total)

    @property
    def reading(self) -> bool:
        """True while the prompt is not processed."""
        return self.read < len(self.prompt)

    @property
    def writing(self) -> bool:
        """True if a token may be produced now."""
        return not self.reading and len(self._written) < self._granted

    @property
    def remembered(self) -> list[int]:
        """The tokens that the memory holds."""
        if self.reading:
            return self.prompt[: self.read]
        unseen = 0 if self.token is None else 1
        return self.prompt + self._written[: len(self._written) - unseen]

    def choices(self) -> torch.Tensor:
        """The logits to choose from: those of tokens that may not be next are the lowest. Raises `EngineError`."""
        assert self.logits is not None
        if self._guide is None:
            return self.logits
        allowed = self._guide.allowed().to(self.logits.device)
        return self.logits.masked_fill(~allowed, -torch.inf)

    def take(self, token: int) -> Iterator[EngineEvent]:
        """What follows from the next token."""
        if self._guide is not None:
            token = self._guide.take(token, self._limit - len(self._written))
        if token in self._stop_tokens:
            self.logits = None
            yield from self.finish("stop")
            return
        if self._measured is not None and self.logits is not None:
            self._measured.note(token, self.logits)
        self.logits = None
        self.token = token
        self._written.append(token)
        produced = len(self._written)
        text = self._detokenizer.push(token) + self._model.tool_marks.get(token, "")
        yield from self._events(self._stops.push(text))
        if produced == self._granted > self._reported:  # out of grant: the count must be known, text or not
            self._reported = produced
            yield Piece("", produced)
        if self._stops.stopped or (self._wishes.one_call and self._calls and self._calls.calls):
            yield from self.finish("stop")
        elif produced >= self._limit:
            yield from self.finish("length")

    def _events(self, text: str) -> Iterator[EngineEvent]:
        """Text and calls in what was written."""
        produced = len(self._written)
        for part in self._calls.push(text) if self._calls else [text] if text else []:
            self._reported = produced
            yield self._event(part)
        if self._calls and self._calls.opened is not None and self._guide is None:
            self._guide = self._guide_of_calls(self._calls.opened)

    def _event(self, part: str | Found) -> Piece | CallPart:
        produced = len(self._written)
        if isinstance(part, Found):
            return CallPart(part.name, part.arguments, produced)
        return Piece(part, produced, self._measured.of(part) if self._measured else ())

    def _guide_of_calls(self, begun: str) -> Guide | None:
        """What holds the calls from here on: their arguments are by the tools' schemas then. A schema that cannot be
        used holds nothing."""
        try:
            guide = self._model.call_guide(self._request, opened=True)
        except EngineError:
            return None
        return guide if guide is not None and guide.follow_text(begun) else None

    def finish(self, how: str) -> Iterator[EngineEvent]:
        """The last events."""
        produced = len(self._written)
        rest = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        yield from self._events(rest)
        for part in self._calls.flush() if self._calls else ():
            self._reported = produced
            yield self._event(part)
        if produced > self._reported:
            yield Piece("", produced)
        if how == "stop" and self._calls and self._calls.calls:
            how = "tool_calls"
        yield Finished(how, len(self.prompt), produced)


class _Measured:
    """Likelihoods of tokens whose text has not left yet."""

    def __init__(self, model: ChatModel, likeliest: int) -> None:
        assert model.words is not None
        self._words = model.words
        self._likeliest = likeliest
        self._waiting: list[tuple[int, Chosen]] = []  # with the place of each one's first byte
        self._measured = 0  # bytes
        self._left = 0

    def note(self, token: int, logits: torch.Tensor) -> None:
        """The next token, and the logits that it was chosen from, before anything was done to them."""
        odds = torch.log_softmax(logits.float(), dim=-1)
        best = torch.topk(odds, self._likeliest) if self._likeliest else None
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
        likeliest = tuple(Likelihood(self._words.bytes_of(other), _nats(value)) for other, value in pairs)
        chosen = Chosen(self._words.bytes_of(token), _nats(float(odds[token])), likeliest)
        self._waiting.append((self._measured, chosen))
        self._measured += len(chosen.token)

    def of(self, text: str) -> tuple[Chosen, ...]:
        """Those that begin within the next piece of text."""
        self._left += len(text.encode())
        begun = [chosen for place, chosen in self._waiting if place < self._left]
        del self._waiting[: len(begun)]
        return tuple(begun)


class ChatBatch:
    """The answers in the making of one model; the oldest `slots` of them run."""

    def __init__(self, model: ChatModel, slots: int, prefix_cache_bytes: int = PREFIX_CACHE_BYTES) -> None:
        """A `prefix_cache_bytes` of 0 keeps nothing of a conversation once it is answered."""
        self._model = model
        self._slots = slots
        self._sequences: dict[int, Sequence] = {}
        self._prefixes = PrefixCache(prefix_cache_bytes, model.network.token_bytes * PART_TOKENS)
        self._read_last = False  # the last step was a part of a prompt
        self._last_reader = -1
        self._token_seconds = 0.0  # that a prompt's token took of late

    @property
    def runnable(self) -> bool:
        """True if `step` has something to do now."""
        return any(seq.cancelled for seq in self._sequences.values()) or any(
            seq.reading or seq.writing for _, seq in self._seated()
        )

    def begin(self, key: int, request: ChatRequest, prefix: str) -> Prompted:
        """Take in a query. Raises `EngineError`."""
        sequence = Sequence(self._model, request, prefix)
        self._sequences[key] = sequence
        return Prompted(len(sequence.prompt))

    def grant(self, key: int, total: int) -> None:
        """Allow `total` tokens in all. An unknown key changes nothing."""
        if key in self._sequences:
            self._sequences[key].grant(total)

    def cancel(self, key: int) -> None:
        """End at the next step with Finished("cancelled"). An unknown key changes nothing."""
        if key in self._sequences:
            self._sequences[key].cancelled = True

    def step(self) -> KeyedEvents:
        """One bounded piece of work. `Finished` or an `EngineError` is a query's last."""
        events = self._end_cancelled()
        seated = self._seated()
        readers = [(key, seq) for key, seq in seated if seq.reading]
        writers = [(key, seq) for key, seq in seated if seq.writing]
        self._read_last = bool(readers) and not (writers and self._read_last)
        if self._read_last:
            events += self._read(*self._next_reader(readers), beside=bool(writers))
        elif writers:
            events += self._write(writers)
        return events

    # --- prompts -------------------------------------------------------------------------------------

    def _next_reader(self, readers: list[tuple[int, Sequence]]) -> tuple[int, Sequence]:
        """They take turns, so that a long prompt does not hold up a short one."""
        chosen = next((reader for reader in readers if reader[0] > self._last_reader), readers[0])
        self._last_reader = chosen[0]
        return chosen

    def _read(self, key: int, seq: Sequence, *, beside: bool) -> KeyedEvents:
        return self._guarded(
            key, self._read_part(seq, self._part_tokens(PROMPT_TOKENS_BESIDE if beside else PROMPT_TOKENS))
        )

    def _part_tokens(self, most: int) -> int:
        """On a slow machine less, so that cancels are heard and others get their turn."""
        if self._token_seconds * most <= PART_SECONDS:
            return most
        return max(FEWEST_PROMPT_TOKENS, int(PART_SECONDS / self._token_seconds))

    def _read_part(self, seq: Sequence, tokens: int) -> Iterator[EngineEvent]:
        if not seq.read:
            parts = self._prefixes.find(seq.prompt[:-1])  # the last token is read, for the logits after it
            self._model.network.restore(seq.memory, parts) if parts else None
            seq.read = len(parts) * PART_TOKENS
        part = seq.prompt[seq.read : seq.read + tokens]
        began = time.perf_counter()
        seq.logits = self._model.read(part, seq.memory)
        if len(part) >= FEWEST_PROMPT_TOKENS:
            self._token_seconds = (time.perf_counter() - began) / len(part)
        seq.read += len(part)
        if not seq.reading:
            self._keep(seq)
            if seq.writing:
                yield from seq.take(seq.sampler.choose(seq.choices()))

    # --- answers -------------------------------------------------------------------------------------

    def _write(self, writers: list[tuple[int, Sequence]]) -> KeyedEvents:
        events = self._compute([(key, seq) for key, seq in writers if seq.token is not None])
        ready = []
        for key, seq in writers:
            try:
                if seq.logits is not None:
                    ready.append((key, seq, seq.choices()))
            except EngineError as error:
                events += self._tell(key, [error])
        tokens = choose_all([(seq.sampler, logits) for _, seq, logits in ready])
        for (key, seq, _), token in zip(ready, tokens, strict=True):
            events += self._guarded(key, seq.take(token))
        return events

    def _compute(self, writers: list[tuple[int, Sequence]]) -> KeyedEvents:
        """Logits for all, in one go; if that fails, one by one, so that who fails fails alone."""
        if not writers:
            return []
        if len(writers) > 1 and not self._model.network.together:
            return self._one_by_one(writers)
        try:
            logits = self._model.write([_token(seq) for _, seq in writers], [seq.memory for _, seq in writers])
        except Exception as error:
            if len(writers) > 1:
                return self._one_by_one(writers)
            return self._tell(writers[0][0], [self._failed(error)])
        for (_, seq), row in zip(writers, logits, strict=True):
            seq.logits, seq.token = row, None
        return []

    def _one_by_one(self, writers: list[tuple[int, Sequence]]) -> KeyedEvents:
        return [event for writer in writers for event in self._compute([writer])]

    # --- ends ----------------------------------------------------------------------------------------

    def _end_cancelled(self) -> KeyedEvents:
        cancelled = [(key, seq) for key, seq in self._sequences.items() if seq.cancelled]
        return [event for key, seq in cancelled for event in self._guarded(key, seq.finish("cancelled"))]

    def _guarded(self, key: int, work: Iterator[EngineEvent]) -> KeyedEvents:
        """A query's events; its failure is one of them."""
        events: list[EngineEvent | EngineError] = []
        try:
            events.extend(work)
        except Exception as error:
            events.append(self._failed(error))
        return self._tell(key, events)

    def _failed(self, error: Exception) -> EngineError:
        return error if isinstance(error, EngineError) else failure(error, self._model.describe_device())

    def _tell(self, key: int, events: list[EngineEvent | EngineError]) -> KeyedEvents:
        if events and isinstance(events[-1], Finished | EngineError):
            self._remove(key, keep=isinstance(events[-1], Finished))
        return [(key, event) for event in events]

    def _remove(self, key: int, *, keep: bool) -> None:
        seq = self._sequences.pop(key)
        if keep:
            self._keep(seq)
        self._model.network.free(seq.memory)

    def _keep(self, seq: Sequence) -> None:
        """For those who come with the same beginning."""
        network = self._model.network
        if network.token_bytes:
            self._prefixes.keep(seq.remembered, lambda start, end: network.save(seq.memory, start, end))

    def _seated(self) -> list[tuple[int, Sequence]]:
        return list(islice(self._sequences.items(), self._slots))


def _nats(logarithm: float) -> int:
    """As it travels. What has no probability at all has the largest number."""
    return min(round(max(-logarithm, 0.0) * 1_000_000), MAX_INTEGER) if logarithm > -1e9 else MAX_INTEGER


def _token(seq: Sequence) -> int:
    assert seq.token is not None
    return seq.token
