"""Files of autofit's own forms, damaged: fleets, settings, shared figures, reports, descriptions; and questions."""

from __future__ import annotations

import base64
import fcntl
import gzip
import json
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import autofit
from autofit.calibration import exchange, store
from autofit.calibration.place import place
from autofit.calibration.rule import Entry, Key
from autofit.cli.mcp import answered
from autofit.cli.tools import tools
from autofit.domain.units import GIB
from autofit.fleets.reading import fleet_of
from autofit.hardware.report import describe
from autofit.launch import ledger
from autofit.profiles import parse_toml
from autofit.readers.description import describe as description_of
from autofit.readers.description import read_description
from autofit.reports.report import read_report, replay
from autofit.settings.layers import merge, read_settings_file
from autofit.settings.request import to_request

from autofit_llama.command import config_file, presets
from support import TINY
from support.fuzzing.headers import folder
from support.fuzzing.text import TOML_VALUES, machine
from support.fuzzing.values import DIGITS, TEXTS, mutate_tree, wild

FLEET = """schema = 1
when-full = "swap"
phases = { day = ["night"], night = [] }
[defaults]
context = "8k"
[[machine]]
name = "a"
on = ["rtx-3090", "rtx-3090"]
ram = "64GiB"
margin = "1GiB"
count = 2
[[model]]
name = "chat"
model = "example:tiny"
priority = 5
replicas = 2
phases = ["day"]
port = 8000
devices = 1
[[model]]
name = "code"
command = ["llama-server", "-m", "example:tiny", "-c", "4096"]
group = "g"
machines = ["a-1"]
"""
SETTINGS = """context = "16k"
parallel = 2
margin = "1GiB"
kv = "q8_0"
prefer = "speed"
engine-args = ["-ub", "1024"]
force = true
on = ["rtx-3090"]
[llama]
engine-args = ["--host", "0.0.0.0"]
[vllm]
parallel = 4
"""
PRESETS = """; a comment
version = 1
[*]
ctx-size = 4096
n-gpu-layers = 99
[chat]
model = /m/x.gguf
flash-attn = on
cache-type-k = q8_0
override-tensor = blk\\.1=CPU
"""
CLUSTER = {
    "kind": "NodeList",
    "items": [
        {
            "kind": "Node",
            "metadata": {"name": f"n{i}", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
            "spec": {},
            "status": {
                "allocatable": {"nvidia.com/gpu": "8", "memory": "1056562380Ki"},
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": f"10.0.0.{i}"}],
            },
        }
        for i in range(2)
    ],
}


# -- text by lines ----------------------------------------------------------------------------------------------------


def lines_of(text: str) -> Callable[[random.Random], str]:
    """Makes texts of which some lines have other values, are doubled, cut or gone."""

    def make(rng: random.Random) -> str:
        lines = text.split("\n")
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(lines))
            key, equals, _ = lines[at].partition("=")
            change = rng.randrange(6)
            if change < 3 and equals:
                lines[at] = f"{key}= {rng.choice((*DIGITS, *TOML_VALUES, *map(json.dumps, TEXTS)))}"
            elif change == 3:
                lines.insert(at, rng.choice(lines))
            elif change == 4:
                lines[at] = ""
            else:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)] + rng.choice(TEXTS)
        return "\n".join(lines)

    return make


make_fleet, make_settings, make_presets = map(lines_of, (FLEET, SETTINGS, PRESETS))


def run_fleet(given: str) -> None:
    fleet_of(parse_toml(given, "fleet.toml"), "fleet.toml")


def run_settings(given: str) -> None:
    path = folder() / "autofit.toml"
    path.write_text(given, "utf-8", errors="surrogatepass")
    for backend in ("llama", "vllm"):
        to_request(merge([("user", read_settings_file(path, backend))]))


def run_presets(given: str) -> None:
    try:
        config_file.parse(given)
    except ValueError as error:
        assert str(error).isprintable()
    presets.commands(given)


# -- JSON -------------------------------------------------------------------------------------------------------------


def make_cluster(rng: random.Random) -> Any:
    return mutate_tree(CLUSTER, rng, rng.choice((1, 2, 4)))


def run_cluster(given: Any) -> None:
    path = folder() / "nodes.json"
    path.write_text(json.dumps(given))
    found = autofit.load_machine(str(path))
    assert describe(found).replace("\n", "").isprintable(), "a control character"


@cache
def _shared() -> dict[str, Any]:
    key = Key(engine="llama", build="b9", api="cuda", device="NVIDIA GeForce RTX 3090", architecture="llama")
    entry = Entry(key=key, n_starts=3, mean_bytes=5e6, squares=1e9, most_bytes=6_000_000, imported=False)
    found: dict[str, Any] = json.loads(exchange.to_json([entry]))
    return found


def make_shared(rng: random.Random) -> Any:
    return {"tree": mutate_tree(_shared(), rng, rng.choice((1, 1, 2))), "cut": rng.choice((None, None, 5, 40))}


def run_shared(given: Any) -> None:
    entries = exchange.from_json(json.dumps(given["tree"])[: given["cut"]])
    own = [Entry(**{**_fields(one), "imported": False}) for one in entries]
    again = exchange.from_json(exchange.to_json(own))
    assert [one.key for one in again] == [one.key for one in entries]


def _fields(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in ("key", "n_starts", "mean_bytes", "squares", "most_bytes")}


def make_database(rng: random.Random) -> str:
    """The bytes of a database of starts, flipped somewhere."""
    data = bytearray(_database())
    for _ in range(rng.choice((1, 4, 20))):
        data[rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(100)] = rng.randrange(256)
    return base64.b64encode(bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])).decode()


@cache
def _database() -> bytes:
    environ = {"XDG_DATA_HOME": str(folder() / "sound")}
    store.put(environ, exchange.from_json(json.dumps(_shared())))
    path = place(environ)
    assert path is not None
    return path.read_bytes()


def run_database(given: str) -> None:
    environ = {"XDG_DATA_HOME": str(folder() / "damaged")}
    path = place(environ)
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(given))
    store.entries(environ)
    store.read(environ)


@cache
def _report() -> dict[str, Any]:
    paths = sorted((Path(__file__).parents[2] / "reports").glob("*.json.gz"))
    return read_report(paths[0])


def make_report(rng: random.Random) -> Any:
    whole = _report()
    part = rng.choice(("model", "machine", "command", "environment", "options", None))
    if part is None:
        return {"replace": {rng.choice(list(whole)): wild(rng, 2)}, "cut": rng.choice((None, 10, 1000))}
    value = whole[part]
    changed = mutate_tree(value, rng, rng.choice((1, 2))) if isinstance(value, (dict, list)) and value else wild(rng)
    return {"replace": {part: changed}, "cut": None}


def run_report(given: Any) -> None:
    path = folder() / "x.json.gz"
    path.write_bytes(gzip.compress(json.dumps({**_report(), **given["replace"]}).encode(), 1)[: given["cut"]])
    json.dumps(replay(read_report(path)), allow_nan=False)


@cache
def _described() -> Any:
    return json.loads(gzip.decompress(description_of(autofit.read_model(TINY))))


def make_description(rng: random.Random) -> Any:
    return {"tree": mutate_tree(_described(), rng, rng.choice((1, 1, 2, 4))), "cut": rng.choice((None, None, None, 60))}


def run_description(given: Any) -> None:
    path = folder() / "m.json.gz"
    path.write_bytes(gzip.compress(json.dumps(given["tree"]).encode(), 1)[: given["cut"]])
    model = read_description(path)
    autofit.plan("llama", model, machine(), settings=None)


def make_reservation(rng: random.Random) -> Any:
    sound = {
        "pid": 1,
        "started": "5",
        "program": "llama-server",
        "at_s": 3.5,
        "claims": {"host": {"bytes": GIB, "free_bytes": 9 * GIB}, "cuda 0 card": {"bytes": 5, "free_bytes": None}},
    }
    return {"tree": mutate_tree(sound, rng, rng.choice((1, 1, 3))), "cut": rng.choice((None, None, 20))}


def run_reservation(given: Any) -> None:
    """A file that another process keeps, as the ledger reads it."""
    home = folder() / "run"
    place = home / "autofit"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    path = place / "x.json"
    path.write_text(json.dumps(given["tree"])[: given["cut"]])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        found = ledger.without_reserved(machine(), {"XDG_RUNTIME_DIR": str(home)})
    finally:
        os.close(descriptor)
    assert all(note.isprintable() for note in found.findings)
    assert all((device.free_bytes or 0) >= 0 for device in found.devices)


# -- questions of assistants ------------------------------------------------------------------------------------------


def make_question(rng: random.Random) -> Any:
    tool = rng.choice(tools())
    sound: dict[str, Any] = {"backend": "llama", "model": "example:tiny", "on": ["rtx-3090"], "ram": "64GiB"}
    if tool.name == "check":
        sound = {"command": ["llama-server", "-m", "example:tiny"], "on": ["rtx-3090"]}
    elif tool.name == "inspect":
        sound = {"model": "example:tiny"}
    given = dict(sound)
    names = sorted(tool.schema["properties"])
    for name in rng.sample(names, min(len(names), rng.choice((0, 1, 1, 2)))):
        kind = tool.schema["properties"][name].get("type")
        text = rng.choice((*TEXTS, *DIGITS, "8k", "auto", "1GiB", "10%"))
        given[name] = wild(rng, 2) if rng.random() < 0.5 else [text] if kind == "array" else text
    return {"name": tool.name if rng.random() < 0.97 else rng.choice(TEXTS), "arguments": given}


def run_question(given: Any) -> None:
    arguments = {key: value for key, value in given["arguments"].items() if not _is_elsewhere(value)}
    found, text = answered(given["name"], arguments)
    if found is None:
        assert text.replace("\n", "").isprintable() and len(text) < 5000, text
    else:
        json.loads(text, parse_constant=_refuse)


def _is_elsewhere(value: Any) -> bool:
    """A name that a server would be asked for."""
    return isinstance(value, str) and "/" in value


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
