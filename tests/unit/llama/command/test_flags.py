"""llama.cpp's command line: its spellings, variables, and what it refuses."""

from __future__ import annotations

import re

import pytest
from autofit.errors import UsageError

from autofit_llama.command.flag_table import TABLE
from autofit_llama.command.options import option
from autofit_llama.command.reading import Reading, find_program, read, unread_variables
from autofit_llama.engine.builds import numbers, within
from autofit_llama.engine.naming import find_version
from autofit_llama.engine.numbers import integer, real
from autofit_llama.engine.versions import LATEST, NEWER, Version


def values(reading: Reading) -> list[tuple[str, object]]:
    return [(flag.option.key, flag.value) for flag in reading.flags]


def test_every_spelling_means_the_same_option() -> None:
    assert values(read(["-ngl", "9", "--gpu-layers", "9", "--n-gpu-layers", "9"])) == [("gpu-layers", "9")] * 3


def test_underscores_in_long_flags_are_dashes() -> None:
    assert values(read(["--ctx_size", "512", "--no_kv_offload"])) == [
        ("ctx-size", 512),
        ("kv-offload", False),
    ]


def test_single_dash_flags_keep_their_underscores() -> None:
    assert read(["-c_x", "3"], version=NEWER).unknown == ("-c_x", "3")


def test_negations() -> None:
    given = ["-kvo", "-nkvo", "-no-kvu", "--no-mmproj", "-nr"]
    assert [value for _, value in values(read(given))] == [True, False, False, False, False]


def test_numbers_count_as_far_as_they_go() -> None:
    assert values(read(["-c", "12abc", "-b", " +7"])) == [("ctx-size", 12), ("batch-size", 7)]


@pytest.mark.parametrize("text", ["", "abc", "-", "99999999999", "-2147483649"])
def test_not_an_integer(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        integer(text)


@pytest.mark.parametrize(("text", "number"), [("1.5x", 1.5), (".5", 0.5), ("3.", 3.0), ("1e2", 100.0), ("-2", -2.0)])
def test_real_numbers(text: str, number: float) -> None:
    assert real(text) == number


@pytest.mark.parametrize("text", ["", "x", "1e99", "e5"])
def test_not_a_real_number(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        real(text)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-c"], "-c: a value is expected"),
        (["-c", "x"], "-c 'x': not a number"),
        (["model.gguf"], "no program"),
        (["llama-server", "model.gguf"], "no positional argument"),
        (["--ctx-size=512"], "does not read --flag=value"),
        (["--no-mmap"], "removed from llama.cpp"),
        (["--draft-max", "3"], "the argument has been removed"),
        (["--chunks", "3"], "a flag of another program"),
        (["-fitp", "on"], "a flag of llama-fit-params"),
        (["llama-fit-params", "-kvu"], "a flag of llama-server"),
        (["--control-vector-layer-range", "1"], "a value is expected"),
    ],
)
def test_refused(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(argv)
    assert message in raised.value.message or (message == "no program" and "not a program" in raised.value.message)


def test_unknown_flags_are_kept_in_order_with_what_follows() -> None:
    reading = read(["--brand-new", "1", "-x", "-c", "512", "--other", "a", "b"], version=NEWER)
    assert reading.unknown == ("--brand-new", "1", "-x", "--other", "a", "b")
    assert values(reading) == [("ctx-size", 512)]


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--ctx-sise", "--ctx-size"),
        ("--batchsize", "--batch-size"),
        ("-ctx", "--ctx-size"),
        ("--batch", "--batch-size"),
        ("-flash", "--flash-attn"),
        ("--frob", None),
    ],
)
def test_a_flag_that_the_newest_build_refuses(flag: str, meant: str | None) -> None:
    """No build is named: it is the one that is known, and what it does not know it calls an invalid argument."""
    with pytest.raises(UsageError, match="invalid argument") as raised:
        read([flag, "4096"])
    assert raised.value.exit_code == 2
    assert meant is None or meant in (raised.value.hint or "")
    assert "--engine-version" in (raised.value.hint or "")
    for other in (NEWER, find_version("b8864")[0]):  # one that may have it, or may have had it
        assert read([flag, "4096"], version=other).unknown == (flag, "4096")


def test_values_may_look_like_flags() -> None:
    assert values(read(["-m", "-c"])) == [("model", "-c")]


def test_two_values() -> None:
    flag = read(["--control-vector-layer-range", "3", "9"]).flags[0]
    assert (flag.value, flag.second) == ("3", "9")


@pytest.mark.parametrize(
    ("argv", "program", "words"),
    [
        (["-c", "1"], "llama-server", ()),
        (["llama-server", "-c", "1"], "llama-server", ("llama-server",)),
        (["/opt/bin/llama-cli", "-c", "1"], "llama-cli", ("/opt/bin/llama-cli",)),
        (["C:\\bin\\llama-server.exe"], "llama-server", ("C:\\bin\\llama-server.exe",)),
        (["llama", "serve", "-c", "1"], "llama-server", ("llama", "serve")),
        (["llama", "fit-params"], "llama-fit-params", ("llama", "fit-params")),
    ],
)
def test_programs(argv: list[str], program: str, words: tuple[str, ...]) -> None:
    found, named, rest = find_program(argv)
    assert (found, named, (*named, *rest)) == (program, words, tuple(argv))


@pytest.mark.parametrize("argv", [["llama"], ["llama-quantize"], ["vllm", "serve"], ["llama", "quantize"]])
def test_other_programs(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="not a program"):
        find_program(argv)


def test_variables_come_first() -> None:
    env = {
        "LLAMA_ARG_CTX_SIZE": "1024",
        "LLAMA_ARG_KV_OFFLOAD": "off",
        "LLAMA_ARG_CPU_MOE": "1",
        "PATH": "/bin",
    }
    reading = read(["-c", "512"], env)
    assert values(reading) == [
        ("ctx-size", 1024),
        ("kv-offload", False),
        ("cpu-moe", True),
        ("ctx-size", 512),
    ]
    assert [flag.origin for flag in reading.flags] == ["env", "env", "env", "argv"]
    last = reading.given("ctx-size")
    assert last is not None
    assert last.value == 512


def test_a_negative_variable_is_false_whatever_it_holds() -> None:
    assert values(read([], {"LLAMA_ARG_NO_KV_OFFLOAD": "", "LLAMA_ARG_KV_OFFLOAD": "1"})) == [("kv-offload", False)]


def test_a_switch_is_only_set_by_a_true_variable() -> None:
    assert values(read([], {"LLAMA_ARG_SWA_FULL": "0", "LLAMA_ARG_NO_HOST": "yes", "LLAMA_ARG_CPU_MOE": "on"})) == [
        ("cpu-moe", True)
    ]


@pytest.mark.parametrize("name", ["LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_KV_OFFLOAD", "LLAMA_ARG_DRAFT_MAX"])
def test_bad_variables_are_named(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        read([], {name: "maybe"})


def test_variables_that_nobody_reads() -> None:
    env = {"LLAMA_ARG_MLOCK": "1", "LLAMA_ARG_NO_KV_OFFLOAD": "1", "LLAMA_ARG_CTX_SIZE": "1", "HOME": "/"}
    assert unread_variables(env, "llama-server") == ("LLAMA_ARG_MLOCK",)
    assert unread_variables(env, "llama-server", version=Version(build=8000)) == ()


def test_programs_read_their_own_variables() -> None:
    env = {"LLAMA_ARG_KV_UNIFIED": "1"}
    assert values(read(["llama-server"], env)) == [("kv-unified", True)]
    assert values(read(["llama-fit-params"], env)) == []


def test_older_builds_know_what_newer_ones_removed() -> None:
    old = Version(build=8000)
    given = ["--no-mmap", "--mlock", "-ndio", "--draft-max", "7"]
    assert values(read(given, version=old)) == [
        ("mmap", False),
        ("mlock", True),
        ("direct-io", False),
        ("draft", 7),
    ]
    with pytest.raises(UsageError, match="b8000 is too old"):
        read(["-lm", "none"], version=old)


def test_between_two_known_builds_both_spellings_are_taken() -> None:
    between = Version(build=10100)
    assert values(read(["--no-mmap", "-lm", "none"], version=between)) == [
        ("mmap", False),
        ("load-mode", "none"),
    ]


def test_llama_bench_has_a_parser_of_its_own() -> None:
    assert values(read(["llama-bench", "-p", "512,1024", "-nkvo", "0,1"])) == [
        ("n-prompt", "512,1024"),
        ("no-kv-offload", "0,1"),
    ]
    with pytest.raises(UsageError, match="a flag of llama-server"):
        read(["llama-bench", "-c", "512"])


def test_the_table_is_well_formed() -> None:
    for build in numbers():
        lines = [line.split(" ") for line in TABLE.strip().splitlines() if within(line.split(" ")[0], build)]
        assert len(lines) > 240
        spellings = [name for columns in lines for cell in columns[5:] for name in cell.split(",") if cell != "-"]
        assert all(re.fullmatch(r"--?[A-Za-z][A-Za-z0-9.-]*", name) for name in spellings)
        kinds = {"switch", "bool", "int", "unsigned", "real", "text", "pair", "removed"}
        assert {columns[2] for columns in lines} <= kinds
        server = [name for c in lines if "s" in c[3] for cell in c[5:] for name in cell.split(",") if cell != "-"]
        assert len(server) == len(set(server))


def test_an_option_by_its_key() -> None:
    found = option("kv-offload", LATEST)
    assert found is not None
    assert found.negations == ("-nkvo", "--no-kv-offload")
    assert option("mlock", LATEST) is None  # gone
    assert option("mlock", Version(build=10867)) is not None
    assert option("n-cpu-ffn", Version(build=10361)) is None  # not there yet
