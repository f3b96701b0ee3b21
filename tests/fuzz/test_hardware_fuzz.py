"""Whatever a driver, a tool or a file system says, detection answers: bounded, and safe to print."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from autofit.domain.machine import Machine
from autofit.errors import AutofitError
from autofit.hardware import machine_from_dict, machine_to_dict
from autofit.hardware.catalog import read_profile
from autofit.hardware.report import describe, profile_table
from autofit.profiles import data_dir

from support.recorded_machines import DATA, FakeNvml, detect, machine

NAMES = sorted(path.name for path in DATA.iterdir() if path.name != "nvml-hangs")
NONSENSE = [
    "",
    "-1",
    "N/A",
    "9" * 30,
    "0x",
    "\x1b[2J",
    "\x00",
    "ÿ\ud7ff",
    "[Error]",
    "1e400",
    "a" * 5000,
    "0",
]
ANSWERS = [None, "x", -1, 1 << 70, [], [0], "\x1b[31m", 1.5, *({"error": n} for n in (1, 3, 4, 13, 15, 999))]


def check(found: Machine) -> None:
    """What holds for every answer."""
    assert describe(found).replace("\n", "").isprintable()
    assert machine_from_dict(json.loads(json.dumps(machine_to_dict(found)))) == found
    assert profile_table(found, "x")["kind"] == "machine"
    for device in found.devices:
        assert device.free_bytes is None or device.free_bytes >= 0
        assert device.pool in (device.id, "host")


@pytest.mark.parametrize("seed", range(60))
def test_trees_and_tools_with_nonsense_in_them(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice(NAMES)
    platform = "darwin" if name.startswith("mac-") else "linux"
    tools_path = DATA / name / "tools.json"
    tools: list[Any] | None = None
    if tools_path.exists():
        tools = json.loads(tools_path.read_text("utf-8"))
        for entry in tools:
            if "stdout" in entry[1]:
                stdout = entry[1]["stdout"]
                entry[1]["stdout"] = garble(stdout if isinstance(stdout, str) else "\n".join(stdout), rng)
    system = machine(name, tmp_path, platform=platform, tools=tools)
    for path in sorted(system.root.rglob("*")):
        if path.is_file() and not path.is_symlink() and rng.random() < 0.3:
            path.write_text(garble(path.read_text("utf-8"), rng), "utf-8", errors="replace")
    check(detect(system))


@pytest.mark.parametrize("seed", range(60))
def test_a_driver_that_answers_nonsense(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice([n for n in NAMES if (DATA / n / "nvml.json").exists()])
    recording = json.loads((DATA / name / "nvml.json").read_text("utf-8"))
    for device in recording["devices"]:
        for key in list(device):
            if rng.random() < 0.25:
                device[key] = rng.choice(ANSWERS)
    env = {"CUDA_VISIBLE_DEVICES": rng.choice(["0", "0,1", "GPU-", "x", "-1"])}
    check(detect(machine(name, tmp_path, nvml=FakeNvml(recording), env=env)))


@pytest.mark.parametrize("seed", range(40))
def test_profiles_with_mistakes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    source = rng.choice(sorted((data_dir() / "hardware").glob("*.toml")))
    path = tmp_path / "x.toml"
    path.write_text(garble(source.read_text("utf-8"), rng), "utf-8", errors="replace")
    try:
        read_profile(path)
    except AutofitError as error:
        assert error.message.isprintable() or "\n" not in error.message
        assert str(path) in error.message


@pytest.mark.parametrize("seed", range(40))
def test_machines_with_mistakes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = machine_to_dict(detect(machine(rng.choice(["rtx-3090-desktop", "two-rtx-3090-nvlink"]), tmp_path)))
    target: Any = rng.choice([data, data["host"], *data["devices"], *data["links"]])
    key = rng.choice(list(target))
    target[key] = rng.choice([None, "x", -1, 1 << 80, [], {}, [None], True, 1.5, {"a": 1}])
    try:
        found = machine_from_dict(data)
    except AutofitError:
        return
    assert machine_from_dict(machine_to_dict(found)) == found


def garble(text: str, rng: random.Random) -> str:
    """Cut, repeat or replace a piece."""
    if not text:
        return rng.choice(NONSENSE)
    a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    nonsense = rng.choice(NONSENSE)
    return rng.choice([text[:a], text[:a] + nonsense + text[b:], text[:b] + text[a:], nonsense])
