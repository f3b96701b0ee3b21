"""Connectors of the KV cache (`--kv-transfer-config`): what they refuse, how the cache is grouped, buffers in RAM.

Source: vLLM 0.32 and 0.33, distributed/kv_transfer/kv_connector/factory.py (names) and v1/ (a module each).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.units import GIB
from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.modules.model import Parallel, VllmModel

NIXL = frozenset({"NixlConnector", "NixlPullConnector", "NixlPushConnector"})
#: subclasses of SupportsHMA (kv_connector/v1/base.py): each kind of layer keeps only what it needs
HYBRID = NIXL | {
    "DecodeBenchConnector",
    "ExampleHiddenStatesConnector",
    "HiSparseConnector",
    "MooncakeConnector",
    "MooncakeStoreConnector",
    "MoRIIOConnector",
    "OffloadingConnector",
    "SimpleCPUOffloadConnector",
}
#: all that they allocate is counted: those of NIXL send from the cache itself, which they register where it lies
COUNTED = NIXL | {"DecodeBenchConnector", "ExampleConnector", "OffloadingConnector", "SimpleCPUOffloadConnector"}
#: those that keep blocks in RAM, and how many bytes unless they are told; the first must be told
_IN_RAM = {"OffloadingConnector": 0, "SimpleCPUOffloadConnector": 8 * GIB}


def connectors(settings: VllmSettings) -> tuple[Mapping[str, Any], ...]:
    """The connectors that are configured, each with its own settings; those of MultiConnector one by one."""
    config = settings.kv_transfer_config
    if not config or not config.get("kv_connector"):
        return ()
    if _name(config) != "MultiConnector":
        return (config,)
    children = extra(config).get("connectors")
    return tuple(one for one in children if isinstance(one, Mapping)) if isinstance(children, Sequence) else ()


def extra(connector: Mapping[str, Any]) -> Mapping[str, Any]:
    found = connector.get("kv_connector_extra_config")
    return found if isinstance(found, Mapping) else {}


def keeps_hybrid(settings: VllmSettings) -> bool:
    """Whether layers with a window keep only what is in it (config/vllm.py: disable_hybrid_kv_cache_manager): as every
    connector allows it. Of one that is not vLLM's own it is not known: the cache is then counted as the larger one."""
    config = settings.kv_transfer_config
    if not config or not config.get("kv_connector"):
        return True
    found = connectors(settings)
    return bool(found) and all(_name(one) in HYBRID and not one.get("kv_connector_module_path") for one in found)


def without_hybrid(settings: VllmSettings) -> str | None:
    """A connector of vLLM's own of which it is known that it does not (kv_connector/factory.py:create_connector)."""
    own = (one for one in connectors(settings) if not one.get("kv_connector_module_path"))
    return next((_name(one)[:40] for one in own if _name(one) not in HYBRID), None)


def _name(connector: Mapping[str, Any]) -> str:
    return str(connector.get("kv_connector"))


def check_connectors(settings: VllmSettings, model: VllmModel, parallel: Parallel) -> None:
    """What config/kv_transfer.py, config/vllm.py and nixl/base_worker.py refuse.

    Raises:
        EngineRefusalError
    """
    config = settings.kv_transfer_config
    if config and config.get("kv_connector") and not config.get("kv_role"):
        raise EngineRefusalError(
            "Please specify kv_role when kv_connector is set, supported roles are kv_producer, kv_consumer and kv_both"
        )
    names = {_name(one) for one in connectors(settings)}
    if not names & NIXL or config is None:
        return
    if parallel.pp > 1 and config.get("kv_role") == "kv_consumer":
        raise EngineRefusalError("NixlConnector does not support pipeline_parallel_size > 1 where it decodes")
    size = max(parallel.tp, parallel.pcp)
    if parallel.dcp not in (1, size):
        raise EngineRefusalError(
            f"decode_context_parallel_size={parallel.dcp} must be 1 or equal to the NIXL transfer parallel size={size}."
        )
    if parallel.dcp > 1 and not model.uses_mla:
        raise EngineRefusalError("PD with decode_context_parallel_size > 1 is only supported for MLA models.")


def stages_in_ram(settings: VllmSettings) -> bool:
    """Whether the cache goes through a buffer in RAM of its own size
    (nixl/base_worker.py:initialize_host_xfer_buffer)."""
    return any(one.get("kv_buffer_device") == "cpu" for one in connectors(settings) if _name(one) in NIXL)


def offloaded_bytes(settings: VllmSettings) -> int:
    """RAM of connectors that keep blocks there: what they are told, of all ranks together."""
    total = 0
    for one in connectors(settings):
        if _name(one) in _IN_RAM:
            told = extra(one).get("cpu_bytes_to_use", _IN_RAM[_name(one)])
            total += told if isinstance(told, int) and not isinstance(told, bool) and told > 0 else 0
    return total


def uncounted(settings: VllmSettings) -> list[str]:
    """Connectors that allocate what is not counted here."""
    return sorted({_name(one) for one in connectors(settings)} - COUNTED)
