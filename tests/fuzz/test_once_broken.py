"""What broke once under hostile input, faults and load: the tests of `docs/hostile-input.md` that no other room has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.errors import AutofitError

import support
from support import TINY, descriptors, ggufs, large_models

DATA = support.DATA / "hostile"
ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


PAGE = ROOT / "docs" / "hostile-input.md"
ROWS = [line.strip("|").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_what_holds_it_is_there(row: list[str]) -> None:
    """Each row of the page names its tests."""
    case, before, now, held = row
    tests = re.findall(r"`(\S+)::(\w+)`", held)
    assert tests and case.strip() and before and now
    for file, name in tests:
        assert re.search(rf"^ *def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE), name


WRONG = {
    "arch-list": "unknown architecture []",
    "experts-3-of-8": "num_experts_per_tok is 8, of 3 experts",
    "experts-per-tok-text": "num_experts_per_tok is text, 'x'",
    "heads-2147483648": "num_attention_heads is 2147483648",
    "kv-heads-negative": "num_key_value_heads is -8",
    "redos-ignore": "may not end",
    "redos-target": "may not end",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_configuration_says_what_is_wrong_with_it(name: str) -> None:
    with pytest.raises(AutofitError) as caught:
        autofit.plan("vllm", str(DATA / "vllm" / name), autofit.load_machine("rtx-4090"), settings=None)
    assert WRONG[name] in caught.value.message and caught.value.message.isprintable()


def test_fewer_experts_than_none(tmp_path: Path) -> None:
    """-2^40 experts had negative weights, which fit anywhere."""
    config: dict[str, Any] = json.loads((DATA / "vllm" / "experts-3-of-8" / "config.json").read_text("utf-8"))
    keys = [key for key in config if key in ("num_experts", "num_local_experts", "n_routed_experts")]
    (tmp_path / "config.json").write_text(json.dumps({**config, **dict.fromkeys(keys, -(1 << 40))}))
    with pytest.raises(AutofitError, match="less than zero"):
        autofit.plan("vllm", str(tmp_path), autofit.load_machine("rtx-4090"), settings=None)
    assert keys


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("p1.toml", "api: is missing"),
        ("p2.toml", "source.figures"),
        ("cores0.json", "n_cores_physical: must be above 0"),
    ],
)
def test_a_profile_or_a_recording_says_what_is_wrong_with_it(name: str, said: str) -> None:
    with pytest.raises(AutofitError) as caught:
        autofit.load_machine(str(DATA / name))
    assert said in caught.value.message


@pytest.mark.parametrize("words", ['{"x":NaN}', '{"x":Infinity}', '{"x":1e999}'])
def test_numbers_that_are_none_do_not_reach_json(words: str) -> None:
    """`--hf-overrides '{"x":NaN}'` wrote JSON that no parser of JSON reads."""
    config = support.DATA / "vllm" / "configs" / "llama-3.1-8b"
    if not config.exists():
        config = next(path.parent for path in sorted((support.DATA / "vllm").rglob("config.json")))
    try:
        plan = autofit.plan(
            "vllm", str(config), autofit.load_machine("h100-80gb"), engine_args=["--hf-overrides", words], settings=None
        )
    except AutofitError:
        return
    json.dumps(plan.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", [*descriptors.names("tiny")[::14], "plamo2-dense", "mamba-dense"])
def test_alternatives_take_no_plan_with_them(name: str) -> None:
    """The search for alternatives raised, and with it JSON and Python got nothing where the shell had a command."""
    model = descriptors.spec("tiny", name)
    plan = autofit.plan("llama", model, autofit.load_machine("rtx-3090", ram="32GiB"), settings=None)
    assert plan.fits and len(plan.to_dict()["alternatives"]) == len(plan.alternatives)


def test_the_longest_context_does_not_shrink_with_memory(tmp_path: Path) -> None:
    description = descriptors.description("models", "lfm2-1.2b-Q4_0")
    model = str(ggufs.from_description(description).write(tmp_path / "m.gguf"))
    lengths = []
    for mib in (1200, 2400):
        machine = autofit.load_machine(f"generic-cuda:{mib}MiB", ram="8GiB")
        lengths.append(autofit.plan("llama", model, machine, context="max", settings=None).context_tokens)
    assert lengths == sorted(lengths) and lengths[0]


def test_more_main_memory_for_a_model_with_windows() -> None:
    description = large_models.gemma3_27b()
    model = descriptors.build([{"header_bytes": 0, "file_bytes": 0, **description}], ["m.gguf"])
    rates = []
    for gib in (8, 24, 32, 48):
        plan = autofit.plan(
            "llama", model, autofit.load_machine("rtx-4060-ti-16gb", "rtx-4060-ti-16gb", ram=f"{gib}GiB"), settings=None
        )
        assert plan.fits and plan.speed is not None
        rates.append((plan.context_tokens or 0, plan.speed.decode_tokens_per_s or 0.0))
    assert rates == sorted(rates)


@pytest.mark.slow
def test_the_longest_context_of_many_experts() -> None:
    model = descriptors.spec("models", "mixtral-8x22b-Q4_K_M")
    for free in ("9GiB", "9500MiB", "16GiB"):
        machine = autofit.load_machine(*["rx-7900-xtx"] * 3, f"rx-7900-xtx:{free}", ram="64GiB")
        assert autofit.plan("llama", model, machine, context="max", settings=None).context_tokens == 65_536


YI_34B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 7168, "intermediate_size": 20480,
    "num_hidden_layers": 60, "num_attention_heads": 56, "num_key_value_heads": 8, "vocab_size": 64000,
    "max_position_embeddings": 200000, "rope_theta": 5000000.0, "rms_norm_eps": 1e-05, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.slow
def test_more_cards_for_the_longest_context(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(YI_34B))
    found = []
    for n in (1, 2, 3, 4, 8):
        machine = autofit.load_machine(*["rtx-4090"] * n, ram="128GiB")
        plan = autofit.plan("vllm", str(tmp_path), machine, context="max", settings=None)
        assert plan.fits and plan.speed is not None
        found.append((plan.context_tokens or 0, plan.speed.decode_tokens_per_s or 0.0))
    contexts, rates = zip(*found, strict=True)
    assert list(contexts) == sorted(contexts)
    assert list(rates) == sorted(rates)


HOSTILE = "\x1b[2Jx\u202e\n"


@pytest.mark.parametrize(
    "call",
    [
        lambda: autofit.load_machine(HOSTILE),
        lambda: autofit.load_machine(f"{HOSTILE}.toml"),
        lambda: autofit.load_machine(f"rtx-3090:{HOSTILE}"),
        lambda: autofit.load_machine("rtx-3090", ram=HOSTILE),
        lambda: autofit.read_model(HOSTILE),
        lambda: autofit.read_model(f"example:{HOSTILE}"),
        lambda: autofit.plan(HOSTILE, str(TINY)),
        *(
            lambda given=given: autofit.plan("llama", str(TINY), settings=None, **given)  # type: ignore[misc]
            for given in (
                *({name: HOSTILE} for name in ("preset", "context", "margin", "kv", "prefer", "engine_version")),
                {HOSTILE: 1},
                *(
                    {"engine_args": words}
                    for words in ([HOSTILE], ["-ot", HOSTILE], ["-ctk", HOSTILE], ["--lora", HOSTILE])
                ),
            )
        ),
        lambda: autofit.plan("llama", str(TINY), settings=HOSTILE),  # type: ignore[arg-type]
        lambda: autofit.check([HOSTILE]),
        lambda: autofit.check(["llama-server", "-m", HOSTILE]),
        lambda: autofit.check(["vllm", "serve", HOSTILE]),
    ],
)
def test_messages_of_the_python_functions_are_printable(call: Any) -> None:
    with pytest.raises(AutofitError) as caught:
        call()
    assert (caught.value.message + (caught.value.hint or "")).isprintable()
