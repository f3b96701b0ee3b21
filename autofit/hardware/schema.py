"""What a hardware profile may say: every key with its type and range, and where a mistake is.

A profile is a `gpu` (one device) or a `machine` (host, devices, links). Unknown is a missing key, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from autofit.domain.machine import Api
from autofit.domain.memory import Basis
from autofit.domain.text import printable
from autofit.domain.values import dataclass
from autofit.errors import HardwareError

SCHEMA = 1
KINDS = ("gpu", "machine")
VENDORS = ("nvidia", "amd", "intel", "apple", "huawei")


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its type, the range of a number, the allowed words, and what it means."""

    type: type
    about: str
    low: float = 0
    high: float = 1 << 60
    words: tuple[str, ...] = ()
    items: str = ""  #: of a list: `texts` or `numbers`


def _bytes(about: str, low: float = 1 << 20, high: float = 1 << 50) -> Key:
    return Key(int, about, low, high)


def _rate(about: str, low: float = 10**8, high: float = 10**15) -> Key:
    return Key(int, about, low, high)


DEVICE: dict[str, Key] = {
    "name": Key(str, "as the driver writes it"),
    "vendor": Key(str, "", words=VENDORS),
    "api": Key(str, "the engine's back end", words=get_args(Api)),
    "integrated": Key(bool, "shares the package with the processor"),
    "pool": Key(str, "the memory it draws on: `host` on a unified machine"),
    "memory_total_bytes": _bytes("as the driver reports it (NVML, sysfs)"),
    "memory_reserved_bytes": _bytes("kept by the driver, out of the total", 0, 1 << 34),
    "memory_reserved_fraction": Key(float, "kept by the driver, of the size that is stated for the card", 0.0, 0.5),
    "memory_host_fraction": Key(float, "what the device may take of RAM, on a unified machine", 0.1, 1.0),
    "runtime_bytes": _bytes("what driver context and libraries take in the engine's process", 0, 1 << 34),
    "memory_type": Key(str, "GDDR6X, HBM3, LPDDR5X"),
    "bus_width_bits": Key(int, "", 32, 1 << 15),
    "memory_rate_bits_per_s": _rate("data rate of one pin"),
    "bandwidth_bytes_per_s": _rate("bus width x rate / 8"),
    "compute_capability": Key(list, "CUDA, [major, minor]"),
    "gfx": Key(str, "AMD's name of the instruction set: gfx1100"),
    "n_sm": Key(int, "streaming multiprocessors (NVIDIA), compute units (AMD), Xe cores, GPU cores", 1, 2048),
    "fp16_flops_per_s": _rate("dense, FP32 accumulation, matrix units where there are any", 10**10, 10**17),
    "link": Key(str, "to the host: PCIe 4.0 x16"),
    "link_bytes_per_s": _rate("to the host, one direction"),
    "nvlink_bytes_per_s": _rate("to its peers, one direction, all links together"),
    "nvlink_switched": Key(bool, "a module on a board that links all of its kind; cards need bridges, which are extra"),
    "uuid": Key(str, "as the driver writes it"),
    "pci_ids": Key(list, "vendor:device on the bus, where the driver gives no name", items="texts"),
}
HOST: dict[str, Key] = {
    "total_bytes": _bytes("RAM"),
    "sizes_gib": Key(list, "the sizes it is sold with, where `total_bytes` is not given", items="numbers"),
    "memory_type": DEVICE["memory_type"],
    "bus_width_bits": DEVICE["bus_width_bits"],
    "memory_rate_bits_per_s": DEVICE["memory_rate_bits_per_s"],
    "bandwidth_bytes_per_s": DEVICE["bandwidth_bytes_per_s"],
    "cpu_name": Key(str, ""),
    "n_cores_physical": Key(int, "", 1, 1 << 14),
    "n_cores_logical": Key(int, "", 1, 1 << 15),
    "n_cores_performance": Key(int, "", 1, 1 << 14),
    "n_numa_nodes": Key(int, "", 1, 1 << 10),
    "has_repack": Key(bool, "AVX2 or NEON"),
}
LINK: dict[str, Key] = {
    "kind": Key(str, "NVLink 3, Infinity Fabric"),
    "bytes_per_s": _rate("between two devices, one direction"),
    "devices": Key(list, "indices of the devices it joins pairwise; all when not given", items="numbers"),
}
SOURCE: dict[str, Key] = {
    "figures": Key(list, "the keys this vouches for; `host.x` for a key of the host", items="texts"),
    "basis": Key(str, "", words=get_args(Basis)),
    "name": Key(str, "the document, or how it was measured"),
    "url": Key(str, "where the document is"),
}
CALIBRATION: dict[str, Key] = {
    "date": Key(str, "when"),
    "ram_bandwidth_bytes_per_s": _rate("read, all cores"),
    "n_threads": Key(int, "", 1, 1 << 14),
    "benchmark": Key(list, "what an engine's benchmark measured"),
}
BENCH_ROW: dict[str, Key] = {
    "model": Key(str, ""),
    "test": Key(str, "pp512, tg128"),
    "tokens_per_s": Key(float, "", 0, 10**9),
    "n_gpu_layers": Key(int, "", -1, 1 << 20),
}
TOP: dict[str, Key] = {
    "schema": Key(int, "", SCHEMA, SCHEMA),
    "kind": Key(str, "", words=KINDS),
    "aliases": Key(list, "other names it answers to", items="texts"),
    "summary": Key(str, "one line"),
    "source": Key(list, "where the figures come from"),
}
GPU = {**TOP, **DEVICE}
MACHINE = {
    **TOP,
    "name": DEVICE["name"],
    "host": Key(dict, "processor and RAM"),
    "device": Key(list, "its devices, in the order in which engines number them"),
    "link": Key(list, "links between the devices"),
    "calibration": Key(dict, "what `hardware calibrate` measured"),
}


def check(table: Mapping[str, Any], name: str, text: str = "") -> None:
    """Hold a profile against the schema.

    Raises:
        HardwareError: the first mistake, with its line (found in `text`), the key and a suggestion.
    """
    report = _Report(name, text)
    if table.get("schema") != SCHEMA:
        report.fail("schema", f"must say schema = {SCHEMA}")
    kind = table.get("kind")
    if kind not in KINDS:
        report.fail("kind", f"must be one of {', '.join(KINDS)}")
    report.table(table, GPU if kind == "gpu" else MACHINE, required=("name", "api") if kind == "gpu" else ("name",))
    for row in report.rows(table, "source"):
        report.table(row, SOURCE, within="source", required=("figures", "basis", "name"))
    if kind == "gpu":
        report.device(table)
        return
    if "host" in table:
        report.table(table["host"], HOST, within="host")
    for row in report.rows(table, "device"):
        report.table(row, {**DEVICE, "profile": Key(str, ""), "count": Key(int, "", 1, 64)}, within="device")
        report.device(row, "device")
    for row in report.rows(table, "link"):
        report.table(row, LINK, within="link", required=("kind",))
    if "calibration" in table:
        report.table(table["calibration"], CALIBRATION, within="calibration")
        for row in report.rows(table["calibration"], "benchmark"):
            report.table(row, BENCH_ROW, within="calibration.benchmark")


@dataclass(frozen=True, slots=True)
class _Report:
    name: str
    text: str

    def fail(self, key: str, problem: str, *, within: str = "", hint: str | None = None) -> None:
        line = line_of(self.text, key, within)
        where = f"{self.name}: line {line}" if line else self.name
        full = f"{within}.{key}" if within else key
        raise HardwareError(f"{where}: {printable(full)}: {problem}", hint=hint)

    def table(self, table: Any, keys: Mapping[str, Key], *, within: str = "", required: Iterable[str] = ()) -> None:
        if not isinstance(table, Mapping):
            self.fail(within, "must be a table")
        for key, value in table.items():
            if key not in keys:
                from autofit.text.suggest import close_names

                self.fail(key, "no such key", within=within, hint=close_names(key, keys))
            if problem := _problem(value, keys[key]):
                self.fail(key, problem, within=within)
        for key in required:
            if key not in table:
                self.fail(key, "is missing", within=within)

    def rows(self, table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = table.get(key, [])
        if len(rows) > 256 or not all(isinstance(row, Mapping) for row in rows):
            self.fail(key, f"must be a list of tables: [[{key}]]")
        return rows

    def device(self, row: Mapping[str, Any], within: str = "") -> None:
        """What one key cannot say alone."""
        capability = row.get("compute_capability", [8, 9])
        if len(capability) != 2 or not all(isinstance(part, int) and 0 <= part < 100 for part in capability):
            self.fail("compute_capability", "must be [major, minor]", within=within)
        if row.get("memory_reserved_bytes", 0) >= row.get("memory_total_bytes", 1 << 60):
            self.fail("memory_reserved_bytes", "must be below memory_total_bytes", within=within)
        if within and "profile" not in row and not {"name", "api"} <= row.keys():
            self.fail("profile", "a device needs a profile, or at least name and api", within=within)


def _problem(value: object, key: Key) -> str | None:
    """What is wrong with a value, if anything."""
    if key.type is float and type(value) is int and abs(value) < 1 << 64:
        value = float(value)
    if type(value) is not key.type:
        kinds = {
            int: "a whole number",
            float: "a number",
            str: "text",
            bool: "true or false",
            list: "a list",
            dict: "a table",
        }
        return f"must be {kinds[key.type]}, is {printable(repr(value), 40)}"
    wanted = {"texts": str, "numbers": int}.get(key.items)
    if isinstance(value, list) and wanted and any(type(item) is not wanted for item in value):
        return f"must be a list of {'texts' if wanted is str else 'whole numbers'}"
    if isinstance(value, list) and any(type(item) is int and not 0 <= item < 1 << 32 for item in value):
        return "a number in it is out of range"
    if isinstance(value, str):
        if key.words and value not in key.words:
            return f"must be one of {', '.join(key.words)}, is {printable(repr(value), 40)}"
        return None if value.isprintable() and 0 < len(value) <= 400 else "must be 1 to 400 printable characters"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not key.low <= value <= key.high:
        return f"{value} is out of range {key.low:g} to {key.high:g}"
    return None


def line_of(text: str, key: str, within: str = "") -> int | None:
    """The line of a key, found in the text: a TOML table does not remember it."""
    inside = ""
    table_line = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([\w.\-]+)\s*\]", line):
            inside = header[1]
            table_line = number if inside == within else table_line
        elif inside == within and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return number
    return table_line
