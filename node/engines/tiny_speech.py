"""Tiny speech models with real tokenizers, for tests and load drivers.

Rule: as `tiny`: the same folder every time, loaded by the same path as any other model, never in the catalogue. The
Whisper has heard nothing in its life: whatever it is played, it says what it was made to say (its position embeddings
point at the next token). The voice (VITS) hums.

    python -m node.engines.tiny_speech FOLDER [whisper | vits]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from node.engines.tiny import SEED

WIDTH = 64
POSITIONS = 96  # tokens that the decoder holds: half of them may be said in a window
TIMES = 1_501
END, START = "<|endoftext|>", "<|startoftranscript|>"
TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
SCRIPT = ("<|0.00|>", " Hello.", "<|1.00|>", "<|1.00|>", " Good day.", "<|2.00|>", END)
LETTERS = " abcdefghijklmnopqrstuvwxyz'"


def make_tiny_whisper(folder: Path, languages: Sequence[str] = (), script: Sequence[str] = SCRIPT) -> None:
    """Says `script` to any window: control tokens as they are, and text letter by letter. With `languages` it is
    multilingual and hears the first one."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    tokenizer = _whisper_tokenizer(languages)
    tokenizer.save(str(_made(folder) / "tokenizer.json"))
    end, start = tokenizer.token_to_id(END), tokenizer.token_to_id(START)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=WIDTH,
        decoder_ffn_dim=WIDTH,
        max_target_positions=POSITIONS,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(SEED)
    model: Any = WhisperForConditionalGeneration(config)
    said = [number for piece in script for number in tokenizer.encode(piece, add_special_tokens=False).ids]
    opening = [tokenizer.token_to_id(f"<|{languages[0]}|>"), end] if languages else []
    with torch.no_grad():
        tokens, positions = model.model.decoder.embed_tokens.weight, model.model.decoder.embed_positions.weight
        tokens.normal_()
        for position, number in enumerate([*opening, *said][:POSITIONS]):
            positions[position] = 50.0 * tokens[number]
    model.generation_config.is_multilingual = bool(languages)
    model.generation_config._from_model_config = False  # or it would be made anew when the folder is loaded
    model.save_pretrained(folder)


def make_tiny_vits(folder: Path, speakers: int = 1) -> None:
    """Some milliseconds of noise a letter, at 16 kHz, for small Latin letters."""
    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    vocabulary = {letter: number for number, letter in enumerate(["<pad>", *LETTERS, "<unk>"])}
    (_made(folder) / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    make_tokenizer: Any = VitsTokenizer
    make_tokenizer(str(folder / "vocab.json"), phonemize=False).save_pretrained(folder)
    torch.manual_seed(SEED)
    config = VitsConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=9,
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        upsample_initial_channel=16,
        upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        duration_predictor_filter_channels=16,
        use_stochastic_duration_prediction=False,
    )
    VitsModel(config).save_pretrained(folder)


def _whisper_tokenizer(languages: Sequence[str]) -> Any:
    """Bytes, then control tokens, then times: Whisper's order."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = [END, START, *(f"<|{code}|>" for code in languages), *TASKS]
    times = [f"<|{step * 0.02:.2f}|>" for step in range(TIMES)]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control + times])
    return tokenizer


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


MAKERS: dict[str, Callable[[Path], None]] = {"whisper": make_tiny_whisper, "vits": make_tiny_vits}

if __name__ == "__main__":
    MAKERS[sys.argv[2] if len(sys.argv) > 2 else "whisper"](Path(sys.argv[1]))
