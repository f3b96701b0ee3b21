"""What broke once under hostile input, faults and load, by what each case shows; and where it is held now.

`HELD` is the whole list: the case, what happened, and the tests that hold it. Those that no other room holds are here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import autofit
import pytest
from autofit.errors import AutofitError

import support
from support import descriptors, ggufs

DATA = support.DATA / "hostile"
TESTS = Path(__file__).resolve().parents[1]


class Case(NamedTuple):
    shows: str
    before: str
    tests: tuple[str, ...]  #: `file::function`


SHELL, TRUST, FILES = "unit/core/render/test_shell.py", "unit/core/settings/test_trust.py", "unit/core/test_files.py"
STREAMS, TOOLS = "unit/core/cli/test_streams.py", "unit/core/hardware/test_tools.py"
LLAMA_LAWS, VLLM_LAWS = "property/test_llama_laws.py", "property/test_vllm_laws.py"
HERE = "fuzz/test_once_broken.py"
HELD = (
    Case("a file name that runs code in dash", "ran it", (f"{SHELL}::test_every_posix_shell_reads_back_every_word",)),
    Case(
        "a settings file of a downloaded folder adds engine flags",
        "added --trust-remote-code, as the user's",
        (
            f"{TRUST}::test_engine_flags_of_a_file_that_came_along_are_not_used_and_that_is_said",
            f"{TRUST}::test_a_section_of_the_engine_is_no_way_around",
        ),
    ),
    Case(
        "more main memory loses a plan",
        "16 to 64 GiB: 3 3 0 3 3 3 3",
        (
            f"{LLAMA_LAWS}::test_more_main_memory",
            f"{LLAMA_LAWS}::test_more_main_memory_where_checkpoints_of_many_slots_fill_it",
        ),
    ),
    Case(
        "-c max when memory is added",
        "61,952, 4,608, 36,352 tokens",
        (f"{HERE}::test_the_longest_context_does_not_shrink_with_memory", f"{VLLM_LAWS}::test_more_gpu_memory"),
    ),
    Case(
        "JSON and Python where the shell gets a command",
        "10 of 128 architectures were refused",
        (f"{HERE}::test_alternatives_take_no_plan_with_them",),
    ),
    Case(
        "well-formed GGUF files that contradict themselves",
        "23 kinds of bare exceptions",
        (
            "unit/llama/loading/test_loading.py::test_what_is_wrong_with_a_file_is_said",
            "fuzz/test_fuzzers.py::test_nothing_escapes",
        ),
    ),
    Case(
        "configurations, numbers, profiles and recordings",
        "14 kinds of bare exceptions; negative weights fit",
        (
            f"{HERE}::test_a_configuration_says_what_is_wrong_with_it",
            f"{HERE}::test_fewer_experts_than_none",
            f"{HERE}::test_a_profile_or_a_recording_says_what_is_wrong_with_it",
            f"{HERE}::test_numbers_that_are_none_do_not_reach_json",
        ),
    ),
    Case(
        "a file that shrinks while it is read",
        "SIGBUS",
        ("unit/core/readers/test_open_files.py::test_a_file_that_shrinks_while_it_is_read_is_an_error",),
    ),
    Case(
        "a named pipe, and a tool that floods",
        "waited for ever; 859 MB",
        (f"{FILES}::test_a_pipe_or_a_device_is_refused_at_once", f"{TOOLS}::test_a_flood_is_cut_by_its_bytes"),
    ),
    Case(
        "programs of the current directory",
        "were started",
        (
            f"{TOOLS}::test_nothing_is_started_from_the_current_directory",
            f"{TOOLS}::test_windows_does_not_look_in_the_current_directory_either",
        ),
    ),
    Case(
        "plugins that print, exit, raise or return nonsense",
        "on stdout before the command; tracebacks; exit 0 and nothing",
        (
            "contract/test_isolation.py::test_a_line_instead_of_a_traceback",
            "unit/core/test_host.py::test_what_a_hook_returns_is_checked",
        ),
    ),
    Case("a closed or a full stdout", "exit 0", (f"{STREAMS}::test_no_command_succeeds_whose_output_is_lost",)),
    Case("a directory that has been deleted", "a traceback", (f"{STREAMS}::test_a_directory_that_has_been_deleted",)),
    Case("many processes that save one name", "2 of 75 failed", (f"{FILES}::test_many_processes_save_one_name",)),
    Case(
        "a driver library that aborts",
        "took autofit along",
        (f"{TOOLS}::test_a_library_that_aborts_exits_or_hangs_takes_nothing_along",),
    ),
    Case(
        "control characters in a profile's name",
        "raw in a table and in 7 messages",
        (
            "unit/core/hardware/test_profiles.py::test_a_hostile_name_is_escaped",
            "fuzz/test_fuzzers.py::test_nothing_escapes",
        ),
    ),
    Case(
        "laws of more memory, order and margin",
        "9 of 944, 2 of 142, 7 of 523",
        (
            f"{LLAMA_LAWS}::test_more_memory_on_a_device",
            f"{LLAMA_LAWS}::test_the_order_of_devices",
            f"{LLAMA_LAWS}::test_a_smaller_margin",
            f"{VLLM_LAWS}::test_a_larger_margin_uses_no_more",
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", HELD, ids=lambda case: case.shows)
def test_what_holds_it_is_there(case: Case) -> None:
    for test in case.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^ *def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE), test


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
