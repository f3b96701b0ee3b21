"""Every fuzzer by name."""

from __future__ import annotations

from support.fuzzing import Target, answers, deployments, gguf, headers, loading, logs, text, tools, vllm

TARGETS = {
    target.name: target
    for target in (
        Target("headers", headers.make, headers.run, 300),
        Target("gguf", gguf.make, gguf.run, 60),
        Target("loading", loading.make, loading.run, 100),
        Target("vllm-config", vllm.make, vllm.run, 40),
        Target("command-lines", text.make_command, text.run_command, 60),
        Target("options", text.make_options, text.run_options, 1500),
        Target("profiles", text.make_toml, text.run_toml, 60),
        Target("recordings", text.make_recording, text.run_recording, 30),
        Target("yaml", text.make_yaml, text.run_yaml, 1500),
        Target("json", text.make_json, text.run_json, 1500),
        Target("logs", logs.make_log, logs.run_log, 25),
        Target("answers", answers.make, answers.run, 150),
        Target("tool-answers", tools.make_words, tools.run_words, 1500),
        Target("manifests", tools.make_manifest, tools.run_manifest, 1500),
        Target("deployments", deployments.make, deployments.run, 60),
        Target("patterns", tools.make_pattern, tools.run_pattern, 1500),
        Target("shell-words", text.make_word, text.run_word, 1500),
    )
}
