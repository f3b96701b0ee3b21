"""What programs, registries and caches of other programs say: versions, lists of devices, manifests, names of files."""

from __future__ import annotations

import random
from typing import Any

from autofit.domain.machine import Host
from autofit.sources.choice import choose, models_of, sibling
from autofit.sources.ollama import role_of
from autofit.sources.registry import parse_manifest

from autofit_llama.engine.devices import parse
from autofit_llama.engine.naming import find_version, version_in
from autofit_llama.engine.regex import searcher
from support.fuzzing.values import TEXTS

WORDS = ("version: ", "8864", "b11311", "(abcdef)", "0.5.0", "build ", "llama", "-cpp-python ", "0.3.36", "ollama",
         "\n", " ", "9" * 50, "٣" * 5, "v", ".", "CUDA0", "CUDA", ": ", "NVIDIA", " (", "24576 MiB", ", ",
         "24000 MiB free)", "Vulkan", "MTL", "1" * 30, "\x1b[2J", "\u202e")  # fmt: skip
FILES = ("m-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-F16.gguf", ".gguf",
         "-", "a/b/m-Q4_0.gguf", "m-00000-of-00000.gguf", "m-99999-of-99999.gguf", "x\x1b.gguf")  # fmt: skip
PATTERNS = ("a", "(", ")", "(?:", "*", "+", "?", "{2}", "{1,3}", "{256}", "|", "[a-z]", ".", "\\.", "blk", "exps", "^",
            "$", "\\b", "(?=", "(?!", "\\1", "[", "]", "\\", "[[:alpha:]]", "{")  # fmt: skip
NAMES = ("blk.0.ffn_up_exps.weight", "output.weight", "a" * 60, "")


def make_words(rng: random.Random) -> Any:
    return "".join(rng.choice(WORDS) for _ in range(rng.choice((1, 3, 8, 30))))


def run_words(given: Any) -> None:
    version_in(given)
    for device in parse(given, Host(total_bytes=None, available_bytes=None)).devices:
        assert device.name.isprintable()
    find_version(given)


def make_manifest(rng: random.Random) -> Any:
    layer = '{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:' + "0" * 64 + '", "size": 5}'
    text = '{"layers": [' + ", ".join([layer] * rng.choice((0, 1, 2))) + "]}"
    for _ in range(rng.choice((0, 1, 1, 3))):
        at = rng.randrange(len(text) + 1)
        text = (
            text[:at]
            + rng.choice(("", "{", "[", "null", "-1", "1e400", '"', *TEXTS[:6]))
            + text[at + rng.choice((0, 1, 9)) :]
        )
    return {"manifest": text, "files": [rng.choice(FILES) for _ in range(rng.randrange(6))]}


def run_manifest(given: Any) -> None:
    files = dict.fromkeys(given["files"], 1)
    models = models_of(files)
    choose(models)
    if models:
        sibling(files, models[0].files[0], "mmproj")
    parse_manifest(given["manifest"], "x", role_of)


def make_pattern(rng: random.Random) -> Any:
    return "".join(rng.choice(PATTERNS) for _ in range(rng.choice((1, 3, 6, 12, 40))))


def run_pattern(given: Any) -> None:
    found = searcher(given)
    for name in NAMES:
        found(name)
