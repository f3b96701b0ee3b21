"""An option of autofit's among the engine's flags: the engine does not know it, and the message says where it goes."""

from __future__ import annotations

import pytest
from autofit.cli.main import main

from support import DATA

GGUF = str(DATA / "llama" / "models" / "qwen2.5-7b-Q8_0.json.gz")
CONFIG = str(DATA / "vllm" / "configs" / "qwen3-8b")
ON = ("--on", "rtx-3090", "--ram", "32GiB")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("check", *ON, "--", "llama-server", "-m", GGUF, "--explain"), "--explain is an option of autofit"),
        (("llama", GGUF, *ON, "--", "-c", "4096", "--min-tps", "3"), "--min-tps is an option of autofit"),
        (("vllm", CONFIG, *ON, "--", "--min-context=8k"), "--min-context is an option of autofit"),
        (("check", *ON, "--", "llama-server", "-m", GGUF, "--expl"), None),
    ],
)
def test_where_it_goes(words: tuple[str, ...], hint: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert (hint is None) is ("is an option of autofit" not in said), said
    assert hint is None or f"  {hint}: it goes before --" in said
