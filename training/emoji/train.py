"""Train the emoji model on the set that prepare.py made, and export it.

Rule: every draw comes from a seed and a step's number, so a run that was stopped and resumed equals one that was not,
on the same machine with the same number of threads.

    python training/emoji/train.py SET RUN --decoder-steps 3000 --flow-steps 20000
    python training/emoji/train.py SET RUN --export node/engines/builtin/emoji-64

RUN holds the checkpoints and loss.csv; a second call goes on where the first stopped. Two stages: the decoder
learns to draw a picture from its principal components, then the flow learns those from words (see
node/engines/emoji_network.py).
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from safetensors.torch import save_file
from torch import Tensor, nn

from node.engines.emoji_network import EmojiNetwork, Shape, pack

SEED = 20_261_123
STYLES = ("flat", "cartoon", "3d")
DEFAULT_STYLE = "3d"  # where neither prompt nor option names one
DECODER_BATCH, DECODER_RATE = 32, 1.5e-3
FLOW_BATCH, FLOW_RATE = 256, 1.5e-3
WARM_UP = 200  # steps over which the rate rises
LATENT_NOISE = 0.2  # the decoder forgives a flow that misses a little
AVERAGE = 0.999  # of the weights that are kept, a step (moving average of the flow)
WORDS_SEEN = 12  # words of one caption at most
CHECKPOINT_EVERY, LOG_EVERY = 500, 100  # steps

# Shares of the draws. People and signs are many and alike; recoloured pictures teach colours, not shapes.
PEOPLE, SIGNS = 1, 8  # groups of emojibase
WEIGHT_PEOPLE, WEIGHT_SIGNS, WEIGHT_RECOLOURED = 0.5, 0.4, 0.1


@dataclass(frozen=True)
class Pictures:
    """The training set: pixels (N, 64, 64, 3) uint8, latents (N, latent), captions and odds of being drawn."""

    pixels: np.ndarray[Any, Any]
    captions: list[dict[str, Any]]
    latents: Tensor
    basis: Tensor
    mean: Tensor
    odds: Tensor

    def images(self, indices: Tensor) -> Tensor:
        """(B, 3, 64, 64), -1 to 1."""
        return torch.from_numpy(self.pixels[indices.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def load(folder: Path, latent: int) -> Pictures:
    """Read the set and find its principal components at 32 x 32."""
    pixels = np.load(folder / "pictures.npy")
    captions = json.loads((folder / "captions.json").read_text())
    parts = [
        functional.avg_pool2d(torch.from_numpy(pixels[at : at + 2048]).permute(0, 3, 1, 2).float() / 127.5 - 1.0, 2)
        for at in range(0, len(pixels), 2048)
    ]
    coarse = torch.cat(parts).flatten(1)
    odds = torch.tensor([weight(caption) for caption in captions])
    mean = (coarse * odds[:, None]).sum(0) / odds.sum()
    centred = coarse - mean
    values, vectors = torch.linalg.eigh((centred * odds[:, None]).T @ centred / odds.sum())
    kept, directions = values.flip(0)[:latent], vectors.flip(1)[:, :latent]
    share = kept.sum() / values.sum()
    print(f"{len(captions)} pictures; {latent} components hold {share:.3f} of their variance", flush=True)
    # A coordinate is divided by the root of its deviation, then all by one number that makes their mean variance 1.
    scales = kept.sqrt().sqrt()
    scales = scales * (kept / scales**2).mean().sqrt()
    return Pictures(pixels, captions, (centred @ directions) / scales, directions.T * scales[:, None], mean, odds)


def weight(caption: dict[str, Any]) -> float:
    """The odds of drawing this picture."""
    by_group = {PEOPLE: WEIGHT_PEOPLE, SIGNS: WEIGHT_SIGNS}.get(caption["group"], 1.0)
    return by_group * (WEIGHT_RECOLOURED if caption["recoloured"] else 1.0)


def vocabulary(captions: Iterable[dict[str, Any]]) -> list[str]:
    """All words of all captions, sorted."""
    words: set[str] = set()
    for caption in captions:
        words.update(caption["label"], *caption["tags"], [caption["colour"]] if caption["colour"] else [])
    return sorted(words)


def spoken(caption: dict[str, Any], random: Random) -> list[str]:
    """One way to say the caption; sometimes nothing, which teaches the unguided picture."""
    draw, tags = random.random(), caption["tags"]
    if draw < 0.1:
        return []
    some = [word for tag in random.sample(tags, min(len(tags), random.randint(1, 2))) for word in tag]
    words = caption["label"] if draw < 0.55 or not tags else caption["label"] + some if draw < 0.75 else some
    words = [word for word in words if random.random() > 0.05]
    if caption["colour"] and (caption["recoloured"] or random.random() < 0.25):
        words = [caption["colour"], *words]
    return list(dict.fromkeys(words))


def encode(phrases: list[list[str]], known: dict[str, int]) -> Tensor:
    """(B, WORDS_SEEN) indices, 0 for none."""
    out = torch.zeros(len(phrases), WORDS_SEEN, dtype=torch.long)
    for row, words in zip(out, phrases, strict=True):
        indices = [known[word] for word in words][:WORDS_SEEN]
        row[: len(indices)] = torch.tensor(indices, dtype=torch.long)
    return out


@dataclass
class Run:
    """What one training is made of; saved and loaded as a whole."""

    folder: Path
    pictures: Pictures
    words: list[str]
    network: EmojiNetwork
    average: dict[str, Tensor]  # of the flow's weights, moving

    def decoder_loss(self, generator: torch.Generator, step: int) -> Tensor:
        chosen = torch.multinomial(self.pictures.odds, DECODER_BATCH, replacement=True, generator=generator)
        wanted, latents = self.pictures.images(chosen), self.pictures.latents[chosen]
        latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drawn: Tensor = self.network.decoder(latents).float()
        # Edges count a second time: a plain L1 loss draws them soft.
        across = (drawn.diff(dim=3) - wanted.diff(dim=3)).abs().mean()
        down = (drawn.diff(dim=2) - wanted.diff(dim=2)).abs().mean()
        loss: Tensor = (drawn - wanted).abs().mean() + 0.5 * (across + down)
        return loss

    def flow_loss(self, generator: torch.Generator, step: int) -> Tensor:
        chosen = torch.multinomial(self.pictures.odds, FLOW_BATCH, replacement=True, generator=generator)
        random = Random(SEED + step)
        captions = [self.pictures.captions[index] for index in chosen.tolist()]
        known = {word: index for index, word in enumerate(self.words, start=1)}
        words = encode([spoken(caption, random) for caption in captions], known)
        styles = torch.tensor([0 if random.random() < 0.1 else 1 + STYLES.index(c["style"]) for c in captions])
        clean = self.pictures.latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        moment = torch.rand(FLOW_BATCH, generator=generator)
        mixed = (1 - moment)[:, None] * noise + moment[:, None] * clean
        with torch.autocast("cpu", dtype=torch.bfloat16):
            velocity = self.network.flow(mixed, moment, words, styles)
        return functional.mse_loss(velocity.float(), clean - noise)

    @torch.no_grad()
    def follow(self) -> None:
        """The moving average of the flow's weights: what is exported."""
        for name, tensor in self.network.flow.state_dict().items():
            self.average[name].lerp_(tensor, 1 - AVERAGE)


def rate_at(step: int, steps: int, top: float) -> float:
    """Rises over WARM_UP steps, then falls to a fiftieth along a half cosine."""
    fall = 0.5 * (1 + float(np.cos(np.pi * step / steps)))
    return top * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * fall)


def stage(
    run: Run,
    name: str,
    part: nn.Module,
    loss_of: Callable[[torch.Generator, int], Tensor],
    steps: int,
    top: float,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Train `part` up to `steps`, from its last checkpoint."""
    optimizer = torch.optim.AdamW(part.parameters(), top, betas=(0.9, 0.98), weight_decay=0.01)
    path = run.folder / f"{name}.pt"
    step = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        part.load_state_dict(saved["part"])
        optimizer.load_state_dict(saved["optimizer"])
        run.average.update(saved["average"])
        step = saved["step"]
    started, spent, total = time.monotonic(), time.process_time(), 0.0
    while step < steps:
        generator = torch.Generator().manual_seed(SEED + step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, top)
        loss = loss_of(generator, step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        after()
        step += 1
        total += float(loss.detach())
        if step % LOG_EVERY == 0:
            log(run.folder, name, step, total / LOG_EVERY, time.process_time() - spent, time.monotonic() - started)
            total = 0.0
        if step % CHECKPOINT_EVERY == 0 or step == steps:
            state = {
                "part": part.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": run.average,
                "step": step,
            }
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)


def log(folder: Path, name: str, step: int, loss: float, cpu_seconds: float, seconds: float) -> None:
    """One line of loss.csv and of the screen. The times count from the start of this call."""
    print(f"{name} step {step} loss {loss:.4f} cpu {cpu_seconds:.0f} s wall {seconds:.0f} s", flush=True)
    path = folder / "loss.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(("stage", "step", "loss"))
        writer.writerow((name, step, f"{loss:.5f}"))


def export(run: Run, out: Path) -> None:
    """Write model.safetensors and config.json."""
    out.mkdir(parents=True, exist_ok=True)
    state = {f"flow.{name}": tensor for name, tensor in run.average.items()}
    state |= {f"decoder.{name}": tensor for name, tensor in run.network.decoder.state_dict().items()}
    save_file(pack(state), out / "model.safetensors", metadata={"format": "mtor-emoji-1"})
    (out / "model.safetensors").chmod(0o644)  # made private by the library; it is not
    shape = Shape(words=len(run.words), styles=len(STYLES))
    config = {
        "format": "mtor-emoji-1",
        "name": "emoji-64",
        "shape": asdict(shape),
        "styles": STYLES,
        "style": DEFAULT_STYLE,
        "words": run.words,
    }
    shutil.copy(run.folder / "loss.csv", out / "loss.csv")
    (out / "config.json").write_text(json.dumps(config, separators=(",", ":")) + "\n")
    print(f"{(out / 'model.safetensors').stat().st_size} bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--decoder-steps", type=int, default=0)
    parser.add_argument("--flow-steps", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    arguments.run.mkdir(parents=True, exist_ok=True)
    captions = json.loads((arguments.set / "captions.json").read_text())
    words = vocabulary(captions)
    shape = Shape(words=len(words), styles=len(STYLES))
    network = EmojiNetwork(shape)
    pictures = load(arguments.set, shape.latent)
    network.decoder.basis.copy_(pictures.basis)
    network.decoder.mean.copy_(pictures.mean)
    average = {name: tensor.clone() for name, tensor in network.flow.state_dict().items()}
    run = Run(arguments.run, pictures, words, network, average)
    print({name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}, flush=True)
    decoder: Any = network.decoder
    decoder.to(memory_format=torch.channels_last)  # faster on CPUs
    stage(run, "decoder", decoder, run.decoder_loss, arguments.decoder_steps, DECODER_RATE)
    stage(run, "flow", network.flow, run.flow_loss, arguments.flow_steps, FLOW_RATE, run.follow)
    if arguments.export:
        export(run, arguments.export)


if __name__ == "__main__":
    main()
