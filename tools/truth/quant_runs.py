"""Truth for tests/golden/test_llama_quants.py out of a real llama-quantize: dry runs on header-only files.

    python tools/truth/quant_runs.py [--rows 6] [--seed 0] > tests/data/llama/quant_runs.jsonl

`AUTOFIT_LLAMA_BIN` names the folder of the engine's programs. Every described model (tests/data/llama) is written as
F16, BF16 or F32 without its data, some with rows of odd lengths, and dry-run under random names and flags. A row holds
the type of every tensor as one letter, in the order of the program's output, or that the program refuses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from autofit_llama.quantization.ftypes import FTYPES
from support import descriptors, ggufs, quant_models
from support.dryrun import VARIABLE

FLAGS: tuple[tuple[str, ...], ...] = (
    (), (), (), ("--pure",), ("--leave-output-tensor",), ("--output-tensor-type", "q8_0"),
    ("--token-embedding-type", "q8_0"), ("--tensor-type", "attn_v=q8_0"),
    ("--tensor-type", r"blk\.(0|2)\.ffn_down=q6_k", "--tensor-type", "ffn_=iq4_nl"),
    ("--tensor-type", "per_layer_token_embd=q8_0", "--token-embedding-type", "q5_0"),
)  # fmt: skip
FIXED = {"--token-embedding-type", "--output-tensor-type"}
_TENSOR = re.compile(
    r"\[ *\d+/ *\d+\] (.+?) +- \[[^\]]*\], type = +(\S+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\S+)\))?"
)
_FALLBACK = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")


def run(path: Path, ftype: str, flags: Sequence[str]) -> dict[str, Any]:
    program = Path(os.environ[VARIABLE]) / "llama-quantize"
    done = subprocess.run(
        [program, "--dry-run", *flags, path, ftype, "1"], capture_output=True, text=True, timeout=300, check=False
    )
    out = done.stdout + done.stderr
    if done.returncode:
        return {"error": out.strip().splitlines()[-2][:200] if done.returncode == 1 else f"exit {done.returncode}"}
    types = [match[3] or match[2] for match in _TENSOR.finditer(out)]
    letters = {name: chr(ord("a") + i) for i, name in enumerate(dict.fromkeys(types))}
    fallback = _FALLBACK.search(out)
    return {
        "legend": list(letters),
        "types": "".join(letters[name] for name in types),
        "needs_imatrix": "will require an imatrix" in out,
        "n_fallback": int(fallback[1]) if fallback else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    models = [(part, name) for part in ("tiny", "models") for name in descriptors.names(part) if "-0000" not in name]
    with tempfile.TemporaryDirectory() as folder:
        for part, name in models:
            rng = random.Random(f"{options.seed} {name}")
            for number in range(options.rows):
                case = {
                    "part": part,
                    "model": name,
                    "source": rng.choice(("f16", "f16", "bf16", "f32")),
                    "widths": rng.randrange(1 << 16) if number % 3 == 2 else None,
                    "ftype": rng.choice(list(FTYPES)),
                    "args": list(rng.choice(FLAGS)),
                }
                if case["widths"] is not None and FIXED & set(case["args"]):
                    continue  # a dry run does not see that the real one aborts (ggml/src/gguf.cpp:gguf_set_tensor_type)
                path = Path(folder) / "model.gguf"
                ggufs.from_description(quant_models.unpacked(case)).write(path)
                print(json.dumps({**case, **run(path, case["ftype"], case["args"])}), flush=True)


if __name__ == "__main__":
    main()
