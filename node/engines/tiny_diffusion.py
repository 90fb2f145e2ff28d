"""A tiny random Stable Diffusion pipeline, for tests and load drivers.

Rule: the same folder every time (fixed seed), made by code in a second, and loaded by the same path as any other
pipeline. It paints noise; it is never in the catalogue.

    python -m node.engines.tiny_diffusion FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SIDE = 32  # pixels, its default
SEED = 7
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")


def make_tiny_pipeline(folder: Path) -> None:
    """Write a pipeline of about 5 MB to `folder`, which is made if needed."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(SEED)
    make_scheduler: Any = DDIMScheduler
    scheduler = make_scheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    make: Any = StableDiffusionPipeline
    pipeline = make(
        vae=_decoder(),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        unet=_network(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def _vocabulary() -> list[str]:
    """Every byte is a token, and every byte that ends a word."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(f"{letter}</w>" for letter in letters), *SPECIAL_TOKENS]


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    make: Any = CLIPTokenizer
    return make(vocab={token: index for index, token in enumerate(_vocabulary())}, merges=[], model_max_length=77)


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    size = len(_vocabulary())
    make: Any = CLIPTextModel
    return make(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )


def _network() -> Any:
    from diffusers import UNet2DConditionModel

    make: Any = UNet2DConditionModel
    return make(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    )


def _decoder() -> Any:
    from diffusers import AutoencoderKL

    make: Any = AutoencoderKL
    return make(
        block_out_channels=(32, 32),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )


if __name__ == "__main__":
    make_tiny_pipeline(Path(sys.argv[1]))
