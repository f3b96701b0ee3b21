"""Cells, streams, batches and the caches made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from autofit.errors import EngineRefusalError

from autofit_llama.graph.devices import CUDA, RPC, device_bytes
from autofit_llama.memory.placement import buffer_rules, place_layers
from autofit_llama.memory.weights import loaded_weights, place_weights
from autofit_llama.model.caches import CacheTensor, cache_bytes
from autofit_llama.model.context import Context, ContextParams, cache_row_bytes
from autofit_llama.model.hparams import HParams
from autofit_llama.model.resolve import caches, resolve_context
from support.commands import model_of

LLAMA = model_of("models", "llama-3.1-8b-Q4_K_M")[1]
GEMMA = model_of("models", "gemma-3-4b-Q4_K_M")[1]
DEEPSEEK = model_of("models", "deepseek-v2-lite-Q4_K_M")[1]


def context(hp: HParams = LLAMA, **params: Any) -> Context:
    return resolve_context(hp, ContextParams(**params))


def test_the_context_is_padded() -> None:
    assert context(n_ctx=1000).n_ctx == 1024
    assert context().n_ctx == LLAMA.n_ctx_train


def test_streams() -> None:
    split = context(n_ctx=8192, n_seq_max=4)
    assert (split.n_ctx_seq, split.n_streams, split.n_ctx) == (2048, 4, 8192)
    unified = context(n_ctx=8192, n_seq_max=4, kv_unified=True)
    assert (unified.n_ctx_seq, unified.n_streams) == (8192, 1)
    assert context(n_ctx=1000, n_seq_max=3).n_ctx == 3 * 512


def test_batches_never_exceed_the_context() -> None:
    small = context(n_ctx=300)
    assert (small.n_batch, small.n_ubatch, small.n_tokens) == (300, 300, 300)
    assert context(n_ctx=4096, n_ubatch=0).n_ubatch == 2048
    assert context(n_ctx=4096, n_seq_max=3).n_tokens == 513


def test_logits() -> None:
    assert context(n_ctx=4096).n_outputs == 512
    assert context(n_ctx=4096, n_outputs_max=4).n_outputs == 4


@pytest.mark.parametrize(
    ("hp", "params", "message"),
    [
        (LLAMA, {"n_seq_max": 300}, "at most 256"),
        (LLAMA, {"type_v": "q8_0", "flash_attn": "off"}, "requires flash attention"),
        (LLAMA, {"mtp": True}, "draft head"),
        (model_of("tiny", "mistral4-moe+draft")[1], {"mtp": True}, "no graph for one"),
        (LLAMA, {"n_batch": 0, "n_ubatch": 0}, "cannot both be zero"),
        (DEEPSEEK, {"type_k": "q8_0"}, "different K"),
    ],
)
def test_refused(hp: HParams, params: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineRefusalError, match=message):
        context(hp, **params)


def test_a_block_of_a_type_must_divide_the_head() -> None:
    odd = model_of("tiny", "laguna-moe")[1]
    with pytest.raises(EngineRefusalError, match="does not divide the head size 80"):
        context(odd, type_k="q8_0", flash_attn="on")


def test_a_quantized_v_turns_flash_attention_on() -> None:
    assert context(type_v="q8_0", type_k="q8_0").flash_attn == "on"


def tensors(hp: HParams, **params: Any) -> list[CacheTensor]:
    return [tensor for kept in caches(hp, context(hp, **params)) for tensor in kept.tensors]


def test_keys_and_values_of_every_block() -> None:
    found = tensors(LLAMA, n_ctx=8192)
    assert len(found) == 64
    assert {tensor.n_bytes for tensor in found} == {8192 * 8 * 128 * 2}


def test_quantized_caches_are_whole_blocks() -> None:
    assert tensors(LLAMA, n_ctx=256, type_k="q8_0")[0].n_bytes == 256 * cache_row_bytes("q8_0", 1024)
    with pytest.raises(EngineRefusalError, match="rows of 33 elements"):
        cache_row_bytes("q4_0", 33)


def test_sliding_windows_keep_only_what_they_see() -> None:
    full, swa = caches(GEMMA, context(GEMMA, n_ctx=32768))
    assert {tensor.n_rows for tensor in full.tensors} == {32768}
    assert {tensor.n_rows for tensor in swa.tensors} == {1536}
    whole = caches(GEMMA, context(GEMMA, n_ctx=32768, swa_full=True))[1]
    assert {tensor.n_rows for tensor in whole.tensors} == {32768}
    shared = caches(GEMMA, context(GEMMA, n_ctx=32768, n_seq_max=4, kv_unified=True))[1]
    assert {tensor.n_rows for tensor in shared.tensors} == {4 * 1024 + 512}


def test_latent_attention_keeps_keys_alone() -> None:
    latent = model_of("tiny", "deepseek2-moe")[1]
    assert {tensor.side for tensor in tensors(latent, n_ctx=512)} == {"k"}


def test_encoders_keep_nothing() -> None:
    bert = model_of("models", "bge-large-en-v1.5-F16")[1]
    assert caches(bert, context(bert, n_ctx=512)) == ()


def test_a_draft_head_has_the_cells_that_the_model_has_not() -> None:
    glm = model_of("tiny", "glm4moe-moe+draft")[1]
    trunk = {tensor.il for tensor in tensors(glm, n_ctx=512)}
    head = {tensor.il for tensor in tensors(glm, n_ctx=512, mtp=True)}
    assert trunk == set(range(glm.n_layer))
    assert head == {glm.n_layer}


def test_bytes_per_place() -> None:
    found = cache_bytes(tensors(LLAMA, n_ctx=256), lambda il: il % 2, lambda tensor, home: tensor.n_bytes + home)
    assert found[1] - found[0] == 32


def test_padding_of_tensors() -> None:
    assert device_bytes(CUDA, "q4_K", 4096, 1000) == 1024
    assert device_bytes(CUDA, "q4_0", 64, 36) == 384  # 448 more columns, then whole 128 bytes
    assert device_bytes(RPC, "q4_0", 64, 36) == 64
    assert device_bytes(CUDA, "f16", 65, 130) == 256


def test_a_tied_output_is_copied_to_a_device() -> None:
    model, hp = model_of("models", "gemma-3-4b-Q4_K_M")
    embedding = next(tensor for tensor in model.tensors if tensor.name == "token_embd.weight")
    weights = loaded_weights(model, hp)
    devices = buffer_rules((CUDA,))
    away = place_weights(weights, hp, place_layers(hp.n_layer_all, -1, (1.0,)), devices)
    here = place_weights(weights, hp, place_layers(hp.n_layer_all, 0, (1.0,)), devices)
    assert away.host_all_bytes == device_bytes(RPC, embedding.type, embedding.ne[0], embedding.n_bytes)
    assert away.device_bytes[0] + away.host_all_bytes > here.host_all_bytes


def test_a_table_is_read_lazily() -> None:
    model, hp = model_of("models", "llama-3.1-8b-Q4_K_M")
    assert loaded_weights(model, replace(hp), lazy_mode="on") == loaded_weights(model, hp)
