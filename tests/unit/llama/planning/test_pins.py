"""What a command or an environment fixes for llama.cpp: impossible values, what is passed over, what has no limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import autofit
import pytest
from autofit.domain.machine import Machine
from autofit.domain.plan import Plan
from autofit.domain.request import Request
from autofit.domain.units import GIB, MIB
from autofit.errors import EngineRefusalError, RemoteError, UsageError

from autofit_llama.backend import LlamaBackend
from support import descriptors, ggufs

LLAMA = "example:llama-3.1-8b-q4_k_m"


def machine(*names: str, ram: str = "64GiB") -> Machine:
    return autofit.load_machine(*names, ram=ram)


def check(*argv: str, on: Machine | None = None, **facts: object) -> Plan:
    return autofit.check(["llama-server", "-m", LLAMA, *argv], on or machine("rtx-3090"), **facts)


def plan(*argv: str, on: Machine | None = None, **wishes: object) -> Plan:
    return autofit.plan("llama", LLAMA, on or machine("rtx-3090"), engine_args=argv, **wishes)


def finding(found: Plan, code: str) -> str:
    messages = [one.message for one in found.findings if one.code == code]
    assert len(messages) == 1, found.findings
    return messages[0]


def codes(found: Plan) -> set[str]:
    return {one.code for one in found.findings}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("-1,2", "cannot be negative"),
        ("1,-1", "cannot be negative"),
        ("-1,-2", "cannot be negative"),
        ("nan,1", "not a finite number"),
        ("inf,1", "not a finite number"),
        ("3e38,3e38", "the sum is outside"),
        ("1e39,1", "single-precision"),
        (",1", "not a number"),
    ],
)
def test_splits_that_the_engine_makes_nonsense_of(split: str, message: str) -> None:
    """It takes the first six: layers then go to no device, to one, or loading ends in an exception."""
    two = machine("rtx-3090", "rtx-3090")
    for ask in (check, plan):
        with pytest.raises(UsageError, match=f"refuses -ts '{split}': .*{message}"):
            ask("-ts", split, on=two)


@pytest.mark.parametrize("split", ["0,0", "0", "0,0,5"])
def test_a_split_of_zeros_is_none(split: str) -> None:
    """The engine looks at as many numbers as there are devices."""
    two = machine("rtx-3090", "rtx-3060-12gb")
    assert check("-ts", split, on=two).memory == check(on=two).memory


@pytest.mark.parametrize(("split", "same_as", "says"), [("1,2,3", "1,2", "3 numbers"), ("1", "1,0", "1 number ")])
def test_splits_of_another_length(split: str, same_as: str, says: str) -> None:
    two = machine("rtx-3090", "rtx-3090")
    found = check("-ts", split, on=two)
    assert found.memory == check("-ts", same_as, on=two).memory
    assert says in finding(found, "split-length")
    assert "split-length" not in codes(check("-ts", same_as, on=two))
    with pytest.raises(UsageError, match="for 2 devices"):
        plan("-ts", split, on=two)


@pytest.mark.parametrize("argv", [("-sm", "row"), ("-sm", "row", "-ngl", "0")])
def test_rows_are_not_split_on_cuda(argv: tuple[str, ...]) -> None:
    for ask in (check, plan):
        with pytest.raises(EngineRefusalError, match="does not support split buffers"):
            ask(*argv, on=machine("rtx-3090", "rtx-3090"))


def test_variables_that_the_build_ignores_are_named() -> None:
    variables = {"LLAMA_ARG_MLOCK": "1", "LLAMA_ARG_CTX_SIZE": "4096", "LLAMA_ARG_NGL": "3"}
    found = check(environ=variables)
    assert finding(found, "unread-settings").endswith("LLAMA_ARG_MLOCK, LLAMA_ARG_NGL")
    assert found.context_tokens == 4096
    assert finding(check(environ=variables, engine_version="b8000"), "unread-settings").endswith(" LLAMA_ARG_NGL")
    assert "unread-settings" not in codes(check(environ={"LLAMA_ARG_CTX_SIZE": "4096"}))


def test_a_prompt_cache_without_a_limit_takes_nothing_at_first() -> None:
    small = machine("rtx-3090", ram="12GiB")
    found = check("-c", "4096", "--cache-ram", "-1", on=small)
    assert found.fits
    assert found.memory.pool("host").sum_bytes("transient") == 0
    limit = int(finding(found, "unlimited-prompt-cache").split("--cache-ram ")[-1].split()[0])
    assert check("-c", "4096", "--cache-ram", str(limit), on=small).fits
    assert not check("-c", "4096", "--cache-ram", str(limit + GIB // MIB + 1), on=small, strict=True).fits
    assert "unlimited-prompt-cache" in codes(plan("--cache-ram", "-1", on=small))
    assert "unlimited-prompt-cache" not in codes(check("--cache-ram", str(limit), on=small))


def test_notes_speak_of_the_program_that_runs() -> None:
    found = autofit.check(["llama-cli", "-m", LLAMA, "-c", "131072", "-ngl", "33"], machine("rtx-3060-12gb"))
    assert finding(found, "engine-fit-gave-up").startswith("llama-cli's own --fit")


@pytest.mark.slow
def test_llama_bench_shows_the_combination_with_least_room() -> None:
    """Its runs follow one another: the devices of one and the host of another never add up."""
    command = ["llama-bench", "-m", LLAMA, "-p", "512", "-d", "131072", "-ctk", "q8_0,f16", "-ngl", "0,99"]
    found = autofit.check(command, machine("rtx-3060-12gb"))
    assert not found.fits
    assert "4 combinations of these lists, 2 of them fit" in finding(found, "bench-combinations")
    assert finding(found, "bench-combinations").endswith("the least memory left: -ngl 99 -ctk f16")
    one = autofit.check([*command[:-4], "-ctk", "f16", "-ngl", "99"], machine("rtx-3060-12gb"))
    assert found.memory == one.memory
    assert "bench-combinations" not in codes(one)


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (("-hf", "USER/REPO"), "USER/REPO"),
        (("-hf", "USER/REPO:Q8_0", "-hff", "a/b.gguf", "-m", LLAMA), "USER/REPO"),
        (("-mu", "https://host/a.gguf"), "a.gguf"),
        (("-dr", "gemma3"), "ai/gemma3:latest"),
        (("-m", LLAMA, "-hfd", "USER/DRAFT"), "USER/DRAFT"),
        (("-m", LLAMA, "-mmu", "https://host/mmproj.gguf"), "mmproj.gguf"),
        (("--gpt-oss-20b-default",), "ggml-org/gpt-oss-20b-GGUF"),
    ],
)
def test_files_elsewhere_are_asked_for_by_the_names_that_the_engine_takes(argv: tuple[str, ...], names: str) -> None:
    """Tests ask nobody; what would be asked for is in the error."""
    with pytest.raises(RemoteError, match=f"^{names}: not on this machine") as raised:
        autofit.check(["llama-server", *argv], machine("rtx-3090"))
    assert raised.value.hint


def autofit_llama(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOFIT_", "LLAMA_ARG_", "CUDA_"))}
    clean |= {"XDG_CONFIG_HOME": "/nonexistent", "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    command = [sys.executable, "-m", "autofit", *args]
    return subprocess.run(command, capture_output=True, text=True, env=clean, timeout=60, check=True)


VARIABLES = {
    "LLAMA_ARG_CTX_SIZE": "8192", "LLAMA_ARG_NO_KV_OFFLOAD": "1", "LLAMA_ARG_SWA_FULL": "on", "LLAMA_ARG_HOST": "a b",
    "LLAMA_ARG_OVERRIDE_TENSOR": "attn_q=CPU", "LLAMA_ARG_PORT": "9000", "LLAMA_ARG_NO_HOST": "0",
    "LLAMA_ARG_MLOCK": "1",
}  # fmt: skip


def test_a_command_says_what_the_variables_said() -> None:
    """It means the same in a shell without them, and in this one."""
    request = Request(engine_args=("--port", "80", "-ot", "attn_k=CPU"), engine_env=VARIABLES, model_reference=LLAMA)
    backend = LlamaBackend()
    card = machine("rtx-3090")
    found = backend.plan(backend.command(request), autofit.read_model(LLAMA), card, request)
    words = ["-c", "8192", "--swa-full", "-nkvo", "-ot", "attn_q=CPU", "--host", "a b", *request.engine_args]
    assert sorted(found.argv[3 : 3 + len(words)]) == sorted(words)
    assert found.argv.index("attn_q=CPU") < found.argv.index("attn_k=CPU")
    without, within = autofit.check(found.argv, card), autofit.check(found.argv, card, environ=VARIABLES)
    assert without.memory == within.memory
    assert without.context_tokens == 8192
    assert {one.setting: one.value for one in found.decisions if one.origin == "environment"} == {
        "-c": "8192", "--swa-full": "", "-nkvo": "", "-ot": "attn_q=CPU", "--host": "'a b'", "LLAMA_ARG_PORT": "",
    }  # fmt: skip


def test_a_checked_command_is_printed_with_its_variables() -> None:
    found = check("--port", "80", environ=VARIABLES | {"LLAMA_API_KEY": "secret"})
    assert found.argv == ("llama-server", "-m", LLAMA, "--port", "80")
    counted = set(VARIABLES) - {"LLAMA_ARG_PORT", "LLAMA_ARG_NO_HOST", "LLAMA_ARG_MLOCK"}
    assert found.env == {name: VARIABLES[name] for name in counted}


def test_a_secret_stays_where_it_is() -> None:
    request = Request(engine_env={"LLAMA_API_KEY": "hunter2"}, model_reference=LLAMA)
    found = LlamaBackend().plan(
        LlamaBackend().command(request), autofit.read_model(LLAMA), machine("rtx-3090"), request
    )
    assert "hunter2" not in str(found.to_dict())


def test_wishes_of_the_environment_are_in_the_command() -> None:
    done = autofit_llama("llama", "example:tiny", "--on", "rtx-3090", "-q", AUTOFIT_CONTEXT="4096", AUTOFIT_KV="q8_0")
    argv = done.stdout.split()
    assert argv[argv.index("-c") + 1] == "4096"
    assert argv[argv.index("-ctk") + 1] == "q8_0"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--ctx-size", "16k"), "reads --ctx-size '16k' as 16"),
        (("-c", "4096", "-ub", "512 tokens"), "reads -ub '512 tokens' as 512"),
    ],
)
def test_numbers_that_are_read_in_part(argv: tuple[str, ...], says: str) -> None:
    assert says in finding(check(*argv), "number-cut")
    assert "number-cut" not in codes(check("-c", " 4096"))
    assert "reads LLAMA_ARG_CTX_SIZE '8k' as 8" in finding(check(environ={"LLAMA_ARG_CTX_SIZE": "8k"}), "number-cut")


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (("--model=my_model.gguf",), "refuses '--model=my_model.gguf'", "write --model my_model.gguf"),
        (("llama-server", "-c", "1"), "no positional argument", "flags alone, without the program"),
        (("model.gguf",), "no positional argument", None),
    ],
)
def test_words_that_are_no_flags(argv: tuple[str, ...], message: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        plan(*argv)
    assert (raised.value.hint is None) == (hint is None)
    assert hint is None or hint in (raised.value.hint or "")


YARN = ("--rope-scaling", "yarn", "--rope-scale", "2")


@pytest.mark.parametrize("stretched", [(), YARN])
def test_a_server_holds_its_slots_to_the_trained_context(stretched: tuple[str, ...]) -> None:
    message = finding(check("-np", "1", "-c", "262144", *stretched), "context-beyond-training")
    assert "limits a slot to the trained context of 131072" in message
    key = message.split("--override-kv ")[1]
    assert key == "llama.context_length=int:262144"
    assert "context-beyond-training" not in codes(check("-np", "1", "-c", "262144", *stretched, "--override-kv", key))


def test_a_server_of_a_model_that_was_trained_for_nothing_answers_nothing() -> None:
    nothing = ("--override-kv", "llama.context_length=int:0")
    with pytest.raises(EngineRefusalError, match=r"limits each slot .*llama\.context_length is 0") as refusal:
        plan(*nothing)
    hint = (refusal.value.hint or "").split(" after -- ")[0]
    assert plan(*hint.split()).fits
    message = finding(check("-np", "1", "-c", "8192", *nothing), "context-beyond-training")
    assert "answers no request" in message
    assert "context-beyond-training" not in codes(check("-np", "1", "-c", "8192", *message.split()[-2:]))


def test_slots_that_share_more_than_the_trained_context() -> None:
    shared = check("-c", "262144", "-np", "2", "-kvu")
    assert "262144 tokens of context are shared by 2 slots" in finding(shared, "slots-share-context")
    assert "context-beyond-training" not in codes(shared)
    assert "context-beyond-training" in codes(check("-c", "524288", "-np", "2", "-kvu"))
    assert not {"slots-share-context", "context-beyond-training"} & codes(check("-c", "262144", "-np", "2"))


def test_a_context_that_is_stretched() -> None:
    command = ["llama-completion", "-m", LLAMA, "-c", "262144"]
    bare, stretched = autofit.check(command, machine("t4")), autofit.check([*command, *YARN], machine("t4"))
    assert "it needs RoPE scaling" in finding(bare, "context-beyond-training")
    assert "context-beyond-training" not in codes(stretched)


def test_a_prompt_cache_that_grows_too_large() -> None:
    """The server starts: what is short is short once the prompt cache is full."""
    small = machine("cpu", ram="8GiB:none")
    found = check("-c", "4096", on=small)
    assert found.fits
    assert found.verdict == "starts"
    assert "when the prompt cache is full" in finding(found, "runs-short")
    assert not check("-c", "4096", on=small, strict=True).fits
    limit = finding(found, "large-prompt-cache").split("--cache-ram ")[1].split()[0]
    assert int(limit) > 1024
    kept = check("-c", "4096", "--cache-ram", limit, on=small, strict=True)
    assert kept.fits
    assert kept.verdict == "fits"
    more = check("-c", "131072", on=small)  # more is lacking than that
    assert not more.fits
    assert more.verdict == "does not fit"
    assert not {"large-prompt-cache", "runs-short"} & codes(more)


def test_a_split_model_is_loaded_by_its_first_part(tmp_path: Path) -> None:
    parts = ggufs.write_split(tmp_path, "model", ggufs.llama(), 3)
    card = machine("rtx-3090")
    assert autofit.check(["llama-server", "-m", str(parts[0])], card).fits
    with pytest.raises(EngineRefusalError, match="must be loaded with its first part") as raised:
        autofit.check(["llama-server", "-m", str(parts[1])], card)
    assert parts[0].name in (raised.value.hint or "")
    done = autofit_llama("llama", str(parts[2]), "--on", "rtx-3090", "-q")
    assert str(parts[0]) in done.stdout.split()


def test_a_command_in_one_pair_of_quotes() -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        autofit_llama("check", "--on", "rtx-3090", "--", "llama-server -m x.gguf")
    assert raised.value.returncode == 2
    assert "leave out the quotes" in raised.value.stderr


def test_the_program_that_holds_all_others() -> None:
    card = machine("rtx-3090")
    found = autofit.check(["/opt/llama", "serve", "-m", LLAMA, "-c", "4096"], card)
    assert found.memory == check("-c", "4096", on=card).memory
    with pytest.raises(UsageError, match=r"not a program of llama\.cpp that can be planned for: '/opt/llama'"):
        autofit.check(["/opt/llama", "quantize", LLAMA], card)


def figures(found: Plan) -> dict[str, tuple[int, ...]]:
    kinds = ("weights", "cache", "compute")
    return {pool.id: tuple(pool.sum_bytes(kind) for kind in kinds) for pool in found.memory.pools}


@pytest.mark.slow_but("argv1")
@pytest.mark.parametrize("argv", [("-ngl", "9", "-ncmoe", "32"), ("-ngl", "32", "-cmoe"), ("-ngl", "1", "-cmoe")])
def test_experts_and_whole_blocks_on_the_host(argv: tuple[str, ...]) -> None:
    card = machine("rtx-3090")
    found = autofit.plan("llama", "example:mixtral-8x7b-q4_k_m", card, engine_args=argv)
    assert found.fits
    assert figures(autofit.check(found.argv, card)) == figures(found)


@pytest.mark.slow_but("patterns0", "patterns3")
@pytest.mark.parametrize(
    "patterns",
    [
        (r"blk\.1[0-9]\.ffn_.*_exps=CUDA1", r"exps=CPU"),
        (r"blk\.1[0-9]\.ffn_.*_exps=CUDA1",),
        (r"blk\.1\..*=CUDA0",),
        (r"nothing=CUDA1",),
    ],
)
def test_devices_that_a_pattern_names_stay_there(patterns: tuple[str, ...]) -> None:
    two = machine("rtx-3060-12gb", "rtx-4090")
    pins = [word for pattern in patterns for word in ("-ot", pattern)]
    found = autofit.plan("llama", "example:mixtral-8x7b-q4_k_m", two, engine_args=pins)
    assert found.fits
    assert figures(autofit.check(found.argv, two)) == figures(found)


def test_fewer_checkpoints_than_none_are_none() -> None:
    """The engine's question is whether there are more than 0."""
    command = ["llama-server", "-m", "example:gemma", "-ctxcp"]
    model = descriptors.spec("models", "gemma-3-4b-Q4_K_M")
    few, none, one = (autofit.check([*command, n], machine("t4"), model=model).memory for n in ("-5", "0", "1"))
    assert few == none
    assert one.pool("host").used_bytes > none.pool("host").used_bytes


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (("-fa", "-c", "4096"), "refuses '4096': -fa takes a value, and took -c", "write -fa on"),
        (("-c", "4096", "-fa"), "refuses -fa: a value is expected", "write -fa on"),
        (("-ctk", "-ctv", "q8_0"), "refuses 'q8_0': -ctk takes a value, and took -ctv", None),
    ],
)
def test_flags_that_were_switches_or_lost_their_value(argv: tuple[str, ...], message: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        check(*argv)
    assert raised.value.hint == hint


def test_flash_attention_was_a_switch() -> None:
    old = check("-fa", "-c", "4096", "-ngl", "99", engine_version="b6000").memory
    new = check("-fa", "on", "-c", "4096", "-ngl", "99", engine_version="b8000").memory
    without = check("-c", "4096", "-ngl", "99", engine_version="b6000").memory
    kinds = ("weights", "cache", "compute")
    on_device = [[memory.pool("GPU0").sum_bytes(kind) for kind in kinds] for memory in (old, new, without)]
    assert on_device[0] == on_device[1]
    assert on_device[0][2] < on_device[2][2]
    # by b8000 the graph may have a branch for ready-made embeddings: 512 rows of 4096 floats among its inputs
    assert new.pool("host").sum_bytes("compute") - old.pool("host").sum_bytes("compute") == 512 * 4096 * 4
    assert "reads -ngl '33,33' as 33" in finding(check("-ngl", "33,33"), "number-cut")
    assert "number-cut" not in codes(check("-ngl", "all"))
