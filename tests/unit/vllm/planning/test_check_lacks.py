"""A command that vLLM would not start says which GPU lacks how much, and what would do."""

from __future__ import annotations

import autofit
import pytest
from autofit.render.text import no_fit

from support import DATA


@pytest.mark.parametrize(
    ("name", "on", "flags", "said"),
    [
        ("llama3-70b", "a100-80gb", (), "GPU0 NVIDIA A100-SXM4-80GB needs 100.6 GiB more for a sequence of 131,072"),
        ("qwen3-32b", "2xrtx-4090", ("-tp", "2"), "GPU0 NVIDIA GeForce RTX 4090 needs 15.86 GiB more"),
    ],
)  # fmt: skip
def test_pool_and_shortfall(name: str, on: str, flags: tuple[str, ...], said: str) -> None:
    argv = ["vllm", "serve", str(DATA / "vllm" / "configs" / name), *flags]
    plan = autofit.check(argv, autofit.load_machine(on, ram="128GiB"), settings=None)
    assert not plan.fits
    assert said in no_fit(plan)
    assert {"does-not-fit", "gpus-needed"} <= {found.code for found in plan.findings}
