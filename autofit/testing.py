"""Contract tests for authors of backends, and tiny models to run them on.

    from autofit.testing import BackendContract

    class TestToy(BackendContract):
        backend = "toy"
        model = "example:tiny"

pytest collects the laws of `BackendContract` from the subclass. They go through `autofit.plan` and `autofit.check`,
as users do, so the plugin has to be installed or registered (`register`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import autofit
from autofit.backend import Backend
from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.plan import Plan
from autofit.errors import UsageError
from autofit.host import host
from autofit.planning.decisions import arguments
from autofit.planning.findings import COMMON
from autofit.settings.options import BY_NAME, OWN

GIB = 1 << 30
TINY_GGUF = "example:tiny"  #: a Llama of 3 layers with weights, 1 MB

_CONFIG: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def tiny_checkpoint(directory: Path) -> str:
    """Write a Llama of 2 layers as safetensors with its `config.json`; returns the directory."""
    hidden, wide, heads, kv, n_vocab = 64, 128, 64, 32, 256
    shapes = {"model.embed_tokens": (n_vocab, hidden), "lm_head": (n_vocab, hidden), "model.norm": (hidden,)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj": (heads, hidden),
            f"{at}.self_attn.k_proj": (kv, hidden),
            f"{at}.self_attn.v_proj": (kv, hidden),
            f"{at}.self_attn.o_proj": (hidden, heads),
            f"{at}.mlp.gate_proj": (wide, hidden),
            f"{at}.mlp.up_proj": (wide, hidden),
            f"{at}.mlp.down_proj": (hidden, wide),
            f"{at}.input_layernorm": (hidden,),
            f"{at}.post_attention_layernorm": (hidden,),
        }
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start = end
        end += 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return str(directory)


def gpu_machine(free_bytes: int = 24 * GIB, *, n_gpus: int = 1, ram_bytes: int = 64 * GIB) -> Machine:
    """A machine with GPUs of this size, all of it free, whose rates are those of an RTX 3090."""
    devices = tuple(
        Device(
            id=f"GPU{i}",
            index=i,
            name="test GPU",
            api="cuda",
            total_bytes=free_bytes,
            free_bytes=free_bytes,
            runtime_bytes=256 << 20,
            compute_capability=(8, 6),
            n_sm=82,
            bandwidth_bytes_per_s=936 * 10**9,
            fp16_flops_per_s=142 * 10**12,
            link_bytes_per_s=31 * 10**9,
        )
        for i in range(n_gpus)
    )
    facts = Host(total_bytes=ram_bytes, available_bytes=ram_bytes, n_cores_physical=8, bandwidth_bytes_per_s=50 * 10**9)
    return Machine(host=facts, devices=devices, origin="profile")


class BackendContract:
    """Laws that hold for every backend."""

    backend: ClassVar[str]  #: its word on the command line
    model: ClassVar[Any] = TINY_GGUF  #: a reference or a `ModelSpec` that fits the machine
    machine: ClassVar[Machine] = gpu_machine()
    tiny_machine: ClassVar[Machine] = gpu_machine(256 << 20, ram_bytes=1 << 20)  #: where nothing fits

    def plan(self, machine: Machine | None = None, **options: Any) -> Plan:
        """A plan without the surroundings of this process."""
        return autofit.plan(self.backend, self.model, machine or self.machine, settings=None, **options)

    def check(self, plan: Plan, machine: Machine | None = None) -> Plan:
        """The plan's own command, checked."""
        return autofit.check(plan.argv, machine or self.machine, model=self.model, environ=plan.env, settings=None)

    def registered(self) -> Backend:
        return host().backend(self.backend)

    def test_it_states_what_it_is(self) -> None:
        backend = self.registered()
        assert backend.name == self.backend
        assert backend.engine
        assert backend.programs and backend.formats
        assert backend.supports <= BY_NAME.keys() - OWN
        assert not COMMON.keys() & backend.findings.keys(), "common codes need no definition"

    def test_a_plan_fits_and_is_the_same_every_time(self) -> None:
        plan = self.plan()
        assert plan.fits and plan.memory.fits
        assert plan == self.plan()

    def test_a_plan_is_a_command_of_the_engine(self) -> None:
        plan = self.plan()
        program = Path(plan.argv[0]).name
        assert program in self.registered().programs
        assert host().backend_of_program(plan.argv).name == self.backend

    def test_a_check_of_the_planned_command_says_the_same(self) -> None:
        plan = self.plan(margin=0) if "margin" in self.registered().supports else self.plan()
        checked = self.check(plan)
        assert checked.fits
        assert {pool.id: pool.used_bytes for pool in checked.memory.pools} == {
            pool.id: pool.used_bytes for pool in plan.memory.pools
        }

    def test_every_byte_has_a_pool_and_the_host_is_the_last(self) -> None:
        for plan in (self.plan(), self.plan(self.tiny_machine)):
            ids = [pool.id for pool in plan.memory.pools]
            assert ids[-1] == HOST_POOL and len(set(ids)) == len(ids)
            assert all(item.n_bytes >= 0 and item.label for pool in plan.memory.pools for item in pool.items)

    def test_what_does_not_fit_says_so(self) -> None:
        plan = self.plan(self.tiny_machine)
        assert not plan.fits
        assert any(finding.severity == "error" for finding in plan.findings)

    def test_more_memory_is_never_worse(self) -> None:
        large = gpu_machine(2 * (self.machine.devices[0].free_bytes or 0))
        assert self.plan(large).fits

    def test_decisions_have_reasons_and_are_in_the_command(self) -> None:
        plan = self.plan()
        assert all(decision.because and decision.origin for decision in plan.decisions)
        solved = arguments(plan.decisions)
        at = next((i for i in range(len(plan.argv)) if plan.argv[i : i + len(solved)] == solved), None)
        assert at is not None, f"{solved} is not part of {plan.argv}"

    def test_findings_have_known_codes(self) -> None:
        known = {**COMMON, **self.registered().findings}
        for plan in (self.plan(), self.plan(self.tiny_machine), self.check(self.plan())):
            for finding in plan.findings:
                assert finding.code in known, f"{finding.code}: define it in `findings` of the backend"
                assert finding.severity == known[finding.code].severity, finding.code

    def test_a_plan_is_json(self) -> None:
        assert json.loads(json.dumps(self.plan().to_dict()))["backend"] == self.backend

    def test_an_option_that_is_not_supported_is_refused(self) -> None:
        texts: dict[str, Any] = {
            "prefer": "speed",
            "kv": "auto",
            "parallel": 1,
            "engine_version": "1",
            "context": 8,
            "device": "GPU0",
        }
        for name, text in texts.items():
            if name in self.registered().supports:
                continue
            try:
                self.plan(**{name: text})
            except UsageError:
                continue
            raise AssertionError(f"{name} is neither supported nor refused")

    def test_a_context_is_kept(self) -> None:
        if "context" in self.registered().supports:
            assert self.plan(context=256).context_tokens == 256

    def test_rates_are_with_a_full_context_and_have_a_band(self) -> None:
        speed = self.plan().speed
        if speed is None:
            return
        assert 0 < speed.low <= speed.decode_tokens_per_s <= speed.high
        assert speed.basis
        if speed.start_tokens_per_s is not None:
            assert speed.start_tokens_per_s >= speed.decode_tokens_per_s

    def test_a_longer_context_does_not_decode_faster(self) -> None:
        if "context" not in self.registered().supports:
            return
        short, long = self.plan(context=256).speed, self.plan(context=2048).speed
        if short is not None and long is not None:
            assert long.decode_tokens_per_s <= short.decode_tokens_per_s
