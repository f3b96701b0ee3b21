"""What is told of many sequences at a time, beside public runs that no figure was fitted to."""

from __future__ import annotations

import math
import statistics

import autofit
import pytest

from support import DATA, vllm_rates

#: of releases whose engine is today's, with no prompts read in between
RUNS = [run for run in vllm_rates.runs() if run.version >= "0.1" and run.kind != "online"]
RECENT = [run for run in RUNS if not run.version.startswith("0.7")]


def test_a_sequence_among_eight_decodes_as_fast_as_told() -> None:
    errors = [abs(math.log(each)) for each in vllm_rates.spread(RECENT)]
    assert len(RECENT) == 13
    assert math.exp(statistics.median(errors)) - 1 < 0.20


def test_the_band_holds_runs_that_were_not_seen() -> None:
    """Those outside are quantized weights on one A100, which were slower there than BF16."""
    outside = [run for run in RECENT if not (s := vllm_rates.speed_of_run(run)).low <= 1000 / run.step_ms <= s.high]
    assert len(outside) <= 4
    assert all(run.form for run in outside if run.card == "a100-80gb")


def test_prompts_of_latent_attention_unpack_the_latent() -> None:
    """DeepSeek-V3: 2 x 128 heads x (128 + 64 + 128) operations a token, not those of 512 + 64 and 512."""
    found = autofit.plan("vllm", DATA / "vllm" / "configs" / "deepseek-v3", autofit.load_machine("8xh200", ram="1TiB"))
    assert found.speed is not None and found.speed.prefill_tokens_per_s is not None
    assert 5_000 < found.speed.prefill_tokens_per_s < 15_000  # mean over a prompt of 163,840 tokens


@pytest.mark.parametrize("n_sequences", [2, 8, 32, 128])
def test_more_sequences_decode_more_together_and_less_each(n_sequences: int) -> None:
    run = next(run for run in RUNS if run.card == "h100-80gb")
    few, many = (vllm_rates.speed_of_run(run._replace(n_sequences=n)) for n in (n_sequences // 2, n_sequences))
    assert many.decode_tokens_per_s < few.decode_tokens_per_s
    assert 2 * many.decode_tokens_per_s > few.decode_tokens_per_s
