"""Real starts of llama.cpp (CPU and RPC devices) and of vLLM's CPU build, beside what is predicted for them.

    python tools/accuracy/engine_runs.py [--only TEXT] [--record]      starts them all: about 15 minutes
    python tools/accuracy/engine_runs.py --recorded                    the recorded ones, without an engine

`AUTOFIT_LLAMA_BIN` and `AUTOFIT_VLLM_PYTHON` name the engines; what is not named is left out. Models are small: those
of `test-llama-archs`, whose headers are in tests/data/llama/archs, and configurations with dummy weights. A line for
each run: what was predicted and what the engine reported, and each part that differs beyond what its log rounds off.
`--record` writes the logs to tests/data/engine_runs.jsonl.gz.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

from autofit.domain.units import format_bytes

from support.dryrun import engine_folder, rpc_servers
from support.engine_runs import DATA, LLAMA_RUNS, VLLM_RUNS, LlamaRun, VllmRun, figures, read_rows, write_directory

SECONDS = {"llama": 60, "vllm": 420}
READY = {"llama": b"listening on", "vllm": b"Application startup complete"}
_TIME = re.compile(r"^\d+\.\d+\.\d+\.\d+ ", re.MULTILINE)  #: of a line; it says nothing here, and keeps gzip from work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="runs whose names contain this")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--recorded", action="store_true")
    options = parser.parse_args()
    rows = [row for row in (read_rows() if options.recorded else started(options.only)) if options.only in row["name"]]
    if options.record:
        kept = {row["name"]: row for row in (*(read_rows() if DATA.exists() else ()), *rows)}
        text = "".join(json.dumps(kept[name], separators=(",", ":")) + "\n" for name in sorted(kept))
        DATA.write_bytes(gzip.compress(text.encode(), mtime=0))
    show(rows)


def started(only: str) -> Iterator[dict[str, Any]]:
    """A row for each run whose engine is here."""
    folder, python = engine_folder(), os.environ.get("AUTOFIT_VLLM_PYTHON")
    with tempfile.TemporaryDirectory(prefix="autofit-runs-") as name:
        place = Path(name)
        if folder is not None and any(only in run.name for run in LLAMA_RUNS):
            subprocess.run(
                [folder / "test-llama-archs", "-o", place], check=True, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            for one in (run for run in LLAMA_RUNS if only in run.name):
                yield llama_row(one, folder, place)
        for two in (run for run in VLLM_RUNS if python and only in run.name):
            yield vllm_row(two, str(python), place)


def llama_row(run: LlamaRun, folder: Path, place: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        addresses = stack.enter_context(rpc_servers(folder, run.devices_mib)) if run.devices_mib else []
        rpc = ("--rpc", ",".join(addresses)) if addresses else ()
        argv = ["llama-server", "-m", f"{place}/{run.model}.gguf", *run.flags, *rpc, "--port", str(free_port())]
        fixed = ["-fit", "off", "-lv", "4", "--no-warmup"]
        log = boot([str(folder / argv[0]), *argv[1:], *fixed], "llama", place, dict(os.environ))
    text = _TIME.sub("", log).replace(str(place), "MODELS")
    words = [word.replace(str(place), "MODELS") for word in (*argv, *fixed)]
    return {"name": run.name, "engine": "llama", "model": run.model, "argv": words, "env": {}, "log": text}


def vllm_row(run: VllmRun, python: str, place: Path) -> dict[str, Any]:
    directory = write_directory(run, place)
    argv = ["vllm", "serve", str(directory), *run.flags]
    own = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **run.env}
    command = [python, "-m", "vllm.entrypoints.cli.main", *argv[1:], "--port", str(free_port())]
    log = boot(command, "vllm", place, {**os.environ, **own}).replace(str(place), "MODELS")
    words = [word.replace(str(place), "MODELS") for word in argv]
    return {"name": run.name, "engine": "vllm", "config": run.config, "argv": words, "env": run.env, "log": log}


def boot(command: Sequence[str], engine: str, place: Path, environ: dict[str, str]) -> str:
    """What an engine prints until it is ready, or ends."""
    path = place / "log"
    with path.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environ, cwd=place)
        end = time.monotonic() + SECONDS[engine]
        while process.poll() is None and time.monotonic() < end and READY[engine] not in path.read_bytes():
            time.sleep(0.05)
        text = path.read_bytes()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if READY[engine] not in text:
        sys.exit(f"{' '.join(command)}: not ready\n{text[-3000:].decode(errors='replace')}")
    return text.decode("utf-8", "replace")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def show(rows: Iterable[dict[str, Any]]) -> None:
    n_runs = n_parts = n_same = 0
    print(f"{'run':40} {'parts':>5} {'predicted':>14} {'reported':>14}  differs")
    for row in rows:
        found = figures(row)
        differs = [f"{one.what} {one.over:+}" for one in found if one.over]
        if row["engine"] == "llama":
            sums = (format_bytes(sum(one.predicted for one in found)), format_bytes(sum(one.reported for one in found)))
        else:
            sums = (f"{found[0].predicted:,} tokens", f"{found[0].reported:,} tokens")
        print(f"{row['name']:40} {len(found):5} {sums[0]:>14} {sums[1]:>14}  {'  '.join(differs) or '-'}", flush=True)
        n_runs, n_parts, n_same = n_runs + 1, n_parts + len(found), n_same + len(found) - len(differs)
    print(f"{n_runs} runs, {n_parts} parts reported, {n_same} as predicted, {n_parts - n_same} not")


if __name__ == "__main__":
    main()
