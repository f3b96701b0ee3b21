"""Prints engine.h, by which oracle.cpp fits the llama.cpp source that it is compiled with (b7698 to the newest).

    python engine_header.py LLAMA_CPP_DIR > engine.h

Each line says whether that source has what a newer dry run calls; oracle.cpp says what is done without it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

#: macro -> file below the source, and what stands in it where the engine has it
FEATURES = {
    "ENGINE_HAS_BREAKDOWN": ("src/llama-ext.h", r"\bllama_get_memory_breakdown\("),
    "ENGINE_HAS_LOAD_MODE": ("include/llama.h", r"\bLLAMA_LOAD_MODE_NONE\b"),
    "ENGINE_HAS_OUTPUTS_MAX": ("common/common.h", r"\bn_outputs_max\b"),
    "ENGINE_HAS_OUTPUT_LIMITS": ("common/speculative.h", r"\bcommon_speculative_get_output_limits\("),
    "ENGINE_HAS_N_EXPERT": ("src/llama-ext.h", r"\bllama_model_n_expert\b"),
    "ENGINE_HAS_META": ("ggml/src/ggml-backend-impl.h", r"\bggml_backend_meta_n_backends\b"),
}


def header(source: Path) -> str:
    """The text of engine.h for the llama.cpp in `source`."""
    lines = ["// printed by engine_header.py, not to be edited"]
    for macro, (file, pattern) in FEATURES.items():
        path = source / file
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines.append(f"#define {macro} {int(re.search(pattern, text) is not None)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(header(Path(sys.argv[1])))
