"""llama.cpp's own settings files: which keys count, in which order, and with which of the engine's oddities."""

from __future__ import annotations

from pathlib import Path

import autofit
import pytest
from autofit.domain.request import Request
from autofit.errors import UsageError
from autofit.inputs import engine_inputs
from autofit.settings.layers import Surroundings

from autofit_llama.backend import LlamaBackend
from autofit_llama.command.config_file import parse, paths
from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import Reading, read
from autofit_llama.engine.versions import Version

PATH = "/etc/llama.cpp/config.ini"
USER = "/home/u/.config/llama.cpp/config.ini"
TINY = "example:tiny"
CARD = autofit.load_machine("rtx-3090", ram="64GiB")


def reading(text: str, *argv: str, **variables: str) -> Reading:
    return read(["llama-server", *argv], {PATH: text, **variables})


def values(found: Reading) -> list[tuple[str, object]]:
    return [(flag.option.key, flag.value) for flag in found.flags]


def test_variables_and_arguments_come_later() -> None:
    found = reading("c = 1\nb = 2\nub = 3\n", "-ub", "30", LLAMA_ARG_BATCH="20")
    settings = settings_of(found)
    assert (settings.n_ctx, settings.n_batch, settings.n_ubatch) == (1, 20, 30)
    assert [(flag.spelling, replaced) for flag, replaced in found.unwritten("file")] == [
        ("b", True), ("c", False), ("ub", True),
    ]  # fmt: skip


def test_lists_grow() -> None:
    found = settings_of(reading("ot = a=CPU\ncpu-moe = 1\n", "-ot", "b=CPU", LLAMA_ARG_OVERRIDE_TENSOR="c=CPU"))
    assert [one.pattern or one.kind for one in found.overrides] == ["cpu_moe", "a", "c", "b"]


def test_the_users_file_comes_after_the_systems() -> None:
    found = settings_of(read(["llama-server"], {PATH: "c = 1\nb = 2\n", USER: "c = 3\n"}))
    assert (found.n_ctx, found.n_batch) == (3, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ctx-size = 8 ; words", [("ctx-size", 8)]),
        ("ctx-size=8#words", [("ctx-size", 8)]),
        ("LLAMA_ARG_CTX_SIZE = 8", [("ctx-size", 8)]),
        ("c = 8\nctx-size = 9\nLLAMA_ARG_CTX_SIZE = 7", [("ctx-size", 9)]),  # the last by name
        ("c = 8\n[default]\nb = 1", [("batch-size", 1)]),  # a section that begins again begins anew
        ("c = 8\n[*]\nb = 1", [("batch-size", 1), ("ctx-size", 8)]),  # for all models, then for the default one
        ("[some/model]\nc = 8", []),
        ("[ default]\nc = 8", [("ctx-size", 8)]),
        ("[default ]\nc = 8", []),  # another name, with a blank at its end
        ("ub = 2\r\nb = 1\rc = 3", [("batch-size", 1), ("ctx-size", 3), ("ubatch-size", 2)]),
        ("swa-full = off", [("swa-full", True)]),  # a switch counts whatever it is set to
        ("kv-offload = off", [("kv-offload", False)]),
        ("kv-offload = maybe", [("kv-offload", False)]),
        ("no-kv-offload = on", [("kv-offload", False)]),
        ("no-kv-offload = off", [("kv-offload", True)]),
        ("LLAMA_ARG_NO_KV_OFFLOAD = 1", [("kv-offload", True)]),  # the variable's meaning is the other one
        ("version = 1", []),
        ("alias = a b  ", [("alias", "a b")]),
        ("; c = 8\n  # c = 9\n \t\n", []),
        ("", []),
    ],
)
def test_what_counts(text: str, expected: list[tuple[str, object]]) -> None:
    assert values(reading(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c 8", "line 1 is no"),
        ("b = 1\n c = 8", "line 2 is no"),
        ("[default", "line 1 is no"),
        ("[]\n", "line 1 is no"),
        ("[a] b\n", "line 1 is no"),
        ("--ctx-size = 8", "line 1 is no"),
        ("c = x", "c of /etc/llama.cpp/config.ini 'x': not a number"),
        ("c =", "'': not a number"),
        ("control-vector-layer-range = 1 2", "an option with two values"),
        ("ngl = many", "ngl of /etc/llama.cpp/config.ini 'many'"),
        ("draft-max = 3", "has been removed"),
    ],
)
def test_what_ends_the_engine(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"llama-server refuses .*{message}"):
        settings_of(reading(text))


def test_keys_that_the_program_passes_over() -> None:
    found = reading("ctx_size = 8\nno-display-prompt = 1\n[m]\nfoo = 1\n", LLAMA_ARG_BAR="1")
    assert found.unread == ("LLAMA_ARG_BAR", f"ctx_size of {PATH}", f"no-display-prompt of {PATH}", f"foo of {PATH}")
    assert values(read(["llama-completion"], {PATH: "no-display-prompt = 1"})) == [("display-prompt", False)]


@pytest.mark.parametrize(("build", "counts", "unsure"), [(9000, False, ()), (10400, False, (PATH,)), (10605, True, ())])
def test_builds_that_read_files(build: int, counts: bool, unsure: tuple[str, ...]) -> None:
    found = read(["llama-server"], {PATH: "c = 8"}, version=Version(build=build))
    assert (bool(found.flags), found.unsure) == (counts, unsure)
    assert read(["llama-bench"], {PATH: "c = 8"}).flags == ()


def test_long_lines() -> None:
    """What takes the square of their length would not end here."""
    blank = " " * 1_000_000
    assert parse(f"c = {blank}x\n") == {"default": {"c": "x"}}
    assert parse(f"c = x{blank}y{blank}\n") == {"default": {"c": f"x{blank}y"}}
    assert parse("c = 1\n" * 100_000) == {"default": {"c": "1"}}
    for line in (f"{blank}x", "[" * 1_000_000, f"c{blank}x", f"[a]{blank}x"):
        with pytest.raises(ValueError, match="line 1"):
            parse(line)


def test_where_files_are(tmp_path: Path) -> None:
    assert paths({"HOME": "/h"}) == (PATH, "/h/.config/llama.cpp/config.ini")
    assert paths({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}) == (PATH, "/x/llama.cpp/config.ini")
    assert paths({}) == (PATH,)
    (tmp_path / "llama.cpp").mkdir()
    file = tmp_path / "llama.cpp/config.ini"
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "LLAMA_ARG_CTX_SIZE": "1", "HOME": "/h"}
    here = Surroundings(environ=environ)
    assert str(file) not in engine_inputs(LlamaBackend(), here)
    file.write_bytes(b"alias = \xff\n")
    found = engine_inputs(LlamaBackend(), here)
    assert found[str(file)] == "alias = \udcff\n"
    assert found["LLAMA_ARG_CTX_SIZE"] == "1"
    file.write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(UsageError, match="bytes of settings"):
        engine_inputs(LlamaBackend(), here)


def plan(text: str, *argv: str, **wishes: object) -> autofit.Plan:
    request = Request(engine_args=argv, engine_env={PATH: text}, model_reference=TINY, **wishes)
    return LlamaBackend().plan(LlamaBackend().command(request), autofit.read_model(TINY), CARD, request)


def test_a_plan_keeps_what_a_file_says_and_does_not_repeat_it() -> None:
    found = plan("c = 2048\nnkvo = 1\nmodel = other.gguf\napi-key = hunter2\n")
    assert found.context_tokens == 2048
    assert found.memory.pool("host").sum_bytes("cache") > 0
    assert not {"-c", "-nkvo", "-kvo"} & set(found.argv)
    assert found.argv[1:3] == ("-m", TINY)
    said = {one.setting: (one.value, one.origin) for one in found.decisions}
    assert said["c"] == ("2048", "settings file")
    assert "hunter2" not in str(found.to_dict())
    note = next(one for one in found.findings if one.code == "settings-file")
    assert note.message.startswith(f"llama-server reads {PATH}; its settings count here: api-key, c, ")


def test_a_wish_and_an_argument_take_the_place_of_a_file() -> None:
    assert plan("c = 2048\n", context=1024).argv.count("-c") == 1
    assert plan("c = 2048\n", context=1024).context_tokens == 1024
    assert plan("c = 2048\nnp = 2\n", "-np", "1", "-c", "512").context_tokens == 512
    assert plan("np = 2\n", parallel=3).argv.count("-np") == 1


def test_a_file_that_names_another_model_for_good() -> None:
    with pytest.raises(UsageError, match=r"makes llama\.cpp load another model"):
        plan("hf-repo = USER/REPO\n")
