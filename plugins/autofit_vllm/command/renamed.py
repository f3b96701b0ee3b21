"""What the newest known release calls flags and keys that older ones had under other names."""

from __future__ import annotations

#: Flags that older versions had and the parser now rejects, with what to write instead.
REMOVED_FLAGS: dict[str, str] = {
    "--swap-space": "swap space is gone; --kv-offloading-size GIB keeps KV blocks in RAM",
    "--calculate-kv-scales": "scales come from the checkpoint (removed in 0.28); drop the flag",
    "--num-scheduler-steps": "multi-step scheduling is gone; --async-scheduling is on by default",
    "--multi-step-stream-outputs": "multi-step scheduling is gone; drop the flag",
    "--task": "use --runner pooling, and --convert embed or classify for a generative model",
    "--rope-scaling": "use --hf-overrides '{\"rope_parameters\": {...}}'",
    "--rope-theta": 'use --hf-overrides \'{"rope_parameters": {"rope_theta": ...}}\'',
    "--cuda-graph-sizes": "use --cudagraph-capture-sizes",
    "--max-seq-len-to-capture": "use --max-cudagraph-capture-size",
    "--disable-mm-preprocessor-cache": "use --mm-processor-cache-gb 0",
    "--guided-decoding-backend": "use --structured-outputs-config.backend",
    "--use-v2-block-manager": "it is the only block manager; drop the flag",
    "--num-lookahead-slots": "use --speculative-config",
    "--speculative-model": "use --spec-model",
    "--num-speculative-tokens": "use --spec-tokens",
    "--override-attention-dtype": "drop the flag",
    "--device": "the device is detected; drop the flag",
    "--enable-reasoning": "use --reasoning-parser NAME",
    "--disable-frontend-multiprocessing": "drop the flag",
    "--worker-use-ray": "use --distributed-executor-backend ray",
}

#: keys of JSON flags under the names that they had
RENAMED_KEYS: dict[str, str] = {
    "use_fp4_indexer_cache": "it is indexer_kv_dtype now: --attention-config.indexer_kv_dtype mxfp4",
    "use_trtllm_ragged_deepseek_prefill": "it is mla_prefill_backend now",
    "use_cudnn_prefill": "it is mla_prefill_backend now",
    "disable_flashinfer_prefill": "it is mla_prefill_backend now",
}
#: hands the whole command to the vllm-omni package (entrypoints/cli/main.py:maybe_run_omni)
OMNI = "--omni"
