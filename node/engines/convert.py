"""A GGUF to a folder of safetensors, tokenizer and config, which load twenty times faster.

Rule: run as a process of its own, offline; writes to a new folder, and fails rather than write a part.

    python -m node.engines.convert GGUF FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from node.engines.uncompiled import torch  # isort: split

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


def convert(gguf: Path, folder: Path) -> None:
    """Write `folder` from `gguf`, weights in bf16."""
    disable_progress_bar()
    source: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A model that was loaded from a GGUF refuses save_pretrained; a fresh one with its weights does not.
    facts = source.config.to_dict()
    facts.pop("quantization_config", None)
    fresh: Any = type(source)._from_config(type(source.config)(**facts), dtype=torch.bfloat16)
    fresh.load_state_dict(source.state_dict())
    fresh.tie_weights()
    fresh.generation_config = source.generation_config
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def from_sources(sources: Mapping[str, Path], folder: Path) -> None:
    """`convert` for the model store: `sources` is one GGUF by any name."""
    [gguf] = sources.values()
    convert(gguf, folder)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(10)  # half a minute of all cores: what the node answers meanwhile comes first
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
