"""Which architectures vLLM 0.33.0 has, and what each can do (model_executor/models/registry.py and the interfaces
of its classes)."""

from __future__ import annotations

#: every architecture that this version has code for
KNOWN = frozenset(
    """
    AXK1ForCausalLM AfmoeForCausalLM AliceAIForCausalLM Alpamayo2Super ApertusForCausalLM
    ArceeForCausalLM AriaForConditionalGeneration AudioFlamingo3ForConditionalGeneration
    BagelForConditionalGeneration BailingMoeForCausalLM BailingMoeV2ForCausalLM
    BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM BailingMoeV3VLForConditionalGeneration
    BeamForCausalLM BeeForConditionalGeneration BertForMaskedLM BertForSequenceClassification
    BertForTokenClassification BertModel BertSpladeSparseEmbeddingModel BgeM3EmbeddingModel
    Blip2ForConditionalGeneration BloomForCausalLM CLIPModel ChatGLMForConditionalGeneration
    ChatGLMModel ClefFlashForJointSchema ClefOmniForJointSchema Cohere2ForCausalLM Cohere2MoeForCausalLM
    Cohere2VisionForConditionalGeneration CohereAsrForConditionalGeneration
    CohereCompassForConditionalGeneration CohereForCausalLM ColBERTJinaRobertaModel ColBERTLfm2Model
    ColBERTModernBertModel ColModernVBertForRetrieval ColPaliForRetrieval ColQwen3 ColQwen3_5
    ColUltraVBertForRetrieval Cosmos3EdgeForConditionalGeneration Cosmos3ForConditionalGeneration
    CwmForCausalLM D3ForSequenceClassification DbrxForCausalLM DeciLMForCausalLM DeepseekForCausalLM
    DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM
    DeepseekV3BidirectionalModel DeepseekV3ForCausalLM DeepseekV41ForCausalLM DeepseekV4ForCausalLM
    DeepseekV4ForConditionalGeneration DeepseekVLV2ForCausalLM DiffusionGemmaForBlockDiffusion
    DomynEdgeForCausalLM DoryForCausalLM Dots3NoteForCausalLM DotsOCRForCausalLM
    Eagle2_5_VLForConditionalGeneration EmbeddingGemma2Model Emu3ForConditionalGeneration
    Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Ernie4_5_VLMoeForConditionalGeneration
    Exaone4ForCausalLM Exaone4_5_ForConditionalGeneration ExaoneForCausalLM ExaoneMoEForCausalLM
    ExaoneMoeForCausalLM FalconForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM
    FireRedASR2ForConditionalGeneration FlexOlmoForCausalLM FlintForCausalLM
    FunASRForConditionalGeneration FunAudioChatForConditionalGeneration GLM4VForCausalLM
    GPT2ForSequenceClassification GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM
    GPTNeoXForCausalLM Gemma2ForCausalLM Gemma2Model Gemma3ForCausalLM Gemma3ForConditionalGeneration
    Gemma3TextModel Gemma3nForCausalLM Gemma3nForConditionalGeneration Gemma4ForCausalLM
    Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration GemmaForCausalLM
    Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM Glm4vForConditionalGeneration
    Glm4vMoeForConditionalGeneration Glm5NextForCausalLM Glm5NextForConditionalGeneration
    GlmAsrForConditionalGeneration GlmForCausalLM GlmMoeDsaForCausalLM GlmOcrForConditionalGeneration
    GptOssForCausalLM Granite4VisionForConditionalGeneration GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeHybridForCausalLM GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM
    GraniteSWAForCausalLM GraniteSpeechForConditionalGeneration
    GraniteSpeechPlusForConditionalGeneration GteModel GteNewForSequenceClassification GteNewModel
    H2OVLChatModel HCXVisionV2ForCausalLM HF_ColBERT HYV3ForCausalLM HYV4ForCausalLM HfMoondream
    HrmTextForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM
    HunYuanVLForConditionalGeneration HyperCLOVAXForCausalLM IQuestCoderForCausalLM
    IQuestLoopCoderForCausalLM Idefics3ForConditionalGeneration InklingForCausalLM
    InklingForConditionalGeneration InternLM2ForCausalLM InternLM2ForRewardModel InternLM3ForCausalLM
    InternS1ForConditionalGeneration InternS1ProForConditionalGeneration
    InternS2MobiusForConditionalGeneration InternS2PreviewForConditionalGeneration InternVLChatModel
    InternVLForConditionalGeneration IsaacForConditionalGeneration Jais2ForCausalLM JambaForCausalLM
    JambaForSequenceClassification JinaEmbeddingsV5Model JinaForRanking JinaVLForRanking
    K2HorizonForCausalLM KananaVForConditionalGeneration KeyeForConditionalGeneration
    KeyeVL1_5ForConditionalGeneration KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration
    KimiLinearForCausalLM KimiVLForConditionalGeneration Kolibri1ForCausalLM LLaMAForCausalLM
    LagunaForCausalLM Lfm2BidirectionalModel Lfm2ForCausalLM Lfm2MoeForCausalLM
    Lfm2VlForConditionalGeneration LightOnOCRForConditionalGeneration Llama4ForCausalLM
    Llama4ForConditionalGeneration LlamaBidirectionalForSequenceClassification LlamaBidirectionalModel
    LlamaForCausalLM LlamaModel LlamaNemotronVLForSequenceClassification LlamaNemotronVLModel
    Llama_Nemotron_Nano_VL LlavaForConditionalGeneration LlavaNextForConditionalGeneration
    LlavaNextVideoForConditionalGeneration LlavaOnevision2ForConditionalGeneration
    LlavaOnevisionForConditionalGeneration LongcatFlashForCausalLM LongcatFlashNgramForCausalLM
    Mamba2ForCausalLM MambaForCausalLM MellumForCausalLM MiDashengLMModel MiMoForCausalLM
    MiMoV2FlashForCausalLM MiMoV2ForCausalLM MiMoV2OmniForCausalLM MiniCPM3ForCausalLM
    MiniCPMForCausalLM MiniCPMO MiniCPMOcrForConditionalGeneration MiniCPMV
    MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration MiniMaxM2ForCausalLM
    MiniMaxM3SparseForCausalLM MiniMaxM3SparseForConditionalGeneration Ministral3ForCausalLM
    Mistral3ForConditionalGeneration MistralForCausalLM MistralLarge3ForCausalLM MistralModel
    MixtralForCausalLM ModernBertForSequenceClassification ModernBertForTokenClassification
    ModernBertModel ModernVBertModel Molmo2ForConditionalGeneration MolmoForCausalLM
    Moondream3ForCausalLM MoonshotKimiaForCausalLM MossAudioModel
    MossTranscribeDiarizeForConditionalGeneration MuseGlimmerForCausalLM
    MuseGlimmerForConditionalGeneration MuseSparkForConditionalGeneration NVLM_D NanbeigeForCausalLM
    NemotronForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM NemotronH_Nano_Omni_Reasoning_V3
    NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3 NemotronH_Super_Omni_Reasoning_V3
    NemotronParseForConditionalGeneration NomicBertModel OPTForCausalLM Olmo2ForCausalLM
    Olmo3ForCausalLM OlmoForCausalLM OlmoHybridForCausalLM OlmoeForCausalLM
    OpenAIPrivacyFilterForTokenClassification OpenCUAForConditionalGeneration
    OpenPanguVLForConditionalGeneration OpenVLAForActionPrediction OpsColQwen3Model OrionForCausalLM
    Ovis Ovis2_5 Ovis2_6ForCausalLM Ovis2_6_MoeForCausalLM PaddleOCRVLForConditionalGeneration
    PaliGemmaForConditionalGeneration PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM
    PanguUltraMoEForCausalLM Param2MoEForCausalLM Phi3ForCausalLM Phi3VForCausalLM Phi4ForCausalLMV
    Phi4MMForCausalLM PhiForCausalLM PhiMoEForCausalLM PixtralForConditionalGeneration Plamo3ForCausalLM
    QianfanOCRForConditionalGeneration Qwen2AudioForConditionalGeneration Qwen2ForCausalLM
    Qwen2ForProcessRewardModel Qwen2ForRewardModel Qwen2Model Qwen2MoeForCausalLM
    Qwen2VLForConditionalGeneration Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel
    Qwen2_5_VLForConditionalGeneration Qwen3ASRForConditionalGeneration
    Qwen3ASRForcedAlignerForTokenClassification Qwen3ASRRealtimeGeneration Qwen3ForCausalLM
    Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3OmniMoeForConditionalGeneration
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Qwen3VLNemotronEmbedModel
    Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM
    Qwen3_5MoeForConditionalGeneration Qwen4ExpForCausalLM Qwen4ExpForConditionalGeneration
    RForConditionalGeneration RadioMBartPrefixForCausalLM Rnj1ForCausalLM RobertaForMaskedLM
    RobertaForSequenceClassification RobertaForTokenClassification RobertaModel SarvamMLAForCausalLM
    SarvamMoEForCausalLM SeedOssForCausalLM SiglipModel SkyworkR1VChatModel SmolLM3ForCausalLM
    SmolVLMForConditionalGeneration SolarForCausalLM StableLmForCausalLM Starcoder2ForCausalLM
    Step1ForCausalLM Step3TextForCausalLM Step3VLForConditionalGeneration Step3p5ForCausalLM
    Step3p7ForConditionalGeneration Step5ForCausalLM Step5ForConditionalGeneration
    StepVLForConditionalGeneration TeleChat2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM
    Terratorch TransformersEmbeddingModel TransformersForCausalLM TransformersForMTP
    TransformersForSequenceClassification TransformersMoEEmbeddingModel TransformersMoEForCausalLM
    TransformersMoEForMTP TransformersMoEForSequenceClassification TransformersMultiModalEmbeddingModel
    TransformersMultiModalForCausalLM TransformersMultiModalForSequenceClassification
    TransformersMultiModalMoEForCausalLM UltravoxModel UnlimitedOCRForCausalLM VaultGemmaForCausalLM
    VibeVoiceAsrForConditionalGeneration VoxtralForConditionalGeneration VoxtralRealtimeGeneration
    VoyageQwen3BidirectionalEmbedModel WhisperForConditionalGeneration
    XLMRobertaForSequenceClassification XLMRobertaForTokenClassification XLMRobertaModel
    Zamba2ForCausalLM
    """.split()
)

#: those that cannot be cut into pipeline stages
NO_PIPELINE = frozenset(
    """
    AliceAIForCausalLM AriaForConditionalGeneration BertForMaskedLM BertForSequenceClassification
    BertForTokenClassification BertModel BertSpladeSparseEmbeddingModel BgeM3EmbeddingModel CLIPModel
    ColBERTJinaRobertaModel ColBERTLfm2Model ColBERTModernBertModel ColModernVBertForRetrieval
    ColUltraVBertForRetrieval DiffusionGemmaForBlockDiffusion DomynEdgeForCausalLM DoryForCausalLM
    EmbeddingGemma2Model FireRedASR2ForConditionalGeneration GPT2ForSequenceClassification
    Gemma3TextModel Gemma3nForCausalLM Gemma3nForConditionalGeneration GteModel
    GteNewForSequenceClassification GteNewModel HF_ColBERT HrmTextForCausalLM IQuestLoopCoderForCausalLM
    Idefics3ForConditionalGeneration JinaForRanking Lfm2BidirectionalModel Mamba2ForCausalLM
    ModernBertForSequenceClassification ModernBertForTokenClassification ModernBertModel
    ModernVBertModel NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3
    NemotronH_Super_Omni_Reasoning_V3 NemotronParseForConditionalGeneration NomicBertModel
    OpenAIPrivacyFilterForTokenClassification PaddleOCRVLForConditionalGeneration Phi4MMForCausalLM
    RadioMBartPrefixForCausalLM RobertaForMaskedLM RobertaForSequenceClassification
    RobertaForTokenClassification RobertaModel SiglipModel SmolVLMForConditionalGeneration
    VoyageQwen3BidirectionalEmbedModel WhisperForConditionalGeneration
    XLMRobertaForSequenceClassification XLMRobertaForTokenClassification XLMRobertaModel
    Zamba2ForCausalLM
    """.split()
)

#: those that take no adapters
NO_LORA = frozenset(
    """
    AriaForConditionalGeneration BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM
    BailingMoeV3VLForConditionalGeneration BeamForCausalLM BeeForConditionalGeneration BertForMaskedLM
    BloomForCausalLM CLIPModel Cohere2MoeForCausalLM Cohere2VisionForConditionalGeneration
    ColBERTJinaRobertaModel ColBERTLfm2Model ColBERTModernBertModel ColModernVBertForRetrieval
    ColUltraVBertForRetrieval Cosmos3EdgeForConditionalGeneration DbrxForCausalLM DeepseekV41ForCausalLM
    DeepseekVLV2ForCausalLM DiffusionGemmaForBlockDiffusion DomynEdgeForCausalLM DoryForCausalLM
    Dots3NoteForCausalLM EmbeddingGemma2Model FalconForCausalLM FalconMambaForCausalLM
    FireRedASR2ForConditionalGeneration FlintForCausalLM FunAudioChatForConditionalGeneration
    GPT2ForSequenceClassification GPT2LMHeadModel GPTJForCausalLM Gemma3TextModel Gemma3nForCausalLM
    Gemma3nForConditionalGeneration Glm5NextForCausalLM GteModel GteNewForSequenceClassification
    GteNewModel HCXVisionV2ForCausalLM HfMoondream HrmTextForCausalLM IQuestLoopCoderForCausalLM
    JinaForRanking KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration KimiLinearForCausalLM
    KimiVLForConditionalGeneration Lfm2BidirectionalModel LlavaOnevision2ForConditionalGeneration
    LlavaOnevisionForConditionalGeneration Mamba2ForCausalLM MambaForCausalLM MiMoV2FlashForCausalLM
    MiMoV2ForCausalLM MiMoV2OmniForCausalLM MiniMaxM3SparseForCausalLM
    MiniMaxM3SparseForConditionalGeneration ModernBertForSequenceClassification
    ModernBertForTokenClassification ModernVBertModel Moondream3ForCausalLM MoonshotKimiaForCausalLM
    MossTranscribeDiarizeForConditionalGeneration NemotronParseForConditionalGeneration NomicBertModel
    OpenAIPrivacyFilterForTokenClassification OpenVLAForActionPrediction OrionForCausalLM Ovis Ovis2_5
    Ovis2_6ForCausalLM Ovis2_6_MoeForCausalLM PaddleOCRVLForConditionalGeneration Phi3VForCausalLM
    Phi4ForCausalLMV Qwen2AudioForConditionalGeneration RForConditionalGeneration
    RadioMBartPrefixForCausalLM RobertaForTokenClassification SiglipModel SkyworkR1VChatModel
    StableLmForCausalLM Step1ForCausalLM Step3TextForCausalLM Step3VLForConditionalGeneration
    Step3p5ForCausalLM Step3p7ForConditionalGeneration StepVLForConditionalGeneration
    XLMRobertaForTokenClassification Zamba2ForCausalLM
    """.split()
)

#: those that take more than text
MULTIMODAL = frozenset(
    """
    Alpamayo2Super AriaForConditionalGeneration AudioFlamingo3ForConditionalGeneration
    BagelForConditionalGeneration BailingMoeV3VLForConditionalGeneration BeeForConditionalGeneration
    Blip2ForConditionalGeneration CLIPModel ClefFlashForJointSchema ClefOmniForJointSchema
    Cohere2VisionForConditionalGeneration CohereCompassForConditionalGeneration
    ColModernVBertForRetrieval ColPaliForRetrieval ColQwen3 ColQwen3_5 ColUltraVBertForRetrieval
    Cosmos3EdgeForConditionalGeneration Cosmos3ForConditionalGeneration D3ForSequenceClassification
    DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM DeepseekV41ForCausalLM
    DeepseekV4ForConditionalGeneration DeepseekVLV2ForCausalLM DiffusionGemmaForBlockDiffusion
    Dots3NoteForCausalLM DotsOCRForCausalLM Eagle2_5_VLForConditionalGeneration EmbeddingGemma2Model
    Emu3ForConditionalGeneration Ernie4_5_VLMoeForConditionalGeneration
    Exaone4_5_ForConditionalGeneration FireRedASR2ForConditionalGeneration
    FunAudioChatForConditionalGeneration GLM4VForCausalLM Gemma3ForConditionalGeneration
    Gemma3nForConditionalGeneration Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration
    Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration Glm5NextForConditionalGeneration
    GlmAsrForConditionalGeneration GlmOcrForConditionalGeneration Granite4VisionForConditionalGeneration
    GraniteSpeechForConditionalGeneration GraniteSpeechPlusForConditionalGeneration H2OVLChatModel
    HCXVisionV2ForCausalLM HfMoondream HunYuanVLForConditionalGeneration
    Idefics3ForConditionalGeneration InklingForConditionalGeneration InternS1ForConditionalGeneration
    InternS1ProForConditionalGeneration InternS2MobiusForConditionalGeneration
    InternS2PreviewForConditionalGeneration InternVLChatModel InternVLForConditionalGeneration
    IsaacForConditionalGeneration JinaVLForRanking KeyeForConditionalGeneration
    KeyeVL1_5ForConditionalGeneration KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration
    KimiVLForConditionalGeneration Lfm2VlForConditionalGeneration LightOnOCRForConditionalGeneration
    Llama4ForConditionalGeneration LlamaNemotronVLForSequenceClassification LlamaNemotronVLModel
    Llama_Nemotron_Nano_VL LlavaForConditionalGeneration LlavaNextForConditionalGeneration
    LlavaNextVideoForConditionalGeneration LlavaOnevision2ForConditionalGeneration
    LlavaOnevisionForConditionalGeneration MiMoV2OmniForCausalLM MiniCPMO
    MiniCPMOcrForConditionalGeneration MiniCPMV MiniCPMV4_6ForConditionalGeneration
    MiniCPMV4_7ForConditionalGeneration MiniMaxM3SparseForConditionalGeneration
    Mistral3ForConditionalGeneration ModernVBertModel Molmo2ForConditionalGeneration MolmoForCausalLM
    Moondream3ForCausalLM MoonshotKimiaForCausalLM MossAudioModel
    MossTranscribeDiarizeForConditionalGeneration MuseGlimmerForCausalLM
    MuseGlimmerForConditionalGeneration MuseSparkForConditionalGeneration NVLM_D
    NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3
    NemotronH_Super_Omni_Reasoning_V3 NemotronParseForConditionalGeneration
    OpenCUAForConditionalGeneration OpenPanguVLForConditionalGeneration OpenVLAForActionPrediction
    OpsColQwen3Model Ovis Ovis2_5 Ovis2_6ForCausalLM Ovis2_6_MoeForCausalLM
    PaddleOCRVLForConditionalGeneration PaliGemmaForConditionalGeneration Phi3VForCausalLM
    Phi4ForCausalLMV Phi4MMForCausalLM PixtralForConditionalGeneration
    QianfanOCRForConditionalGeneration Qwen2AudioForConditionalGeneration
    Qwen2VLForConditionalGeneration Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel
    Qwen2_5_VLForConditionalGeneration Qwen3ASRForConditionalGeneration
    Qwen3ASRForcedAlignerForTokenClassification Qwen3ASRRealtimeGeneration
    Qwen3OmniMoeForConditionalGeneration Qwen3VLForConditionalGeneration
    Qwen3VLMoeForConditionalGeneration Qwen3VLNemotronEmbedModel Qwen3_5ForConditionalGeneration
    Qwen3_5MoeForConditionalGeneration Qwen4ExpForConditionalGeneration RForConditionalGeneration
    RadioMBartPrefixForCausalLM SiglipModel SkyworkR1VChatModel SmolVLMForConditionalGeneration
    Step3VLForConditionalGeneration Step3p7ForConditionalGeneration Step5ForConditionalGeneration
    StepVLForConditionalGeneration TransformersMultiModalEmbeddingModel
    TransformersMultiModalForCausalLM TransformersMultiModalForSequenceClassification
    TransformersMultiModalMoEForCausalLM UltravoxModel UnlimitedOCRForCausalLM
    VibeVoiceAsrForConditionalGeneration VoxtralForConditionalGeneration VoxtralRealtimeGeneration
    WhisperForConditionalGeneration
    """.split()
)

#: those that mix attention and recurrent layers
HYBRID = frozenset(
    """
    AliceAIForCausalLM BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM
    BailingMoeV3VLForConditionalGeneration ClefFlashForJointSchema ColBERTLfm2Model ColQwen3_5
    D3ForSequenceClassification FalconH1ForCausalLM Glm5NextForCausalLM Glm5NextForConditionalGeneration
    GraniteMoeHybridForCausalLM InternS2MobiusForConditionalGeneration
    InternS2PreviewForConditionalGeneration JambaForCausalLM JambaForSequenceClassification
    KimiK3ForConditionalGeneration KimiLinearForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM
    Lfm2VlForConditionalGeneration MiniCPMOcrForConditionalGeneration
    MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration NemotronHForCausalLM
    NemotronHPuzzleForCausalLM NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2
    NemotronH_Omni_Reasoning_V3 NemotronH_Super_Omni_Reasoning_V3 OlmoHybridForCausalLM
    Qwen3NextForCausalLM Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM
    Qwen3_5MoeForConditionalGeneration Qwen4ExpForCausalLM Qwen4ExpForConditionalGeneration
    Zamba2ForCausalLM
    """.split()
)

ATTENTION_FREE = frozenset({"FalconMambaForCausalLM", "MambaForCausalLM", "Mamba2ForCausalLM"})
#: those that embed, classify or rank, and never generate
POOLING = frozenset(
    """
    BertForMaskedLM BertForSequenceClassification BertForTokenClassification BertModel
    BertSpladeSparseEmbeddingModel BgeM3EmbeddingModel CLIPModel ClefFlashForJointSchema
    ClefOmniForJointSchema ColBERTJinaRobertaModel ColBERTLfm2Model ColBERTModernBertModel
    ColModernVBertForRetrieval ColPaliForRetrieval ColQwen3 ColQwen3_5 ColUltraVBertForRetrieval
    D3ForSequenceClassification DeepseekV3BidirectionalModel EmbeddingGemma2Model
    GPT2ForSequenceClassification Gemma2Model Gemma3TextModel GteModel GteNewForSequenceClassification
    GteNewModel HF_ColBERT InternLM2ForRewardModel JambaForSequenceClassification JinaEmbeddingsV5Model
    JinaForRanking JinaVLForRanking Lfm2BidirectionalModel LlamaBidirectionalForSequenceClassification
    LlamaBidirectionalModel LlamaModel LlamaNemotronVLForSequenceClassification LlamaNemotronVLModel
    MistralModel ModernBertForSequenceClassification ModernBertForTokenClassification ModernBertModel
    ModernVBertModel NomicBertModel OpenAIPrivacyFilterForTokenClassification OpsColQwen3Model
    Qwen2ForProcessRewardModel Qwen2ForRewardModel Qwen2Model
    Qwen3ASRForcedAlignerForTokenClassification Qwen3VLNemotronEmbedModel RobertaForMaskedLM
    RobertaForSequenceClassification RobertaForTokenClassification RobertaModel SiglipModel Terratorch
    VoyageQwen3BidirectionalEmbedModel XLMRobertaForSequenceClassification
    XLMRobertaForTokenClassification XLMRobertaModel
    """.split()
)

#: those that attend both ways and keep no cache
ENCODER_ONLY = frozenset(
    """
    BertForMaskedLM BertForSequenceClassification BertForTokenClassification BertModel
    BertSpladeSparseEmbeddingModel BgeM3EmbeddingModel ColBERTJinaRobertaModel ColBERTLfm2Model
    ColBERTModernBertModel ColModernVBertForRetrieval ColPaliForRetrieval ColQwen3 ColQwen3_5
    ColUltraVBertForRetrieval GteModel GteNewForSequenceClassification GteNewModel HF_ColBERT
    Lfm2BidirectionalModel ModernBertForSequenceClassification ModernBertForTokenClassification
    ModernBertModel ModernVBertModel NomicBertModel OpenAIPrivacyFilterForTokenClassification
    OpsColQwen3Model Qwen3VLNemotronEmbedModel RobertaForMaskedLM RobertaForSequenceClassification
    RobertaForTokenClassification RobertaModel SiglipModel XLMRobertaForSequenceClassification
    XLMRobertaForTokenClassification XLMRobertaModel
    """.split()
)

#: those with an encoder whose output is cached apart
ENCODER_DECODER = frozenset({"WhisperForConditionalGeneration"})

#: dropped architectures and the last version that had them
DROPPED = {
    "AquilaForCausalLM": "0.24.0",
    "AquilaModel": "0.24.0",
    "ArcticForCausalLM": "0.28.0",
    "AyaVisionForConditionalGeneration": "0.24.0",
    "BaiChuanForCausalLM": "0.23.0",
    "BaichuanForCausalLM": "0.23.0",
    "BambaForCausalLM": "0.23.0",
    "ChameleonForConditionalGeneration": "0.28.0",
    "Cheers": "0.28.0",
    "CheersForConditionalGeneration": "0.28.0",
    "DonutForConditionalGeneration": "0.10.2",
    "Dots1ForCausalLM": "0.23.0",
    "ErnieForSequenceClassification": "0.23.0",
    "ErnieForTokenClassification": "0.23.0",
    "ErnieModel": "0.23.0",
    "Fairseq2LlamaForCausalLM": "0.28.0",
    "FireRedLIDForConditionalGeneration": "0.28.0",
    "FuyuForCausalLM": "0.25.0",
    "GritLM": "0.28.0",
    "Grok1ForCausalLM": "0.24.0",
    "Grok1ModelForCausalLM": "0.24.0",
    "HCXVisionForCausalLM": "0.28.0",
    "InternLM2VEForCausalLM": "0.23.0",
    "InternLMForCausalLM": "0.23.0",
    "JAISLMHeadModel": "0.22.0",
    "MPTForCausalLM": "0.28.0",
    "MantisForConditionalGeneration": "0.24.0",
    "MiniMaxForCausalLM": "0.23.0",
    "MiniMaxM1ForCausalLM": "0.23.0",
    "MiniMaxText01ForCausalLM": "0.23.0",
    "MiniMaxVL01ForConditionalGeneration": "0.23.0",
    "MllamaForConditionalGeneration": "0.10.2",
    "MotifForCausalLM": "0.10.2",
    "MptForCausalLM": "0.28.0",
    "MusicFlamingoForConditionalGeneration": "0.24.0",
    "OuroForCausalLM": "0.26.0",
    "PersimmonForCausalLM": "0.25.0",
    "Phi3SmallForCausalLM": "0.9.2",
    "Phi4FlashForCausalLM": "0.10.2",
    "Phi4MultimodalForCausalLM": "0.12.0",
    "Plamo2ForCausalLM": "0.26.0",
    "PrithviGeoSpatialMAE": "0.28.0",
    "QWenLMHeadModel": "0.23.0",
    "QwenVLForConditionalGeneration": "0.23.0",
    "RWForCausalLM": "0.28.0",
    "StableLMEpochForCausalLM": "0.28.0",
    "Tarsier2ForConditionalGeneration": "0.23.0",
    "TarsierForConditionalGeneration": "0.24.0",
    "TeleChatForCausalLM": "0.25.0",
    "XverseForCausalLM": "0.23.0",
}
