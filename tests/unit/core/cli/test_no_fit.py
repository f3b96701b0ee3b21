"""Every command that ends with 3 says what is missing and the nearest that works: in one line with -q."""

from __future__ import annotations

import re

import pytest
from autofit.cli.main import main

from support import DATA

MODELS, CONFIGS = DATA / "llama" / "models", DATA / "vllm" / "configs"
ON = ("--on", "rtx-3060-12gb", "--ram", "32GiB")


def gguf(name: str) -> str:
    return str(MODELS / f"{name}.json.gz")


NO_FIT = {
    "llama": ("llama", gguf("llama-3.1-405b-Q3_K_M"), *ON),
    "llama, flags": ("llama", gguf("llama-3.1-8b-Q4_K_M"), *ON, "--kv", "f16", "-c", "128k", "--", "-ngl", "99"),
    "llama, slow": ("llama", gguf("qwen2.5-7b-Q8_0"), *ON, "--min-tps", "500"),
    "vllm": ("vllm", str(CONFIGS / "llama3-70b"), *ON),
    "vllm, lighter": ("vllm", str(CONFIGS / "llama3-8b"), "--on", "rtx-3060-12gb", "--ram", "8GiB"),
    "vllm, slow": ("vllm", str(CONFIGS / "qwen3-8b"), *ON, "--min-tps", "500"),
    "check llama": ("check", *ON, "--", "llama-server", "-m", gguf("qwen3-32b-Q4_K_M"), "-ngl", "99", "-fit", "off"),
    "check vllm": ("check", *ON, "--", "vllm", "serve", str(CONFIGS / "llama3-8b")),
    "run": ("run", "-n", "-q", *ON, "--", "llama-server", "-m", gguf("llama-3.1-405b-Q3_K_M")),
}
MISSING = r"autofit: (not started: )?((does not fit: )?\w+ .*needs [\d.]+ [GTM]iB|decode rate ~|--min-tps 500 is not)"
NEAREST = r"(nearest: |.* would fit|.* would be enough|.* would hold it|-ngl \d+ does not fit; -ngl \d+ would fit)"


@pytest.mark.parametrize("case", [name for name in NO_FIT if name != "run"])
def test_what_is_missing_and_the_nearest(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *words = NO_FIT[case]
    assert main([command, "-q", *words]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert re.match(f"{MISSING}.*; {NEAREST}", lines[0]), lines[0]


def test_the_rate_that_is_reached_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("llama, slow", "vllm, slow"):
        command, *words = NO_FIT[name]
        assert main([command, "-q", *words]) == 3
        found = re.search(r"nearest: --min-tps ([\d.]+) is reached", capsys.readouterr().err)
        assert found is not None
        words[words.index("500")] = found[1]
        assert main([command, "-q", *words]) == 0
        capsys.readouterr()
