"""Several answers together, by transformers' own modules, have the logits that each has alone."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from node.engines import tables
from node.engines.batched_network import BatchedNetwork, short_window
from node.engines.chat_model import ChatModel
from node.engines.network_choice import EXACT, alike, choose_network, proven_together
from node.engines.plain_network import PlainNetwork
from node.engines.port import EngineError, Finished, Piece
from node.engines.prefix_cache import PART_TOKENS
from node.engines.requests import chat_request
from node.engines.tables import Memory
from node.engines.tiny import CONTEXT_TOKENS, SPECIAL_TOKENS, byte_tokenizer
from node.engines.torch_chat import ChatBatch
from protocol.messages import ChatRequest

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.15,  # so that the logits are clear
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PAIRS = SMALL | {"num_key_value_heads": 2}
GPT2 = {
    "vocab_size": 320,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT_TOKENS,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOOM = {"vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.15}
FALCON = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "initializer_range": 0.15
}
EXPERTS = PAIRS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = SMALL | {"num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 16}
SUITED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT2),
    "opt": ("OPTConfig", SMALL | {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.15}),
    "qwen2": ("Qwen2Config", PAIRS),
    "qwen2-half-sliding": (
        "Qwen2Config",
        PAIRS | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", PAIRS | {"head_dim": 16}),
    "gemma2": ("Gemma2Config", PAIRS | {"head_dim": 16, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", PAIRS | {"head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2}),
    "phi": ("PhiConfig", SMALL),
    "phi3": ("Phi3Config", PAIRS | {"sliding_window": 8}),
    "mistral": ("MistralConfig", PAIRS | {"sliding_window": 8, "head_dim": 16}),
    "starcoder2": ("Starcoder2Config", PAIRS | {"sliding_window": 8}),
    "mixtral": ("MixtralConfig", PAIRS | {"num_local_experts": 4}),
    "qwen2-experts": ("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 32}),
    "gpt-oss": ("GptOssConfig", PAIRS | {"head_dim": 16, "num_local_experts": 4, "sliding_window": 8}),
    "gpt-neox": ("GPTNeoXConfig", SMALL),
    "gpt-neo": (
        "GPTNeoConfig",
        BLOOM | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "deepseek3": (
        "DeepseekV3Config",
        LATENT
        | {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
        | {"moe_intermediate_size": 32, "qk_nope_head_dim": 16, "v_head_dim": 24},
    ),
    "bloom": ("BloomConfig", BLOOM),
    "mpt": (
        "MptConfig",
        {"vocab_size": 320, "d_model": 64, "n_layers": 2, "n_heads": 4, "initializer_range": 0.15}
        | {"max_seq_len": CONTEXT_TOKENS},
    ),
    "falcon-alibi": ("FalconConfig", FALCON | {"alibi": True}),
}
LENGTHS = (3, 40, 1, 17, 150)
STEPS = 4
NEAR = 0.000_02  # ten times the rounding of fp32


def made(name: str, facts: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    config = getattr(transformers, name)(**facts)
    make: Any = AutoModelForCausalLM
    return make.from_config(config).to(dtype).eval()


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, 320, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def exact(model: Any, ids: list[int]) -> torch.Tensor:
    """Transformers' logits of the whole text at once, without a cache."""
    logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / (expected - expected.mean()).norm())


@pytest.fixture(scope="module")
def model() -> Any:
    return made(*SUITED["mistral"])


@pytest.fixture
def network(model: Any) -> BatchedNetwork:
    return BatchedNetwork(model)


@pytest.fixture
def small_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short answers change tables and tables are made anew."""
    monkeypatch.setattr(tables, "SHORTEST_CLASS", 24)
    monkeypatch.setattr(tables, "SPARE_COLUMNS", 3)


# --- architectures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUITED)
def test_answers_together_have_the_logits_that_transformers_gives_each_alone(name: str) -> None:
    model = made(*SUITED[name])
    network = proven_together(model, PlainNetwork(model))
    assert isinstance(network, BatchedNetwork)  # it has proved itself
    told = [random_ids(length + STEPS, length) for length in LENGTHS]
    memories = [network.new_memory() for _ in LENGTHS]
    for memory, ids, length in zip(memories, told, LENGTHS, strict=True):
        network.read(ids[: length // 2], memory) if length > 1 else None
        network.read(ids[length // 2 : length], memory)
    for step in range(STEPS):
        ends = [length + step + 1 for length in LENGTHS]
        rows = network.write([ids[end - 1] for ids, end in zip(told, ends, strict=True)], memories)
        for row, ids, end in zip(rows, told, ends, strict=True):
            assert apart(row, exact(model, ids[:end])) < NEAR
    other = exact(model, [*told[0][:-2], (told[0][-2] + 1) % 320, told[0][-1]])
    assert apart(other, exact(model, told[0])) > 100 * NEAR  # so that being near says something


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("MambaConfig", {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("RwkvConfig", {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2}),
        ("Lfm2Config", PAIRS | {"layer_types": ["conv", "full_attention"]}),
        (
            "BartConfig",
            {"vocab_size": 320, "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4}
            | {"decoder_ffn_dim": 96, "is_decoder": True, "is_encoder_decoder": False},
        ),
        (
            "Phi3Config",
            PAIRS
            | {"original_max_position_embeddings": 32}
            | {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
        ),
    ],
    ids=["mamba", "rwkv", "conv-layers", "positions-of-the-cache", "turns-by-the-longest"],
)
def test_what_is_known_not_to_suit_is_computed_one_by_one(name: str, facts: dict[str, Any]) -> None:
    if name == "Phi3Config":
        facts["rope_parameters"]["rope_theta"] = 10_000.0
    assert not BatchedNetwork.suits(made(name, facts))


def test_what_cannot_prove_itself_is_computed_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    """RoBERTa's modules take positions but count them from another number when they get none."""
    model = made("RobertaConfig", SMALL | {"is_decoder": True})
    assert BatchedNetwork.suits(model)
    assert isinstance(choose_network(model, "fp32"), PlainNetwork)
    assert "a faster arithmetic is not used: it differs from transformers\n" in capsys.readouterr().err


def test_what_raises_when_tried_is_computed_one_by_one(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(BatchedNetwork, "write", failing)
    assert isinstance(choose_network(model, "fp32"), PlainNetwork)
    assert capsys.readouterr().err == ("a faster arithmetic is not used: ValueError\nanswers are computed one by one\n")


# --- the proof --------------------------------------------------------------------------------------------


class WrongPositions(BatchedNetwork):
    """All rows have the longest one's."""

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        wrong = positions.max().expand_as(positions) if len(ids) > 1 else positions
        return super()._logits(ids, wrong, mask, cache)


class PaddingSeen(BatchedNetwork):
    """Each row sees one column of padding."""

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        seen = mask.bool().clone()
        seen[:, :-1] |= mask.bool()[:, 1:]
        return super()._logits(ids, positions, seen, cache)


class Swapped(BatchedNetwork):
    """Answers come back in another order."""

    def write(self, tokens: Any, memories: Any) -> torch.Tensor:
        return super().write(tokens, memories).roll(1, 0)


class LateIsForgotten(BatchedNetwork):
    """Who joins a table that is there already comes without its memory."""

    def write(self, tokens: Any, memories: Any) -> torch.Tensor:
        for memory in memories:
            if memory.table is None and self.memories:
                memory.own = [(torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in memory.own]
        return super().write(tokens, memories)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, EXACT), (torch.bfloat16, None)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt2", "qwen2", "mixtral"])
def test_a_wrong_network_is_found_out(name: str, dtype: torch.dtype, most: float | None) -> None:
    model = made(*SUITED[name], dtype)
    plain = PlainNetwork(model)
    assert alike(BatchedNetwork(model), plain, most)
    for wrong in (WrongPositions, PaddingSeen, Swapped, LateIsForgotten):
        assert not alike(wrong(model), plain, most), wrong


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_a_wrong_window_is_found_out(name: str) -> None:
    kind, facts = SUITED[name]
    model, other = made(kind, facts), made(kind, facts | {"sliding_window": 9})
    other.load_state_dict(model.state_dict())
    assert short_window(model) == 8
    assert alike(BatchedNetwork(model), PlainNetwork(model), EXACT, 8)
    assert not alike(BatchedNetwork(other), PlainNetwork(model), EXACT, 8)


# --- memories ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_classes")
def test_answers_that_join_pause_and_leave_disturb_no_other(model: Any, network: BatchedNetwork) -> None:
    """Random steps, each with some of the answers."""
    drawn = random.Random(5)
    told = {index: random_ids(length, length) for index, length in enumerate((3, 40, 23, 24, 1, 17, 100))}
    memories = {index: network.new_memory() for index in told}
    for index, ids in told.items():
        network.read(ids, memories[index])
    last: dict[int, torch.Tensor] = {}
    for _ in range(60):
        chosen = drawn.sample(sorted(told), drawn.randint(1, len(told)))
        tokens = [drawn.randrange(3, 320) for _ in chosen]
        rows = network.write(tokens, [memories[index] for index in chosen])
        for index, token, row in zip(chosen, tokens, rows, strict=True):
            told[index].append(token)
            last[index] = row
        if drawn.random() < 0.1 and len(told) > 3:
            gone = drawn.choice(sorted(told))
            network.free(memories.pop(gone))
            told.pop(gone)
    for index, ids in told.items():
        assert memories[index].length == len(ids)
        assert apart(last[index], exact(model, ids)) < NEAR
        assert apart(network.read([7, 8], memories[index]), exact(model, [*ids, 7, 8])) < NEAR


def test_who_joins_may_be_longer_than_all_who_are_there(model: Any, network: BatchedNetwork) -> None:
    told = [random_ids(length, length) for length in (3, 5, 4, 60)]
    memories = [network.new_memory() for _ in told]
    for memory, ids in zip(memories, told, strict=True):
        network.read(ids, memory)
    network.write([9, 9, 9], memories[:3])  # there is room for a fourth row
    rows = network.write([8, 8, 8, 8], memories)
    for row, ids, written in zip(rows, told, ([9, 8], [9, 8], [9, 8], [8]), strict=True):
        assert apart(row, exact(model, ids + written)) < NEAR


def test_saved_parts_are_as_good_as_what_was_read(model: Any, network: BatchedNetwork) -> None:
    ids, memory, running, other = random_ids(70, 8), *(network.new_memory() for _ in range(3))
    network.read(ids[:60], memory)
    network.read(random_ids(90, 1), running)
    for token in ids[60:]:
        network.write([token, 5], [memory, running])  # saved from a row among others
    parts = [network.save(memory, start, start + PART_TOKENS) for start in range(0, 64, PART_TOKENS)]
    assert sum(part.nbytes for layer in parts[0] for part in layer) == network.token_bytes * PART_TOKENS
    network.free(memory)
    network.restore(other, parts[:1])
    network.restore(other, parts[1:])
    assert apart(network.read(ids[64:], other), exact(model, ids)) < NEAR
    again = network.save(other, 3, 9)  # from a memory of its own
    assert torch.allclose(again[1][0], parts[0][1][0][:, :, 3:9], atol=1e-5)


def test_a_step_copies_nothing_of_those_who_stay(network: BatchedNetwork) -> None:
    memories = [network.new_memory() for _ in range(3)]
    for memory, length in zip(memories, (5, 9, 2), strict=True):
        network.read(random_ids(length, length), memory)
    network.write([1, 2, 3], memories)
    storage = [part.data_ptr() for part in memories[0].table._tensors()]
    network.write([1, 2, 3], memories)
    network.write([1, 2], memories[1:])
    network.write([1, 2, 3], memories[::-1])
    assert [part.data_ptr() for part in memories[0].table._tensors()] == storage


def test_freed_memories_hold_nothing(network: BatchedNetwork) -> None:
    memories = [network.new_memory() for _ in LENGTHS]
    parts = []
    for memory, length in zip(memories, LENGTHS, strict=True):
        network.read(random_ids(length, length), memory)
        parts += [weakref.ref(part) for layer in memory.own for part in layer]
    network.write([3] * len(memories), memories)
    network.write([3, 4], memories[:2])
    parts += [weakref.ref(part) for layer in memories[3].own for part in layer]
    parts += [weakref.ref(part) for part in memories[0].table._tensors()]
    for memory in memories:
        network.free(memory)
        network.free(memory)
    gc.collect()
    assert len(parts) == 4 * (len(LENGTHS) + 2)
    assert all(part() is None for part in parts)
    assert network.memories == network.bytes_held == 0


def test_what_the_longest_and_many_left_behind_is_given_back(network: BatchedNetwork) -> None:
    memories = [network.new_memory() for _ in range(8)]
    for memory in memories:
        network.read(random_ids(10, 3), memory)
    network.write([3] * 8, memories)
    held = network.bytes_held
    for memory in memories[1:]:
        network.free(memory)
    network.write([3], memories[:1])
    assert network.bytes_held < held / 4


class Failure(Exception):
    pass


@pytest.mark.usefixtures("small_classes")
@pytest.mark.parametrize("forward", [1, 2], ids=["the-first-table", "the-second-table"])
def test_a_failing_forward_changes_no_memory(
    model: Any, network: BatchedNetwork, monkeypatch: pytest.MonkeyPatch, forward: int
) -> None:
    told = [random_ids(length, length) for length in (30, 5, 12)]  # in two tables
    memories = [network.new_memory() for _ in told]
    for memory, ids in zip(memories, told, strict=True):
        network.read(ids, memory)
    network.write([ids.append(9) or 9 for ids in told], memories)
    calls, layer = [0], model.model.layers[1].self_attn  # behind the first layer's write
    original = type(layer).forward

    def failing(self: Any, *given: Any, **named: Any) -> Any:
        calls[0] += self is layer
        if calls[0] == forward and self is layer:
            raise Failure
        return original(self, *given, **named)

    monkeypatch.setattr(type(layer), "forward", failing)
    with pytest.raises(Failure):
        network.write([4, 5, 6], memories)
    monkeypatch.undo()
    assert [memory.length for memory in memories] == [len(ids) for ids in told]
    for token in (7, 8):
        rows = network.write([token] * 3, memories)
        for row, ids in zip(rows, told, strict=True):
            ids.append(token)
            assert apart(row, exact(model, ids)) < NEAR


def test_a_failing_read_changes_no_memory(model: Any, network: BatchedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, memory = random_ids(12, 1), network.new_memory()
    network.read(ids, memory)
    layer = model.model.layers[1].self_attn
    with monkeypatch.context() as patched:
        patched.setattr(type(layer), "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            network.read([5, 6], memory)
    assert apart(network.read([7], memory), exact(model, [*ids, 7])) < NEAR


def test_what_is_no_number_in_one_answer_spoils_no_later_one(model: Any, network: BatchedNetwork) -> None:
    first, spoilt, late = (network.new_memory() for _ in range(3))
    ids = {id(memory): random_ids(length, length) for memory, length in ((first, 20), (spoilt, 20), (late, 4))}
    for memory in (first, spoilt, late):
        network.read(ids[id(memory)], memory)
    spoilt.own = [(keys * torch.nan, values * torch.nan) for keys, values in spoilt.own]
    network.write([3, 3], [first, spoilt])
    network.free(spoilt)
    rows = network.write([4, 4], [first, late])  # the late one takes the spoilt one's row
    assert apart(rows[0], exact(model, [*ids[id(first)], 3, 4])) < NEAR
    assert apart(rows[1], exact(model, [*ids[id(late)], 4])) < NEAR


# --- a model in a folder ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "mixtral"])
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    """Random logits with a spread that makes ties unlikely, and letters alone are ever chosen."""
    folder = tmp_path_factory.mktemp("models") / request.param
    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    kind, facts = SUITED[request.param]
    model = made(kind, facts | {"vocab_size": len(tokenizer), "tie_word_embeddings": False})
    with torch.no_grad():
        letters = [tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)]
        model.lm_head.weight *= 0.001
        model.lm_head.weight[letters] *= 10_000
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ChatModel(folder, "cpu", 1, "fp32")


def answers(model: ChatModel, requests: dict[int, ChatRequest], slots: int, kept_bytes: int = 0) -> dict[int, str]:
    batch = ChatBatch(model, slots, kept_bytes)
    for key, request in requests.items():
        batch.begin(key, request, "")
        batch.grant(key, 1_000)
    texts = dict.fromkeys(requests, "")
    while batch.runnable:
        for key, event in batch.step():
            assert not isinstance(event, EngineError)
            texts[key] += event.text if isinstance(event, Piece) else ""
            assert not isinstance(event, Finished) or event.finish in ("length", "stop")
    return texts


def test_a_model_of_another_architecture_batches(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(chat.network, BatchedNetwork) and chat.network.memories == 0
    requests = {key: chat_request("word " * (7 * key), max_tokens=12 + key) for key in range(6)}
    alone = {key: answers(chat, {key: request}, 1)[key] for key, request in requests.items()}
    sizes: list[int] = []
    forward = type(chat.network._model).forward

    def noting(self: Any, *given: Any, **named: Any) -> Any:
        sizes.append(len(named["input_ids"]))
        return forward(self, *given, **named)

    monkeypatch.setattr(type(chat.network._model), "forward", noting)
    assert answers(chat, requests, 4) == alone
    assert max(sizes) == 4 and sum(sizes.count(size) for size in (3, 4)) > 12
    assert all(len(text) >= 12 for text in alone.values()) and len(set(alone.values())) == 6


def test_its_known_beginnings_are_not_read_again(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    request = chat_request("the same long question " * 5, max_tokens=8)
    alone = answers(chat, {0: request}, 1)[0]
    batch, read = ChatBatch(chat, 2), list[int]()
    original = chat.read

    def noting(ids: list[int], memory: Memory) -> torch.Tensor:
        read.append(len(ids))
        return original(ids, memory)

    monkeypatch.setattr(chat, "read", noting)
    for key in range(2):
        batch.begin(key, request, "")
        batch.grant(key, 8)
        events = []
        while batch.runnable:
            events += [event for _, event in batch.step()]
        assert "".join(event.text for event in events if isinstance(event, Piece)) == alone
    assert read[-1] <= PART_TOKENS < sum(read[:-1])
