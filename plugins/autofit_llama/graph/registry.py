"""One graph per architecture; every page reads beside the engine's src/models/*.cpp.

How to translate one
--------------------
1. Read `graph::graph` of the architecture in src/models/X.cpp, and `build_arch_graph`: which variant, when.
   Drop what has no shape: `cb`, `build_cvec`, frequency bases, scales. What stays is the order of operations.
2. Write `def x(g: Graph) -> None` in the module of its family and add it to `BUILDERS` under the name that
   `general.architecture` has (src/llama-arch.cpp). Use the blocks of builder.py where the engine uses
   llama-graph.cpp, and `ggml.*` where it calls `ggml_*`:

       build_inp_embd, _inp_pos, _inp_out_ids      g.inp_embd(), g.inp_pos(), g.inp_out_ids()
       build_attn_inp_kv, _kv_iswa, _k, _no_cache  g.inp_attn_kv(), g.inp_attn_kv_iswa(), ...
       build_inp_mem_hybrid                        g.inp_rs() and g.inp_attn_kv()
       for il < n_layer                            for il in g.layers()
       model.layers[il].wq, .wq_b                  w = g.layer(il); w["attn_q"], w["attn_q.bias"]: the file's
       build_norm(x, w, b, LLM_NORM_RMS, il)       g.rms(x, w, "attn_norm", il), g.layer_norm, g.norm
       build_lora_mm                               g.linear(w, "name", x): with ".scale"; bias=True
       build_qkv, _attn, _ffn, _moe_ffn            g.qkv, g.attn, g.ffn, g.moe
       il == n_layer - 1: get_rows(..., out_ids)   if g.is_last(il): a, b = g.select_outputs(out_ids, a, b)
       output_norm, lm_head, result                g.finish(x); or g.final_norm(x) and g.output(cur)
       res->t_h_nextn = cur                        g.h_nextn = cur
       build_rs, mamba, delta net                  g.rs, recurrent.py
       ggml_build_forward_expand(gf, t)            g.expand(t)

3. Check: `python tools/accuracy/llama_compute.py TRUTH MODELS --arch x --verbose`, and again with `--full`; every
   row has to be exact. With the engine's own tools, GGML_SCHED_DEBUG=2 prints its nodes, backends and copies.

What decides the bytes
----------------------
- Where `expand` happens decides the order of nodes; the order decides what lives at the same time. Sources
  are added depth first, left to right: `add(a, b)` is not `add(b, a)`.
- A view, reshape or permute is never taken over in place: keep each one that the engine has, add none.
  `ggml.cont` and `ggml.cast` copy. Strides and offsets of `ggml.view` are bytes (`t.nb`).
- An operation with a weight runs where the weight is; rope factors and attention sinks do not count. Weights
  that several devices hold (rope factors of block il, the tied output) are fetched through `g` all the same.
- Norms of a block pass its `il`, and -1 where the engine passes -1: it pins them to the block's device.
- Nothing may be remembered between blocks but tensors: `g.layers()` leaves out blocks that repeat. What
  distinguishes blocks has to be in their weights or in a per-block tuple of the hyperparameters. A rule on
  `il` modulo n is declared with the decorator `@every(lambda h: n)`; other rules on `il` have to be added to
  `_signatures` (graph/buffers.py).
- Outputs stay allocated to the end (`g.logits`, `g.embd`, `g.h_nextn`).
- A hyperparameter that only scales is of no interest, one that is tested for zero is.
"""

from __future__ import annotations

from importlib import import_module

from autofit.errors import UnsupportedModelError

from autofit_llama.graph.builder import Builder

#: architecture -> module of this package and function in it
BUILDERS: dict[str, tuple[str, str]] = {
    "afmoe": ("gated", "afmoe"),
    "apertus": ("decoder", "apertus"),
    "arcee": ("decoder", "arcee"),
    "arctic": ("moe", "arctic"),
    "arwkv7": ("rwkv", "rwkv6qwen2"),
    "baichuan": ("decoder", "baichuan"),
    "bailingmoe": ("moe", "bailingmoe"),
    "bailingmoe2": ("moe", "bailingmoe2"),
    "bailingmoe3": ("kimi", "bailingmoe3"),
    "bert": ("bert", "bert"),
    "bitnet": ("decoder", "bitnet"),
    "bloom": ("decoder", "bloom"),
    "chameleon": ("chameleon", "chameleon"),
    "chatglm": ("decoder", "chatglm"),
    "codeshell": ("decoder", "codeshell"),
    "cogvlm": ("decoder", "cogvlm"),
    "cohere2": ("cohere", "cohere2"),
    "cohere2moe": ("cohere", "cohere2moe"),
    "command-r": ("decoder", "command_r"),
    "dbrx": ("moe", "dbrx"),
    "deci": ("decoder", "deci"),
    "deepseek": ("moe", "deepseek"),
    "deepseek2": ("deepseek", "deepseek2"),
    "deepseek2-ocr": ("deepseek", "deepseek2"),
    "deepseek32": ("deepseek", "deepseek32"),
    "deepseek4": ("deepseek4", "deepseek4"),
    "dots1": ("moe", "dots1"),
    "dots3note": ("deepseek", "deepseek32"),
    "dream": ("decoder", "dream"),
    "ernie4_5": ("decoder", "ernie4_5"),
    "ernie4_5-moe": ("moe", "ernie4_5_moe"),
    "eurobert": ("bert", "eurobert"),
    "exaone": ("decoder", "exaone"),
    "exaone-moe": ("moe", "exaone_moe"),
    "exaone4": ("decoder", "exaone4"),
    "falcon": ("decoder", "falcon"),
    "falcon-h1": ("mamba", "falcon_h1"),
    "gemma": ("decoder", "gemma"),
    "gemma-embedding": ("gemma", "gemma_embedding"),
    "gemma2": ("gemma", "gemma2"),
    "gemma3": ("gemma", "gemma3"),
    "gemma3n": ("per_layer", "gemma3n"),
    "gemma4": ("per_layer", "gemma4"),
    "glm-dsa": ("deepseek", "deepseek32"),
    "glm4": ("decoder", "glm4"),
    "glm4moe": ("moe", "glm4moe"),
    "glm5-next": ("glm", "glm5_next"),
    "gpt-oss": ("openai", "gpt_oss"),
    "gpt2": ("decoder", "gpt2"),
    "gptneox": ("decoder", "gptneox"),
    "granite": ("llama", "granite"),
    "granite_swa": ("llama", "granite_swa"),
    "granitehybrid": ("mamba", "granite_hybrid"),
    "granitemoe": ("llama", "granite"),
    "graniteswitch": ("granite", "granite_switch"),
    "grok": ("moe", "grok"),
    "grovemoe": ("moe", "grovemoe"),
    "hrm_text": ("gated", "hrm_text"),
    "hunyuan-dense": ("decoder", "hunyuan"),
    "hunyuan-moe": ("moe", "hunyuan_moe"),
    "hunyuan_vl": ("decoder", "hunyuan"),
    "hy_v3": ("moe", "hy_v3"),
    "hy_v4": ("hunyuan", "hy_v4"),
    "internlm2": ("decoder", "internlm2"),
    "jais": ("decoder", "jais"),
    "jais2": ("decoder", "jais2"),
    "jamba": ("mamba", "jamba"),
    "jina-bert-v2": ("bert", "bert"),
    "jina-bert-v3": ("bert", "bert"),
    "kimi-k3": ("kimi", "kimi_k3"),
    "kimi-linear": ("kimi", "kimi_linear"),
    "laguna": ("gated", "laguna"),
    "lfm2": ("lfm", "lfm2"),
    "lfm2moe": ("lfm", "lfm2"),
    "llada": ("decoder", "dream"),
    "llada-moe": ("moe", "llada_moe"),
    "llama": ("llama", "llama"),
    "llama-embed": ("llama", "llama_embed"),
    "llama4": ("llama", "llama4"),
    "maincoder": ("decoder", "maincoder"),
    "mamba": ("mamba", "mamba"),
    "mamba2": ("mamba", "mamba"),
    "maple": ("moe", "maple"),
    "mellum": ("moe", "mellum"),
    "mimo2": ("moe", "mimo2"),
    "minicpm": ("llama", "granite"),
    "minicpm3": ("deepseek", "minicpm3"),
    "minimax-01": ("minimax", "minimax_01"),
    "minimax-m2": ("moe", "minimax_m2"),
    "minimax-m3": ("minimax", "minimax_m3"),
    "mistral3": ("llama", "mistral3"),
    "mistral4": ("deepseek", "deepseek2"),
    "modern-bert": ("bert", "modern_bert"),
    "mpt": ("decoder", "mpt"),
    "muse-glimmer": ("gated", "muse_glimmer"),
    "nanbeige": ("decoder", "nanbeige"),
    "nemotron": ("decoder", "nemotron"),
    "nemotron_h": ("mamba", "nemotron_h"),
    "nemotron_h_moe": ("mamba", "nemotron_h"),
    "neo-bert": ("bert", "neo_bert"),
    "nomic-bert": ("bert", "bert"),
    "nomic-bert-moe": ("bert", "bert"),
    "olmo": ("decoder", "orion"),
    "olmo2": ("decoder", "olmo2"),
    "olmoe": ("moe", "olmoe"),
    "openelm": ("decoder", "openelm"),
    "orion": ("decoder", "orion"),
    "paddleocr": ("decoder", "internlm2"),
    "pangu-embedded": ("decoder", "internlm2"),
    "phi2": ("decoder", "phi2"),
    "phi3": ("phi", "phi3"),
    "phimoe": ("phi", "phi3"),
    "plamo": ("decoder", "plamo"),
    "plamo2": ("mamba", "plamo2"),
    "plamo3": ("decoder", "plamo3"),
    "plm": ("deepseek", "plm"),
    "pockettts": ("decoder", "codeshell"),
    "qwen": ("decoder", "internlm2"),
    "qwen2": ("qwen", "qwen2"),
    "qwen2moe": ("moe", "qwen2moe"),
    "qwen2vl": ("decoder", "internlm2"),
    "qwen3": ("qwen", "qwen3"),
    "qwen35": ("qwen", "qwen35"),
    "qwen35moe": ("qwen", "qwen35"),
    "qwen3moe": ("qwen", "qwen3"),
    "qwen3next": ("qwen", "qwen3next"),
    "qwen3tts": ("qwen", "qwen3vl"),
    "qwen3vl": ("qwen", "qwen3vl"),
    "qwen3vlmoe": ("qwen", "qwen3vl"),
    "qwen4exp": ("qwen4", "qwen4exp"),
    "refact": ("decoder", "refact"),
    "rnd1": ("moe", "rnd1"),
    "rwkv6": ("rwkv", "rwkv6"),
    "rwkv6qwen2": ("rwkv", "rwkv6qwen2"),
    "rwkv7": ("rwkv", "rwkv7"),
    "seed_oss": ("decoder", "seed_oss"),
    "smallthinker": ("moe", "smallthinker"),
    "smollm3": ("decoder", "smollm3"),
    "spark2_5": ("gated", "spark2_5"),
    "stablelm": ("decoder", "stablelm"),
    "starcoder": ("decoder", "gpt2"),
    "starcoder2": ("decoder", "codeshell"),
    "step35": ("gated", "step35"),
    "t5": ("t5", "t5"),
    "t5encoder": ("t5", "t5encoder"),
    "talkie": ("decoder", "talkie"),
    "wavtokenizer-dec": ("wavtokenizer", "wavtokenizer_dec"),
    "xverse": ("decoder", "internlm2"),
}


#: the same for draft heads, which a context of their own runs
DRAFT_BUILDERS: dict[str, tuple[str, str]] = {
    "cohere2moe": ("draft", "cohere2_moe"),
    "deepseek2": ("draft", "deepseek2"),
    "deepseek32": ("draft", "deepseek2"),
    "gemma4-assistant": ("draft", "gemma4_assistant"),
    "glm-dsa": ("draft", "deepseek2"),
    "glm4moe": ("draft", "glm4_moe"),
    "hy_v3": ("draft", "hy_v3"),
    "mimo2": ("draft", "mimo2"),
    "nemotron_h_moe": ("draft", "nemotron_h_moe"),
    "qwen35": ("draft", "qwen35"),
    "qwen35moe": ("draft", "qwen35"),
    "qwen3next": ("draft", "qwen3next"),
    "step35": ("draft", "step35"),
}


def builder_for(arch: str, *, draft: bool = False) -> Builder:
    """The function that builds the architecture's graph; its module is imported when it is first asked for.

    Raises:
        UnsupportedModelError: there is none.
    """
    entry = (DRAFT_BUILDERS if draft else BUILDERS).get(arch)
    if entry is None:
        what = "draft head" if draft else "architecture"
        raise UnsupportedModelError(f"no memory graph for the {what} {arch!r}")
    builder: Builder = getattr(import_module(f"autofit_llama.families.{entry[0]}"), entry[1])
    return builder
