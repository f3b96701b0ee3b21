"""Launches that race for the same memory: how many were planned for bytes that another one was planned for.

    python bench/launch_races.py [--launches 1000] [--at-once 32] [--full 24]

Each launch plans for a share of a device that only exists here, reserves it, "loads" for a moment, and ends: by itself,
or by SIGKILL at any moment, also while it plans or reserves. Where more is reserved at a time than the device has, two
have counted on the same bytes: a double booking. `--full` more are whole `autofit run` processes with an engine that
waits, for the RAM of this machine.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from autofit.launch.ledger import Ledger, reserved, standing
from autofit.launch.reservations import Claim

from support import TINY

CAPACITY = 10_000  #: bytes of the device
ENGINE = '#!/bin/sh\n[ "$1" = --version ] && { echo "version: 11311 (abc)"; exit 0; }\nexec sleep 600\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--full", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environ = {"XDG_RUNTIME_DIR": folder}
        began = time.monotonic()
        went, refused, killed, worst, double = race(environ, options.launches, options.at_once, options.seed)
        seconds = time.monotonic() - began
        print(f"{options.launches} launches, {options.at_once} at once, {seconds:.0f} s")
        print(f"  {went} went ahead, {refused} did not fit, {killed} were killed before they said so")
        print(f"  at most {worst} of {CAPACITY} bytes reserved at a time; {double} double bookings")
        if double or standing(environ):
            sys.exit(f"double bookings, or reservations that are left: {standing(environ)}")
    with tempfile.TemporaryDirectory() as folder:
        full(Path(folder), options.full)


def race(environ: dict[str, str], n_launches: int, n_at_once: int, seed: int) -> tuple[int, int, int, int, int]:
    """How many went ahead, were refused and were killed; the most reserved at a time; and double bookings."""
    rng, ledger = random.Random(seed), Ledger(environ)
    reads, writes = os.pipe()
    running: dict[int, int] = {}
    counts = {b"1": 0, b"0": 0}
    n_started = worst = double = 0
    while n_started < n_launches or running:
        while n_started < n_launches and len(running) < n_at_once:
            running[launch(environ, rng, writes)] = n_started
            n_started += 1
        with ledger.alone():  # meanwhile reservations end, and none is made: the sum is of one moment or less
            total = sum(one.claims["A"].n_bytes for one in standing(environ))
        worst, double = max(worst, total), double + (total > CAPACITY)
        if rng.random() < 0.9 and running:
            os.kill(rng.choice(list(running)), signal.SIGKILL)
        while running:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            running.pop(pid)
    os.set_blocking(reads, False)
    for answer in said(reads):
        counts[answer] += 1
    return counts[b"1"], counts[b"0"], n_launches - sum(counts.values()), worst, double


def said(reads: int) -> Iterator[bytes]:
    try:
        while data := os.read(reads, 4096):
            yield from (bytes([byte]) for byte in data)
    except BlockingIOError:
        return


def launch(environ: dict[str, str], rng: random.Random, writes: int) -> int:
    """A process that plans, reserves, loads and ends."""
    n_bytes, loads, plans = rng.randint(500, 6000), rng.random() * 0.05, rng.random() * 0.01
    pid = os.fork()
    if pid:
        return pid
    try:

        def plan() -> bool:
            taken = sum(one.claims["A"].n_bytes for one in standing(environ))
            time.sleep(plans)
            return taken + n_bytes <= CAPACITY

        fits, problem = reserved(environ, "bench", plan, lambda fits: {"A": Claim(n_bytes=n_bytes)} if fits else None)
        assert problem is None
        os.write(writes, b"1" if fits else b"0")
        if fits:
            time.sleep(loads)
    finally:
        os._exit(0)


def full(folder: Path, n_launches: int) -> None:
    """Whole `autofit run` processes, all at once, each for a prompt cache of 4 GiB."""
    engine = folder / "bin" / "llama-server"
    engine.parent.mkdir()
    engine.write_text(ENGINE, encoding="utf-8")
    engine.chmod(0o755)
    (folder / "runtime").mkdir(mode=0o700)
    environ = {
        **os.environ, "PATH": f"{engine.parent}:/usr/bin:/bin", "XDG_RUNTIME_DIR": str(folder / "runtime"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    memory = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) << 10 for line in memory if line.startswith("MemAvailable"))
    command = [sys.executable, "-P", "-m", "autofit", "run", "-q", "--", "llama-server", "-m", str(TINY)]
    command += ["-cram", "4096", "-c", "1024"]
    processes = [
        subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(n_launches)
    ]
    until = time.monotonic() + 300
    while any(process.poll() is None and not is_engine(process.pid) for process in processes):
        if time.monotonic() > until:
            sys.exit("launches that do not come to an end")
        time.sleep(0.1)
    went = sum(process.poll() is None for process in processes)
    total = sum(claim.n_bytes for one in standing(environ) for claim in one.claims.values())
    for process in processes:
        process.kill()
        process.wait()
    print(f"{n_launches} whole processes at once: {went} engines started, {n_launches - went} refused;")
    print(f"  {total / 2**30:.1f} GiB reserved of {free / 2**30:.1f} GiB that were free")
    if total > free or standing(environ):
        sys.exit("double bookings, or reservations that are left")


def is_engine(pid: int) -> bool:
    """Whether a process has become the engine."""
    try:
        return b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


if __name__ == "__main__":
    main()
