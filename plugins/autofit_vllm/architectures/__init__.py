"""From `config.json` to the modules and caches that vLLM builds: one page per family of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from autofit.domain.model import ModelSpec
from autofit.errors import UnsupportedModelError

from autofit_vllm.architectures.builder import Builder, Options
from autofit_vllm.architectures.config import Config
from autofit_vllm.model import VllmModel

__all__ = ["Options", "build_from_config", "build_model"]

#: vLLM's architecture words by page: `module:function` below this package
_PAGES = {
    "dense:llama": (
        "LlamaForCausalLM LLaMAForCausalLM InternLM3ForCausalLM IQuestCoderForCausalLM TeleChat3ForCausalLM "
        "MistralForCausalLM Ministral3ForCausalLM MistralModel LlamaModel Phi3ForCausalLM"
    ),
    "dense:qwen2": "Qwen2ForCausalLM Qwen2Model",
    "dense:qwen3": "Qwen3ForCausalLM",
    "dense:gemma": "GemmaForCausalLM",
    "dense:gemma2": "Gemma2ForCausalLM Gemma2Model",
    "dense:gemma3": "Gemma3ForCausalLM",
    "dense:cohere": "CohereForCausalLM Cohere2ForCausalLM",
    "dense:granite": "GraniteForCausalLM GraniteSWAForCausalLM",
    "dense:glm4": "Glm4ForCausalLM",
    "dense:apertus": "ApertusForCausalLM",
    "dense:bloom": "BloomForCausalLM",
    "dense:chatglm": "ChatGLMModel ChatGLMForConditionalGeneration",
    "dense:falcon": "FalconForCausalLM",
    "dense:gpt2": "GPT2LMHeadModel",
    "dense:gptj": "GPTJForCausalLM",
    "dense:opt": "OPTForCausalLM",
    "dense:stablelm": "StableLmForCausalLM",
    "dense:nemotron": "NemotronForCausalLM",
    "dense:exaone": "ExaoneForCausalLM",
    "dense:exaone4": "Exaone4ForCausalLM",
    "dense:internlm2": "InternLM2ForCausalLM",
    "dense:orion": "OrionForCausalLM",
    "dense:solar": "SolarForCausalLM",
    "dense:ernie4_5": "Ernie4_5ForCausalLM",
    "dense:telechat2": "TeleChat2ForCausalLM",
    "experts:mixtral": "MixtralForCausalLM",
    "experts:qwen2_moe": "Qwen2MoeForCausalLM",
    "experts:qwen3_moe": "Qwen3MoeForCausalLM",
    "experts:olmoe": "OlmoeForCausalLM",
    "experts:gpt_oss": "GptOssForCausalLM",
    "experts:minimax_m2": "MiniMaxM2ForCausalLM",
    "experts:glm4_moe": "Glm4MoeForCausalLM",
    "experts:afmoe": "AfmoeForCausalLM",
    "experts:ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "experts:granite_moe": "GraniteMoeForCausalLM GraniteMoeSharedForCausalLM GraniteMoeSWAForCausalLM",
    "experts:phimoe": "PhiMoEForCausalLM",
    "experts:dbrx": "DbrxForCausalLM",
    "experts:bailing_moe": "BailingMoeForCausalLM BailingMoeV2ForCausalLM",
    "experts:llama4": "Llama4ForCausalLM",
    "experts:mimo_v2": "MiMoV2FlashForCausalLM MiMoV2ForCausalLM",
    "latent:deepseek_v2": "DeepseekV2ForCausalLM DeepseekV3ForCausalLM",
    "latent:deepseek_v32": "DeepseekV32ForCausalLM GlmMoeDsaForCausalLM",
    "latent:deepseek": "DeepseekForCausalLM",
    "latent:glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "latent:minicpm3": "MiniCPM3ForCausalLM",
    "latent:longcat_flash": "LongcatFlashForCausalLM",
    "recurrent:mamba": "MambaForCausalLM FalconMambaForCausalLM",
    "recurrent:mamba2": "Mamba2ForCausalLM",
    "recurrent:jamba": "JambaForCausalLM",
    "recurrent:falcon_h1": "FalconH1ForCausalLM",
    "recurrent:nemotron_h": "NemotronHForCausalLM NemotronHPuzzleForCausalLM",
    "recurrent:granite_hybrid": "GraniteMoeHybridForCausalLM",
    "recurrent:lfm2": "Lfm2ForCausalLM",
    "recurrent:lfm2_moe": "Lfm2MoeForCausalLM",
    "recurrent:qwen3_next": "Qwen3NextForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM",
    "recurrent:olmo_hybrid": "OlmoHybridForCausalLM",
    "recurrent:zamba2": "Zamba2ForCausalLM",
    "generic:llama_like": "SeedOssForCausalLM SmolLM3ForCausalLM CwmForCausalLM NanbeigeForCausalLM",
    "generic:glm": "GlmForCausalLM",
    "generic:olmo": "OlmoForCausalLM",
    "generic:olmo2": "Olmo2ForCausalLM Olmo3ForCausalLM",
    "generic:phi": "PhiForCausalLM",
    "generic:starcoder2": "Starcoder2ForCausalLM",
    "generic:arcee": "ArceeForCausalLM",
    "generic:hunyuan": "HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM",
    "generic:dots1": "Dots1ForCausalLM",
    "generic:gpt_neox": "GPTNeoXForCausalLM",
    "generic:gpt_bigcode": "GPTBigCodeForCausalLM",
    "dense:qwen2_mimo": "MiMoForCausalLM",
}

_BY_ARCHITECTURE = {word: page for page, words in _PAGES.items() for word in words.split()}


def _page(architecture: str) -> Callable[[Builder], None]:
    module, _, function = _BY_ARCHITECTURE[architecture].partition(":")
    page: Callable[[Builder], None] = getattr(import_module(f"autofit_vllm.architectures.{module}"), function)
    return page


def build_model(spec: ModelSpec, options: Options | None = None) -> VllmModel:
    return build_from_config(spec.metadata, options)


def build_from_config(raw: Mapping[str, Any], options: Options | None = None) -> VllmModel:
    root = Config(raw)
    names = [name for name in root.items_of("architectures") if isinstance(name, str)]
    architecture = next((name for name in names if name in _BY_ARCHITECTURE), None)
    if architecture is None:
        raise UnsupportedModelError(f"architecture {names} is not known")
    builder = Builder(root, root, options or Options())
    _page(architecture)(builder)
    config = builder.config
    return VllmModel(
        architecture=architecture,
        model_type=config.model_type,
        modules=tuple(builder.modules),
        buffers=tuple(builder.buffers),
        caches=tuple(builder.caches),
        dtype="bfloat16",
        n_layers=builder.config.layers("num_hidden_layers", "n_layer", "num_layers"),
        hidden_size=builder.hidden_size,
        intermediate_size=0,
        vocab_size=0,
        n_heads=0,
        n_kv_heads=0,
        head_size=0,
        max_len_tokens=None,
        max_len_key=None,
        default_len_tokens=None,
        quantization=root.table("quantization_config") or None,
    )
