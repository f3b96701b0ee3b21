"""Headers over HTTP: requests, bytes and seconds for ten repositories, from a server like the Hub in its own process.

    python bench/remote.py [--delay-ms 30] [--runs 3] [--peers] [NAME ...]

Repositories are trees of real shapes: GGUF headers as recorded (tests/data/llama/models) with as many words as the real
vocabularies, and checkpoints with the names and shapes of the published ones; weights are holes. Each figure is a fresh
process that reads the model, its imports included, the best of some: nothing kept, then kept, offline. `--peers` adds
`huggingface_hub.get_safetensors_metadata` on the same server, and `gguf.GGUFReader` on the file on disk, once each.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import checkpoints
from support import ggufs
from support.hub_server import Handler, Hub, content_of, serve

RECORDED = ROOT / "tests" / "data" / "llama" / "models"
SPLIT = [f"gpt-oss-120b-split-MXFP4_MOE-{number:05d}-of-00003" for number in (1, 2, 3)]
GGUF = ["llama-2-7b-Q4_K_M", "llama-3.1-8b-Q4_K_M", "gemma-3-4b-Q4_K_M", "qwen3-30b-a3b-Q4_K_M", "llama-4-scout-Q4_K_M",
        "llama-3.1-405b-Q3_K_M"]  # fmt: skip
CHECKPOINTS = ["llama3-8b", "deepseek-v3", "deepseek-v3-bf16"]
OURS = "from autofit.references import find; m = find({name!r}).model; assert m.layers"
THEIRS = "from huggingface_hub import get_safetensors_metadata as g; assert g({name!r}).weight_map"
LOCAL = "from gguf import GGUFReader; assert GGUFReader({path!r}).tensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--delay-ms", type=float, default=30.0, help="before each answer")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = dict(written(Path(folder), args.names))
        parent, child = multiprocessing.Pipe()
        process = multiprocessing.Process(target=run_server, args=(trees, args.delay_ms / 1e3, child), daemon=True)
        process.start()
        url = parent.recv()
        print(
            f"{'repository':<26} {'files':>8} {'requests':>8} {'MB':>6} {'s':>6} {'CPU s':>6} {'kept':>6} {'CPU s':>6}"
        )
        for name, tree in trees.items():
            figures = row(name, tree, url, Path(folder), args.runs)
            print(f"{figures}  {beside(name, tree, url, Path(folder)) if args.peers else ''}".rstrip(), flush=True)
        process.terminate()


def row(name: str, tree: Mapping[str, Path], url: str, folder: Path, runs: int) -> str:
    """One line of the table."""
    size = sum(path.stat().st_size for path in tree.values())
    ours, first = OURS.format(name=f"hf:bench/{name}"), []
    for number in range(runs):
        cache = folder / "cache" / f"{name}-{number}"
        reset(url)
        first.append(timed(ours, url, cache))
        n_requests, n_bytes = reset(url)
    kept = [timed(ours, url, cache, **extra) for extra in ({}, {"HF_HUB_OFFLINE": "1"}) for _ in range(runs)]
    assert reset(url) == (0, 0), "what is kept needs no network"
    times = " ".join(f"{min(each):>6.2f}" for several in (first, kept) for each in zip(*several, strict=True))
    return f"{name:<26} {size / 1e9:>5.0f} GB {n_requests:>8} {n_bytes / 1e6:>6.2f} {times}"


def beside(name: str, tree: Mapping[str, Path], url: str, folder: Path) -> str:
    """What another reader takes."""
    if any(path.endswith(".gguf") for path in tree):
        seconds, cpu = timed(LOCAL.format(path=str(next(iter(tree.values())))), url, folder)
        return f"GGUFReader, on disk: {seconds:.2f} s, CPU {cpu:.2f} s"
    reset(url)
    try:
        seconds, cpu = timed(THEIRS.format(name=f"bench/{name}"), url, folder / "theirs")
    except subprocess.CalledProcessError:
        return "huggingface_hub is not here"
    n_requests, n_bytes = reset(url)
    return f"get_safetensors_metadata: {n_requests} requests, {n_bytes / 1e6:.2f} MB, {seconds:.2f} s, CPU {cpu:.2f} s"


def timed(code: str, url: str, cache: Path, **environ: str) -> tuple[float, float]:
    """Seconds of a process that runs `code` as a user of this server with this cache: passed, and on a processor."""
    own = {"HF_ENDPOINT": url, "XDG_CACHE_HOME": str(cache), "HF_HOME": str(cache / "hf"), "PYTHONPATH": str(ROOT)}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LLAMA_"))}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env={**clean, **own, **environ}, check=True, stderr=subprocess.DEVNULL)
    passed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def reset(url: str) -> tuple[int, int]:
    """Requests and bytes since the last time."""
    with urllib.request.urlopen(f"{url}/stats") as answer:
        n_requests, n_bytes = json.load(answer)
    return n_requests, n_bytes


def run_server(trees: Mapping[str, Mapping[str, Path]], delay_s: float, connection: Any) -> None:
    hub = Hub(delay_s=delay_s)
    for name, tree in trees.items():
        hub.repositories[f"bench/{name}"] = {path: content_of(file) for path, file in tree.items()}

    def stats(handler: Handler) -> bool:
        asked = [request for request in hub.requests if request.path != "/stats"]
        hub.requests.clear()
        handler.reply(200, json.dumps([len(asked), sum(request.sent_bytes for request in asked)]).encode())
        return True

    hub.when("^/stats$", stats)
    with serve(hub):
        connection.send(hub.url)
        time.sleep(3600)


def written(folder: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Path]]]:
    """Repositories with their files."""
    for name in GGUF:
        if not names or name in names:
            yield name, {f"{name}.gguf": write_gguf(name, folder / f"{name}.gguf")}
    if not names or "gpt-oss-120b-split" in names:
        yield "gpt-oss-120b-split", {f"{name}.gguf": write_gguf(name, folder / f"{name}.gguf") for name in SPLIT}
    for name in CHECKPOINTS:
        if not names or name in names:
            yield name, {path.name: path for path in sorted(write_checkpoint(name, folder).iterdir())}


def write_gguf(name: str, path: Path) -> Path:
    description = json.loads(gzip.decompress((RECORDED / f"{name}.json.gz").read_bytes()))
    return ggufs.from_description(description).write(path)


def write_checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint; `-bf16` has the same tensors in 16 bits: 1.3 TB."""
    plain = name.removesuffix("-bf16")
    if plain != name:
        checkpoints.BITS["F8_E4M3"] = 16
    made = checkpoints.write_checkpoint(plain, folder / name)
    if plain != name:
        checkpoints.BITS["F8_E4M3"] = 8
        for path in made.glob("*.safetensors"):
            with path.open("r+b") as file:  # the types are of the same length with a space
                head = file.read(1 << 20)
                file.seek(0)
                file.write(head.replace(b'"F8_E4M3"', b'"BF16"   '))
    return made


if __name__ == "__main__":
    main()
