"""What a model needs is worked out before it is loaded, and where it fits is decided by the numbers."""

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.cards import Card, Room
from node.fit import CPU, DoesNotFit, Placement, Resident, Space, plan
from node.needs import CUDA_CONTEXT, MIB, Cache, Need, Wish, read_need
from node.weights import Weights, WeightsError, folder_weights, gguf_weights, safetensors_weights

GIB = 1_024
SMALL = Card(0, "GPU-small", "RTX 3060", 12 * GIB, 12 * GIB, 86, "580")
BIG = Card(1, "GPU-big", "RTX 4090", 24 * GIB, 24 * GIB, 89, "580")
OLD = Card(2, "GPU-old", "GTX 1080 Ti", 11 * GIB, 11 * GIB, 61, "580")


# --- files -----------------------------------------------------------------------------------------------


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> Path:
    """A file whose header names tensors; their bytes are not there, for nobody may read them."""
    header = {name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]} for name, (kind, shape) in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def gguf(path: Path, tensors: dict[str, list[int]], entries: bytes = b"", count: int = 0) -> Path:
    """The same as a GGUF."""
    body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + entries
    for name, shape in tensors.items():
        body += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        body += b"".join(struct.pack("<Q", size) for size in shape) + struct.pack("<IQ", 2, 0)
    path.write_bytes(body)
    return path


def text(value: str) -> bytes:
    """A text as GGUF has it."""
    return struct.pack("<Q", len(value)) + value.encode()


def test_weights_are_counted_in_the_arithmetic_that_will_be_used(tmp_path: Path) -> None:
    file = safetensors(
        tmp_path / "a.safetensors",
        {"w": ("F32", [1_000, 10]), "h": ("BF16", [50]), "ids": ("I64", [7]), "s": ("F8_E4M3", [])},
    )
    weights = safetensors_weights(file)
    assert weights == Weights(10_051, 56)
    assert weights.bytes_in(2) == 20_158 and weights.bytes_in(4) == 40_260


def test_a_gguf_is_unpacked_when_it_is_loaded(tmp_path: Path) -> None:
    entries = text("a") + struct.pack("<I", 8) + text("value")
    entries += text("b") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("y")
    entries += text("c") + struct.pack("<IIQ", 9, 5, 3) + bytes(12)
    entries += text("d") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQB", 7, 1, 1)
    file = gguf(tmp_path / "m.gguf", {"w": [32, 100], "n": [100]}, entries, 4)
    assert gguf_weights(file) == Weights(3_300)
    assert folder_weights(tmp_path) == Weights(3_300)


def test_of_several_variants_one_is_loaded_and_parts_are_added(tmp_path: Path) -> None:
    one = {"w": ("F16", [100])}
    for name in ("model-00001-of-00002", "model-00002-of-00002", "model-00001-of-00002.fp16", "consolidated"):
        safetensors(tmp_path / f"{name}.safetensors", one)
    assert folder_weights(tmp_path) == Weights(200)
    safetensors(tmp_path / "only" / "unet.fp16.safetensors", one)
    assert folder_weights(tmp_path / "only") == Weights(100)


HEADERS = {
    "empty": b"",
    "short": b"\x10",
    "a giant header": struct.pack("<Q", 1 << 62),
    "a header beyond the file": struct.pack("<Q", 1_000) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a list": struct.pack("<Q", 2) + b"[]",
    "deeply nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS.keys())
def test_a_damaged_safetensors_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(WeightsError):
        safetensors_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "tensor", [("F99", [1]), ("F16", [-1]), ("F16", [1 << 40, 1 << 40]), ("F16", [1] * 9), ("F16", "x")]
)
def test_tensors_that_cannot_be_are_refused(tmp_path: Path, tensor: Any) -> None:
    with pytest.raises(WeightsError):
        safetensors_weights(safetensors(tmp_path / "x.safetensors", {"w": tensor}))


GGUFS = {
    "no magic": b"GGML" + bytes(20),
    "another version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "too many tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0),
    "a giant key": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60),
    "a giant list": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 60),
    "an unknown kind": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 99),
    "too many dimensions": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("w") + struct.pack("<I", 1 << 30),
    "cut off": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("w"),
}


@pytest.mark.parametrize("data", GGUFS.values(), ids=GGUFS.keys())
def test_a_damaged_gguf_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(WeightsError):
        gguf_weights(tmp_path / "x.gguf")


# --- needs -----------------------------------------------------------------------------------------------

LLAMA = {"hidden_size": 4_096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
LLAMA |= {"intermediate_size": 14_336, "vocab_size": 128_256, "max_position_embeddings": 8_192}


def chat_folder(folder: Path, config: dict[str, Any], numbers: int = 1_000_000) -> Path:
    """A model of which only what is counted is there."""
    safetensors(folder / "model.safetensors", {"w": ("F16", [numbers])})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CACHES: list[tuple[str, dict[str, Any], int, int]] = [
    # name, configuration, tokens, bytes of a conversation in two-byte numbers
    ("llama 3 8B", LLAMA, 8_192, 8_192 * 131_072),  # 2 x 8 heads x 128 x 32 layers x 2 bytes = 128 KiB a token
    ("without groups", {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, 100, 100 * 4 * 131_072),
    ("a head's own width", LLAMA | {"head_dim": 256}, 100, 100 * 2 * 131_072),
    ("all sliding", LLAMA | {"sliding_window": 1_024}, 8_192, 1_024 * 131_072),
    ("a window that is not used", LLAMA | {"sliding_window": 1_024, "use_sliding_window": False}, 100, 100 * 131_072),
    ("a longer window", LLAMA | {"sliding_window": 1_024}, 512, 512 * 131_072),
    ("one of four whole", LLAMA | {"sliding_window": 1_024, "sliding_window_pattern": 4}, 8_192,
     (8 * 8_192 + 24 * 1_024) * 4_096),
    ("named layers", LLAMA | {"sliding_window": 1_024, "layer_types": ["sliding_attention", "full_attention"] * 16},
     8_192, (16 * 8_192 + 16 * 1_024) * 4_096),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "tokens", "wanted"), CACHES, ids=[row[0] for row in CACHES])
def test_the_cache_of_a_conversation(
    tmp_path: Path, name: str, config: dict[str, Any], tokens: int, wanted: int
) -> None:
    need = read_need(name, "torch-chat", chat_folder(tmp_path, config), Wish(slots=2))
    assert need.cache.bytes_for(tokens, 2) == wanted
    assert need.cache.bytes_for(tokens, 4) == 2 * wanted


def test_the_context_is_the_operators_within_the_models(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path, LLAMA)
    for wish, context, fixed in ((0, 8_192, False), (4_096, 4_096, True), (99_999, 8_192, True)):
        need = read_need("m", "torch-chat", folder, Wish(context=wish))
        assert (need.context, need.context_fixed) == (context, fixed)


def test_a_llama_of_8_billion_is_about_what_everybody_knows_it_to_be(tmp_path: Path) -> None:
    need = read_need("llama", "torch-chat", chat_folder(tmp_path, LLAMA, 8_030_000_000), Wish(slots=2)).on(BIG)
    assert need.arithmetic == "bf16" and 18_000 < need.mib < 19_500  # 15.3 GiB and twice a GiB of cache, and CUDA
    assert need.on(OLD).arithmetic == "fp16"
    assert need.on(None).arithmetic == "fp32" and need.on(None).mib > 30_000


def test_a_model_that_sees_counts_its_language_model_inside_and_its_eyes(tmp_path: Path) -> None:
    eyes = {"image_size": 512, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3_072}
    folder = chat_folder(tmp_path, {"text_config": LLAMA, "vision_config": eyes})
    seeing = read_need("v", "torch-vision", folder, Wish())
    blind = read_need("c", "torch-chat", chat_folder(tmp_path / "c", LLAMA), Wish())
    assert seeing.cache == blind.cache and seeing.passing == blind.passing + 1_024 * (8 * 768 + 3 * 3_072) * 2


def test_whisper(tmp_path: Path) -> None:
    config = {"model_type": "whisper", "d_model": 512, "decoder_layers": 6, "encoder_ffn_dim": 2_048}
    need = read_need("whisper-base", "whisper", chat_folder(tmp_path, config, 72_000_000), Wish(slots=4))
    assert need.context == 0 and need.one_at_a_time and need.cache == Cache(fixed=1_948 * 6 * 2 * 512 * 2)
    assert 600 < need.on(BIG).mib < 1_000  # 137 MiB of weights; CUDA takes more


def test_a_pipeline_is_its_named_parts(tmp_path: Path) -> None:
    parts = {"unet": 860_000_000, "vae": 84_000_000, "text_encoder": 123_000_000}
    for part, numbers in parts.items():
        safetensors(tmp_path / part / "model.safetensors", {"w": ("F32", [numbers])})
        safetensors(tmp_path / part / "model.fp16.safetensors", {"w": ("F16", [numbers])})
    safetensors(tmp_path / "v1-5-pruned.safetensors", {"w": ("F32", [4_000_000_000])})
    safetensors(tmp_path / "safety_checker" / "model.safetensors", {"w": ("F32", [300_000_000])})
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {part: ["x", "Y"] for part in parts}))
    (tmp_path / "unet" / "config.json").write_text('{"sample_size": 64}')
    (tmp_path / "vae" / "config.json").write_text('{"block_out_channels": [128, 256, 512, 512]}')
    need = read_need("sd15", "diffusers", tmp_path, Wish(slots=2)).on(BIG)
    assert need.weights == Weights(1_067_000_000) and need.passing == 6 * 512 * 512 * 128 * 2
    assert 2_500 < need.mib < 3_500


def test_any_other_engine_is_its_weights_and_as_much_again(tmp_path: Path) -> None:
    need = read_need("voice", "voice", chat_folder(tmp_path, {}), Wish())
    assert need.passing == 2_000_000 and need.one_at_a_time


STRANGE: list[dict[str, Any]] = [
    {}, {"num_attention_heads": 0, "num_key_value_heads": 0}, {"hidden_size": "big", "num_hidden_layers": -1},
    {"num_attention_heads": True}, {"sliding_window": [1]}, {"layer_types": 7, "sliding_window": 5},
    {"text_config": []}, {"vision_config": {"patch_size": 0}}, {"hidden_size": 1 << 62},
    {"max_position_embeddings": None},
]  # fmt: skip


@pytest.mark.parametrize("config", STRANGE)
@pytest.mark.parametrize("engine", ["torch-chat", "torch-vision", "whisper", "diffusers"])
def test_a_strange_configuration_gives_a_number_or_a_sentence(
    tmp_path: Path, config: dict[str, Any], engine: str
) -> None:
    try:
        assert read_need("m", engine, chat_folder(tmp_path, config), Wish()).on(BIG).mib >= 0
    except WeightsError as error:
        assert "cannot be told from its files" in str(error)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="m: what it needs cannot be told"):
        read_need("m", "torch-chat", tmp_path, Wish())


# --- places ----------------------------------------------------------------------------------------------


def need(gib: float, slots: int = 1, context: int = 0, per_token_kib: int = 0, **more: Any) -> Need:
    """Weights of `gib` in two-byte numbers."""
    cache = Cache(whole=per_token_kib * 1_024)
    return Need("new", Weights(round(gib * 2**29)), more.pop("wished", "bf16"), slots, context, cache, **more)


def space(*cards: Card, cpu_gib: int = 32, taken: dict[str, int] | None = None) -> Space:
    """The cards, of each of which `taken` MiB are somebody else's."""
    others = taken or {}
    return Space([Room(card, card.vram_mib - others.get(card.uuid, 0)) for card in cards], cpu_gib * GIB)


def resident(name: str, gib: int, card: Card | None = BIG, used_at: float = 0, **more: bool) -> Resident:
    """A loaded model."""
    return Resident(name, gib * GIB, card.uuid if card else CPU, used_at, **more)


PLACES: list[tuple[str, Need, Space, list[Resident], str, tuple[str, ...]]] = [
    # what, the model, the machine, what is loaded, where it goes, what leaves first
    ("the card with the most room", need(4), space(SMALL, BIG), [], BIG.uuid, ()),
    ("the emptier one", need(4), space(SMALL, BIG), [resident("a", 16)], SMALL.uuid, ()),
    ("the only one that holds it", need(14), space(SMALL, BIG), [resident("a", 4)], BIG.uuid, ()),
    ("several on one card", need(4), space(BIG), [resident("a", 8), resident("b", 8)], BIG.uuid, ()),
    ("others use the card", need(4), space(SMALL, BIG, taken={BIG.uuid: 22 * GIB}), [], SMALL.uuid, ()),
    ("instead of an idle one", need(16), space(SMALL, BIG), [resident("a", 12)], BIG.uuid, ("a",)),
    ("instead of the least recently used", need(8), space(BIG),
     [resident("a", 9, used_at=5), resident("b", 9, used_at=3)], BIG.uuid, ("b",)),
    ("idle ones leave before busy ones", need(8), space(BIG),
     [resident("a", 9, used_at=9), resident("b", 9, used_at=3, idle=False)], BIG.uuid, ("a",)),
    ("a pinned one stays", need(8), space(BIG),
     [resident("a", 9, used_at=9), resident("b", 9, pinned=True)], BIG.uuid, ("a",)),
    ("two leave for a large one", need(20), space(BIG),
     [resident("a", 8, used_at=2), resident("b", 8, used_at=1)], BIG.uuid, ("b", "a")),
    ("one leaves here rather than two there", need(11), space(SMALL, BIG),
     [resident("a", 10, SMALL), *(resident(name, 8) for name in "bcd")], SMALL.uuid, ("a",)),
    ("the CPU where no card holds it", need(26), space(SMALL, BIG), [], CPU, ()),
    ("the CPU where there is no card", need(4), space(), [], CPU, ()),
    ("the CPU as asked", need(4, device="cpu"), space(BIG), [], CPU, ()),
    ("the CPU's models take turns too", need(20, device="cpu"), space(cpu_gib=24), [resident("a", 8, None)],
     CPU, ("a",)),
    ("its own place does not count when it comes again", need(20), space(BIG), [resident("new", 20)], BIG.uuid, ()),
]  # fmt: skip


@pytest.mark.parametrize(("what", "wanted", "machine", "loaded", "place", "unload"), PLACES, ids=[r[0] for r in PLACES])
def test_where_it_goes(
    what: str, wanted: Need, machine: Space, loaded: Sequence[Resident], place: str, unload: tuple[str, ...]
) -> None:
    found = plan(wanted, machine, loaded)
    assert isinstance(found, Placement), found
    assert (found.place, found.unload) == (place, unload)
    assert found.said.startswith("new goes on ") and f"{found.mib} MiB" in found.said


def test_going_to_the_cpu_is_said_aloud() -> None:
    found = plan(need(26), space(BIG), [])
    assert isinstance(found, Placement)
    assert (
        "on the CPU" in found.said and "no card holds it (27124 MiB at least, 24576 MiB for us at most)" in found.said
    )


CONTEXTS: list[tuple[str, Need, list[Resident], int, tuple[str, ...]]] = [
    # 16 GiB of weights on a card of 24: (23.5 - 16 - 0.5) GiB are left, a tenth of which is spare
    ("the model's own", need(16, 1, 8_192, 512), [], 8_192, ()),
    ("as long as fits", need(16, 1, 131_072, 128), [], 32_768, ()),
    ("an odd one", need(16, 1, 40_960, 128), [], 40_960, ()),
    ("shared by the slots", need(16, 4, 131_072, 128), [], 8_192, ()),
    ("below comfort others leave first", need(16, 1, 32_768, 512), [resident("a", 4)], 8_192, ("a",)),
    ("short rather than not at all", need(20, 1, 32_768, 512), [], 4_096, ()),
]


@pytest.mark.parametrize(("what", "wanted", "loaded", "context", "unload"), CONTEXTS, ids=[row[0] for row in CONTEXTS])
def test_a_context_that_nobody_set_is_as_long_as_fits(
    what: str, wanted: Need, loaded: Sequence[Resident], context: int, unload: tuple[str, ...]
) -> None:
    found = plan(wanted, space(BIG), loaded)
    assert isinstance(found, Placement) and found.card == BIG
    assert (found.context, found.unload) == (context, unload)


SET = need(16, 4, 8_192, 512, context_fixed=True, device="cuda")  # the operator set slots and context
LOW = space(BIG, cpu_gib=8)  # no way out over the CPU

REFUSALS: list[tuple[str, Need, Space, list[Resident], tuple[str, ...]]] = [
    ("no card", need(4, device="cuda"), space(), [], ("device: auto, which would take the CPU",)),
    ("fewer slots", SET, LOW, [], ("slots: 1", "context: 2048")),
    ("a shorter context", replace(SET, slots=1, context=32_768), LOW, [], ("context: 8192",)),
    ("another arithmetic", need(10, wished="fp32"), space(cpu_gib=12), [], ("arithmetic: bf16",)),
    ("a card after all", need(10, device="cpu"), space(BIG, cpu_gib=4), [],
     ("device: auto, which would take RTX 4090",)),
    ("less beside it", need(16, device="cuda"), LOW, [resident("a", 12, pinned=True)], ("pinned: false for a",)),
    ("without the others' use", need(16, device="cuda"), space(BIG, cpu_gib=8, taken={BIG.uuid: 12 * GIB}), [],
     ("ending what else uses RTX 4090 (12288 MiB)",)),
    ("nothing helps", need(100), space(BIG), [], ()),
]  # fmt: skip


@pytest.mark.parametrize(("what", "wanted", "machine", "loaded", "nearest"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_what_does_not_fit_is_told_with_the_nearest_that_does(
    what: str, wanted: Need, machine: Space, loaded: Sequence[Resident], nearest: tuple[str, ...]
) -> None:
    found = plan(wanted, machine, loaded)
    assert isinstance(found, DoesNotFit)
    assert found.nearest == nearest and found.needed_mib > found.room_mib and found.message.startswith("new ")


def test_the_nearest_thing_does_fit() -> None:
    assert isinstance(plan(replace(SET, slots=1), LOW, []), Placement)
    assert isinstance(plan(replace(SET, context=2_048), LOW, []), Placement)


def test_some_of_a_card_is_left_to_the_screen() -> None:
    tight = need(23)
    assert tight.on(BIG).mib == 23 * GIB + CUDA_CONTEXT // MIB
    for reserve, device in ((512, "cuda"), (600, "cpu")):
        found = plan(tight, Space([Room(BIG, 24 * GIB)], 64 * GIB, reserve), [])
        assert isinstance(found, Placement) and (found.place == CPU) == (device == "cpu")
