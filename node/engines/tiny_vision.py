"""Tiny random vision-language models with a real processor and chat template, for tests and load drivers.

Rule: as `tiny`: the same folder every time, loaded by the same path as any other model; nonsense, never in the
catalogue.

    python -m node.engines.tiny_vision FOLDER [gemma3 | idefics3 | llava | qwen2_vl]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from node.engines.tiny import CONTEXT_TOKENS, SEED, SPECIAL_TOKENS, byte_tokenizer

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_TOKENS,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IDEFICS_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


def make_tiny_idefics(folder: Path) -> None:
    """SmolVLM's architecture: a picture is 4 tokens between 3 control tokens."""
    import transformers

    tokenizer = byte_tokenizer((*SPECIAL_TOKENS, *IDEFICS_TOKENS))
    images = transformers.Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
    )
    template = TEMPLATE.replace("IMAGE", "<image>")
    transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template).save_pretrained(folder)
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        vision_config=VISION,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    _save(transformers.Idefics3ForConditionalGeneration, config, tokenizer, folder)


def make_tiny_llava(folder: Path) -> None:
    """LLaVA's architecture: a picture is 16 tokens."""
    import transformers

    tokenizer = byte_tokenizer((*SPECIAL_TOKENS, "<image>"))
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = TEMPLATE.replace("IMAGE", "<image>")
    make_processor: Any = transformers.LlavaProcessor
    make_processor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **VISION},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    _save(transformers.LlavaForConditionalGeneration, config, tokenizer, folder)


def make_tiny_gemma(folder: Path) -> None:
    """Gemma 3's architecture: the template writes one token, which becomes 4 of another kind that see each other."""
    import transformers

    names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"}
    plain = byte_tokenizer((*SPECIAL_TOKENS, *names.values()))
    make_tokenizer: Any = transformers.PreTrainedTokenizerFast
    tokenizer = make_tokenizer(
        tokenizer_object=plain.backend_tokenizer,
        bos_token=plain.bos_token,
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        extra_special_tokens=names,
    )
    make_processor: Any = transformers.Gemma3Processor
    images = transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    template = TEMPLATE.replace("IMAGE", names["boi_token"])
    make_processor(images, tokenizer, chat_template=template, image_seq_length=4).save_pretrained(folder)
    token = tokenizer.convert_tokens_to_ids
    make_config: Any = transformers.Gemma3Config
    config = make_config(
        text_config={
            "vocab_size": len(tokenizer),
            "head_dim": 16,
            "sliding_window": 64,
            **TEXT,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        image_token_id=token(names["image_token"]),
        boi_token_id=token(names["boi_token"]),
        eoi_token_id=token(names["eoi_token"]),
    )
    _save(transformers.Gemma3ForConditionalGeneration, config, tokenizer, folder)


def make_tiny_qwen(folder: Path) -> None:
    """Qwen2-VL's architecture: a few tokens a picture, positions in three directions. The processor is written file
    by file, because making one wants torchvision."""
    import transformers

    tokenizer = byte_tokenizer((*SPECIAL_TOKENS, *QWEN_TOKENS))
    token = tokenizer.convert_tokens_to_ids
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 56).save_pretrained(folder)
    make_config: Any = transformers.Qwen2VLConfig
    config = make_config(
        text_config={
            "vocab_size": len(tokenizer),
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    _save(transformers.Qwen2VLForConditionalGeneration, config, tokenizer, folder)


def _save(make: Any, config: Any, tokenizer: Any, folder: Path) -> None:
    import torch

    torch.manual_seed(SEED)
    model = make(config)
    with torch.no_grad():
        letters = [tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)]
        model.lm_head.weight *= 0.01  # as in `tiny`: printable letters, far apart
        model.lm_head.weight[letters] *= 2_000
        for name, weight in model.named_parameters():
            if name.endswith("mm_input_projection_weight"):
                weight.normal_()  # Gemma's begins with zeros, and no picture would matter
    model.save_pretrained(folder)


MAKERS = {
    "gemma3": make_tiny_gemma,
    "idefics3": make_tiny_idefics,
    "llava": make_tiny_llava,
    "qwen2_vl": make_tiny_qwen,
}

if __name__ == "__main__":
    MAKERS[sys.argv[2] if len(sys.argv) > 2 else "idefics3"](Path(sys.argv[1]))
