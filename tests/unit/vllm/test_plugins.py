"""GGUF files and bitsandbytes: what vLLM takes with plugins of its own, planned where these are installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_vllm.command.settings import parse_command
from autofit_vllm.config.engine import Gpu
from autofit_vllm.config.resolve import resolve
from autofit_vllm.memory.budget import peak_items
from autofit_vllm.memory.weights import rank_tensors, weights_per_rank
from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import Linear, Parallel, Part, VllmModel
from autofit_vllm.modules.sharding import linear_shape
from autofit_vllm.planning.inputs import read_quantization, read_vllm_model
from autofit_vllm.quantization import Quantization, quantization_for
from autofit_vllm.quantization.gguf import gguf, gguf_name
from support.ggufs import Gguf, Strings, Tensor
from support.vllm_models import GIB
from support.vllm_truth import DATA

LLAMA = DATA / "configs" / "llama3-8b"
CARD = autofit.load_machine("rtx-4090", ram="64GiB")
HOPPER = Gpu(name="NVIDIA H100 80GB HBM3", total_bytes=79 * GIB, cc=(9, 0))

HIDDEN, WIDTH, WORDS, HEAD, HEADS, KV = 256, 512, 512, 64, 4, 2
SIZES = {
    "embedding_length": HIDDEN,
    "feed_forward_length": WIDTH,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV,
    "attention.key_length": HEAD,
    "context_length": 2048,
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions of the plugins, as an installer leaves them: nothing of them is imported."""
    for package, entry in (("vllm_gguf_plugin", "gguf"), ("vllm_bnb_plugin", "bitsandbytes")):
        info = tmp_path / "site" / f"{package}-0.0.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 0.0.5\n")
        (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{entry} = {package}:register\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def gguf_file(directory: Path, case: str) -> Path:
    """A tiny file of the kind that was loaded for the record."""
    arch = {"llama-odd": "llama"}.get(case, case)
    odd = {"gate": "q8_0", "q": "q8_0", "output": "f16"} if case == "llama-odd" else {}
    n_layers, n_experts = (6 if arch == "gemma3" else 2), (4 if arch == "olmoe" else 0)
    tensors = [Tensor("token_embd.weight", (HIDDEN, WORDS), "q6_K"), Tensor("output_norm.weight", (HIDDEN,))]
    if arch not in ("qwen2", "gemma3"):
        tensors.append(Tensor("output.weight", (HIDDEN, WORDS), odd.get("output", "q6_K")))
    for index in range(n_layers):
        value = "q6_K" if index == 0 else "q4_K"
        tensors += [Tensor(f"blk.{index}.{name}", ne, kind) for name, ne, kind in layer(arch, n_experts, odd, value)]
    keys: dict[str, Any] = {**SIZES, "block_count": n_layers}
    keys |= {"expert_count": 4, "expert_used_count": 2, "feed_forward_length": 256} if n_experts else {}
    keys |= {"attention.sliding_window": 128} if arch == "gemma3" else {}
    metadata = {f"{arch}.{key}": value for key, value in keys.items()}
    directory.mkdir(parents=True, exist_ok=True)
    header = {"general.architecture": arch, "tokenizer.ggml.tokens": Strings(WORDS), **metadata}
    return Gguf(metadata=header, tensors=tensors).write(directory / "model.gguf")


def layer(arch: str, n_experts: int, odd: dict[str, str], value: str) -> list[tuple[str, tuple[int, ...], str]]:
    query, keys = HEADS * HEAD, KV * HEAD
    found: list[tuple[str, tuple[int, ...], str]] = [
        ("attn_norm.weight", (HIDDEN,), "f32"),
        ("ffn_norm.weight", (HIDDEN,), "f32"),
        ("attn_output.weight", (query, HIDDEN), "q4_K"),
    ]
    if arch == "phi3":
        found += [
            ("attn_qkv.weight", (HIDDEN, query + 2 * keys), "q4_K"),
            ("ffn_up.weight", (HIDDEN, 2 * WIDTH), "q4_K"),
            ("ffn_down.weight", (WIDTH, HIDDEN), "q6_K"),
        ]
        return found
    found += [
        ("attn_q.weight", (HIDDEN, query), odd.get("q", "q4_K")),
        ("attn_k.weight", (HIDDEN, keys), "q4_K"),
        ("attn_v.weight", (HIDDEN, keys), value),
    ]
    if arch == "qwen2":
        found += [(f"attn_{name}.bias", (size,), "f32") for name, size in (("q", query), ("k", keys), ("v", keys))]
    if arch == "olmoe":
        found += [
            ("ffn_gate_inp.weight", (HIDDEN, n_experts), "f32"),
            ("ffn_gate_exps.weight", (HIDDEN, 256, n_experts), "q4_K"),
            ("ffn_up_exps.weight", (HIDDEN, 256, n_experts), "q4_K"),
            ("ffn_down_exps.weight", (256, HIDDEN, n_experts), "q6_K"),
        ]
        return found
    found += [
        ("ffn_gate.weight", (HIDDEN, WIDTH), odd.get("gate", "q4_K")),
        ("ffn_up.weight", (HIDDEN, WIDTH), "q4_K"),
        ("ffn_down.weight", (WIDTH, HIDDEN), "q6_K"),
    ]
    return found


def read(path: Path, *args: str, env: dict[str, str] | None = None) -> tuple[VllmModel, Quantization]:
    spec = autofit.read_model(path)
    _, settings = parse_command(["vllm", "serve", str(path), *args], env)
    model = read_vllm_model(spec, settings)
    return model, read_quantization(model, spec, settings, HOPPER)


def plan(model: Path, *args: str, **wishes: Any) -> Plan:
    return autofit.plan("vllm", model, CARD, engine_args=args, **wishes)


# -- GGUF


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("case", ["llama", "llama-odd", "qwen2", "gemma3", "phi3", "olmoe"])
def test_parameters_are_those_that_the_plug_in_loaded(tmp_path: Path, case: str) -> None:
    record = json.loads((DATA / "gguf_plugin.json").read_text())[case]
    model, quantization = read(gguf_file(tmp_path, case))
    tensors = rank_tensors(model, Parallel(), dtype="bfloat16", quantization=quantization)
    found = {tensor.name: [list(tensor.shape), tensor.dtype] for tensor in tensors}
    wanted = {name: shape for name, shape in record.items() if shape is not None}
    for name, (shape, _) in wanted.items():
        if shape == [0]:  # packed away by the CPU build
            assert found[name][1] == "bfloat16"
        else:
            assert found[name] == wanted[name], name
    outside = {name for name in found if ".layers." not in name or ".layers.0." in name}
    assert outside - wanted.keys() == set()


@pytest.mark.usefixtures("installed")
def test_a_rank_has_whole_blocks(tmp_path: Path) -> None:
    model, quantization = read(gguf_file(tmp_path, "llama"))
    with pytest.raises(EngineRefusalError, match="o_proj: 128 weights per rank are not whole q4_K blocks of 256"):
        weights_per_rank(model, Parallel(tp=2), dtype="bfloat16", quantization=quantization)


def test_rows_are_cut_between_blocks() -> None:
    found = gguf({"blk.3.ffn_down.weight": "q8_0", "blk.3.ffn_gate.weight": "q8_0", "blk.3.ffn_up.weight": "q4_0"})
    down = Linear(name="model.layers.3.mlp.down_proj", stage=3, kind="row", in_size=512, parts=(Part("down_proj", 96),))
    fused = (Part("gate_proj", 512), Part("up_proj", 512))
    up = Linear(name="model.layers.3.mlp.gate_up_proj", stage=3, kind="column", in_size=96, parts=fused)
    layout = Parallel(tp=2)
    shapes = [next(iter(found.linear(m).linear(linear_shape(m, layout, "bfloat16")))).shape for m in (down, up)]
    assert shapes == [(96, 256 // 32 * 34), (512, 96 // 32 * 34)], "rows of the smaller type are filled up"


def test_without_the_plug_in_its_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="vllm-gguf-plugin, and it is not installed") as caught:
        plan(gguf_file(tmp_path, "llama"))
    assert caught.value.hint is not None
    assert "pip install vllm-gguf-plugin" in caught.value.hint


def test_plug_ins_are_those_that_vllm_may_load(tmp_path: Path) -> None:
    path = gguf_file(tmp_path, "llama")
    assert read(path, env={"VLLM_PLUGINS": "other,gguf"})[1].name == "gguf"
    with pytest.raises(UnsupportedModelError, match="VLLM_PLUGINS excludes"):
        read(path, env={"VLLM_PLUGINS": "other"})


@pytest.mark.usefixtures("installed")
def test_a_plan_says_where_the_configuration_comes_from(tmp_path: Path) -> None:
    path = gguf_file(tmp_path, "llama")
    notes = [finding.message for finding in plan(path).findings]
    assert any("--hf-config-path" in note for note in notes)
    assert not any("--hf-config-path" in finding.message for finding in plan(path, "--tokenizer", "org/it").findings)
    config = json.loads((LLAMA / "config.json").read_text())
    own = {"hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HEAD, "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps({**config, **own, **heads}))
    found = plan(path)
    assert (found.context_tokens, found.engine_report["dtype"]) == (512, "bfloat16")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "qwen3moe"}, "no name for the experts of qwen3moe"),
        ({"general.architecture": "gemma2"}, "gemma2 .* is not one that can be planned"),
        ({"llama.expert_count": 8}, "as mixtral is not one"),
    ],
)
def test_what_the_plug_in_cannot_map(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    metadata = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in SIZES.items()}, **change}
    path = Gguf(metadata=metadata, tensors=[Tensor("token_embd.weight", (HIDDEN, WORDS), "q6_K")]).write(
        tmp_path / "model.gguf"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        read(path)


@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3", "gemma3", "phi3", "granite", "olmoe"])
def test_names_are_those_of_the_gguf_package(model: str) -> None:
    package = pytest.importorskip("gguf")
    arch = next(key for key, value in package.MODEL_ARCH_NAMES.items() if value == model)
    names = package.get_tensor_name_map(arch, 2)
    modules = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj", "self_attn.o_proj"]
    modules += ["mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.down_proj", "mlp.gate"]
    modules += [f"mlp.experts.{name}_proj" for name in ("gate", "up", "down")]
    known = {name: names.get_name(name) for name in [f"model.layers.1.{m}" for m in modules] + ["model.embed_tokens"]}
    assert {name: gguf_name(name) for name, own in known.items() if own} == {n: own for n, own in known.items() if own}


# -- bitsandbytes


def in_four_bits(rows: int, columns: int) -> int:
    return rows * columns // 2 + rows * columns // 64 * 4 + 16 * 4


@pytest.mark.usefixtures("installed")
def test_quantizing_to_four_bits_while_loading() -> None:
    model, quantization = read(LLAMA, "-q", "bitsandbytes")
    (stage,) = weights_per_rank(model, Parallel(), dtype="bfloat16", quantization=quantization)
    sizes = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)]
    others = 2 * (2 * 128256 * 4096 + 65 * 4096)
    assert stage.parameter_bytes + stage.extra_bytes == 32 * sum(in_four_bits(*size) for size in sizes) + others
    assert stage.parameter_bytes == 32 * sum(rows * columns // 2 for rows, columns in sizes) + others


@pytest.mark.usefixtures("installed")
def test_four_bits_are_cut_into_as_many_parts_as_ranks() -> None:
    model, quantization = read(LLAMA, "-q", "bitsandbytes")
    assert weights_per_rank(model, Parallel(tp=8), dtype="bfloat16", quantization=quantization)
    with pytest.raises(EngineRefusalError, match="copies of KV heads"):
        weights_per_rank(model, Parallel(tp=16), dtype="bfloat16", quantization=quantization)


@pytest.mark.usefixtures("installed")
def test_checkpoints_in_four_bits_stay_on_one_rank_of_a_stage(tmp_path: Path) -> None:
    config = json.loads((LLAMA / "config.json").read_text())
    own = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "o_proj"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": own}))
    model, quantization = read(tmp_path)
    shapes = {t.name: t.dtype for t in rank_tensors(model, Parallel(), dtype="bfloat16", quantization=quantization)}
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == "bfloat16"
    assert shapes["model.layers.0.self_attn.qkv_proj.weight"] == "uint8"
    with pytest.raises(EngineRefusalError, match="Prequant BitsAndBytes models with tensor parallelism"):
        weights_per_rank(model, Parallel(tp=2), dtype="bfloat16", quantization=quantization)
    assert len(weights_per_rank(model, Parallel(pp=2), dtype="bfloat16", quantization=quantization)) == 2


@pytest.mark.usefixtures("installed")
def test_eight_bits_run_without_graphs(tmp_path: Path) -> None:
    config = json.loads((LLAMA / "config.json").read_text())
    own = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": own}))
    model, quantization = read(tmp_path)
    tensors = list(rank_tensors(model, Parallel(), dtype="bfloat16", quantization=quantization, loaded=True))
    down = [(t.shape, t.dtype) for t in tensors if t.name.startswith("model.layers.0.mlp.down_proj.")]
    assert down == [((4096, 14336), "int8"), ((4096,), "float32")]
    assert sum(dtype_bytes(dtype) for _, dtype in down) == 5
    assert plan(tmp_path).engine_report["cudagraph_mode"] == "NONE"


@pytest.mark.parametrize("raw", [None, {"quant_method": "bitsandbytes", "load_in_4bit": True}])
def test_bitsandbytes_without_the_plug_in(raw: dict[str, Any] | None) -> None:
    with pytest.raises(UnsupportedModelError, match="vllm-bnb-plugin, and it is not installed"):
        quantization_for(raw, capability=(9, 0), requested=None if raw else "bitsandbytes")


@pytest.mark.usefixtures("installed")
def test_all_experts_of_a_layer_are_unpacked_at_once() -> None:
    def unpacked(*args: str) -> list[int]:
        path = DATA / "configs" / "qwen3-30b-a3b"
        model, quantization = read(path, *args)
        _, settings = parse_command(["vllm", "serve", str(path), *args])
        config = resolve(settings, model, HOPPER, quantization=quantization)
        return [item.n_bytes for item in peak_items(model, config, is_last=False) if item.label == "experts"]

    assert unpacked("-q", "bitsandbytes") == [3 * 128 * 2048 * 768 * 2]
    assert unpacked() == []
