"""What tests share: model files, checkpoints, machines and recorded engine figures. Tools and benches use it too."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
TINY = ROOT / "autofit" / "_models" / "tiny.gguf"  #: a complete GGUF file, with weights
