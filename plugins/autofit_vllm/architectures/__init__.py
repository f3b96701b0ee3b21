"""From `config.json` to the modules and caches that vLLM builds: one page per family of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from autofit.domain.text import printable
from autofit.errors import ModelError, UnsupportedModelError

from autofit_vllm.architectures.builder import Builder, Options
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.facts import (
    attention_heads,
    config_dtype,
    expert_count,
    experts_per_token,
    head_size,
    key_value_heads,
    model_length,
    ssm_dtype,
    uses_mla,
)
from autofit_vllm.architectures.families.encoders import classifier
from autofit_vllm.architectures.registry import (
    ATTENTION_FREE,
    DROPPED,
    ENCODER_DECODER,
    ENCODER_ONLY,
    HYBRID,
    MULTIMODAL,
    NO_LORA,
    NO_PIPELINE,
    POOLING,
)
from autofit_vllm.modules.model import Experts, StateCache, VllmModel

__all__ = ["Options", "build_from_config", "choose_architecture"]

#: vLLM's architecture words by page: `module:function` below this package
_PAGES = {
    "dense:llama": (
        "LlamaForCausalLM LLaMAForCausalLM InternLM3ForCausalLM IQuestCoderForCausalLM TeleChat3ForCausalLM "
        "MistralForCausalLM Ministral3ForCausalLM MistralModel LlamaModel Phi3ForCausalLM TeleFLMForCausalLM"
    ),
    "dense:qwen2": "Qwen2ForCausalLM Qwen2Model MiMoForCausalLM",
    "dense:qwen3": "Qwen3ForCausalLM",
    "dense:gemma": "GemmaForCausalLM",
    "dense:gemma2": "Gemma2ForCausalLM Gemma2Model",
    "dense:gemma3": "Gemma3ForCausalLM",
    "dense:gemma3_encoder": "Gemma3TextModel",
    "gemma:gemma3n": "Gemma3nForCausalLM",
    "gemma:gemma4": "Gemma4ForCausalLM",
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
    "experts:bailing_moe": "BailingMoeForCausalLM BailingMoeV2ForCausalLM SarvamMoEForCausalLM",
    "experts:llama4": "Llama4ForCausalLM",
    "experts:mimo_v2": "MiMoV2FlashForCausalLM MiMoV2ForCausalLM",
    "experts:param2moe": "Param2MoEForCausalLM",
    "dense:pangu_embedded": "PanguEmbeddedForCausalLM",
    "dense:plamo3": "Plamo3ForCausalLM",
    "dense:step1": "Step1ForCausalLM",
    "dense:iquest_loop": "IQuestLoopCoderForCausalLM",
    "dense:rnj1": "Rnj1ForCausalLM",
    "dense:hyperclovax": "HyperCLOVAXForCausalLM",
    "dense:minicpm": "MiniCPMForCausalLM",
    "dense:nemotron_nas": "DeciLMForCausalLM",
    "experts:step3p5": "Step3p5ForCausalLM",
    "mixtures:exaone_moe": "ExaoneMoeForCausalLM ExaoneMoEForCausalLM",
    "mixtures:hy_v3": "HYV3ForCausalLM",
    "mixtures:cohere2_moe": "Cohere2MoeForCausalLM",
    "mixtures:step3": "Step3TextForCausalLM",
    "mixtures:laguna": "LagunaForCausalLM",
    "recurrent:kimi_linear": "KimiLinearForCausalLM",
    "speech:whisper": "WhisperForConditionalGeneration",
    "latent:deepseek_v2": "DeepseekV2ForCausalLM DeepseekV3ForCausalLM MistralLarge3ForCausalLM",
    "latent:deepseek_v32": "DeepseekV32ForCausalLM GlmMoeDsaForCausalLM",
    "latent:axk1": "AXK1ForCausalLM",
    "latent:pangu_ultra": "PanguUltraMoEForCausalLM",
    "latent:sarvam_mla": "SarvamMLAForCausalLM",
    "compressed:glm5_next": "Glm5NextForCausalLM",
    "compressed:hy_v4": "HYV4ForCausalLM",
    "mixtures:minimax_m3": "MiniMaxM3SparseForCausalLM",
    "compressed:deepseek_v4": "DeepseekV4ForCausalLM",
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
    "recurrent:bailing_linear": "BailingMoeV2_5ForCausalLM",
    "generic:mellum": "MellumForCausalLM",
    "generic:llama_like": "SeedOssForCausalLM SmolLM3ForCausalLM CwmForCausalLM NanbeigeForCausalLM",
    "generic:glm": "GlmForCausalLM",
    "generic:olmo": "OlmoForCausalLM",
    "generic:olmo2": "Olmo2ForCausalLM Olmo3ForCausalLM",
    "generic:phi": "PhiForCausalLM",
    "generic:starcoder2": "Starcoder2ForCausalLM",
    "generic:arcee": "ArceeForCausalLM",
    "generic:hunyuan": "HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM",
    "generic:dots1": "Dots1ForCausalLM",
    "generic:jais2": "Jais2ForCausalLM",
    "generic:vaultgemma": "VaultGemmaForCausalLM",
    "generic:flex_olmo": "FlexOlmoForCausalLM",
    "generic:gpt_neox": "GPTNeoXForCausalLM",
    "generic:gpt_bigcode": "GPTBigCodeForCausalLM",
    "encoders:bert": "BertModel RobertaModel XLMRobertaModel",
    "encoders:bert_classifier": "BertForSequenceClassification",
    "encoders:roberta_classifier": "RobertaForSequenceClassification XLMRobertaForSequenceClassification",
    "encoders:with_rope": "GteModel GteNewModel NomicBertModel",
    "encoders:modernbert": "ModernBertModel",
    "encoders:modernbert_classifier": "ModernBertForSequenceClassification",
    "vision:llava": "LlavaForConditionalGeneration PixtralForConditionalGeneration",
    "vision:llava_next": "LlavaNextForConditionalGeneration",
    "vision:mistral3": "Mistral3ForConditionalGeneration LightOnOCRForConditionalGeneration",
    "vision:cohere2_vision": "Cohere2VisionForConditionalGeneration",
    "vision:qwen3_omni": "Qwen3OmniMoeForConditionalGeneration",
    "vision:gemma3": "Gemma3ForConditionalGeneration",
    "vision:paligemma": "PaliGemmaForConditionalGeneration",
    "vision:idefics3": "Idefics3ForConditionalGeneration SmolVLMForConditionalGeneration",
    "vision:qwen2_vl": "Qwen2VLForConditionalGeneration",
    "vision:qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "vision:qwen3_vl": "Qwen3VLForConditionalGeneration",
    "vision:qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "vision:qwen3_5": "Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration",
    "vision:glm4v": "Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration",
    "vision:internvl_hf": "InternVLForConditionalGeneration InternS1ForConditionalGeneration",
    "vision:internvl_chat": "InternVLChatModel",
    "vision:llama4": "Llama4ForConditionalGeneration",
    "vision:kimi_vl": "KimiVLForConditionalGeneration",
    "vision:kimi_k25": "KimiK25ForConditionalGeneration",
    "vision:kimi_k3": "KimiK3ForConditionalGeneration",
    "vision:glm_ocr": "GlmOcrForConditionalGeneration Glm5NextForConditionalGeneration",
    "vision:llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "vision:paddleocr": "PaddleOCRVLForConditionalGeneration",
    "speech:qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "vision:lfm2_vl": "Lfm2VlForConditionalGeneration",
    "vision:minicpmv4_6": "MiniCPMV4_6ForConditionalGeneration",
    "vision:minimax_m3": "MiniMaxM3SparseForConditionalGeneration",
    "vision:gemma4": "Gemma4ForConditionalGeneration",
}

#: architectures that become another without its head (config/model.py:_SUFFIX_TO_DEFAULTS), with what replaces it
_CONVERTED = {
    "ForTextEncoding": "embed",
    "EmbeddingModel": "embed",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "classify",
    "ClassificationModel": "classify",
    "ForRewardModeling": "embed",
    "RewardModel": "embed",
    "Model": "embed",
}

_BY_ARCHITECTURE = {word: page for page, words in _PAGES.items() for word in words.split()}


def _page(architecture: str) -> Callable[[Builder], None]:
    module, _, function = _BY_ARCHITECTURE[architecture].partition(":")
    page: Callable[[Builder], None] = getattr(import_module(f"autofit_vllm.architectures.families.{module}"), function)
    return page


def causal_page(text: Config) -> Callable[[Builder], None]:
    """The page of a language model inside another, by its own `architectures` or its model type."""
    names = [
        name
        for name in text.items_of("architectures")
        if isinstance(name, str) and name in _BY_ARCHITECTURE and name not in MULTIMODAL
    ]
    if names:
        return _page(names[0])
    if text.model_type in _CAUSAL:
        return _page(_CAUSAL[text.model_type])
    raise UnsupportedModelError(f"text_config of model type {printable(text.model_type, 60)} is not known here")


#: the causal language model of a model type (transformers: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), and of the text models
#: that only stand behind towers
_CAUSAL = {
    "apertus": "ApertusForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "cohere2_moe": "Cohere2MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "exaone_moe": "ExaoneMoeForCausalLM",
    "falcon_h1": "FalconH1ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3n_text": "Gemma3nForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm5_next_text": "Glm5NextForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "hyperclovax": "HyperCLOVAXForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "kimi_linear": "KimiLinearForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "minimax_m3_text": "MiniMaxM3SparseForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_vl_moe_text": "Qwen3MoeForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "step3_text": "Step3TextForCausalLM",
    "step3p5": "Step3p5ForCausalLM",
}


def choose_architecture(root: Config) -> str | None:
    """The first of the file's `architectures` whose layers are known here; `None` if there is none.

    Raises:
        UnsupportedModelError: vLLM dropped it.
    """
    names = [name for name in root.items_of("architectures") if isinstance(name, str)]
    for name in names:
        if name in _BY_ARCHITECTURE:
            return name
        for suffix in _CONVERTED:
            if name.endswith(suffix) and name.removesuffix(suffix) + "ForCausalLM" in _BY_ARCHITECTURE:
                return name
        if name in DROPPED:
            raise UnsupportedModelError(
                f"Model architecture {name} was supported in vLLM until v{DROPPED[name]}, and is not supported "
                "anymore.",
                hint="use that version of vLLM",
            )
    if not names and root.model_type in _CAUSAL:
        return _CAUSAL[root.model_type]
    return None


def build_from_config(raw: Mapping[str, Any], options: Options | None = None) -> VllmModel:
    """The model that a configuration describes, whatever its tensors are.

    Raises:
        UnsupportedModelError: an architecture that is not known here, or a key that is missing.
    """
    root = Config(raw)
    architecture = choose_architecture(root)
    if architecture is None:
        named = ", ".join(printable(str(name), 60) for name in root.items_of("architectures")[:4])
        words = named or printable(root.model_type, 60) or "unnamed"
        raise UnsupportedModelError(f"architecture {words} is not known here")
    options = options or Options()
    builder = Builder(root, root, options)
    base, conversion = _base(architecture)
    builder.headless = conversion is not None or (options.pooling and architecture not in POOLING)
    try:
        _page(base)(builder)
        if conversion == "classify":
            classifier(builder)
        return assemble(architecture, builder)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        # The file is untrusted: a list too short, a size of zero, a word where a number should be.
        raise ModelError(
            f"config.json: no {architecture} can be built from it ({type(error).__name__}: {printable(str(error), 80)})"
        ) from error


def _base(architecture: str) -> tuple[str, str | None]:
    """The architecture whose layers are built, and what an adapter makes of it."""
    if architecture in _BY_ARCHITECTURE:
        return architecture, None
    for suffix, conversion in _CONVERTED.items():
        base = architecture.removesuffix(suffix) + "ForCausalLM"
        if architecture.endswith(suffix) and base in _BY_ARCHITECTURE:
            return base, conversion
    raise UnsupportedModelError(f"architecture {architecture} is not known")


def assemble(architecture: str, builder: Builder) -> VllmModel:
    """The finished value, with the facts that vLLM's own settings read."""
    root, text = builder.root, builder.config
    length = model_length(text)
    dtype = config_dtype(root, text)
    kinds = {type(cache) for cache in builder.caches}
    states, attends = StateCache in kinds, bool(kinds - {StateCache})
    quantization = (
        root.table("quantization_config")
        or root.table("compression_config")
        or root.table("hf_quant_config")  # a file of its own in older ModelOpt checkpoints
    )
    nested = root.section("text_config").table("quantization_config")
    return VllmModel(
        architecture=architecture,
        model_type=root.model_type,
        modules=tuple(builder.modules),
        buffers=tuple(builder.buffers),
        caches=tuple(builder.caches),
        dtype=dtype or "float32",
        n_layers=text.layers("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
        hidden_size=text.int("hidden_size", "d_model", "n_embd", default=0),
        intermediate_size=text.maybe_int("intermediate_size", "ffn_hidden_size", "n_inner") or 0,
        vocab_size=text.int("vocab_size", "padded_vocab_size", default=0),
        n_heads=attention_heads(text),
        n_kv_heads=key_value_heads(text),
        head_size=head_size(text),
        max_len_tokens=length.derived,
        max_len_key=length.key,
        default_len_tokens=length.default,
        n_experts=expert_count(text),
        n_experts_per_token=experts_per_token(text),
        moe_intermediate_size=max(
            (module.intermediate_size for module in builder.modules if isinstance(module, Experts)), default=0
        ),
        sliding_window=builder.sliding_window(),
        uses_mla=uses_mla(text),
        is_hybrid=architecture in HYBRID and states and attends,
        is_attention_free=architecture in ATTENTION_FREE,
        is_multimodal=architecture in MULTIMODAL,
        is_pooling=architecture in POOLING or builder.headless or builder.options.pooling,
        is_encoder_decoder=architecture in ENCODER_DECODER,
        is_encoder_only=architecture in ENCODER_ONLY,
        supports_pipeline=architecture not in NO_PIPELINE,
        supports_lora=architecture not in NO_LORA,
        modalities=("image", "video") if architecture in MULTIMODAL else (),
        quantization=_with(quantization or nested, builder.quantization) or None,
        ssm_dtype=ssm_dtype(root, text, architecture),
        draft=builder.draft,
        notes=tuple(builder.notes),
        config=dict(text),
    )


def _with(quantization: Mapping[str, object], more: Mapping[str, object]) -> Mapping[str, object]:
    return {**quantization, **more} if quantization and more else quantization
