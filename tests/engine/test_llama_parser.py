"""Our reading of command lines against llama.cpp's own parsers (`AUTOFIT_LLAMA_BIN`: the folder they are in)."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from autofit.errors import AutofitError
from autofit.sources import resolve

from autofit_llama.command.options import Program, accepted
from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import read
from autofit_llama.engine.versions import LATEST
from autofit_llama.launch.defaults import launch_of

BIN = Path(os.environ.get("AUTOFIT_LLAMA_BIN", "/nonexistent"))
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not (BIN / "llama-fit-params").exists(), reason="AUTOFIT_LLAMA_BIN names no llama.cpp"),
]
#: what the parser looks up on the machine, and what it reads from files or does at once
ELSEWHERE = re.compile(
    "device|override-tensor|file|lora|vector|model|repo|rpc|mmproj|mask|range|url|schema|template|grammar"
)
AT_ONCE = re.compile("help|version|list|completion-bash|numa|prio|offline|logit-bias|log-|penalt|penalty|last-n|cache")
VALUES = (
    "0", "1", "5", "100000", "99999999999", "x", "", "on", "off", "auto", "all", "none", "layer", "f16", "q8_0", "1,2",
    "1/2", "1.5", "1e99", " 7", "7x", "mean", "linear", "mmap", "a,b", "a=int:5", "a=bool:x",
)  # fmt: skip


@pytest.mark.parametrize("program", ["llama-server", "llama-fit-params", "llama-completion"])
def test_every_spelling_of_the_help_is_known_and_no_other(program: Program) -> None:
    if not (BIN / program).exists():
        pytest.skip(f"{program} is not there")
    help_text = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, check=False).stdout
    lines = [line for line in help_text.splitlines() if re.match("-[-a-zA-Z]", line)]
    theirs = {name for line in lines for name in re.findall(r"(?:^|, +)(--?[A-Za-z][\w.-]*)", line)}
    ours = {name for option in accepted(program, LATEST) for name in (*option.spellings, *option.negations)}
    assert ours == theirs


def test_values_are_refused_alike() -> None:
    rng = random.Random(7)
    model = resolve("example:tiny").paths[0]
    spelled = [
        (option, names)
        for option in accepted("llama-fit-params", LATEST)
        if (names := (*option.spellings, *option.negations))
        and not ELSEWHERE.search(",".join(names))
        and not AT_ONCE.search(",".join(names))
    ]
    different = []
    for _ in range(80):
        option, names = rng.choice(spelled)
        args = [rng.choice(names), *(rng.choice(VALUES) for _ in range(option.n_values))]
        command = [str(BIN / "llama-fit-params"), "-m", model, "-fit", "off", *args]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        refused = bool(re.search("error while handling|invalid argument", done.stderr))
        try:
            launch_of(settings_of(read(["llama-fit-params", *args])), "llama-fit-params")
        except AutofitError:
            ours = True
        else:
            ours = False
        if ours != refused:
            different.append((args, done.stderr.strip().splitlines()[:1]))
    assert different == []
