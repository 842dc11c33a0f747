"""Training of tokenflex's adapter. Each module says what it reads and what it gives; README.md tells the order."""

import sys
from pathlib import Path

# The PyTorch reference and the GGUF reader live beside the other tools; nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
