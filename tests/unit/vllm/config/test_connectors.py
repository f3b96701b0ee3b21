"""`--kv-transfer-config`: what a connector changes of the cache and of RAM, and what vLLM refuses of it."""

from __future__ import annotations

import json
from typing import Any

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.errors import EngineRefusalError, UsageError

from support import DATA

GEMMA = DATA / "vllm/configs/gemma3-27b-text"


def check(config: object, *flags: str) -> Plan:
    words = ["vllm", "serve", str(GEMMA), "--max-model-len", "8192", *flags]
    machine = autofit.load_machine("a100-80gb", "a100-80gb", ram="256GiB")
    return autofit.check([*words, "--kv-transfer-config", json.dumps(config)], machine)


def connector(name: Any, role: str = "kv_both", **more: Any) -> dict[str, Any]:
    return {"kv_connector": name, "kv_role": role, **more}


def tokens(plan: Plan) -> int:
    found = plan.engine_report["kv_cache_tokens"]
    assert isinstance(found, int)
    return found


def codes(plan: Plan) -> set[str]:
    return {one.code for one in plan.findings}


def test_nixl_takes_nothing_of_a_gpu() -> None:
    plain, sent = check({}), check(connector("NixlConnector", "kv_producer"))
    assert plain.memory == sent.memory and "connector-memory" not in codes(sent)


def test_a_connector_without_groups_keeps_all_tokens_in_each_layer() -> None:
    plain, whole = check({}), check(connector("LMCacheConnectorV1"))
    assert tokens(whole) < tokens(plain) and "connector-memory" in codes(whole)
    assert tokens(check({}, "--disable-hybrid-kv-cache-manager")) == tokens(whole)
    own = connector("NixlConnector", kv_connector_module_path="mine")
    assert tokens(check(own)) == tokens(whole)


def test_several_connectors_keep_groups_where_all_do() -> None:
    def several(*names: str) -> Plan:
        return check(connector("MultiConnector", kv_connector_extra_config={"connectors": [*map(connector, names)]}))

    assert tokens(several("NixlConnector", "OffloadingConnector")) == tokens(check({}))
    mixed = several("NixlConnector", "LMCacheConnectorV1")
    assert tokens(mixed) < tokens(check({}))
    assert [one.message for one in mixed.findings if one.code == "connector-memory"] == [
        "LMCacheConnectorV1: what it allocates itself, in RAM or on GPUs, is not counted"
    ]


def test_a_buffer_in_ram_is_as_large_as_the_cache() -> None:
    sent = check(connector("NixlConnector", "kv_consumer", kv_buffer_device="cpu"), "-tp", "2")
    devices = sum(pool.sum_bytes("cache") for pool in sent.memory.pools if pool.id != "host")
    assert sent.memory.pool("host").sum_bytes("cache") == devices > 0


@pytest.mark.parametrize(
    ("name", "extra", "n_bytes"),
    [
        ("OffloadingConnector", {"cpu_bytes_to_use": 10**9}, 10**9),
        ("SimpleCPUOffloadConnector", {}, 8 << 30),
        ("SimpleCPUOffloadConnector", {"cpu_bytes_to_use": 5}, 5),
        ("OffloadingConnector", {"cpu_bytes_to_use": "much"}, 0),
        ("OffloadingConnector", {"cpu_bytes_to_use": True}, 0),
    ],
)
def test_blocks_that_are_kept_in_ram(name: str, extra: dict[str, Any], n_bytes: int) -> None:
    found = check(connector(name, kv_connector_extra_config=extra))
    assert found.memory.pool("host").sum_bytes("cache") == n_bytes


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        ({"kv_connector": "NixlConnector"}, (), "specify kv_role"),
        (connector("NixlConnector", "kv_consumer"), ("-pp", "2"), "pipeline_parallel_size > 1"),
        (connector("NixlConnector"), ("-tp", "2", "-dcp", "2"), "context parallelism"),
        (connector("LMCacheConnectorV1"), ("--no-disable-hybrid-kv-cache-manager",), "does not support HMA"),
    ],
)
def test_what_vllm_refuses(config: object, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(EngineRefusalError, match=message):
        check(config, *flags)


@pytest.mark.parametrize("config", [[], 5, "x"])
def test_what_is_no_configuration(config: object) -> None:
    with pytest.raises(UsageError):
        check(config)


@pytest.mark.parametrize("extra", [[], 5, {"connectors": 5}, {"connectors": "ab"}, {"connectors": [5, {}, None]}])
@pytest.mark.parametrize("name", ["MultiConnector", "OffloadingConnector", ["NixlConnector"], {}, 5])
def test_nonsense_is_read_as_what_vllm_does_not_know(name: Any, extra: Any) -> None:
    assert check(connector(name, kv_connector_extra_config=extra)).memory.pools
