"""Dry runs of tiny models of every architecture, under flags that move single tensors about.

    test-llama-archs -o DIR                                    (of llama.cpp; one tiny GGUF per architecture)
    python tools/truth/tiny_runs.py [--rows 3] DIR/*.gguf       writes tests/data/llama/tiny*.jsonl.gz

Each model gets random tensor types; where the engine takes it with a draft head added, that is another model.
`AUTOFIT_LLAMA_BIN` names the folder of the engine's programs (tests/support/dryrun.py).
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

from autofit.domain.dtypes import GGML_TYPES, GGML_TYPES_BY_NAME
from gguf import GGUFReader, GGUFValueType

from support import ggufs
from support.dryrun import EngineRefusal, dry_run

DATA = ROOT / "tests" / "data" / "llama"
Description = dict[str, Any]
F32 = 0
IDS = {kind.name: number for number, kind in GGML_TYPES.items()}
TYPES = ("q4_0", "q4_K", "q6_K", "q8_0", "mxfp4", "bf16", "f16", "q3_K")
#: llama-server fails to make a context for a head like this one
NO_HEADS = ("glm4", "mimo2", "mistral4")
PATTERNS = (
    r"blk\.0\.=CPU",
    "token_embd=CUDA0",
    "output=CPU",
    "norm=CPU",
    "rope=CPU",
    "token_embd|output=CPU",
    ".*=CPU",
    "ffn_(up|down).*=CPU",
    "nothing=CPU",
    r"blk\.[1-9]\.attn.*=CUDA0",
    r"\.weight$=CUDA0",
)


def describe(path: Path) -> Description:
    """A GGUF file's header in the shape of tests/data/llama/archs."""
    reader = GGUFReader(path)
    kv: list[list[Any]] = []
    for field in reader.fields.values():
        if field.name.startswith("GGUF."):
            continue
        if not field.types:
            continue
        kind = field.types[0]
        if kind == GGUFValueType.ARRAY:
            if len(field.types) == 1:
                continue  # an empty array: its type is lost, and nobody needs it
            item = field.types[1]
            if item == GGUFValueType.STRING:
                kv.append([field.name, "array:str", {"count": len(field.data)}])
            else:
                values = [field.parts[i].tolist()[0] for i in field.data]
                long = len(values) > 600 or field.name.startswith("tokenizer.")
                kv.append([field.name, f"array:{int(item)}", {"count": len(values)} if long else values])
        elif kind == GGUFValueType.STRING:
            kv.append([field.name, "str", bytes(field.parts[field.data[0]]).decode()])
        else:
            kv.append([field.name, int(kind), field.parts[field.data[0]].tolist()[0]])
    tensors = [[t.name, [int(n) for n in t.shape], int(t.tensor_type), 0] for t in reader.tensors]
    return {"kv": kv, "tensors": tensors}


def value_of(description: Description, key: str) -> Any:
    return next((row[2] for row in description["kv"] if row[0] == key), None)


def retype(description: Description, rng: random.Random) -> None:
    """Other types for the matrices, most of them the same one."""
    main = rng.choice(TYPES)
    for tensor in description["tensors"]:
        name, ne = tensor[0], tensor[1]
        plain = name.endswith(".weight") and not re.search("norm|conv|ssm_|ffn_gate_inp", name)
        if len(ne) < 2 or ne[0] < 64 or not plain:
            continue
        kind = GGML_TYPES_BY_NAME[main if rng.random() < 0.7 else rng.choice(TYPES)]
        if ne[0] % kind.block_elements == 0:
            tensor[2] = IDS[kind.name]


def with_draft_head(description: Description, rng: random.Random) -> Description:
    """The model with one more block that drafts, made like the last one with attention."""
    made = copy.deepcopy(description)
    arch = value_of(made, "general.architecture")
    n_layer, n_embd = value_of(made, f"{arch}.block_count"), value_of(made, f"{arch}.embedding_length")
    made["kv"] = [row for row in made["kv"] if row[0] != f"{arch}.nextn_predict_layers"]
    made["kv"].append([f"{arch}.nextn_predict_layers", 4, 1])
    for row in made["kv"]:
        if row[0] == f"{arch}.block_count":
            row[2] = n_layer + 1
        elif isinstance(row[2], list) and len(row[2]) == n_layer and "sections" not in row[0]:
            row[2].append(row[2][-1])
    blocks = [[t for t in made["tensors"] if t[0].startswith(f"blk.{i}.")] for i in range(n_layer)]
    attends = [
        b for b in blocks if any(re.search("attn_(k|qkv|kv)", t[0]) for t in b) and not any("ssm" in t[0] for t in b)
    ]
    prefix = f"blk.{n_layer}."
    for name, ne, kind, _ in (attends or blocks)[-1]:
        if not name.endswith("scale"):
            made["tensors"].append([re.sub(r"^blk\.\d+\.", prefix, name), ne, kind, 0])
    n_vocab = next(t[1][1] for t in made["tensors"] if t[0] == "token_embd.weight")
    made["tensors"] += [
        [f"{prefix}nextn.eh_proj.weight", [2 * n_embd, n_embd], F32, 0],
        [f"{prefix}nextn.enorm.weight", [n_embd], F32, 0],
        [f"{prefix}nextn.hnorm.weight", [n_embd], F32, 0],
    ]
    if rng.random() < 0.7:
        made["tensors"].append([f"{prefix}nextn.shared_head_norm.weight", [n_embd], F32, 0])
    if rng.random() < 0.5:
        made["tensors"].append([f"{prefix}nextn.embed_tokens.weight", [n_embd, n_vocab], F32, 0])
        made["tensors"].append([f"{prefix}nextn.shared_head_head.weight", [n_embd, n_vocab], F32, 0])
    return made


def random_case(rng: random.Random, n_layer: int, *, mtp: bool) -> tuple[str, list[str], list[int]]:
    """Program, its arguments, and the free MiB of its devices."""

    def sometimes(share: float, *words: str) -> list[str]:
        return list(words) if rng.random() < share else []

    memory = [rng.choice((4096, 8192, 12288, 16000, 24576)) for _ in range(rng.choice((1, 1, 2, 3, 4, 8)))]
    program = "llama-server" if mtp else rng.choice(("llama-server", "llama-fit-params"))
    args = ["-c", str(rng.choice((300, 512, 4096, 8192, 33000)))]
    layers = ("99", "99", "99", "0", "1", str(n_layer), str(n_layer - 1), "auto", "all")
    args += ["-ngl", rng.choice(layers)]
    if rng.random() < 0.4:
        shares = [str(rng.choice((0, 1, 2, 3, 0.5, 1.7, 10))) for _ in memory]
        args += ["-ts", ",".join(shares[: rng.choice((len(memory), len(memory) - 1)) or 1])]
    args += ["-fa", rng.choice(("on", "off", "auto"))]
    if rng.random() < 0.5:
        kind = rng.choice(("f16", "q8_0", "q4_0", "bf16", "f32", "q5_1", "iq4_nl"))
        args += ["-ctk", kind, *sometimes(0.7, "-ctv", kind)]
    args += sometimes(0.4, "-ub", str(rng.choice((64, 128, 1024, 4096))))
    args += sometimes(0.3, "-b", str(rng.choice((256, 512, 4096, 8192))))
    if rng.random() < 0.4:
        args += ["-np", str(rng.choice((1, 2, 4, 7)))]
        args += sometimes(0.5, "-kvu") if program == "llama-server" else []
    for share, flag in (
        (0.15, "-nkvo"),
        (0.2, "--swa-full"),
        (0.1, "-cmoe"),
        (0.1, "--no-host"),
        (0.1, "-nr"),
    ):
        args += sometimes(share, flag)
    args += sometimes(0.15, "-ncmoe", "1")
    args += sometimes(0.1, "-ncffn", "1")
    args += sometimes(0.25, "-ot", rng.choice(PATTERNS))
    args += sometimes(0.7, "--spec-type", "draft-mtp") if mtp else []
    return program, args, memory


def run(path: Path, name: str, program: str, args: Sequence[str], memory: list[int]) -> dict[str, Any] | None:
    """One row, with `refused` where the engine says why not; `None` where it fails otherwise."""
    row = {
        "id": hashlib.sha256(json.dumps([name, program, args, memory]).encode()).hexdigest()[:12],
        "api": "cuda",
        "part": "tiny",
        "model": name,
        "program": program,
        "args": list(args),
        "free_mib": memory,
    }
    try:
        found = dry_run([program, "-m", str(path), *args], memory)
    except EngineRefusal as refusal:
        reasons = re.findall(r"llama_init_from_model: (.*)", str(refusal))
        print(name, *args, str(refusal).strip().splitlines()[-1][:160], file=sys.stderr)
        return {**row, "refused": reasons[-1]} if reasons else None
    kinds = ("model", "context", "compute")
    devices = [[device[kind] for kind in kinds] for device in found.devices]
    return {**row, "devices": devices, "host": [found.host[kind] for kind in kinds]}


def rows_of(
    description: Description, name: str, n_rows: int, rng: random.Random, *, mtp: bool
) -> Iterator[dict[str, Any]]:
    arch = value_of(description, "general.architecture")
    with tempfile.TemporaryDirectory() as folder:
        path = ggufs.from_description(description).write(Path(folder) / "model.gguf")
        n_layer = value_of(description, f"{arch}.block_count")
        for _ in range(n_rows):
            row = run(path, name, *random_case(rng, n_layer, mtp=mtp))
            if row is not None:
                yield row


def write(path: Path, lines: Sequence[Any]) -> None:
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    models, rows = [], []
    for file in sorted(options.files):
        rng = random.Random(f"{options.seed} {file.name}")
        plain = describe(file)
        typed = copy.deepcopy(plain)
        retype(typed, rng)
        variants = [(file.stem, typed), (f"{file.stem}+draft", with_draft_head(plain, rng))]
        for name, description in variants:
            drafts = description is not typed and value_of(plain, "general.architecture") not in NO_HEADS
            found = list(rows_of(description, name, options.rows, rng, mtp=drafts))
            if drafts and not any("draft-mtp" in row["args"] for row in found):
                continue
            if found:
                models.append({"name": name, **description})
                rows += found
    write(DATA / "tiny.jsonl.gz", models)
    write(DATA / "tiny_runs.jsonl.gz", rows)
    print(len(models), "models,", len(rows), "rows")


if __name__ == "__main__":
    main()
