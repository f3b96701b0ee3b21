"""Headers over HTTP: requests, bytes and seconds for ten repositories, from a server like the Hub in its own process.

    python bench/remote.py [--delay-ms 30] [--runs 3] [--peers [FOLDER]] [--alone] [NAME ...]

Repositories are trees of real shapes: GGUF headers as recorded (tests/data/llama/models) with as many words as the real
vocabularies, and checkpoints with the names and shapes of the published ones; weights are holes. Each figure is a fresh
process that reads the model, its imports included, the best of some: nothing kept, then kept, offline; the seconds that
the server computes are beside it. `--alone` gives all of them real-time priority, so that other work on the machine
does not count (it needs root).

`--peers` adds other readers on the same server, once each: `huggingface_hub.get_safetensors_metadata`, hf-mem,
llama-mdl, `node-llama-cpp inspect gguf`, and `gguf.GGUFReader` on the file on disk. They are taken from FOLDER, where
it has `bin/python` (a virtual environment) and `node_modules`; else from this Python and the search path.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
HF_MEM = """
import os, sys, httpx2
send = httpx2.AsyncClient.send
async def elsewhere(self, request, **rest):  # it knows one hub only
    if request.url.host == "huggingface.co":
        there = httpx2.URL(os.environ["HF_ENDPOINT"])
        request.url = request.url.copy_with(scheme=there.scheme, host=there.host, port=there.port)
        request.headers["Host"] = there.netloc.decode()
    return await send(self, request, **rest)
httpx2.AsyncClient.send = elsewhere
from hf_mem.cli import main
sys.argv = ["hf-mem", "--model-id", {name!r}, "--json-output"]
main()
"""
#: reader -> (what it reads, code or command); {name}: of the repository, {url}: of its first file, {path}: on disk
PEERS: dict[str, tuple[str, str | list[str]]] = {
    "get_safetensors_metadata": (
        ".safetensors",
        "from huggingface_hub import get_safetensors_metadata as g; assert g({name!r}).weight_map",
    ),
    "hf-mem": (".gguf .safetensors", HF_MEM),
    "llama-mdl": (
        ".gguf",
        "import sys; from mdl import main; sys.argv[1:] = ['fit', 'inspect', 'hf:' + {name!r}]; main()",
    ),
    "node-llama-cpp": (".gguf", ["node-llama-cpp", "inspect", "gguf", "--plainJson", "{url}"]),
    "GGUFReader, on disk": (".gguf", "from gguf import GGUFReader; GGUFReader({path!r}).tensors"),
}


class Cost(NamedTuple):
    """What a run took. `server_s` are seconds that the server computed for it."""

    wall_s: float
    cpu_s: float
    n_requests: int = 0
    n_bytes: int = 0
    server_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--delay-ms", type=float, default=30.0, help="before each answer")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", nargs="?", const="", metavar="FOLDER")
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = dict(written(Path(folder), args.names))
        if args.alone:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
        parent, child = multiprocessing.Pipe()
        process = multiprocessing.Process(target=run_server, args=(trees, args.delay_ms / 1e3, child), daemon=True)
        process.start()
        url = parent.recv()
        print(f"{'repository':<26} {'files':>8} {'requests':>8} {'MB':>6} {'s':>6} {'CPU s':>6} {'server':>6} ", end="")
        print(f"{'kept':>6} {'CPU s':>6}")
        for name, tree in trees.items():
            print(row(name, tree, url, Path(folder), args.runs), flush=True)
            for line in beside(name, tree, url, Path(folder), args.peers) if args.peers is not None else ():
                print(line, flush=True)
        process.terminate()


def row(name: str, tree: Mapping[str, Path], url: str, folder: Path, runs: int) -> str:
    """One line of the table."""
    size = sum(path.stat().st_size for path in tree.values())
    ours, first = [sys.executable, "-c", OURS.format(name=f"hf:bench/{name}")], []
    for number in range(runs):
        cache = folder / "cache" / f"{name}-{number}"
        first.append(cost(ours, url, cache))
    kept = [cost(ours, url, cache, **extra) for extra in ({}, {"HF_HUB_OFFLINE": "1"}) for _ in range(runs)]
    assert not any(each.n_requests for each in kept), "what is kept needs no network"
    best, again = min(first), min(kept)
    return (
        f"{name:<26} {size / 1e9:>5.0f} GB {best.n_requests:>8} {best.n_bytes / 1e6:>6.2f} {best.wall_s:>6.2f} "
        f"{min(each.cpu_s for each in first):>6.2f} {best.server_s:>6.2f} {again.wall_s:>6.2f} {again.cpu_s:>6.2f}"
    )


def beside(name: str, tree: Mapping[str, Path], url: str, folder: Path, home: str) -> Iterator[str]:
    """What other readers take: a line each."""
    first = min(tree)
    known = {"name": f"bench/{name}", "url": f"{url}/bench/{name}/resolve/main/{first}", "path": str(tree[first])}
    kinds = {Path(path).suffix for path in tree}
    for peer, (reads, what) in PEERS.items():
        if not kinds & set(reads.split()):
            continue
        command = peer_command(what, home, known)
        try:
            found = cost(command, url, folder / "theirs" / peer) if command else None
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").splitlines()
            cause = next((line for line in reversed(said) if "Error" in line), "it fails")
            yield f"  {peer:<33} {'not installed' if 'No module named' in cause else cause[:80]}"
            reset(url)
            continue
        if found is None:
            yield f"  {peer:<33} not installed"
        else:
            yield (
                f"  {peer:<33} {found.n_requests:>8} {found.n_bytes / 1e6:>6.2f} {found.wall_s:>6.2f} "
                f"{found.cpu_s:>6.2f} {found.server_s:>6.2f}"
            )


def peer_command(what: str | list[str], home: str, known: Mapping[str, str]) -> list[str] | None:
    """The command of a peer; `None`: it is not here."""
    if isinstance(what, str):
        python = Path(home) / "bin" / "python" if home else Path(sys.executable)
        code = what.replace("{name!r}", repr(known["name"])).replace("{path!r}", repr(known["path"]))
        return [str(python), "-c", code] if python.is_file() else None
    places = os.pathsep.join([str(Path(home) / "node_modules" / ".bin")] if home else []) or None
    program = shutil.which(what[0], path=places)
    return [program, *(word.format(**known) for word in what[1:])] if program else None


def cost(command: list[str], url: str, cache: Path, **environ: str) -> Cost:
    """What a process takes that runs `command` as a user of this server with this cache."""
    reset(url)
    wall_s, cpu_s = timed(command, url, cache, **environ)
    return Cost(wall_s, cpu_s, *reset(url))


def timed(command: list[str], url: str, cache: Path, **environ: str) -> tuple[float, float]:
    """Seconds of a process: passed, and on a processor."""
    own = {"HF_ENDPOINT": url, "XDG_CACHE_HOME": str(cache), "HF_HOME": str(cache / "hf"), "PYTHONPATH": str(ROOT)}
    own |= {"HOME": str(cache), "MDL_HOME": str(cache)}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LLAMA_"))}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env={**clean, **own, **environ}, check=True, capture_output=True, timeout=300)
    passed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def reset(url: str) -> tuple[int, int, float]:
    """Requests, bytes and the server's processor seconds since the last time."""
    with urllib.request.urlopen(f"{url}/stats") as answer:
        n_requests, n_bytes, server_s = json.load(answer)
    return n_requests, n_bytes, server_s


def run_server(trees: Mapping[str, Mapping[str, Path]], delay_s: float, connection: Any) -> None:
    hub = Hub(delay_s=delay_s)
    for name, tree in trees.items():
        hub.repositories[f"bench/{name}"] = {path: content_of(file) for path, file in tree.items()}

    before = [time.process_time()]

    def stats(handler: Handler) -> bool:
        asked = [request for request in hub.requests if request.path != "/stats"]
        hub.requests.clear()
        passed, before[0] = time.process_time() - before[0], time.process_time()
        answer = [len(asked), sum(request.sent_bytes for request in asked), passed]
        handler.reply(200, json.dumps(answer).encode())
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
