"""What a report leaves out: paths, names, addresses, secrets; and what it must keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from autofit.domain.machine import Holder
from autofit.hardware import load_machine
from autofit.reports.scrub import scrub_command, scrub_json, scrub_machine, scrub_variables


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["-c", "8192", "-ngl", "99", "-fa", "on"], ["-c", "8192", "-ngl", "99", "-fa", "on"]),
        (["-m", "/srv/jane/m.gguf"], ["-m", "MODEL"]),
        (["--model=/srv/jane/m.gguf"], ["--model=MODEL"]),
        (["--api-key", "sk-1"], ["--api-key", "hidden"]),
        (["--api-key=sk-1", "-np", "4"], ["--api-key=hidden", "-np", "4"]),
        (["--api-key", "--metrics", "sk-1"], ["--api-key", "--metrics", "sk-1"]),
        (["--hf-token", "t", "--port", "9000"], ["--hf-token", "hidden", "--port", "9000"]),
        (["--served-model-name", "ours"], ["--served-model-name", "hidden"]),
        (["-a", "ours"], ["-a", "hidden"]),
        (["--log-file", "x"], ["--log-file", "hidden"]),
        (["--lora", "/home/jane/l.gguf"], ["--lora", "hidden"]),
        (["-f", "prompt.txt"], ["-f", "hidden"]),
        (["-ot", r"blk\.(1|2)\.ffn_.*_exps\.=CPU"], ["-ot", r"blk\.(1|2)\.ffn_.*_exps\.=CPU"]),
        (["-ts", "1,0.5", "-b", "2048"], ["-ts", "1,0.5", "-b", "2048"]),
        (["--rpc", "10.0.0.3:50052,box.lan:50052"], ["--rpc", "host1:50052,host2:50052"]),
        (["--max-num-batched-tokens", "8192"], ["--max-num-batched-tokens", "8192"]),
        (["--tokenizer", "jane/private"], ["--tokenizer", "hidden"]),
        (["C:\\Users\\jane\\x"], ["hidden"]),
        (["~jane/x"], ["hidden"]),
        (["x" * 2000], ["hidden"]),
        (['{"method":"ngram","n":3,"model":"jane/draft"}'], ['{"method":"ngram","n":3,"model":"hidden"}']),
        (['{"broken'], ['{"broken']),
    ],
)
def test_words_of_a_command(words: list[str], kept: list[str]) -> None:
    assert scrub_command(words, {"/srv/jane/m.gguf": "MODEL"}) == kept


def test_one_address_keeps_one_name() -> None:
    words = ["--rpc", "10.0.0.3:1,10.0.0.4:1", "-ot", "x=RPC1[10.0.0.4:1]"]
    assert scrub_command(words, {})[1::2] == ["host1:1,host2:1", "x=RPC1[host2:1]"]


def test_variables_are_kept_by_name() -> None:
    given = {"A_ARG_CTX_SIZE": "4096", "A_API_KEY": "sk", "A_ARG_MODEL": "/x/y", "A_EMPTY": "", "A_PAIR": "a=b"}
    assert scrub_variables(given, {}) == {
        "A_API_KEY": "hidden",
        "A_ARG_CTX_SIZE": "4096",
        "A_ARG_MODEL": "hidden",
        "A_EMPTY": "",
        "A_PAIR": "a=b",
    }


def test_configurations_keep_patterns_and_lose_places() -> None:
    config = {
        "ignore": ["re:.*\\.mlp\\..*", "lm_head"],
        "base": "/home/jane",
        "/x": 1,
        "nested": [{"url": "https://x"}],
    }
    assert scrub_json(config) == {
        "ignore": ["re:.*\\.mlp\\..*", "lm_head"],
        "base": "hidden",
        "nested": [{"url": "hidden"}],
    }


def test_a_machine_keeps_its_memory_and_loses_its_serial_numbers() -> None:
    found = load_machine("rtx-3090", ram="64GiB")
    holder = Holder(pid=7, name="jane", used_bytes=1)
    device = replace(found.devices[0], uuid="GPU-1234", held_by=(holder,), notes=("seen by jane",))
    machine = replace(found, devices=(device,), name="jane's box", findings=("jane",), sources={"a": "/jane"})
    assert "jane" not in repr(scrub_machine(machine))
    assert "GPU-1234" not in repr(scrub_machine(machine))
    assert scrub_machine(machine).devices[0].free_bytes == found.devices[0].free_bytes
