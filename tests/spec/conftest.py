"""Makes the helpers beside the specification's tests importable under their plain names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
