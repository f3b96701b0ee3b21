"""Write the pictures of docs/ and README.md out of plans, as SVG.

python tools/gen/pictures.py          write them
python tools/gen/pictures.py --check  exit 1 if they are not current
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools" / "gen")]

from autofit.cli.main import main as autofit
from svg import Bar, bars, terminal

from support.pages import reader
from support.transcripts import printed

PICTURES = ROOT / "docs" / "pictures"
TERMINAL = "autofit llama example:mixtral-8x7b-q4_k_m --on rtx-3090 --ram 64GiB"
EIGHT = "autofit vllm ./Qwen3-32B --on 8xh100-80gb --ram 512GiB"
COLUMNS = 100
GIB = 2**30

LLAMA = "example:llama-3.1-8b-q4_k_m"
MIXTRAL = "example:mixtral-8x7b-q4_k_m"


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_a_terminal(command: str, columns: int) -> list[str]:
    """The lines that an `autofit` command writes to a terminal, stdout and stderr, with its colors."""
    screen = _Terminal()
    before = dict(os.environ)
    os.environ |= {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    os.environ.pop("NO_COLOR", None)
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            code = autofit(shlex.split(command)[1:])
    finally:
        os.environ.clear()
        os.environ.update(before)
    if code:
        raise SystemExit(f"{command}: exit code {code}")
    return re.sub(r"\r[^\n\r]*?\x1b\[K", "", screen.getvalue()).splitlines()  # without lines that were taken back


def plan(command: str) -> dict[str, Any]:
    """The plan or the verdict of a command, as its JSON has it."""
    before, dashes, engine = command.partition(" -- ")
    lines, _ = printed(f"{before} -q --format json{dashes}{engine}")
    answer: dict[str, Any]
    answer, _ = json.JSONDecoder().raw_decode("\n".join(lines))  # what does not fit is said behind it
    return answer


def bar(name: str, pool: Mapping[str, Any]) -> Bar:
    """A pool of a plan, each kind as one part."""
    kinds = ("weights", "cache", "compute", "runtime", "transient")
    parts = [(kind, pool[f"{kind}_bytes"]) for kind in kinds]
    used, free = pool["used_bytes"], pool["free_bytes"]
    said = f"{used / GIB:.1f} of {free / GIB:.1f} GiB" if free else f"{used / GIB:.1f} GiB"
    return Bar(name, [*parts, ("margin", pool["reserve_bytes"])], free, said)


def terminal_picture(command: str = TERMINAL, columns: int = COLUMNS) -> str:
    return terminal(f"$ {command}", [f"$ {command}", *on_a_terminal(command, columns)], columns)


def pools() -> str:
    found = plan(f"autofit llama {LLAMA} --on rtx-3060-12gb --ram 32GiB")
    names = {"GPU0": "RTX 3060 12GB", "host": "RAM, 32 GiB"}
    return bars("One plan: an 8B model in Q4_K_M, GiB", [bar(names[pool["id"]], pool) for pool in found["pools"]])


def contexts() -> str:
    rows = []
    for tokens in (4096, 8192, 16384, 32768, 65536, 131072):
        engine = f"llama-server -m {LLAMA} -ngl 99 -c {tokens} -np 1 -fa on -fit off"
        card = plan(f"autofit check --on rtx-3060-12gb --ram 32GiB -- {engine}")["pools"][0]
        rows.append(bar(f"{tokens:,} tokens", card))
    return bars("The card by context: the same model wholly on an RTX 3060 12GB, f16 cache, GiB", rows)


def experts() -> str:
    rows = []
    for card, name in (("rtx-3060-12gb", "12 GB"), ("rtx-4060-ti-16gb", "16 GB"), ("rtx-3090", "24 GB")):
        found = plan(f"autofit llama {MIXTRAL} --on {card} --ram 64GiB -c 16k")
        gpu, ram = found["pools"]
        rows += [bar(f"card with {name}", gpu), bar("and its RAM", ram)]
    return bars("Experts wait in RAM: Mixtral-8x7B Q4_K_M with 16,384 tokens on three cards, GiB", rows)


def uneven() -> str:
    machine = "--on rtx-3090 --on rtx-4070-ti --ram 64GiB"
    rows = []
    for name, flags in (("planned", ""), ("-ts 1,1", " -- -ts 1,1")):
        found = plan(f"autofit llama {MIXTRAL} {machine} -c 16k{flags}")
        rows += [bar(f"{name}: {pool['name'].removeprefix('NVIDIA GeForce ')}", pool) for pool in found["pools"]]
    return bars("Uneven cards: layers by what each card holds, and in halves, GiB", rows)


def vllm() -> str:
    rows = []
    for n in (1, 2, 4):
        found = plan(f"autofit vllm ./Qwen3-32B --on {n}xh100-80gb --ram 256GiB")
        rows.append(bar(f"each of {n}" if n > 1 else "one H100 80GB", found["pools"][0]))
    return bars("vLLM fills its share: Qwen3-32B in bf16 on one, two and four H100, GiB", rows)


def growth() -> str:
    found = plan(f"autofit llama {MIXTRAL} --on rtx-4060-ti-16gb --ram 64GiB -c 16k")
    return bars("Memory over a run: Mixtral-8x7B on a card with 16 GB, GiB", list(_stages(found)))


def _stages(found: Mapping[str, Any]) -> Iterator[Bar]:
    """Each pool at the start, and after each of the events that make it larger."""
    for pool in found["pools"]:
        name = "GPU" if pool["id"].startswith("GPU") else "RAM"
        items = [item for item in pool["items"] if item["kind"] != "reserve"]
        events = list(dict.fromkeys(item["when"] for item in items if item["when"]))
        for n in range(len(events) + 1):
            there = [item for item in items if item["when"] in ("", *events[:n])]
            parts = [(kind, sum(i["bytes"] for i in there if i["kind"] == kind)) for kind in _KINDS]
            used = sum(item["bytes"] for item in there)
            said = "at the start" if n == 0 else events[n - 1]
            yield Bar(f"{name}: {used / GIB:.2f} GiB", parts, None, said)


_KINDS = ("weights", "cache", "compute", "runtime", "transient")

MAKERS: Mapping[str, Callable[[], str]] = {
    "terminal.svg": terminal_picture,
    "terminal-40.svg": partial(terminal_picture, EIGHT, 40),
    "terminal-80.svg": partial(terminal_picture, EIGHT, 80),
    "terminal-120.svg": partial(terminal_picture, EIGHT, 120),
    "pools.svg": pools,
    "contexts.svg": contexts,
    "experts.svg": experts,
    "uneven.svg": uneven,
    "vllm.svg": vllm,
    "growth.svg": growth,
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, reader(Path(folder)):
        made = {name: make() for name, make in MAKERS.items()}
    if "--check" not in sys.argv:
        PICTURES.mkdir(exist_ok=True)
        for name, text in made.items():
            (PICTURES / name).write_text(text, encoding="utf-8")
        return 0
    there = {path.name: path.read_text(encoding="utf-8") for path in PICTURES.glob("*")}
    stale = sorted(name for name in {*made, *there} if made.get(name) != there.get(name))
    if stale:
        print(f"not current: {', '.join(stale)}; run python tools/gen/pictures.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
