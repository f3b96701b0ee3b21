"""A model out of a log, beside the file that the log is of."""

from __future__ import annotations

import json

import pytest

from autofit_llama.backend import LlamaBackend
from autofit_llama.logs.metadata import metadata_of
from autofit_llama.logs.model import rebuild
from support.descriptors import DATA
from support.llama_logs import loader_lines

WHOLE = [
    "command-r7b-Q6_K",
    "deepseek-v2-lite-Q4_K_M",
    "gemma-2-27b-Q5_K_M",
    "gemma-3-4b-Q4_K_M",
    "llama-2-7b-Q4_K_M",
    "llama-3.1-405b-Q3_K_M",
    "llama-3.1-8b-Q4_K_M",
    "mixtral-8x22b-Q4_K_M",
    "phi-3-mini-4k-F16",
    "qwen2.5-72b-IQ4_XS",
    "qwen2.5-7b-Q8_0",
    "qwen3-30b-a3b-Q4_K_M",
    "qwen3-32b-Q4_K_M",
    "qwen3-next-80b-a3b-Q4_K_M",
]


def observed(text: str):
    reader = LlamaBackend().watch()
    reader.feed(text.encode())
    return reader.close()


@pytest.mark.parametrize("name", WHOLE)
def test_every_tensor_of_it_is_found_with_its_bytes(name: str) -> None:
    text, model = loader_lines(DATA / "models" / f"{name}.json.gz")
    found, missing = rebuild(observed(text))
    assert found is not None, missing
    assert found.exact
    assert {t.name: (t.shape, t.type, t.n_bytes) for t in found.model.tensors} == {
        t.name: (t.shape, t.type, t.n_bytes) for t in model.tensors
    }


@pytest.mark.parametrize("name", ["log", "MESSAGE", "line"])
def test_records_of_json_make_no_difference(name: str) -> None:
    """Docker's own files, `journalctl -o json`, Loki: values of keys have quotes and escapes of their own."""
    text, _ = loader_lines(DATA / "models" / "qwen2.5-7b-Q8_0.json.gz")
    records = "".join(
        json.dumps({name: line + "\n", "time": "2026-11-01T10:00:00Z"}) + "\n" for line in text.splitlines()
    )
    assert observed(records) == observed(text)


@pytest.mark.parametrize("name", ["q35-9b-UD-Q4_K_XL", "q38-27b-Q4_K_M", "q36-35b-a3b-UD-Q4_K_M-MTP", "gemma4-12b-q4"])
def test_types_that_no_name_gives_are_dealt_out_and_scaled_to_the_file(name: str) -> None:
    text, model = loader_lines(DATA / "report_models" / f"{name}.json.gz")
    found, _ = rebuild(observed(text))
    assert found is not None
    assert {t.name: t.shape for t in found.model.tensors} == {t.name: t.shape for t in model.tensors}
    assert abs(found.model.weights_bytes - model.weights_bytes) < model.weights_bytes / 500


@pytest.mark.parametrize(
    "prefix", ["llama_model_loader: - kv", "llama_model_loader: - type", "print_info: model params"]
)
def test_what_the_log_lacks_is_named(prefix: str) -> None:
    text, _ = loader_lines(DATA / "models" / "llama-3.1-8b-Q4_K_M.json.gz")
    cut = "".join(line + "\n" for line in text.splitlines() if not line.startswith((prefix, "print_info: arch")))
    found, missing = rebuild(observed(cut))
    assert found is None
    assert any(prefix.partition(": ")[2].split()[0] in line for line in missing)


def test_print_info_alone_has_the_figures_too() -> None:
    text, model = loader_lines(DATA / "models" / "qwen3-32b-Q4_K_M.json.gz")
    cut = "".join(line + "\n" for line in text.splitlines() if "- kv " not in line)
    metadata = metadata_of(observed(cut))
    for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "context_length"):
        assert metadata[f"qwen3.{key}"] == model.metadata[f"qwen3.{key}"]


def test_lists_that_are_cut_off_go_on_as_they_began() -> None:
    text, model = loader_lines(DATA / "report_models" / "gemma4-12b-q4.json.gz")
    metadata = metadata_of(observed(text))
    for key in ("attention.head_count_kv", "attention.sliding_window_pattern"):
        assert metadata[f"gemma4.{key}"] == model.metadata[f"gemma4.{key}"]


@pytest.mark.slow_but("9.99 B")
@pytest.mark.parametrize("size", ["0.00 B", "9.99 B", "x", "8.03 T"])
def test_a_log_that_contradicts_itself_is_no_model(size: str) -> None:
    text, _ = loader_lines(DATA / "models" / "llama-3.1-8b-Q4_K_M.json.gz")
    found, missing = rebuild(observed(text.replace("8.03 B", size)))
    assert found is None
    assert missing
