"""Models of a hub: what is chosen, agreed to, checked and refused; cut off and gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.models import ModelError, ModelStore, PullWish
from node.models.reference import parse_hub
from node.models.sources.hub import HubFile, check_digests, chosen_files
from tests.node.model_server import COMMIT, REPO, World, serving
from tests.node.model_world import Steps, left_over, weights

REFERENCE = f"hf:{REPO}"
CARD = b"---\nlicense: mit\n---\n<!-- hidden -->\n# Small\nIt is small.\x1b[2J\n"
LARGE = weights(50_000)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with serving() as world:
        monkeypatch.setenv("HF_ENDPOINT", world.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        world.card = {"license": "mit"}
        world.repo = {
            "README.md": CARD,
            "config.json": b'{"model_type": "llama", "max_position_embeddings": 2048}',
            "tokenizer.json": b"{}",
            "model.safetensors": LARGE,
            "model.fp16.safetensors": weights(8),
            "pytorch_model.bin": b"\x80\x04 a pickle",
            "modeling_small.py": b"raise SystemExit",
            "onnx/model.onnx": b"onnx",
        }
        yield world


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", {})


AGREED = PullWish(agreed=COMMIT)


async def test_the_licence_is_shown_and_agreed_to_first(world: World, store: ModelStore) -> None:
    offer = await store.look(REFERENCE)
    assert (offer.commit, offer.licence, offer.source) == (COMMIT, "mit", f"{REFERENCE}@{COMMIT}")
    assert offer.card == "# Small\nIt is small.[2J"
    assert {file.name for file in offer.files} == {"README.md", "config.json", "tokenizer.json", "model.safetensors"}
    assert offer.bytes == sum(len(world.repo[file.name]) for file in offer.files)
    with pytest.raises(ModelError, match=r"licence mit; agree to it first .*--yes"):
        await store.pull(REFERENCE, Steps())
    assert world.ranges("/model.safetensors") == []


async def test_a_model_comes_at_its_commit(world: World, store: ModelStore) -> None:
    steps = Steps()
    assert await store.pull(f"{REFERENCE}@main", steps, AGREED) == "Small-Model"
    manifest, folder = store.manifest("Small-Model")
    assert manifest.about.source == f"{REFERENCE}@{COMMIT}"
    assert (manifest.about.licence, manifest.context_tokens) == ("mit", 2_048)
    assert (manifest.about.realm, manifest.about.engine) == ("$CHAT", "torch-chat")
    assert set(manifest.files) == {"README.md", "config.json", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == {*manifest.files, "manifest.json"}
    assert steps.names == ["fetch", "verify"] and steps.seen[-1]["done_bytes"] == steps.seen[-1]["total_bytes"]
    assert left_over(store) == ["Small-Model"] and store.check("Small-Model").wrong == ()
    again = Steps()
    await store.pull(REFERENCE, again, AGREED)
    assert again.names == ["verify"]


async def test_a_dropped_connection_is_gone_on_with(world: World, store: ModelStore) -> None:
    world.repo["model.safetensors"] = weights(3 << 20)
    world.drop_after = [11 << 20]
    await store.pull(REFERENCE, Steps(), AGREED)
    assert world.ranges("/model.safetensors") == [None, f"bytes={10 << 20}-"]  # the library writes 10 MiB at a time
    assert store.check("Small-Model").wrong == ()


async def test_a_file_that_is_not_what_the_hub_says_is_refused(world: World, store: ModelStore) -> None:
    world.stated = {"tokenizer.json": "0" * 40}
    with pytest.raises(ModelError, match=r"tokenizer.json is not what the hub says"):
        await store.pull(REFERENCE, Steps(), AGREED)
    assert store.names() == ()
    world.stated = {}
    await store.pull(REFERENCE, Steps(), AGREED)
    assert world.ranges("/model.safetensors") == [None]  # what was right is not fetched again


def test_large_files_are_compared_by_their_sha256(tmp_path: Path) -> None:
    files = (HubFile("model.safetensors", len(LARGE), "0" * 64, ""),)
    (tmp_path / "model.safetensors").write_bytes(LARGE)
    with pytest.raises(ModelError, match=r"model.safetensors is not what the hub says"):
        check_digests(files, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


async def test_a_program_that_comes_with_a_model_is_refused_before_its_weights(world: World, store: ModelStore) -> None:
    world.repo["config.json"] = b'{"auto_map": {"AutoModelForCausalLM": "modeling_small.Small"}}'
    with pytest.raises(ModelError, match="auto_map"):
        await store.look(REFERENCE)
    assert world.ranges("/model.safetensors") == [] and store.names() == ()


async def test_damaged_weights_are_refused_whatever_the_hub_says(world: World, store: ModelStore) -> None:
    world.repo["model.safetensors"] = LARGE[:-4]
    with pytest.raises(ModelError, match="cut off or damaged"):
        await store.pull(REFERENCE, Steps(), AGREED)
    assert left_over(store) == []


async def test_what_the_hub_does_not_have_is_said(world: World, store: ModelStore) -> None:
    with pytest.raises(ModelError, match="has no such revision"):
        await store.look(f"{REFERENCE}@nowhere")
    with pytest.raises(ModelError, match="the hub has no model garden/other"):
        await store.look("hf:garden/other")


async def test_no_hub_at_all_is_said(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="the hub cannot be used"):
        await store.look(REFERENCE)


# --- what is chosen ------------------------------------------------------------------------------------


def files(*names: str) -> list[HubFile]:
    return [HubFile(name, 1_000_000, "0" * 64, "") for name in names]


def chosen(names: list[HubFile], file: str = "") -> set[str]:
    return {each.name for each in chosen_files(names, file)}


def test_a_pipeline_takes_its_parts_and_one_variant_of_each() -> None:
    pipeline = files(
        "model_index.json",
        "README.md",
        "sd.safetensors",
        "unet/config.json",
        "unet/model.safetensors",
        "unet/model.fp16.safetensors",
        "unet/model.bin",
        "unet/deeper/model.safetensors",
        "vae/model.fp16.safetensors",
        "../vae/config.json",
        ".git/config.json",
    )
    assert chosen(pipeline) == {
        "model_index.json",
        "README.md",
        "unet/config.json",
        "unet/model.safetensors",
        "vae/model.fp16.safetensors",
    }


def test_weights_in_parts_are_taken_once() -> None:
    parts = files("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = files("model.safetensors.index.json", "config.json", "tokenizer.model")
    assert chosen([*parts, *index, *files("consolidated.safetensors")]) == {each.name for each in [*parts, *index]}


def test_one_gguf_of_many_is_chosen_by_name() -> None:
    many = files("README.md", "a.Q4.gguf", "a.Q8.gguf")
    assert chosen(many, "a.Q8.gguf") == {"README.md", "a.Q8.gguf"}
    with pytest.raises(ModelError, match=r"choose one.*a.Q4.gguf \(1 MB\), a.Q8.gguf"):
        chosen(many)
    with pytest.raises(ModelError, match=r"no b.gguf there; there are: a.Q4.gguf"):
        chosen(many, "b.gguf")


def test_pickles_alone_are_no_model() -> None:
    with pytest.raises(ModelError, match="only pickles"):
        chosen(files("config.json", "pytorch_model.bin"))
    with pytest.raises(ModelError, match="no weights"):
        chosen(files("config.json"))


@pytest.mark.parametrize("text", ["hf:name", "hf:a/b/c", "hf:a/b:c.bin", "hf:a/../b", "hf:a/b@", "hf:a b/c", "hf:"])
def test_what_is_no_reference_to_a_hub(text: str) -> None:
    with pytest.raises(ModelError, match="is not hf:OWNER/NAME"):
        parse_hub(text)


def test_references_and_the_names_they_suggest() -> None:
    found = parse_hub("hf:org/Model-GGUF@v1.0:sub/Model Q4.gguf")
    assert (found.repo, found.revision, found.file) == ("org/Model-GGUF", "v1.0", "sub/Model Q4.gguf")
    assert found.name == "Model-Q4" and parse_hub("hf:org/Model").name == "Model"
