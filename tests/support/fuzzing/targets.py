"""Every fuzzer by name."""

from __future__ import annotations

from support.fuzzing import Target, answers, deployments, documents, gguf, headers, loading, logs, text, tools, vllm

TARGETS = {
    target.name: target
    for target in (
        Target("headers", headers.make, headers.run, 300),
        Target("gguf", gguf.make, gguf.run, 60),
        Target("loading", loading.make, loading.run, 100),
        Target("vllm-config", vllm.make, vllm.run, 40),
        Target("command-lines", text.make_command, text.run_command, 60),
        Target("options", text.make_options, text.run_options, 6000),
        Target("profiles", text.make_toml, text.run_toml, 60),
        Target("recordings", text.make_recording, text.run_recording, 30),
        Target("yaml", text.make_yaml, text.run_yaml, 6000),
        Target("json", text.make_json, text.run_json, 6000),
        Target("logs", logs.make_log, logs.run_log, 25),
        Target("answers", answers.make, answers.run, 150),
        Target("tool-answers", tools.make_words, tools.run_words, 6000),
        Target("manifests", tools.make_manifest, tools.run_manifest, 6000),
        Target("deployments", deployments.make, deployments.run, 60),
        Target("fleets", documents.make_fleet, documents.run_fleet, 60),
        Target("settings", documents.make_settings, documents.run_settings, 300),
        Target("router-presets", documents.make_presets, documents.run_presets, 1000),
        Target("clusters", documents.make_cluster, documents.run_cluster, 100),
        Target("shared-figures", documents.make_shared, documents.run_shared, 1000),
        Target("databases", documents.make_database, documents.run_database, 100),
        Target("reports", documents.make_report, documents.run_report, 30),
        Target("descriptions", documents.make_description, documents.run_description, 40),
        Target("reservations", documents.make_reservation, documents.run_reservation, 200),
        Target("questions", documents.make_question, documents.run_question, 60),
        Target("patterns", tools.make_pattern, tools.run_pattern, 6000),
        Target("shell-words", text.make_word, text.run_word, 6000),
    )
}
