"""The keyword arguments of plans are fields of vLLM's own class, of their types."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import autofit
import pytest

from support import DATA

pytestmark = pytest.mark.engine

PYTHON = os.environ.get("AUTOFIT_VLLM_PYTHON")
if not PYTHON:
    pytest.skip("AUTOFIT_VLLM_PYTHON names no Python with vLLM (.ci/vllm-cpu.sh makes one)", allow_module_level=True)

PLANS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("llama3-8b", ("rtx-4090",), ()),
    ("qwen3-30b-a3b", ("2xrtx-3090",), ()),
    ("llama3-70b", ("2xrtx-3090",), ()),
    ("qwen2.5-14b", ("rtx-4090", "rtx-3060-12gb"), ()),
    ("deepseek-v4-flash", ("8xb200",), ()),
    ("deepseek-v3", ("8xh200",), ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}')),
    ("llama3-8b", ("2xrtx-4090",), ("-O3", "--cudagraph-capture-sizes", "1", "2", "-cc.mode=3", "--api-key", "k")),
    ("qwen3-8b", ("rtx-3060-12gb",), ("--limit-mm-per-prompt", '{"image": 0}', "--served-model-name", "a", "b")),
)


def test_every_argument_is_a_field_and_of_its_type() -> None:
    asked = []
    for name, cards, args in PLANS:
        plan = autofit.plan(
            "vllm", DATA / "vllm" / "configs" / name, autofit.load_machine(*cards, ram="512GiB"), engine_args=args
        )
        assert plan.fits and plan.kwargs, name
        asked.append(json.dumps(dict(plan.kwargs)))
    script = Path(__file__).with_name("vllm_arguments.py")
    run = subprocess.run(
        [str(PYTHON), str(script)], input="\n".join(asked) + "\n", capture_output=True, text=True, timeout=300
    )
    answers = [json.loads(line[7:]) for line in run.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers == [[]] * len(PLANS), run.stderr[-2000:]
