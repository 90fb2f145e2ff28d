"""An engine starts without torch's compiler, which is there for who asks for it."""

import subprocess
import sys
from pathlib import Path

from node.engines.tiny import make_tiny_model

PROGRAM = """
import sys
from pathlib import Path
from node.engines.chat_model import ChatModel
from node.engines.uncompiled import StandIn, torch

model = ChatModel(Path(sys.argv[1]), "cpu", 1)
assert isinstance(sys.modules["torch._dynamo"], StandIn)
assert "torch.distributed.tensor" not in sys.modules

import torch._dynamo.config
from transformers.masking_utils import TransformGetItemToIndex

with TransformGetItemToIndex():
    assert torch.arange(5)[torch.tensor(3)] == 3
assert not isinstance(sys.modules["torch._dynamo"], StandIn)
assert torch.compile(lambda number: number + 1, backend="eager")(torch.tensor(2)) == 3
print("done")
"""


def test_the_compiler_is_loaded_when_it_is_wanted(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "tiny")
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "tiny")], capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.returncode) == ("done\n", 0), ended.stderr
