"""How fast a header is read: ours and `gguf.GGUFReader` side by side, on headers of real size.

    python bench/header.py [--runs N] [--peer-runs N] [FILE ...]

Without files, models are written from the recorded headers (tests/data/llama/models): the real metadata and
tensor tables, as many words as the real vocabularies. Data is a hole, so only the header costs. Both readers
run in this one process, turn by turn, with the file in the page cache; medians of wall time, and their ratio.
A checkpoint of DeepSeek-V3's size (89,707 tensors in 163 safetensors files) is read by ours alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from autofit.readers import read_model
from gguf import GGUFReader

from support import ggufs
from support import safetensor_files as sf

RECORDED = ROOT / "tests" / "data" / "llama" / "models"
MODELS = ("mixtral-8x7b-Q4_K_M", "llama-3.1-8b-Q4_K_M", "gemma-3-4b-Q4_K_M", "gpt-oss-120b-MXFP4_MOE")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--peer-runs", type=int, default=3)
    args = parser.parse_args()
    print(f"{'model':<28} {'strings':>9} {'header':>8} {'ours':>10} {'GGUFReader':>12} {'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for path in args.files or written(Path(folder)):
            compare(path, args.runs, args.peer_runs)
        if not args.files:
            index = write_deepseek(Path(folder) / "deepseek")
            ours = timed(lambda: read_model(index.parent), args.runs)
            print(f"{'DeepSeek-V3, 163 shards':<28} {'':>9} {'':>8} {ours * 1e3:>7.1f} ms")


def compare(path: Path, n_ours: int, n_theirs: int) -> None:
    """One line of the table."""
    ours = timed(lambda: read_model(path), n_ours)
    theirs = timed(lambda: GGUFReader(path), n_theirs)
    metadata = read_model(path).metadata.values()
    n_strings = sum(getattr(v, "count", 0) for v in metadata if getattr(v, "element_type", "") == "str")
    size = read_model(path).tensors[0].offset_bytes / 2**20
    figures = f"{n_strings:>9,} {size:>4.1f} MiB {ours * 1e3:>7.1f} ms {theirs * 1e3:>9.1f} ms"
    print(f"{path.stem:<28} {figures} {theirs / ours:>6.0f} x")


def timed(action: Callable[[], object], runs: int) -> float:
    """The median of its wall times in seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def written(folder: Path) -> Iterator[Path]:
    for name in MODELS:
        description = json.loads(gzip.decompress((RECORDED / f"{name}.json.gz").read_bytes()))
        yield ggufs.from_description(description).write(folder / f"{name}.gguf")


def write_deepseek(folder: Path) -> Path:
    """Names, types and shapes of DeepSeek-V3's checkpoint, but for embeddings and norms; data is a hole."""
    folder.mkdir()
    tensors = {}

    def add(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.weight"] = ("F8_E4M3", (rows, columns))
        tensors[f"{name}.weight_scale_inv"] = ("F32", (-(-rows // 128), -(-columns // 128)))

    for block in range(61):
        prefix = f"model.layers.{block}"
        for part in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
            add(f"{prefix}.self_attn.{part}", 1536, 7168)
        owners = [f"{prefix}.mlp"] if block < 3 else [f"{prefix}.mlp.experts.{i}" for i in range(256)]
        for owner in owners:
            for part in ("gate_proj", "up_proj", "down_proj"):
                add(f"{owner}.{part}", 2048, 7168)
    return sf.write_sharded(folder, tensors, 163)


if __name__ == "__main__":
    main()
