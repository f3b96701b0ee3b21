"""How time grows with what a stranger may make long: layers, names, lists, nests, flags, lines of tools.

    python bench/growth.py [--only WORD]

Each case is run at four sizes, each twice the one before; `x` is how much longer the last one took than the first, per
unit of size: 1 is linear, 8 is quadratic. Fixed costs of small sizes make it less.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import autofit
from autofit.domain.machine import Host
from autofit.errors import AutofitError
from autofit.readers import read_model
from autofit.sources.choice import models_of

from autofit_llama.engine.devices import parse as parse_devices
from autofit_llama.engine.regex import searcher
from autofit_llama.engine.versions import LATEST
from autofit_llama.loading.check import check_loads
from autofit_vllm.backend import VllmBackend
from support import ggufs

Work = Callable[[int], Callable[[], object]]


def layers_of_gguf(n: int) -> Callable[[], object]:
    folder = TemporaryDirectory()
    model = ggufs.llama(n_layer=n, n_embd=256, n_ff=256, n_vocab=64, metadata=VOCABULARY)
    path = model.write(Path(folder.name) / "m.gguf")

    def work() -> object:
        read = read_model(path)
        check_loads(read, LATEST)
        return autofit.plan("llama", read, MACHINE, context=4096, settings=None), folder

    return work


def words_of_gguf(n: int) -> Callable[[], object]:
    folder = TemporaryDirectory()
    path = ggufs.llama(n_layer=1, n_embd=256, n_ff=256, n_vocab=n).write(Path(folder.name) / "m.gguf")
    return lambda: (read_model(path), folder)


def patterns(n: int) -> Callable[[], object]:
    names = [f"blk.{i}.ffn_{kind}_exps.weight" for i in range(40) for kind in ("up", "down", "gate")]

    def work() -> object:
        searcher.cache_clear()
        return [searcher(f"(blk\\.{i}\\.(up|down)+)+.*")(name) for i in range(n) for name in names]

    return work


def nested_pattern(n: int) -> Callable[[], object]:
    def work() -> object:
        searcher.cache_clear()
        return searcher("(?:" * n + "a*b" + ")*" * n)("blk.0.ffn_up_exps.weight" * 4)

    return work


def vllm_config(key: str, value: Callable[[int], Any], like: str = "") -> Work:
    """A configuration with one value that grows; `like` is a recorded one."""

    def made(n: int) -> Callable[[], object]:
        folder = TemporaryDirectory()
        recorded = ROOT / "tests/data/vllm/configs" / like / "config.json"
        base = json.loads(recorded.read_text("utf-8")) if like else CONFIG
        (Path(folder.name) / "config.json").write_text(json.dumps({**base, key: value(n)}))
        return lambda: (autofit.plan("vllm", folder.name, GPU, context=4096, settings=None), folder)

    return made


def command(words: Callable[[int], list[str]]) -> Work:
    return lambda n: lambda: VllmBackend().parse(["vllm", "serve", "m", *words(n)])


def lines(n: int) -> Callable[[], object]:
    text = "".join(f"CUDA{i}: card (24576 MiB, 24000 MiB free)\n" for i in range(n))
    return lambda: parse_devices(text, Host(total_bytes=None, available_bytes=None))


def files(n: int) -> Callable[[], object]:
    sizes = {f"m-Q4_0-{i + 1:05d}-of-{n:05d}.gguf": 1 for i in range(n)}
    return lambda: models_of(sizes)


def names(n: int) -> list[str]:
    return [f"model.layers.{i}.x" for i in range(n)]


VOCABULARY = {"tokenizer.ggml.model": "none", "llama.vocab_size": 64}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_hidden_layers": 4, "vocab_size": 1000, "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16", "model_type": "llama",
}  # fmt: skip
QUANTIZED = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MACHINE = autofit.load_machine("rtx-3090", ram="64GiB")
GPU = autofit.load_machine("h100-80gb", ram="64GiB")
CASES: tuple[tuple[str, int, Work], ...] = (
    ("layers of a GGUF model, planned", 32, layers_of_gguf),
    ("words of a GGUF vocabulary, read", 50_000, words_of_gguf),
    ("-ot patterns over 120 tensors", 50, patterns),
    ("depth of one nested -ot pattern", 12, nested_pattern),
    ("layers of a configuration, planned", 100, vllm_config("num_hidden_layers", lambda n: n)),
    ("layers of DeepSeek V3, planned", 30, vllm_config("num_hidden_layers", lambda n: n, like="deepseek-v3")),
    ("modules_to_not_convert, planned", 2_500,
     vllm_config("quantization_config", lambda n: {**QUANTIZED, "modules_to_not_convert": names(n)})),
    ("unknown vLLM flags, refused", 500, command(lambda n: [f"--unknown-{i}" for i in range(n)])),
    ("dotted vLLM flags", 250, command(lambda n: [f"--hf-overrides.a{i}=1" for i in range(n)])),
    ("lines of --list-devices", 2_500, lines),
    ("shards of one model in a list", 2_500, files),
)  # fmt: skip


def measured(work: Callable[[], object]) -> tuple[float, str]:
    """Seconds of the faster of two runs, and what refused it."""
    best, refused = float("inf"), ""
    for _ in range(2):
        started = time.process_time()
        try:
            work()
        except AutofitError as error:
            refused = error.message[:60]
        best = min(best, time.process_time() - started)
    return best, refused


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this word")
    only = parser.parse_args().only
    for name, size, made in CASES:
        if only not in name:
            continue
        sizes = [size << step for step in range(4)]
        runs = [measured(made(n)) for n in sizes]
        seconds = [run[0] for run in runs]
        curve = "  ".join(f"{n}: {1000 * s:.0f} ms" for n, s in zip(sizes, seconds, strict=True))
        print(f"{name:<36} x {seconds[-1] / max(seconds[0], 1e-4) / 8:4.2f}   {curve}  {runs[-1][1]}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
