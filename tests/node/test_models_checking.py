"""What is let into a model's folder, and what is shown of a stranger's texts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from node.model_operations import ModelOperations
from node.models import ModelError, ModelStore
from node.models.cards import card_text, licence_of, printable
from node.models.checking import check_config, check_file, check_files, is_allowed_name, is_pickle_name
from node.models.kinds import context_of, kind_of
from node.models.report import show
from node.operations import OperationFailed
from tests.node.model_world import Steps, model_folder, weights

PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix"


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin: Any, end: Any, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


GOOD = {"a": tensor(0, 8), "b": tensor(8, 16), "__metadata__": {"format": "pt"}}
BAD: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01\x02",
    "header beyond the file": struct.pack("<Q", 1 << 40) + b"{}",
    "header of no JSON": safetensors(b"\xff\xfe{"),
    "header that is a list": safetensors([1]),
    "nested too deep": safetensors(b"[" * 100_000),
    "outside the file": safetensors({"a": tensor(0, 8)}, bytes(4)),
    "bytes that are nobody's": safetensors(GOOD, bytes(20)),
    "a hole": safetensors({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)),
    "overlap": safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "backwards": safetensors({"a": tensor(8, 0)}, bytes(8)),
    "negative": safetensors({"a": tensor(-8, 0)}, bytes(8)),
    "another size than its shape": safetensors({"a": tensor(0, 8, (3,))}, bytes(8)),
    "a negative shape": safetensors({"a": tensor(0, 8, (-1, -2))}, bytes(8)),
    "an unknown type": safetensors({"a": tensor(0, 8, dtype="PICKLE")}, bytes(8)),
    "no places": safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "places of no numbers": safetensors({"a": tensor("0", True)}, bytes(8)),
}


def test_a_sound_file_passes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors(GOOD, bytes(16)))
    (tmp_path / "b.safetensors").write_bytes(weights())
    check_files(tmp_path, ["a.safetensors", "b.safetensors"])


@pytest.mark.parametrize("case", BAD)
def test_headers_that_do_not_fit_their_file_are_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(BAD[case])
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        check_file(tmp_path / "a.safetensors", "a.safetensors")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("pytorch_model.bin", weights(), "is a pickle, which can run a program"),
        ("model.PT", weights(), "is a pickle"),
        ("model.safetensors", PICKLE, "is a pickle, whatever its name says"),
        ("model.safetensors", b"PK\x03\x04data.pkl", "is a zip archive, as torch writes pickles in"),
        ("model.gguf", PICKLE, "is a pickle, whatever its name says"),
        ("tokenizer.model", b"\x80\x02}q\x00.", "is a pickle, whatever its name says"),
        ("vocab.txt", b"PK\x03\x04", "is a zip archive"),
        ("model.safetensors", b"GGUF" + bytes(20), "is a GGUF under another name"),
        ("model.gguf", b"GGUF" + b"\xff" * 20, r"model\.gguf cannot be used"),
    ],
)
def test_pickles_are_told_by_name_and_by_content(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=said):
        check_file(tmp_path / name, name)


def test_names() -> None:
    assert all(map(is_pickle_name, ("a.bin", "a.pt", "x/a.pth", "a.ckpt", "a.pkl", "A.PKL", "a.npy")))
    assert not is_pickle_name("a.safetensors")
    assert all(map(is_allowed_name, ("a.safetensors", "b.GGUF", "tokenizer.model", "LICENSE", "x/config.json")))
    assert not any(map(is_allowed_name, ("a.py", "a.so", "a.sh", "run", "a.bin", "a.dll", "a.exe")))


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "x.Y"}}, "auto_map"),
        ("tokenizer_config.json", {"auto_map": {}}, "auto_map"),
        ("part/config.json", {"auto_map": {}}, "auto_map"),
        ("model_index.json", {"_class_name": "X", "unet": ["my_code", "Net"]}, "neither of diffusers"),
        ("config.json", [], "no JSON object"),
    ],
)
def test_programs_that_come_with_a_model_are_refused(tmp_path: Path, name: str, config: Any, said: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        check_config(tmp_path)


def test_a_pipeline_of_the_libraries_own_parts_passes(tmp_path: Path) -> None:
    parts = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "safety_checker": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    check_config(tmp_path)
    assert (kind_of(tmp_path).realm, kind_of(tmp_path).engine) == ("$IMAGINE", "diffusers")


@pytest.mark.parametrize(
    ("config", "realm", "engine"),
    [
        ({"model_type": "llama"}, "$CHAT", "torch-chat"),
        ({"model_type": "whisper"}, "$SPEECH", "whisper"),
        ({"model_type": "vits"}, "$SPEECH", "torch-voice"),
        ({"model_type": "qwen2_vl", "vision_config": {}}, "$VISION", "torch-vision"),
        ({"model_type": "mtor-eyes"}, "$VISION", "vision-composed"),
    ],
)
def test_a_configuration_tells_what_a_model_is_for(
    tmp_path: Path, config: dict[str, Any], realm: str, engine: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (kind_of(tmp_path).realm, kind_of(tmp_path).engine) == (realm, engine)


def test_the_context_is_the_models_own_or_its_text_parts(tmp_path: Path) -> None:
    assert context_of(tmp_path) == 0
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 4096}}')
    assert context_of(tmp_path) == 4_096


# --- cards and reports ---------------------------------------------------------------------------------


def test_a_card_is_safe_to_show() -> None:
    readme = (
        "---\nlicense: apache-2.0\ntags: [x]\n---\n<!-- no -->\n# Title\u202e\n\n\x1b[31mred\x07\u200b\n" + "x\n" * 99
    )
    assert licence_of(readme) == "apache-2.0"
    lines = card_text(readme).splitlines()
    assert lines[:3] == ["# Title", "[31mred", "x"] and len(lines) == 20
    assert printable("a\u2066b\r\nc\td") == "abc\td"
    assert licence_of("license: mit") == "" and card_text("") == ""


async def test_what_is_shown_of_a_model(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    await store.add(model_folder(tmp_path / "mine", readme="---\nlicense: mit\n---\n# Mine\x1b\n"), Steps())
    facts = show(store, "mine")
    assert (facts["name"], facts["licence"], facts["card"]) == ("mine", "mit", "# Mine")
    assert (facts["realm"], facts["engine"], facts["context_tokens"]) == ("$CHAT", "torch-chat", 512)
    assert facts["here"] == str(tmp_path / "mine") and len(facts["digest"]) == 64
    assert [name for name, _ in facts["files"]] == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert facts["fits"].startswith("yes: ") and "MiB" in facts["fits"]
    catalogued = show(store, "smollm2-135m")
    assert catalogued["to_fetch"] == 92_871_040 and "mtor models pull" in catalogued["here"]
    with pytest.raises(ModelError, match="there is no model"):
        show(store, "gpt-9")


async def test_what_an_operator_may_ask(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", {})
    await store.add(model_folder(tmp_path / "mine"), Steps())
    served = {"mine"}
    operations = ModelOperations(store, served.__contains__)
    listed = await operations.list()
    assert [row["name"] for row in listed["models"]] == ["mine"]
    assert listed["partial_bytes"] == 0 and listed["free_bytes"] > 0
    (tmp_path / "mine" / "tokenizer.json").write_text("[1]")
    steps = Steps()
    await operations.verify(steps)
    assert steps.seen[-1]["checked"] == [
        {"name": "mine", "files": 3, "wrong": ("tokenizer.json has 3 bytes instead of 2",)}
    ]
    with pytest.raises(OperationFailed, match="is being served"):
        await operations.remove("mine")
    served.clear()
    assert await operations.remove("mine") == {"removed": "mine"}
