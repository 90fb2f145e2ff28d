"""A tiny random model with a real tokenizer and chat template, for tests and load drivers.

Rule: the same folder every time (fixed seed), made by code in a second, and loaded by the same path as any other model.
It answers nonsense; it is never in the catalogue.

    python -m node.engines.tiny FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 512
SEED = 7
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tool_call>{% for tool in tools %}{{ tool.function | tojson }}{% endfor %}"
    "<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # as Qwen's and Hermes' teach calls, in short
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_tiny_model(folder: Path, template: str = TEMPLATE) -> None:
    """Write config, safetensors weights and tokenizer to `folder`, which is made if needed."""
    from node.engines.uncompiled import torch  # isort: split

    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        letters = [tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)]
        model.lm_head.weight *= 0.01  # control tokens and bytes that are no text are hardly ever chosen
        model.lm_head.weight[letters] *= 2_000  # printable ones are, and far apart, so that greedy choices are no ties
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer(special_tokens: tuple[str, ...]) -> Any:
    """Byte-level: every byte is a token, so any text round-trips and an emoji takes four tokens. The first special
    token begins a text, the third ends an answer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    make_fast: Any = PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special_tokens, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special_tokens])
    fast = make_fast(
        tokenizer_object=tokenizer,
        bos_token=special_tokens[0],
        eos_token=special_tokens[2],
        pad_token=special_tokens[2],
    )
    fast.chat_template = TEMPLATE
    return fast


if __name__ == "__main__":
    make_tiny_model(Path(sys.argv[1]))
