"""An autofit.toml that came along with a download: it adds no engine flags before the user has trusted it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autofit.settings.layers import Surroundings, collect
from autofit.settings.trust import forget, is_trusted, trust, trusted

HOSTILE = 'engine-args = ["--trust-remote-code", "--host", "0.0.0.0"]\n'
PLAN = ("llama", "example:tiny", "--on", "rtx-3090", "--ram", "64GiB")


def autofit(*args: str, cwd: Path, config: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOFIT_", "LLAMA_ARG_", "VLLM_", "CUDA_"))}
    clean |= {"XDG_CONFIG_HOME": str(config), "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "autofit", *args]
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=cwd, timeout=60)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "download").mkdir()
    (tmp_path / "config").mkdir()
    return tmp_path / "download"


def plan(here: Path, *more: str) -> tuple[list[str], str]:
    done = autofit(*PLAN, *more, cwd=here, config=here.parent / "config")
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout), done.stderr


def test_engine_flags_of_a_file_that_came_along_are_not_used_and_that_is_said(here: Path) -> None:
    (here / "autofit.toml").write_text('engine-args = ["--host", "0.0.0.0", "--port", "9000"]\nparallel = 2\n')
    argv, said = plan(here)
    assert "--host" not in argv and "9000" not in argv
    assert argv[argv.index("-np") + 1] == "2"
    assert f"warning: {here / 'autofit.toml'} is not trusted" in said
    assert "--host 0.0.0.0" in said
    assert f"autofit trust {here}" in said
    assert "from autofit.toml: parallel" in said


def test_a_trusted_file_sets_them_until_it_changes(here: Path) -> None:
    config = here.parent / "config"
    (here / "autofit.toml").write_text('engine-args = ["--port", "9000"]\n')
    done = autofit("trust", ".", cwd=here, config=config)
    assert done.returncode == 0, done.stderr
    assert "--port 9000" in done.stdout
    argv, said = plan(here)
    assert "9000" in argv
    assert "from autofit.toml: engine flags --port 9000" in said
    (here / "autofit.toml").write_text('engine-args = ["--port", "9001"]\n')
    argv, said = plan(here)
    assert "9001" not in argv and "not trusted" in said
    assert autofit("trust", "--remove", ".", cwd=here, config=config).returncode == 0
    assert autofit("trust", cwd=here, config=config).stdout == ""


def test_the_users_own_settings_file_needs_no_trust(here: Path) -> None:
    own = here.parent / "config" / "autofit"
    own.mkdir()
    (own / "autofit.toml").write_text('[llama]\nengine-args = ["--port", "9000"]\n')
    argv, said = plan(here)
    assert "9000" in argv
    assert "engine flags --port 9000" in said


@pytest.mark.parametrize("table", ["", "[llama]\n"])
def test_a_section_of_the_engine_is_no_way_around(here: Path, table: str) -> None:
    (here / "autofit.toml").write_text(table + HOSTILE)
    argv, said = plan(here)
    assert not {"--trust-remote-code", "--host", "0.0.0.0"} & {*argv}
    assert "not trusted" in said


def test_force_needs_trust_too(here: Path) -> None:
    (here / "autofit.toml").write_text("force = true\n")
    big = ("llama", "example:mixtral-8x7b-q4_k_m", "--on", "generic-cuda:4GiB", "--ram", "8GiB")
    done = autofit(*big, cwd=here, config=here.parent / "config")
    assert (done.returncode, done.stdout) == (3, "false\n")


def test_the_python_functions_stand_on_the_same_rule(here: Path) -> None:
    (here / "autofit.toml").write_text(HOSTILE + "parallel = 3\n")
    around = Surroundings(environ={"XDG_CONFIG_HOME": str(here.parent / "config")}, directory=here)
    stated = collect({}, around, "vllm", lambda name: {})
    assert stated.engine_args == ()
    assert stated.get("parallel") == 3
    assert [note.code for note in stated.notes] == ["settings-file", "settings-not-trusted"]


def test_a_preset_that_such_a_file_names_adds_options_and_no_flags(here: Path) -> None:
    """What a stranger's file may not say, it may not ask for either: flags of the user's own preset."""
    (here / "autofit.toml").write_text('preset = "x"\n' + HOSTILE)
    around = Surroundings(environ={"XDG_CONFIG_HOME": str(here.parent / "config")}, directory=here)

    def preset(name: str) -> Any:
        return {"engine_args": ["--seed", "1"], "force": True, "parallel": 5}

    found = collect({}, around, "vllm", preset)
    assert found.engine_args == () and found.get("force") is None and found.get("parallel") == 5
    assert "of the preset x, which it asks for" in found.notes[-1].message
    asked = collect({"preset": "x"}, around, "vllm", preset)
    assert asked.engine_args == ("--seed", "1") and asked.get("force") is True


@pytest.mark.parametrize("store", ["", "{", "[]", '{"/x": 3}', "\0" * 40, "[" * 100_000])
def test_a_damaged_list_trusts_nothing(here: Path, store: str) -> None:
    environ = {"XDG_CONFIG_HOME": str(here.parent / "config")}
    folder = here.parent / "config" / "autofit"
    folder.mkdir()
    (folder / "trusted.json").write_text(store)
    assert trusted(environ) == {}
    assert not is_trusted(here / "autofit.toml", "x", environ)


def test_the_list_holds_paths_with_the_content_that_was_trusted(here: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(here.parent / "config")}
    path = here / "autofit.toml"
    trust(path, "a = 1", environ)
    assert is_trusted(path, "a = 1", environ)
    assert not is_trusted(path, "a = 2", environ)
    assert not is_trusted(here / "other" / "autofit.toml", "a = 1", environ)
    assert list(json.loads((here.parent / "config/autofit/trusted.json").read_text())) == [os.path.realpath(path)]
    assert forget(path, environ) and not forget(path, environ)


def test_a_link_to_a_trusted_file_is_not_trusted_in_another_directory(here: Path) -> None:
    config = here.parent / "config"
    mine = here.parent / "mine"
    mine.mkdir()
    (mine / "autofit.toml").write_text('engine-args = ["--port", "9000"]\n')
    assert autofit("trust", str(mine), cwd=here, config=config).returncode == 0
    (here / "autofit.toml").symlink_to(mine / "autofit.toml")
    argv, said = plan(here)
    assert "9000" not in argv and "not trusted" in said


def test_a_trusted_file_in_a_directory_that_moved_is_not_trusted(here: Path) -> None:
    config = here.parent / "config"
    (here / "autofit.toml").write_text('engine-args = ["--port", "9000"]\n')
    assert autofit("trust", ".", cwd=here, config=config).returncode == 0
    moved = here.rename(here.with_name("moved"))
    argv, said = plan(moved)
    assert "9000" not in argv and "not trusted" in said


def test_a_link_to_the_trusted_directory_is_that_directory(here: Path) -> None:
    (here / "autofit.toml").write_text('engine-args = ["--port", "9000"]\n')
    link = here.with_name("link")
    link.symlink_to(here)
    assert autofit("trust", str(link), cwd=here, config=here.parent / "config").returncode == 0
    assert "9000" in plan(here)[0]


def test_the_file_of_a_parent_directory_does_not_count(here: Path) -> None:
    (here.parent / "autofit.toml").write_text("parallel = 7\n" + HOSTILE)
    argv, said = plan(here)
    assert "7" not in argv and "0.0.0.0" not in argv and "autofit.toml" not in said


def test_in_the_directory_of_the_users_settings_they_are_read_once_and_are_the_users(here: Path) -> None:
    own = here.parent / "config" / "autofit"
    own.mkdir()
    (own / "autofit.toml").write_text('engine-args = ["--port", "9000"]\n')
    done = autofit(*PLAN, cwd=own, config=here.parent / "config")
    assert shlex.split(done.stdout).count("9000") == 1 and "not trusted" not in done.stderr


def test_only_the_users_flags_let_a_checkpoint_run_its_code(here: Path) -> None:
    """Settings without trust, a chat template, generation settings, a list of files beside the model: none of them."""
    model = here / "model"
    model.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
        "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "trust_remote_code": True,
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    (model / "generation_config.json").write_text('{"trust_remote_code": true, "max_new_tokens": 7}')
    (model / "chat_template.jinja").write_text("{{ '--trust-remote-code' }}")
    (model / "evil.py").write_text("raise SystemExit('ran')")
    for folder in (here, model):
        (folder / "autofit.toml").write_text(HOSTILE + "[vllm]\n" + HOSTILE)
        (folder / "config.yaml").write_text("trust-remote-code: true\n")
    words = ("vllm", str(model), "--on", "rtx-3090", "--ram", "64GiB")
    for cwd in (here, model):
        done = autofit(*words, cwd=cwd, config=here.parent / "config")
        assert done.returncode == 0, done.stderr
        assert "--trust-remote-code" not in done.stdout and "0.0.0.0" not in done.stdout
        assert "not trusted" in done.stderr
    done = autofit(*words, "--", "--trust-remote-code", cwd=here, config=here.parent / "config")
    assert "--trust-remote-code" in done.stdout


@pytest.mark.parametrize("how", ["option", "equals", "variable"])
def test_a_file_that_the_user_names_is_the_users(here: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "autofit.toml").write_text(HOSTILE)
    mine = here.parent / "mine.toml"
    mine.write_text('engine-args = ["--port", "9000"]\nparallel = 2\n')
    if how == "variable":
        found = collect(
            {}, Surroundings(environ={"AUTOFIT_SETTINGS": str(mine), "HOME": "/nonexistent"}), "llama", dict
        )
        assert found.engine_args == ("--port", "9000") and found.values["parallel"] == 2
        return
    argv, said = plan(here, *(("--settings", str(mine)) if how == "option" else (f"--settings={mine}",)))
    assert argv[argv.index("--port") + 1] == "9000" and argv[argv.index("-np") + 1] == "2" and "--host" not in argv
    assert f"from {mine}: parallel, engine flags --port 9000" in said or "engine flags --port 9000" in said


def test_the_directorys_file_when_named_is_trusted(here: Path) -> None:
    (here / "autofit.toml").write_text('engine-args = ["--port", "9000"]\n')
    argv, said = plan(here, "--settings", "autofit.toml")
    assert "9000" in argv and "not trusted" not in said


@pytest.mark.parametrize("words", [("--settings",), ("--settings", "nowhere.toml"), ("--settings=",)])
def test_a_settings_file_that_is_not_there(here: Path, words: tuple[str, ...]) -> None:
    done = autofit(*PLAN, *words, cwd=here, config=here.parent / "config")
    assert done.returncode == 2 and done.stdout == ""
    assert "settings" in done.stderr and "Traceback" not in done.stderr
