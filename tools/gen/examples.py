"""Make the models that autofit ships as `example:NAME`: descriptions of full-size ones, without weights.

    python tools/gen/examples.py LLAMA_QUANTIZE          write autofit/_models/*.json.gz
    python tools/gen/examples.py LLAMA_QUANTIZE --check  exit 1 if one is not current

The facts of a model (metadata, tensor names and shapes) come from the recorded header of its Q4_K_M file
(tests/data/llama/models). Every weight is set to F16, the header is written as a sparse file, and llama.cpp's
own `llama-quantize --dry-run` says the type of each tensor; the recorded Q4_K_M types must come out of that
again. A chat template is left out: it is text of the model's authors, and weighs nothing. Needs sparse files.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from autofit.domain.dtypes import GGML_TYPES

from support import ggufs

RECORDED = ROOT / "tests" / "data" / "llama" / "models"
TARGET = ROOT / "autofit" / "_models"
FILE_TYPES = {"F16": 1, "Q3_K_M": 12, "Q4_K_M": 15}  # include/llama.h:llama_ftype
EXAMPLES = {
    "mixtral-8x7b": ("Mixtral-8x7B-Instruct-v0.1", ("Q4_K_M", "F16")),
    "mixtral-8x22b": ("Mixtral-8x22B-Instruct-v0.1", ("Q3_K_M", "Q4_K_M")),
    "llama-3.1-8b": ("Meta-Llama-3.1-8B-Instruct", ("Q4_K_M",)),
}
_IDS = {ggml.name: number for number, ggml in GGML_TYPES.items()}
_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*?type = +(\w+), size = [^(]*?(?:\((\w+)\))?$")
_ALIGNMENT = ggufs.Gguf().alignment


def with_types(recorded: dict[str, Any], types: dict[str, int], file_type: int) -> dict[str, Any]:
    """The recorded header with these tensor types, and offsets and sizes that follow from them."""
    kv = [entry for entry in recorded["kv"] if entry[0] != "tokenizer.chat_template"]
    kv = [[key, kind, file_type if key == "general.file_type" else value] for key, kind, value in kv]
    dropped = len(recorded["kv"]) - len(kv)
    header_bytes = recorded["header_bytes"]
    if dropped:
        template = next(value for key, _, value in recorded["kv"] if key == "tokenizer.chat_template")
        header_bytes -= 8 + len("tokenizer.chat_template") + 4 + 8 + len(template.encode())
    tensors, offset = [], 0
    for name, ne, _, _ in recorded["tensors"]:
        ggml = GGML_TYPES[types[name]]
        tensors.append([name, ne, types[name], offset])
        n_bytes = ne[0] // ggml.block_elements * ggml.block_bytes
        for dim in ne[1:]:
            n_bytes *= dim
        offset += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    start = -(-header_bytes // _ALIGNMENT) * _ALIGNMENT
    return {
        "version": 3,
        "header_bytes": header_bytes,
        "file_bytes": start + offset,
        "kv": kv,
        "tensors": tensors,
    }


def dry_run(quantize: str, path: Path, name: str) -> dict[str, int]:
    """The type of each tensor after quantizing the file at `path`, as llama.cpp chooses it."""
    done = subprocess.run([quantize, "--dry-run", str(path), name], capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).splitlines()
    found = [match for match in map(_LINE.fullmatch, map(str.strip, lines)) if match]
    return {match[1]: _IDS[match[3] or match[2]] for match in found}


def make(quantize: str) -> dict[str, bytes]:
    """File name -> content of every example."""
    made = {}
    for stem, (published, wanted) in EXAMPLES.items():
        recorded = json.loads(gzip.decompress((RECORDED / f"{stem}-Q4_K_M.json.gz").read_bytes()))
        f16 = {name: 0 if type_id == 0 else 1 for name, _, type_id, _ in recorded["tensors"]}
        with tempfile.TemporaryDirectory() as folder:
            path = ggufs.from_description(with_types(recorded, f16, 1)).write(Path(folder) / "f16.gguf")
            types = {name: f16 if name == "F16" else dry_run(quantize, path, name) for name in FILE_TYPES}
        if types["Q4_K_M"] != {name: type_id for name, _, type_id, _ in recorded["tensors"]}:
            raise SystemExit(f"{stem}: llama-quantize no longer chooses the recorded Q4_K_M types")
        for name in wanted:
            description = with_types(recorded, types[name], FILE_TYPES[name])
            document = json.dumps({"file": f"{published}-{name}.gguf", **description}, separators=(",", ":"))
            made[f"{stem}-{name.lower()}.json.gz"] = gzip.compress(document.encode(), 9, mtime=0)
    return made


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    made = make(sys.argv[1])
    if "--check" in sys.argv[2:]:
        stale = [
            name
            for name, data in made.items()
            if gzip.decompress((TARGET / name).read_bytes()) != gzip.decompress(data)
        ]
        print(f"not current: {', '.join(stale)}" if stale else "all current")
        return int(bool(stale))
    TARGET.mkdir(exist_ok=True)
    for name, data in made.items():
        (TARGET / name).write_bytes(data)
        print(f"{len(data):>7} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
