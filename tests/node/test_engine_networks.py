"""The packed arithmetic gives what transformers gives, up to rounding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from node.engines import networks
from node.engines.networks import Network, PackedNetwork, PlainNetwork, packed
from node.engines.torch_chat import ChatModel
from node.models import ModelStore

REPOSITORY = Path(__file__).parents[2]
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
    cache, at, last = network.new_cache(), 0, torch.empty(0)
    for size in parts:
        last = network.forward(ids[at : at + size], cache)
        at += size
    assert at == len(ids)
    return last.float()


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
    ids = torch.randint(0, 320, (TOKENS,), generator=torch.Generator().manual_seed(2)).tolist()
    exact = logits(PlainNetwork(model.float()), ids, [TOKENS])
    model.bfloat16()
    assert likeness(logits(PackedNetwork(model), ids, [TOKENS]), exact) > 0.99
    other_end = logits(PlainNetwork(model), [*ids[:-1], (ids[-1] + 1) % 320], [TOKENS])
    assert likeness(other_end, exact) < 0.9  # so that 0.99 says something


def test_tokens_one_by_one_or_in_parts_or_at_once_are_the_same() -> None:
    network = PackedNetwork(llama())
    ids = torch.randint(0, 320, (TOKENS,), generator=torch.Generator().manual_seed(3)).tolist()
    at_once = logits(network, ids, [TOKENS])
    assert likeness(logits(network, ids, [1] * TOKENS), at_once) > 0.999
    assert likeness(logits(network, ids, [256, 43, 1]), at_once) > 0.999


def test_the_order_of_tokens_matters() -> None:
    network = PackedNetwork(llama())
    assert likeness(logits(network, [1, 2, 3], [3]), logits(network, [2, 1, 3], [3])) < 0.999


def product_error(weight: torch.Tensor) -> float:
    """Relative error of a packed product, against fp32."""
    state = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(4)).bfloat16()
    exact = state.float() @ weight.float().T
    return float((packed(weight)(state).float() - exact).norm() / exact.norm())


def on_a_grid(rows: int, columns: int) -> torch.Tensor:
    """What a 4-bit file holds: 16 levels, a scale and an offset for each group of 32."""
    generator = torch.Generator().manual_seed(5)
    levels = torch.randint(0, 16, (rows, columns // 32, 32), generator=generator)
    levels[..., 0], levels[..., 1] = 0, 15
    scale = torch.rand(rows, columns // 32, 1, generator=generator) * 0.01 + 0.001
    return (levels * scale - 8 * scale).view(rows, columns).bfloat16()


def test_weights_of_a_four_bit_file_are_kept_in_four_bits() -> None:
    weight = on_a_grid(64, 128)
    assert networks._in_four_bits(weight.float().view(64, -1, 32)) is not None
    assert product_error(weight) < 0.01


def test_other_weights_are_not_forced_onto_the_grid() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(6)).bfloat16()
    assert networks._in_four_bits(weight.float().view(64, -1, 32)) is None
    assert product_error(weight) < 0.01


def test_shapes_that_the_kernels_do_not_take_are_computed_plainly() -> None:
    assert product_error(torch.randn(10, 20).bfloat16()) < 0.01


def test_zeros_stay_zeros() -> None:
    assert float(packed(torch.zeros(32, 64).bfloat16())(torch.ones(1, 64).bfloat16()).abs().max()) < 1e-6


def test_other_architectures_are_left_to_transformers() -> None:
    assert PackedNetwork.suits(LlamaConfig())
    assert not PackedNetwork.suits(LlamaConfig(attention_bias=True))
    assert not PackedNetwork.suits(LlamaConfig(hidden_act="gelu"))


def test_this_machine_is_measured() -> None:
    assert networks.fastest_arithmetic() in ("packed", "bf16", "fp32")


@pytest.mark.model
def test_smollm2_packed_is_as_near_to_fp32_as_bf16_is() -> None:
    """Its weights came from a 4-bit file, so next to nothing is lost by putting them back into 4 bits."""
    folder = ModelStore(Path(os.environ.get("MTOR_MODELS", REPOSITORY / ".models"))).find("smollm2-135m").path
    ids = list(range(1_000, 1_040))
    results = {
        name: logits(ChatModel(folder, "cpu", 2, name).network, ids, [40]) for name in ("packed", "bf16", "fp32")
    }
    errors = {name: float((results[name] - results["fp32"]).abs().mean()) for name in ("packed", "bf16")}
    assert errors["packed"] < 1.5 * errors["bf16"]
