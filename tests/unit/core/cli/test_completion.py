"""Completion: what is offered where, and the scripts in the shells that they are for."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from autofit.cli.completing import complete
from autofit.cli.main import main
from autofit.host import host
from autofit.settings.options import OPTIONS


def offered(*words: str) -> list[str]:
    found = complete(words)
    assert found is not None
    return [word for word, _ in found]


def test_commands_and_engines() -> None:
    every = offered("")
    assert set(every) == {*host().backends(), *host().commands(), "--help", "--version"}
    assert offered("ch") == ["check"]
    assert complete([]) == complete([""])
    assert offered("nonsense", "") == []
    assert offered("--help", "") == []


def test_options() -> None:
    every = offered("llama", "-")
    assert {option.flag for option in OPTIONS} <= set(every)
    assert {"--format", "--explain", "--settings", "-h", "--help", "-c"} <= set(every)
    assert offered("llama", "m.gguf", "--max-c") == ["--max-context"]
    assert offered("inspect", "--ten") == ["--tensors"]
    assert "--for" not in offered("completion", "--")


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("llama", "m.gguf", "--on", "rtx-309"), ["rtx-3090", "rtx-3090-ti"]),
        (("vllm", "--on", "2xh100-8"), ["2xh100-80gb"]),
        (("llama", "--on=rtx-309"), ["--on=rtx-3090", "--on=rtx-3090-ti"]),
        (("llama", "--on", "rtx-3090", "--on", "cp"), ["cpu"]),
        (("vllm", "m", "--format", "kubern"), ["kubernetes"]),
        (("vllm", "m", "--prefer", "sp"), ["speed"]),
        (("vllm", "m", "--kv", "fp8_"), ["fp8_e4m3", "fp8_e5m2"]),
        (("hardware", ""), ["detect", "list", "show", "save", "calibrate"]),
        (("hardware", "show", "rtx-309"), ["rtx-3090", "rtx-3090-ti"]),
        (("hardware", "--format", "js"), ["json"]),
        (("llama", "example:t"), ["example:tiny"]),
        (("completion", ""), ["bash", "zsh", "fish", "powershell"]),
        (("llama", "m.gguf", "-c", ""), []),
        (("quants", "m.gguf", "--backend", "ll"), ["llama"]),
        (("llama", "m.gguf", "--", "--no-mmproj-a"), ["--no-mmproj-auto"]),
        (("llama", "m.gguf", "--", "-ngl", "9", "-ctk", "q4"), ["q4_0", "q4_1"]),
        (("llama", "m.gguf", "--", "--flash-attn=o"), ["--flash-attn=on", "--flash-attn=off"]),
        (("vllm", "m", "--", "--no-enable-prefix"), ["--no-enable-prefix-caching"]),
        (("vllm", "m", "--", "--dtype", "bf"), ["bfloat16"]),
        (("check", "--", "llama-b"), ["llama-bench"]),
        (("run", "--", "llama-server", "-m", "m", "--n-cpu-m"), ["--n-cpu-moe", "--n-cpu-moe-draft"]),
        (("check", "--", "vllm", "serve", "m", "--tensor-par"), ["--tensor-parallel-size"]),
    ],
)
def test_values(words: tuple[str, ...], first: list[str]) -> None:
    assert offered(*words) == first


@pytest.mark.parametrize(
    "words",
    [
        ("llama", ""),
        ("llama", "mod"),
        ("check", "--from", ""),
        ("check", "--from", "a.sh", ""),
        ("llama", "m.gguf", "--settings", "x"),
        ("check", "--on", "cpu", "--", "llama-server", "-m", ""),
        ("check", "--", ""),
        ("check", "--", "strange", "--x"),
        ("llama", "m.gguf", "--", "-ngl", ""),
        ("fix", ""),
        ("shims", ""),
        ("fleet", ""),
    ],
)
def test_files(words: tuple[str, ...]) -> None:
    assert complete(words) is None


def test_every_flag_of_an_engine_is_one_that_it_parses() -> None:
    """The newest version of each takes what is offered, with a value where one is asked for."""
    llama, vllm = host().backend("llama"), host().backend("vllm")
    for backend, program in ((llama, "llama-server"), (llama, "llama-cli"), (llama, "llama-bench"), (vllm, "vllm")):
        flags = backend.flags(program)
        assert len(flags) > 20, program
        assert all(re.fullmatch(r"--?[A-Za-z][\w.-]*", flag) for flag in flags)
    for flag, words in llama.flags().items():
        if words and flag.startswith("--"):
            llama.parse(["llama-server", "-m", "m.gguf", flag, words[0]])
    for flag, words in vllm.flags().items():
        if words:
            vllm.parse(["vllm", "serve", "m", flag, words[0]])


def test_presets_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFIT_PROFILES", str(tmp_path))
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mine.toml").write_text('schema = 1\nsummary = "my\\u001b own"\n')
    (tmp_path / "presets/$(touch x).toml").write_text('schema = 1\nsummary = "bad"\n')
    assert complete(("llama", "--preset", "mi")) == [("mine", "my\x1b own")]
    assert not [word for word in offered("llama", "--preset", "") if "$" in word]


def test_what_the_scripts_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFIT_PROFILES", str(tmp_path))
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mine.toml").write_text('schema = 1\nsummary = "my\\u001b own"\n')
    assert main(["completion", "--for", "zsh", "--", "llama", "--preset", "mi"]) == 0
    assert capsys.readouterr().out == "words\nmine\tmy\\x1b own\n"
    assert main(["completion", "--for", "bash", "--", "llama", "--on", "=", "rtx-3090-"]) == 0
    assert capsys.readouterr().out == "words\nrtx-3090-ti\tNVIDIA GeForce RTX 3090 Ti\n"
    assert main(["completion", "--for", "bash", "--", "llama", "example", ":", "ti"]) == 0
    assert capsys.readouterr().out == "words\ntiny\tdescribed inside autofit\n"
    assert main(["completion", "--for", "powershell", "--", "llama", "="]) == 0
    assert capsys.readouterr().out == "files\n"
    assert main(["completion", "--for", "fish", "--"]) == 0
    assert capsys.readouterr().out.startswith("words\nllama\t")


@pytest.mark.parametrize("words", [[], ["csh"], ["bash", "--", "x"], ["--for", "csh", "--", ""]])
def test_shells_that_there_are_not(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *words]) == 2
    assert capsys.readouterr().out == ""


# -- in the shells ---------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `autofit` on PATH, and the scripts."""
    program = tmp_path / "bin/autofit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m autofit "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "dumb")
    work = tmp_path / "work"
    work.mkdir()
    (work / "model one.gguf").write_text("")
    monkeypatch.chdir(work)
    return tmp_path


START = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        """eval "$(autofit completion bash)"; bind 'set bell-style none'
bind -x '"\\C-x": printf "%s\\n" "$READLINE_LINE" >> "$OUT"'
touch "$OUT"
""",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        """autoload -U compinit; compinit -u -D; eval "$(autofit completion zsh)"
dump() { print -r -- "$BUFFER" >> "$OUT" }; zle -N dump; bindkey '^X' dump; unsetopt beep automenu
touch "$OUT"
""",
    ),
}
TYPED = [
    ("autofit vllm m --format kubern", "autofit vllm m --format kubernetes"),
    ("autofit llama --on rtx-3090-", "autofit llama --on rtx-3090-ti"),
    ("autofit llama --on=rtx-3090-", "autofit llama --on=rtx-3090-ti"),
    ("autofit llama example:ti", "autofit llama example:tiny"),
    ("autofit inspect --ten", "autofit inspect --tensors"),
    ("autofit llama m -- --override-k", "autofit llama m -- --override-kv"),
    ("autofit check -- vllm serve M --pipeline-p", "autofit check -- vllm serve M --pipeline-parallel-size"),
    ("autofit llama mod", "autofit llama model\\ one.gguf"),
]


def typed(shell: str, place: Path, rows: list[str]) -> list[str]:
    """What the shell's line holds after each row and a tab."""
    import pty

    out = place / "typed"
    words, start = START[shell]
    terminal, inner = pty.openpty()
    environ = {**os.environ, "OUT": str(out), "PS1": "$ "}
    process = subprocess.Popen(words, stdin=inner, stdout=inner, stderr=inner, env=environ, start_new_session=True)
    os.close(inner)
    try:
        os.write(terminal, start.encode())
        _until(terminal, lambda: out.exists())
        for n, row in enumerate(rows, 1):
            os.write(terminal, f"{row}\t\x18".encode())
            _until(terminal, lambda n=n: len(out.read_text().splitlines()) >= n)  # type: ignore[misc]
            os.write(terminal, b"\x15")  # the line is emptied
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    return [row.rstrip() for row in out.read_text().splitlines()]


def _until(terminal: int, done) -> None:  # type: ignore[no-untyped-def]
    """Read what the shell prints until something has come of what was typed."""
    last = time.monotonic() + 120
    said = b""
    while not done():
        assert time.monotonic() < last, said[-2000:]
        if select.select([terminal], [], [], 0.05)[0]:
            said += os.read(terminal, 65536)


@pytest.mark.parametrize("shell", START)
def test_a_tab_completes(shell: str, place: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    assert typed(shell, place, [row for row, _ in TYPED]) == [then for _, then in TYPED]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_offers_words_with_what_they_are(place: Path) -> None:
    rows = [*(row for row, _ in TYPED), "autofit ", "autofit llama m -c "]
    script = 'autofit completion fish | source\nfor row in $argv; complete -C "$row"; echo ===; end'
    done = subprocess.run(
        ["fish", "--no-config", "-c", script, *rows], capture_output=True, text=True, timeout=120, check=True
    )
    groups = [group.strip("\n").split("\n") for group in done.stdout.split("===\n")]
    assert groups[0] == ["kubernetes\ta Deployment and a Service"]
    assert groups[1] == ["rtx-3090-ti\tNVIDIA GeForce RTX 3090 Ti"]
    assert groups[2] == ["--on=rtx-3090-ti\tNVIDIA GeForce RTX 3090 Ti"]
    assert groups[3] == ["example:tiny\tdescribed inside autofit"]
    assert groups[4] == ["--tensors\tlist every tensor"]
    assert groups[5] == ["--override-kv"]
    assert groups[6] == ["--pipeline-parallel-size"]
    assert groups[7] == ["model one.gguf"]
    assert groups[8][0].startswith("llama\t")
    assert groups[9] == [""]
