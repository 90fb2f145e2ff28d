"""Draw what a trained model is judged by: samples.png (prompts and what came of them) and loss.png.

Rule: the samples are the first picture of a fixed seed for each prompt; none is chosen.

    python training/emoji/show.py node/engines/builtin/emoji-64
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from PIL import Image, ImageDraw

from node.engines.imagine_emoji import EmojiPainter
from node.engines.port import Data
from protocol.messages import ImagineRequest

SEED = 1
STYLES = ("3d", "flat", "cartoon")
PROMPTS = (
    *("red apple", "green apple", "blue car", "yellow car", "purple heart", "pink butterfly", "cat face", "dog"),
    *("rocket", "pizza", "guitar", "robot", "dragon", "house with garden", "tropical fish", "soccer ball"),
    *("airplane", "crescent moon", "strawberry", "umbrella with rain", "sun with face", "hamburger", "castle", "crown"),
    *("smiling face with heart eyes", "angry red face", "crying face", "blue dragon", "red house", "green robot"),
    *("kittens", "spaceship", "fruit", "sad cat", "tree in the snow", "wizard"),
)
CELL, CAPTION, COLUMNS = 64, 14, 12  # pixels, pixels, prompts a row
CHART = (960, 400)  # pixels


def paint(painter: EmojiPainter, prompt: str) -> Image.Image:
    """One picture, at the size that the model paints."""
    request = ImagineRequest(prompt, "", CELL, CELL, 0, 0, SEED, 0)
    events = painter.answer(request, "", ())
    return Image.open(io.BytesIO(b"".join(event.data for event in events if isinstance(event, Data))))


def samples(painter: EmojiPainter) -> Image.Image:
    """For each prompt its three styles, one below the other."""
    height = len(STYLES) * CELL + CAPTION
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, prompt in enumerate(PROMPTS):
        left, top = index % COLUMNS * CELL, index // COLUMNS * height
        draw.text((left + 1, top + 1), prompt[:10], fill="black")
        for row, style in enumerate(STYLES):
            sheet.paste(paint(painter, f"{style} {prompt}"), (left, top + CAPTION + row * CELL))
    return sheet


def chart(rows: list[tuple[str, int, float]]) -> Image.Image:
    """Each stage's loss, from 0 to its largest, over its steps."""
    image = Image.new("RGB", CHART, "white")
    draw = ImageDraw.Draw(image)
    stages = list(dict.fromkeys(stage for stage, _, _ in rows))
    for number, stage in enumerate(stages):
        points = [(step, loss) for name, step, loss in rows if name == stage]
        left, width = 50 + number * CHART[0] // len(stages), CHART[0] // len(stages) - 70
        most, last, bottom = max(loss for _, loss in points), points[-1][0], CHART[1] - 30
        across = [(left + step / last * width, bottom - loss / most * (bottom - 40)) for step, loss in points]
        draw.rectangle((left, 40, left + width, bottom), outline="gray")
        draw.line(across, fill="blue", width=2)
        draw.text((left, 12), f"{stage}: loss over steps, last {points[-1][1]:.4f}", fill="black")
        draw.text((left - 40, 40), f"{most:.3f}", fill="black")
        draw.text((left - 20, bottom - 10), "0", fill="black")
        draw.text((left + width - 40, bottom + 6), str(last), fill="black")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    samples(EmojiPainter(folder, "cpu", 1, {})).save(folder / "samples.png", optimize=True)
    with (folder / "loss.csv").open() as file:
        rows = [(row["stage"], int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    chart(rows).save(folder / "loss.png", optimize=True)


if __name__ == "__main__":
    main()
