"""Replays that are remembered: what one placement has shown holds for every one that is the same when shortened."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from autofit.domain.values import replace

from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.engine.vocabulary import Override
from autofit_llama.graph.devices import CUDA, RPC
from autofit_llama.memory.layout import LoadParams, ParsedModel, lay_out
from autofit_llama.model.context import ContextParams
from autofit_llama.model.load import read_hparams
from support.descriptors import spec

MODELS = (
    "llama-3.1-8b-Q4_K_M", "qwen2.5-72b-IQ4_XS", "gpt-oss-120b-MXFP4_MOE", "gemma-3-4b-Q4_K_M", "falcon-h1-7b-Q8_0",
    "qwen3-next-80b-a3b-Q4_K_M", "deepseek-v2-lite-Q4_K_M", "phi-3-mini-4k-F16",
)  # fmt: skip


def placements(n_blocks: int, seed: int) -> Iterator[LoadParams]:
    """Some that differ in where the cuts are alone, and some in what stays on the host."""
    rng = random.Random(seed)
    for _ in range(4):
        first = rng.randint(n_blocks // 4, n_blocks // 2)
        n_cpu_ffn = rng.choice((None, 3))
        for more in (0, 1, 6):
            yield LoadParams(
                context=ContextParams(n_ctx=4096, n_seq_max=1, flash_attn="on"),
                n_gpu_layers=n_blocks + 1 - rng.choice((0, 0, more)),
                splits=(float(first + more), float(n_blocks + 1 - first - more)),
                overrides=() if n_cpu_ffn is None else (Override(kind="n_cpu_ffn", n_blocks=n_cpu_ffn + more),),
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_is_remembered_is_what_a_replay_gives(name: str) -> None:
    model = spec("models", name)
    remembering = ParsedModel(model, read_hparams(model))
    devices = random.Random(name).choice(((CUDA, CUDA), (CUDA, RPC)))
    n_replays, n_asked = 0, 0
    for arguments in placements(remembering.hparams.n_layer, 7):
        fresh = ParsedModel(model, remembering.hparams)
        n_before = len(remembering.known.replays)
        assert lay_out(remembering, devices, arguments).compute == lay_out(fresh, devices, arguments).compute
        n_replays += len(remembering.known.replays) > n_before
        n_asked += 1
    assert 0 < n_replays < n_asked


@pytest.mark.slow_but("llama-3.1-8b*")
@pytest.mark.parametrize("name", ["llama-3.1-8b-Q4_K_M", "gpt-oss-120b-MXFP4_MOE", "falcon-h1-7b-Q8_0"])
def test_what_other_plans_have_shown_moves_no_byte(name: str) -> None:
    """A model is laid out for one plan after another: other builds, contexts, batches, devices and cuts."""
    model = spec("models", name)
    shared, rng = ParsedModel(model, read_hparams(model)), random.Random(11)
    builds = (LATEST, Version(build=8390), Version(build=9538))
    for _ in range(14):
        context = ContextParams(
            n_ctx=rng.choice((4096, 32_768)),
            n_seq_max=rng.choice((1, 4)),
            n_ubatch=rng.choice((128, 512)),
            flash_attn=rng.choice(("on", "auto", "off")),
            type_k=rng.choice(("f16", "q8_0")),
            offload_kqv=rng.random() < 0.7,
            op_offload=rng.random() < 0.7,
            version=rng.choice(builds),
        )
        arguments = LoadParams(context=context, n_gpu_layers=rng.choice((-1, 20)), pipeline=rng.random() < 0.5)
        devices = rng.choice(((CUDA,), (CUDA, CUDA), (CUDA, RPC), (RPC, CUDA)))
        known, fresh = (
            lay_out(one, devices, arguments).compute for one in (shared, ParsedModel(model, shared.hparams))
        )
        # splits are those of the blocks that were built, of which there may be more after a cut in vain
        assert replace(known, n_splits=fresh.n_splits) == fresh, arguments
