"""The packed arithmetic gives what transformers gives, up to rounding."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from node.engines.network_choice import alike
from node.engines.networks import Network, fastest_arithmetic, fastest_unpacked
from node.engines.packed_network import BEST_TOKENS, PackedNetwork
from node.engines.plain_network import PlainNetwork
from node.engines.products import Product, in_four_bits, in_half_precision, packed
from node.models import ModelStore

REPOSITORY = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOKENS = 300  # more than a new cache holds


def llama(**changes: Any) -> Any:
    torch.manual_seed(1)
    facts = {
        "vocab_size": 320,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1_024,
        "initializer_range": 0.15,
    }
    made: Any = LlamaForCausalLM(LlamaConfig(**(facts | changes)))
    return made.bfloat16().eval()


def logits(network: Network, ids: list[int], parts: list[int]) -> torch.Tensor:
    """The last logits, the tokens given in parts of these sizes."""
    memory, at, last = network.new_memory(), 0, torch.empty(0)
    for size in parts:
        part = ids[at : at + size]
        last = network.write(part, [memory])[0] if at and size == 1 else network.read(part, memory)
        at += size
    assert at == len(ids)
    network.free(memory)
    return last.float()


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """1.0: the same direction."""
    return float(functional.cosine_similarity(one - one.mean(), other - other.mean(), dim=0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 64},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
    ],
    ids=["grouped", "all-heads", "one-pair-wide", "tied", "scaled-rope"],
)
def test_a_packed_llama_gives_the_logits_of_transformers(changes: dict[str, Any]) -> None:
    model = llama(**changes)
    ids = random_ids(TOKENS, 2)
    exact = logits(PlainNetwork(model.float()), ids, [TOKENS])
    assert likeness(logits(PackedNetwork(model, "fp32"), ids, [290, *[1] * 10]), exact) > 0.999_99
    model.bfloat16()
    assert likeness(logits(PackedNetwork(model), ids, [TOKENS]), exact) > 0.99
    other_end = logits(PlainNetwork(model), [*ids[:-1], (ids[-1] + 1) % 320], [TOKENS])
    assert likeness(other_end, exact) < 0.9  # so that 0.99 says something


RELATIVES: dict[str, tuple[Any, dict[str, Any]]] = {
    "biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralConfig, {"sliding_window": None, "head_dim": 32}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 48}),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_of_llama_too(name: str) -> None:
    """With biases and norms that are no zeros and ones, alone and together with others."""
    kind, changes = RELATIVES[name]
    facts = {"vocab_size": 320, "max_position_embeddings": 1_024, "initializer_range": 0.15}
    torch.manual_seed(1)
    maker: Any = AutoModelForCausalLM
    model = maker.from_config(kind(**SMALL, **facts, **changes)).eval()
    for label, part in model.named_parameters():
        if label.endswith("bias") or "norm" in label:
            part.data += 0.3 * torch.randn_like(part)
    assert PackedNetwork.suits(model.config)
    ids, others = random_ids(TOKENS, 2), random_ids(20, 3)
    network, plain = PackedNetwork(model, "fp32"), PlainNetwork(model)
    exact = logits(plain, ids, [TOKENS])
    assert likeness(logits(network, ids, [290, *[1] * 10]), exact) > 0.999_99
    memories = [network.new_memory(), network.new_memory()]
    network.read(others[:-1], memories[0])
    network.read(ids[:-1], memories[1])
    rows = network.write([others[-1], ids[-1]], memories)
    assert likeness(rows[1], exact) > 0.999_99
    assert likeness(rows[0], logits(plain, others, [len(others)])) > 0.999_99
    assert likeness(logits(PackedNetwork(model.bfloat16()), ids, [TOKENS]), exact) > 0.98


@pytest.mark.parametrize(
    ("arithmetic", "least"), [("fp32", 0.999_99), ("bf16", 0.99), ("packed", 0.99), ("packed-fp32", 0.99)]
)
def test_tokens_one_by_one_or_in_parts_or_at_once_are_the_same(arithmetic: str, least: float) -> None:
    """Random weights make large scores, and packed ones that are no 4-bit ones two kinds of product; hence the 0.99."""
    network = PackedNetwork(llama(), arithmetic)
    ids = random_ids(TOKENS, 3)
    at_once = logits(network, ids, [TOKENS])
    assert likeness(logits(network, ids, [1] * TOKENS), at_once) > least
    assert likeness(logits(network, ids, [256, 43, 1]), at_once) > least


@pytest.mark.parametrize("arithmetic", ["packed", "bf16"])
def test_the_best_tokens_are_told_apart_where_half_precision_would_not(arithmetic: str) -> None:
    model = llama(tie_word_embeddings=True)
    network = PackedNetwork(model, arithmetic)
    state = 4 * torch.randn(3, 128, generator=torch.Generator().manual_seed(4))
    found = network._logits(state, network._one)
    exact = (
        functional.rms_norm(state, (128,), network._norm, network._epsilon) @ model.lm_head.weight.detach().float().T
    )
    assert torch.allclose(found.topk(BEST_TOKENS - 8).values, exact.topk(BEST_TOKENS - 8).values, atol=1e-4)
    assert not torch.allclose(exact, exact.bfloat16().float(), atol=1e-4)


# --- several answers at once -----------------------------------------------------------------------------


LENGTHS = (3, 40, 255, 256, 300, 17, 1)  # on two shelves, one of them about to move


@pytest.fixture(scope="module", params=["few", "many"])
def network(request: pytest.FixtureRequest) -> PackedNetwork:
    """With either kind of product for several answers."""
    made = PackedNetwork(llama())
    made.many_from = {"few": 1_000, "many": 1}[request.param]
    return made


def test_answers_together_have_the_logits_of_each_alone(network: PackedNetwork) -> None:
    prompts = [random_ids(length, length) for length in LENGTHS]
    endings = [random_ids(4, 1_000 + length) for length in LENGTHS]
    alone = [
        logits(network, prompt + ending, [len(prompt), 1, 1, 1, 1])
        for prompt, ending in zip(prompts, endings, strict=True)
    ]
    memories = [network.new_memory() for _ in prompts]
    for memory, prompt in zip(memories, prompts, strict=True):
        network.read(prompt, memory)
    for place in range(4):
        together = network.write([ending[place] for ending in endings], memories)
    for one, other in zip(together, alone, strict=True):
        assert likeness(one.float(), other) > 0.999
    for memory in memories:
        network.free(memory)


def test_answers_that_join_pause_and_leave_disturb_no_other(network: PackedNetwork) -> None:
    """Random steps, each with some of the answers; in the end all have the logits that they would have alone
    (up to the two kinds of product, see above)."""
    drawn = random.Random(5)
    told = {index: random_ids(length, length) for index, length in enumerate(LENGTHS)}
    memories = {index: network.new_memory() for index in told}
    for index, ids in told.items():
        network.read(ids, memories[index])
    last: dict[int, torch.Tensor] = {}
    for _ in range(40):
        chosen = drawn.sample(sorted(told), drawn.randint(1, len(told)))
        tokens = [drawn.randrange(320) for _ in chosen]
        rows = network.write(tokens, [memories[index] for index in chosen])
        for index, token, row in zip(chosen, tokens, rows, strict=True):
            told[index].append(token)
            last[index] = row.float()
        if drawn.random() < 0.2 and len(told) > 3:
            gone = drawn.choice(sorted(told))
            network.free(memories.pop(gone))
            assert likeness(last.pop(gone), logits(network, told[gone], [len(told.pop(gone))])) > 0.99
    for index, ids in told.items():
        assert likeness(last[index], logits(network, ids, [len(ids)])) > 0.99
        network.free(memories[index])


def test_saved_parts_are_as_good_as_what_was_read(network: PackedNetwork) -> None:
    ids, memory, other = random_ids(300, 8), network.new_memory(), network.new_memory()
    network.read(ids, memory)
    network.restore(other, [network.save(memory, start, start + 50) for start in range(0, 250, 50)])
    network.read(ids[250:], other)
    first, second = network.write([5, 5], [memory, other]).float()
    assert likeness(first, second) > 0.9999
    network.free(memory)
    network.free(other)


def test_a_network_that_computes_something_else_is_found_out() -> None:
    model = llama()
    assert alike(PackedNetwork(model, "bf16"), PlainNetwork(model))
    other = PackedNetwork(model, "bf16")
    other._epsilon = 10.0
    assert not alike(other, PlainNetwork(model))


def test_freed_memories_hold_nothing(network: PackedNetwork) -> None:
    held = network.memories
    for length in LENGTHS:
        memory = network.new_memory()
        network.read(random_ids(length, 1), memory)
        network.free(memory)
        network.free(memory)
    assert network.memories == held


def test_storage_that_is_large_is_not_kept(network: PackedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.engines.shelves.KEPT_BYTES", 0)
    memory = network.new_memory()
    network.read(random_ids(300, 1), memory)
    held = network.bytes_held
    network.free(memory)
    assert network.bytes_held < held


def test_the_order_of_tokens_matters() -> None:
    network = PackedNetwork(llama())
    assert likeness(logits(network, [1, 2, 3], [3]), logits(network, [2, 1, 3], [3])) < 0.999


def product_error(weight: torch.Tensor, make: Callable[[torch.Tensor], Product] = packed) -> float:
    """Relative error of a product, against fp32."""
    state = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(4)).bfloat16()
    exact = state.float() @ weight.float().T
    return float((make(weight)(state).float() - exact).norm() / exact.norm())


def on_a_grid(rows: int, columns: int) -> torch.Tensor:
    """What a 4-bit file holds: 16 levels, a scale and an offset for each group of 32."""
    generator = torch.Generator().manual_seed(5)
    levels = torch.randint(0, 16, (rows, columns // 32, 32), generator=generator)
    levels[..., 0], levels[..., 1] = 0, 15
    scale = torch.rand(rows, columns // 32, 1, generator=generator) * 0.01 + 0.001
    return (levels * scale - 8 * scale).view(rows, columns).bfloat16()


def test_weights_of_a_four_bit_file_are_kept_in_four_bits() -> None:
    weight = on_a_grid(64, 128)
    assert in_four_bits(weight) is not None
    assert product_error(weight) < 0.01


def test_other_weights_are_not_forced_onto_the_grid() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(6)).bfloat16()
    assert in_four_bits(weight) is None
    assert product_error(weight) < 0.01


def test_shapes_that_the_kernels_do_not_take_are_computed_plainly() -> None:
    assert product_error(torch.randn(10, 20).bfloat16()) < 0.01


def test_products_in_half_precision_are_as_good() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(7)).bfloat16()
    assert product_error(weight, in_half_precision) < 0.01


def test_zeros_stay_zeros() -> None:
    assert float(packed(torch.zeros(32, 64).bfloat16())(torch.ones(1, 64).bfloat16()).abs().max()) < 1e-6


def test_other_architectures_are_left_to_transformers() -> None:
    assert PackedNetwork.suits(LlamaConfig())
    assert not PackedNetwork.suits(MistralConfig(sliding_window=4_096, max_position_embeddings=32_768))
    assert PackedNetwork.suits(MistralConfig(sliding_window=4_096, max_position_embeddings=4_096))
    assert not PackedNetwork.suits(Qwen2Config(use_sliding_window=True, max_window_layers=2, sliding_window=64))
    assert not PackedNetwork.suits(Gemma2Config())
    assert not PackedNetwork.suits(LlamaConfig(hidden_act="gelu"))
    turns = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert not PackedNetwork.suits(LlamaConfig(rope_parameters=turns))


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=128),
        Qwen2Config(vocab_size=320, **SMALL),
        Gemma2Config(vocab_size=320, head_dim=16, sliding_window=8, **SMALL),
        MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4),
    ],
    ids=["gpt2", "qwen2", "gemma2-sliding", "mamba"],
)
def test_other_architectures_answer_several_too(config: Any) -> None:
    torch.manual_seed(1)
    maker: Any = AutoModelForCausalLM
    made = maker.from_config(config).eval()
    network = PlainNetwork(made)
    told = {length: random_ids(length, length) for length in (3, 30, 11)}
    memories = [network.new_memory() for _ in told]
    for memory, ids in zip(memories, told.values(), strict=True):
        network.read(ids[:2], memory)
        network.read(ids[2:], memory)
    together = network.write([7, 8, 9], memories)
    for row, ids, token in zip(together, told.values(), (7, 8, 9), strict=True):
        exact = made(torch.tensor([[*ids, token]])).logits[0, -1].detach()
        assert likeness(row, exact) > 0.999_9


def test_this_machine_is_measured() -> None:
    assert fastest_arithmetic() in ("packed", "packed-fp32", "bf16", "fp32")


def test_the_arithmetic_of_prompts_decides_what_surrounds_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bf16's instructions gets bf16 nowhere but inside of the packed product, however fast that is
    for one token: a prompt would take ten times as long."""
    monkeypatch.setattr("node.engines.networks.fastest", lambda candidates: "full")
    monkeypatch.setattr("node.engines.networks.seconds", lambda work: [1.0])
    assert fastest_arithmetic() == "packed-fp32"
    taken = iter([1.0, 2.0])  # for fp32, and packed
    monkeypatch.setattr("node.engines.networks.seconds", lambda work: [next(taken)])
    assert fastest_arithmetic() == "fp32"
    monkeypatch.setattr("node.engines.networks.fastest", lambda candidates: next(iter(candidates)))
    assert fastest_arithmetic() == "packed"


@pytest.mark.parametrize(
    ("measured", "unpacked"), [("packed", "bf16"), ("packed-fp32", "fp32"), ("bf16", "bf16"), ("fp32", "fp32")]
)
def test_networks_without_packed_weights_get_what_would_surround_them(
    measured: str, unpacked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.engines.networks.fastest_arithmetic", lambda: measured)
    assert fastest_unpacked() == unpacked


def test_packed_weights_between_full_numbers() -> None:
    model = llama()
    ids = random_ids(40, 9)
    network = PackedNetwork(model, "packed-fp32")
    exact = logits(PlainNetwork(model.float()), ids, [40])
    for many_from in (1, 1_000):  # both copies of the weights
        network.many_from = many_from
        assert likeness(logits(network, ids, [38, 1, 1]), exact) > 0.99
    memory = network.new_memory()
    network.read(ids, memory)
    assert memory.shelf is not None and memory.shelf.keys.dtype == torch.float32
    assert network._many is not network._one


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    """As `ChatModel` loads it, which would measure what is fast here, too."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()


@pytest.mark.model
def test_smollm2_packed_is_as_near_to_fp32_as_bf16_is() -> None:
    """Its weights came from a 4-bit file, so next to nothing is lost by putting them back into 4 bits."""
    folder = ModelStore(Path(os.environ.get("MTOR_MODELS", REPOSITORY / ".models"))).find("smollm2-135m").path
    ids = list(range(1_000, 1_040))
    results = {
        name: logits(PackedNetwork(loaded(folder, dtype), name), ids, [40])
        for name, dtype in (("packed", torch.bfloat16), ("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    errors = {name: float((results[name] - results["fp32"]).abs().mean()) for name in ("packed", "bf16")}
    assert errors["packed"] < 1.5 * errors["bf16"]
