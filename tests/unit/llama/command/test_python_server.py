"""The command line of `python -m llama_cpp.server`: flags as argparse reads them, variables, a file of settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from autofit.backend import ParsedCommand
from autofit.errors import UsageError

from autofit_llama.backend import LlamaBackend
from autofit_llama.command.python_server import render_server
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import ALL_LAYERS

SERVER = ("python3", "-u", "-m", "llama_cpp.server")


def parse(*flags: str, env: dict[str, str] | None = None) -> ParsedCommand:
    return LlamaBackend().parse((*SERVER, *flags), env)


def settings(*flags: str, env: dict[str, str] | None = None) -> LlamaSettings:
    found = parse(*flags, env=env).settings.settings
    assert isinstance(found, LlamaSettings)
    return found


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (("--n_ctx", "4096"), "n_ctx", 4096),
        (("--n_ctx=4096",), "n_ctx", 4096),
        (("--n_ct", "1", "--n_ctx", "2"), "n_ctx", 2),
        (("--n_gpu_layers", "-1"), "n_gpu_layers", ALL_LAYERS),
        (("--n_gpu_layers", "1"), "n_gpu_layers", 1),
        (("--split_mode", "0"), "split_mode", "none"),
        (("--tensor_split", "3", "1.5", "--n_ctx", "8"), "tensor_split", (3.0, 1.5)),
        (("--tensor_split",), "tensor_split", None),
        (("--flash_attn", "yes"), "flash_attn", "on"),
        (("--flash_attn", "0"), "flash_attn", "off"),
        (("--type_k", "8"), "type_k", "q8_0"),
        (("--use_mlock", "false"), "load_mode", "mmap"),
        (("--use_mmap", "off"), "load_mode", "mlock"),
        (("--lora_path", "a.gguf", "--use_mlock", "n"), "load_mode", "none"),
        ((), "load_mode", None),
        (("--kv_overrides", "a=int:1", "b=bool:true"), "kv_overrides", ("a=int:1", "b=bool:true")),
        (("--cache", "true"), "cache_ram_mib", 2048),
        (("--cache", "true", "--cache_size", "1048577"), "cache_ram_mib", 2),
        (("--cache", "true", "--cache_type", "disk"), "cache_ram_mib", None),
        (("--cache", "false", "--cache_size", "5"), "cache_ram_mib", None),
        (("--draft_model", "prompt-lookup-decoding", "--logits_all", "false"), "logits_all", True),
    ],
)
def test_what_flags_pin(flags: tuple[str, ...], name: str, value: object) -> None:
    assert getattr(settings("--model", "m.gguf", *flags), name) == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--n_cty", "1"), "did you mean n_ctx"),
        (("--n", "1"), "no such flag"),
        (("--n_ctx",), "a value is expected"),
        (("--n_ctx", "many"), "not a whole number"),
        (("--n_ctx", "1" * 40), "not a whole number"),
        (("--n_ctx", "-1"), "less than 0"),
        (("--n_batch", "0"), "less than 1"),
        (("--flash_attn", "perhaps"), "true or false"),
        (("--type_k", "99"), "not a type of a KV cache"),
        (("--split_mode", "7"), "known: 0"),
        (("--tensor_split", "nan"), "not a number"),
        (("model.gguf",), "no positional argument"),
        (("--vocab_only", "true"), "nothing to plan"),
        (("--kv_overrides", "foo"), "write KEY=TYPE:VALUE"),
        (("--kv_overrides", "a=what:1"), "override"),
        (("--tensor_split", *"12345678901234567"), "at most 16 numbers"),
        (("--config_file", "/nowhere.json"), "No such file"),
        (("--n_ctx\x1b[2J", "1"), "no such flag"),
    ],
)
def test_what_it_refuses(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse("--model", "m.gguf", *flags)
    said = f"{raised.value} {raised.value.hint}"
    assert message in said and "\x1b" not in said


def test_variables_count_where_no_flag_is_given() -> None:
    env = {"N_CTX": "4096", "TENSOR_SPLIT": "[3, 1]", "FLASH_ATTN": "true", "MODEL": "other.gguf", "LLAMA_ARG_NP": "4"}
    found = settings("--n_ctx", "512", env=env)
    assert (found.n_ctx, found.tensor_split, found.flash_attn) == (512, (3.0, 1.0), "on")
    assert parse(env=env).model == "other.gguf"
    with pytest.raises(UsageError, match="N_CTX 'x'"):
        parse(env={"N_CTX": "x"})


@pytest.mark.parametrize("name", ["settings.json", "settings.yaml"])
def test_a_file_says_all_there_is(name: str, tmp_path: Path) -> None:
    models = [{"model": "a.gguf", "n_ctx": 512, "tensor_split": [1, 2], "flash_attn": True, "type_k": None}]
    path = tmp_path / name
    path.write_text(json.dumps({"host": "::", "models": [*models, {"model": "b\x1b.gguf"}]}), encoding="utf-8")
    command = parse("--model", "c.gguf", "--config_file", str(path), env={"N_CTX": "8"})
    reading, found = command.settings.reading, command.settings.settings
    assert (command.model, found.n_ctx, found.tensor_split, found.flash_attn) == ("a.gguf", 512, (1.0, 2.0), "on")
    assert parse("--config_file", str(path), env={"N_BATCH": "64"}).settings.settings.n_batch == 64
    assert reading.unread == ("--model",) and reading.others == ("b\x1b.gguf",)
    assert parse(env={"CONFIG_FILE": str(path)}).model == "a.gguf"


MODELS = """\
{
  "models": [
    {"model": "a.gguf", "n_ctx": 512, "type_k": null, "tensor_split": [1, 2]},
    {"model": "b.gguf", "model_alias": "b", "use_mlock": false, "chat_template_kwargs": {"a": [1]}},
    {"model": "c.gguf", "model_alias": "b", "kv_overrides": ["x.y=int:2"]}
  ],
  "host": "::"
}
"""


@pytest.mark.parametrize(("host", "lines"), [("::", [3, 5]), (r"\ud83d\ude00", [1, 1])])
def test_the_models_of_a_file_as_commands_one_at_a_time(host: str, lines: list[int], tmp_path: Path) -> None:
    """Of one alias the last counts (llama_cpp/server/model.py:LlamaProxy); YAML has no escapes in two halves."""
    path = tmp_path / "settings.json"
    path.write_text(MODELS.replace("::", host), encoding="utf-8")
    for words, env in (
        ((*SERVER, "--config_file", str(path)), {}),
        ((*SERVER, f"--config={path}", "--n_ctx", "1"), {}),
        (SERVER, {"CONFIG_FILE": str(path)}),
    ):
        found = LlamaBackend().served(words, env, None)
        assert found is not None and (found.path, found.at_once, found.loads_first) == (str(path), 1, True)
        assert [line for line, _ in found.commands] == lines
        first, last = (argv for _, argv in found.commands)
        assert first == (*SERVER, "--model", "a.gguf", "--n_ctx", "512", "--tensor_split", "1", "2")
        assert last == (*SERVER, "--model", "c.gguf", "--model_alias", "b", "--kv_overrides", "x.y=int:2")
        whole, alone = (LlamaBackend().parse(one, env).settings.settings for one in (words, first))
        assert whole == alone


def test_a_file_of_one_model_is_that_model(tmp_path: Path) -> None:
    path = tmp_path / "settings.yml"
    path.write_text("models: [{model: a.gguf}]")
    assert LlamaBackend().served((*SERVER, "--config_file", str(path)), {}, None) is None
    assert LlamaBackend().served((*SERVER, "--model", "a.gguf"), {}, None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"models": [{"model": "a"}, {"model": "b", "n_cxt": 1}]}', "did you mean n_ctx"),
        ('{"models": [{"model": "a"}, {"n_ctx": 1}]}', "names its file"),
        ('{"models": [{"model": "a"}], "n_ctx": 512}', "refuses n_ctx in"),
        ('{"models": [{"model": "a"}, {"model": "b", "n_ctx": "\\u001b[2J"}]}', "not a whole number"),
    ],
)
def test_files_that_it_refuses(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UsageError) as raised:
        parse("--config_file", str(tmp_path / "settings.json"))
    said = f"{raised.value} {raised.value.hint}"
    assert message in said and "\x1b" not in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"models": []}', '{"models": [1]}', "[" * 100_000, '{"models": {}}'])
def test_files_that_list_no_models(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        parse("--config_file", str(tmp_path / "settings.json"))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("m-Q4_K_M.gguf", "hf:o/r:m-Q4_K_M.gguf"),
        ("*Q4_K_M.gguf", "hf:o/r:Q4_K_M"),
        ("*-q8_0*.gguf", "hf:o/r:q8_0"),
    ],
)
def test_files_of_a_repository(name: str, model: str) -> None:
    assert parse("--hf_model_repo_id", "o/r", "--model", name).model == model


def test_a_pattern_that_names_no_file() -> None:
    with pytest.raises(UsageError, match="a pattern for files of o/r"):
        parse("--hf_model_repo_id", "o/r", "--model", "*/[ab]?.gguf")


def test_flags_say_what_settings_do() -> None:
    given = LlamaSettings(
        model="m.gguf", n_ctx=8, n_gpu_layers=3, tensor_split=(1.0, 2.5), flash_attn="on", type_k="q8_0",
        load_mode="mmap", logits_all=False, embedding=True, split_mode="none", main_gpu=1,
    )  # fmt: skip
    assert settings(*render_server(given)) == given
    with pytest.raises(UsageError, match="no flag for swa_full"):
        render_server(LlamaSettings(swa_full=True))
