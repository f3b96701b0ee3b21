"""Commands for vLLM that were once answered wrongly: what came back then, what is right, and what is said now.

    python tools/accuracy/vllm_cases.py [NAME...]

The configurations are those of tests/data/vllm/report_configs.json.gz and tests/data/vllm/configs. What is right is in
words, with a source where a run was published: a person reads the two columns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import autofit
from autofit.domain.plan import Plan
from autofit.errors import AutofitError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support import DATA, vllm_reports

GIB = 1 << 30


class Case(NamedTuple):
    """`words` of `vllm serve` after the model; `is_plan`: a plan is asked for, no command checked."""

    name: str
    config: str
    machine: tuple[str, ...]
    words: tuple[str, ...]
    before: str
    right: str
    told: Callable[[Plan], str]
    is_plan: bool = False
    version: str | None = None  #: the release that was measured; `None`: the newest


def verdict(plan: Plan) -> str:
    words = ["fits" if plan.fits else "does not fit", f"at {plan.engine_report['gpu_memory_utilization']}"]
    words += [finding.message for finding in plan.findings if finding.code in ("would-fit", "too-many-sequences")]
    return "; ".join(words)


def weights(plan: Plan) -> str:
    return f"{plan.engine_report['weights_bytes_per_rank'][0] / GIB:.2f} GiB of weights a rank; {verdict(plan)}"  # type: ignore[index]


def cache(plan: Plan) -> str:
    return f"{min(plan.engine_report['available_kv_cache_bytes']) / GIB:.2f} GiB for the cache; {verdict(plan)}"  # type: ignore[call-overload]


def layout(plan: Plan) -> str:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "kv_cache_tokens")
    return ", ".join(f"{name} {plan.engine_report[name]}" for name in sizes)


def rates(plan: Plan) -> str:
    """Of the plan, and of its command checked on the same machine."""
    checked = autofit.check(plan.argv, autofit.load_machine("3xa100-80gb", ram="512GiB"), environ=plan.env)
    both = [found.speed.decode_tokens_per_s for found in (plan, checked) if found.speed is not None]
    return f"plan and check {', '.join(f'{rate:.1f}' for rate in both)} tokens/s"


DS4 = "deepseek-ai--DeepSeek-V4-"
FLASH = ("-tp", "2", "--enable-expert-parallel", "--kv-cache-dtype", "fp8", "--block-size", "256")
CASES = (
    Case("F1", "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", ("gb10",), ("--trust-remote-code",),
         "fits at 0.92", "cannot start at 0.92; 0.85 at most", verdict),
    Case("F1 plan", "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", ("gb10",), ("--trust-remote-code",),
         "0.9508", "at most 0.85", verdict, is_plan=True),
    Case("F2", "nvidia--NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4", ("h100-80gb",), (),
         "58.35 GiB", "17.58 GiB", weights),
    Case("F3", "nvidia--DeepSeek-V4-Pro-NVFP4", ("8xb200",), ("-dp", "8", "--enable-expert-parallel"),
         "149.4 GiB", "about 125 GiB", weights),
    Case("F4", "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", ("8xb200",), ("-tp", "8"),
         "refused: no num_hidden_layers", "108 layers of layers_block_type", weights),
    Case("F5", "nvidia--Qwen3.6-27B-NVFP4", ("h100-80gb",), ("--quantization", "modelopt_fp4"),
         "refused", "the checkpoint's method replaces the word", weights),
    Case("F6", "qwen3.5-27b-fp8", ("rtx-pro-6000-max-q",), ("--trust-remote-code",),
         "1040 Mamba blocks, fits", "939, refused (vllm-project/recipes/pull/831)", verdict),
    # the class LLM, whose defaults on such cards are steps of 16,384 tokens and 1,024 sequences
    Case("F7 GH200", DS4 + "Flash", ("gh200-96gb", "gh200-96gb"), (*FLASH, "--gpu-memory-utilization", "0.95",
         "--max-model-len", "30000", "--max-num-batched-tokens", "16384", "--max-num-seqs", "1024"),
         "12.2 GiB", "5.44 GiB, 6.66 needed for 30,000 tokens (vllm/issues/44376)", cache, version="0.22.0"),
    Case("F7 H20", DS4 + "Flash", ("2xh20",), (*FLASH, "--gpu-memory-utilization", "0.9", "--max-model-len", "121344",
         "--max-num-batched-tokens", "8192", "--max-num-seqs", "32"),
         "10.4 GiB", "7.7 GiB, 150,000 tokens (vllm/issues/51041)", cache, version="0.26.0"),
    Case("F8", DS4 + "Pro", ("8xh200",), ("-dp", "8", "--enable-expert-parallel", "--max-model-len", "200000"),
         "use --max-model-len 7872", "--max-num-batched-tokens 2048 keeps all 200,000", verdict),
    Case("F9", DS4 + "Flash", ("8xb200",), (), "one GPU, seven unmentioned", "DP8 with EP", layout, is_plan=True),
    Case("F10 draft", "qwen3-8b", ("h100-80gb",),
         ("--speculative-config", '{"method": "eagle3", "model": "a/b", "num_speculative_tokens": 3}'),
         "the check stops", "the rest is checked, the draft said to be unknown", verdict),
    Case("F10 key", "qwen3-8b", ("h100-80gb",), ("--attention-config.use_fp4_indexer_cache", "true"),
         "no hint", "the new name, indexer_kv_dtype", verdict),
    Case("F10 omni", "qwen3-8b", ("h100-80gb",), ("--omni",), "does not exist", "handed on by the CLI", verdict),
    Case("V4 GB10", "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8", ("gb10",), ("--nnodes", "2"),
         "two nodes share the RAM of one, at 0.42", "each has its own, at most 0.85", verdict, is_plan=True),
    Case("V4 H200", DS4 + "Pro", ("8xh200",), ("--nnodes", "2"), "PP8 DP2", "DP16 with EP", layout, is_plan=True),
    Case("F11", "qwen3-30b-a3b", ("3xa100-80gb",), (), "plan 12, check 48 tokens/s", "one rate", rates, is_plan=True),
)  # fmt: skip


def answer(case: Case, scratch: Path) -> str:
    there = DATA / "vllm" / "configs" / case.config
    model = there if there.is_dir() else vllm_reports.write_checkpoint(case.config, scratch)
    machine = autofit.load_machine(*case.machine, ram=None if "gb10" in case.machine else "512GiB")
    try:
        if case.is_plan:
            return case.told(autofit.plan("vllm", model, machine, engine_args=case.words))
        command = ["vllm", "serve", str(model), *case.words]
        return case.told(autofit.check(command, machine, environ={}, engine_version=case.version))
    except AutofitError as error:
        return f"refused: {error.message}" + (f" ({error.hint})" if error.hint else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the beginning of a case's name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            if options.names and not any(case.name.startswith(name) for name in options.names):
                continue
            begun = time.perf_counter()
            now = answer(case, Path(scratch))
            seconds = time.perf_counter() - begun
            words = " ".join(case.words)
            print(
                f"{case.name}  {'plan' if case.is_plan else 'check'} {case.config} {words} on {' '.join(case.machine)}"
            )
            print(f"    then   {case.before}\n    right  {case.right}\n    now    {now}  ({seconds:.2f} s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
