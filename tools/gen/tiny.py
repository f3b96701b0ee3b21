"""Make the tiny real model that autofit ships as `example:tiny`: llama, random weights, a byte tokenizer.

    python tools/gen/tiny.py [PATH]     write it (autofit/_models/tiny.gguf)

It is complete: llama-server loads it and answers, in nonsense. The same bytes come out on every machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support import ggufs

N_VOCAB = 288


def model() -> ggufs.Gguf:
    return ggufs.llama(
        name="autofit tiny",
        n_layer=2,
        n_embd=128,
        n_head=2,
        n_head_kv=1,
        n_ff=256,
        n_vocab=N_VOCAB,
        n_ctx_train=4096,
        weight_type="q8_0",
        output_type="q8_0",
        metadata={
            "general.file_type": 7,  # include/llama.h:LLAMA_FTYPE_MOSTLY_Q8_0
            "general.quantization_version": 2,
            "general.license": "apache-2.0",
            "general.description": "random weights; made by tools/gen/tiny.py of autofit.",
            **ggufs.byte_vocabulary(N_VOCAB),
        },
    )


def write(path: Path) -> Path:
    return ggufs.write_with_weights(path, model())


if __name__ == "__main__":
    print(write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "autofit" / "_models" / "tiny.gguf"))
