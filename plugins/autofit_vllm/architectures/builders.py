"""Which function of `families/` builds an architecture: the one list to add to, beside the function itself."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from autofit.domain.text import printable
from autofit.errors import UnsupportedModelError

from autofit_vllm.architectures.builder import Builder
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.record import Architecture, architecture_of
from autofit_vllm.engine.versions import NEWEST

ModelBuilder = Callable[[Builder], None]

#: model builders (`module:function` below `families/`) with the architectures that they build
BUILDERS = {
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

BY_ARCHITECTURE = {name: builder for builder, names in BUILDERS.items() for name in names.split()}

#: the causal language model of a model type (transformers: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), and of the text models
#: that only stand behind towers
CAUSAL_LM = {
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

#: architectures that become another without its head (config/model.py:_SUFFIX_TO_DEFAULTS), with what replaces it
CONVERTED = {
    "ForTextEncoding": "embed",
    "EmbeddingModel": "embed",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "classify",
    "ClassificationModel": "classify",
    "ForRewardModeling": "embed",
    "RewardModel": "embed",
    "Model": "embed",
}


def model_builder(architecture: str) -> ModelBuilder:
    """The function that builds an architecture of `BY_ARCHITECTURE`."""
    module, _, function = BY_ARCHITECTURE[architecture].partition(":")
    found: ModelBuilder = getattr(import_module(f"autofit_vllm.architectures.families.{module}"), function)
    return found


def causal_lm_builder(text: Config) -> ModelBuilder:
    """The builder of a language model inside another, by its own `architectures` or its model type.

    Raises:
        UnsupportedModelError: neither is known here.
    """
    for name in text.items_of("architectures"):
        if isinstance(name, str) and name in BY_ARCHITECTURE and not architecture_of(name).multimodal:
            return model_builder(name)
    if text.model_type in CAUSAL_LM:
        return model_builder(CAUSAL_LM[text.model_type])
    raise UnsupportedModelError(f"unknown model type {printable(text.model_type, 60)} of text_config")


def base_of(name: str, release: str = NEWEST) -> tuple[Architecture, str | None]:
    """The architecture whose layers are built, and what an adapter makes of it: `embed`, `classify` or nothing.

    Raises:
        UnsupportedModelError
    """
    if name in BY_ARCHITECTURE:
        return architecture_of(name, release), None
    for suffix, conversion in CONVERTED.items():
        base = name.removesuffix(suffix) + "ForCausalLM"
        if name.endswith(suffix) and base in BY_ARCHITECTURE:
            return architecture_of(base, release), conversion
    raise UnsupportedModelError(f"unknown architecture {printable(name, 60)}")
