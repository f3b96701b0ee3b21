"""Launchers before a command: where the command begins, and which variables and directory it gets."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import pytest
from autofit.errors import UsageError
from autofit.text.launchers import LAUNCHERS, SHELLS, unwrap

ENGINE = ("llama-server", "-m", "model.gguf", "-n", "5")
BEFORE = [
    "env A=1",
    "env -i A=1 B=2",
    "env -u HOME --unset=B -C /tmp A=1",
    "env --chdir /tmp",
    "env - A=1",
    "nice",
    "nice -n 5",
    "nice -n5",
    "nice -10",
    "nice --adjustment 5",
    "nice --adj=5",
    "nohup",
    "setsid -w",
    "setsid -fc",
    "time -p",
    "/usr/bin/time -v -o log",
    "/usr/bin/time -f '%e s' --output=log",
    "timeout 5m",
    "timeout -k 5 -s TERM 5m",
    "timeout --foreground --kill-after=5 5m",
    "stdbuf -oL -eL",
    "stdbuf -o 0",
    "ionice -c 2 -n 7",
    "ionice -c2 -n7 -t",
    "chrt -b 0",
    "taskset -c 0-3",
    "taskset 0xff",
    "taskset -ac 0,2",
    "numactl -m 0 -N 0",
    "numactl --membind=0 --cpunodebind 0 --localalloc",
    "numactl -i all --",
    "sudo",
    "sudo -u me -E A=1",
    "sudo -nu me --",
    "doas -u me",
    "gosu me",
    "systemd-run --scope --user -p MemoryMax=32G",
    "systemd-run --unit=llm --uid 1000 -E A=1 --working-directory=/srv -t",
    "uv run",
    "uv run --with vllm==0.30 --python 3.12 --no-project",
    "uv -q --directory x run --extra cuda --",
    "uvx --from vllm",
    "conda run -n llm --no-capture-output",
    "poetry run",
    "exec",
    "exec -a name",
    "command",
    "nohup nice -n 5 numactl -m 0 env A=1 stdbuf -oL",
]


@pytest.mark.parametrize("before", BEFORE)
def test_the_command_begins_behind_its_launchers(before: str) -> None:
    words = tuple(shlex.split(before))
    found = unwrap((*words, *ENGINE))
    assert (found.prefix, found.argv) == (words, ENGINE)


@pytest.mark.parametrize(
    "words", ["llama-server nice", "./start.sh", "uv pip install x", "bash -c 'nice x'", "conda activate", "-n 5"]
)
def test_what_is_no_launcher_stays(words: str) -> None:
    assert unwrap(tuple(shlex.split(words))).argv == tuple(shlex.split(words))


def test_shells_are_no_launchers() -> None:
    assert not SHELLS & LAUNCHERS.keys()


@pytest.mark.parametrize(
    ("before", "variables"),
    [
        ("env B=2 C=3", {"A": "1", "B": "2", "C": "3"}),
        ("env -i C=3", {"C": "3"}),
        ("env -u A", {"B": "1"}),
        ("env -uA --unset B", {}),
        ("env --ignore-environment", {}),
        ("exec -c", {}),
        ("nice -n 5 env C=a=b", {"A": "1", "B": "1", "C": "a=b"}),
        ("sudo C=3", {"C": "3"}),
        ("sudo -E C=3", {"A": "1", "B": "1", "C": "3"}),
        ("sudo --preserve-env=A,B", {"A": "1", "B": "1"}),
        ("systemd-run -E C=3", {"C": "3"}),
        ("systemd-run --scope --setenv=C=3", {"A": "1", "B": "1", "C": "3"}),
        ("systemd-run -E A --setenv=C -E B=2", {"A": "1", "B": "2"}),
        ("systemd-run --scope -E A", {"A": "1", "B": "1"}),
        ("env A=2 systemd-run --setenv A", {"A": "2"}),
        ("env -i C=1 env -u C D=2", {"D": "2"}),
    ],
)
def test_variables_behind_launchers(before: str, variables: dict[str, str]) -> None:
    assert unwrap((*shlex.split(before), *ENGINE)).variables({"A": "1", "B": "1"}) == variables


def test_directories_join() -> None:
    assert unwrap(("env", "-C", "/srv", "env", "-C", "models", "x")).directory == "/srv/models"
    assert unwrap(("env", "-C", "models", "env", "-C", "/srv", "x")).directory == "/srv"
    assert unwrap(("nice", "x")).directory is None


def test_a_command_in_one_word_is_split_as_env_does() -> None:
    found = unwrap(("env", "-S", "-i A='a b' nice -n 5 llama-server -m", "model.gguf"))
    assert (found.prefix, found.argv) == (
        ("env", "-i", "A=a b", "nice", "-n", "5"),
        ("llama-server", "-m", "model.gguf"),
    )
    with pytest.raises(UsageError, match="No closing quotation"):
        unwrap(("env", "-S", "a 'b"))


def test_modules_of_uv_are_modules_of_python() -> None:
    found = unwrap(("uv", "run", "-m", "vllm.entrypoints.openai.api_server", "--model", "M"))
    assert (found.prefix, found.argv[:3]) == (("uv", "run"), ("python", "-m", "vllm.entrypoints.openai.api_server"))


@pytest.mark.parametrize("words", [("nice", "-n"), ("env", "-u"), ("numactl", "--membind"), ("sudo", "-u")])
def test_a_value_that_is_missing(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="a value is expected"):
        unwrap(words)


def test_launchers_without_end_or_without_command() -> None:
    with pytest.raises(UsageError, match="more than 16 launchers"):
        unwrap(("nohup",) * 100)
    assert unwrap(("timeout", "5")).argv == unwrap(("env", "A=1")).argv == unwrap(()).argv == ()


INSTALLED = [
    "env -u HOME -C /tmp A=1", "env -i", "nice -n 1", "nice -1", "nice --adj 1", "timeout -k 5 60", "stdbuf -oL -e 0",
    "ionice -c 2 -n 7", "ionice -c2 -t", "taskset -c 0", "taskset -ac 0", "chrt -b 0", "setsid -w", "nohup",
    "env --split-string='nice -n 1'", "choom -n 10 --", "prlimit --nofile=100",
]  # fmt: skip


@pytest.mark.parametrize("before", INSTALLED)
@pytest.mark.skipif(sys.platform != "linux", reason="the launchers of Linux")
def test_the_launcher_itself_agrees(before: str) -> None:
    """What is called the command is what the launcher runs."""
    words = shlex.split(before)
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    command = ["/bin/echo", "-n", "5"]
    assert list(unwrap((*words, *command)).argv) == command
    done = subprocess.run([*words, *command], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.returncode) == ("5", 0), done.stderr


@pytest.mark.parametrize(
    ("before", "first", "rest", "finds"),
    [
        ("nice -n 5 env A=1", "nice -n 5 env A=1", "", False),
        ("systemd-run --scope", "systemd-run --scope", "", True),
        ("exec systemd-run -P nice", "systemd-run -P", "nice ", True),
        ("env PATH=/x systemd-run nice", "env PATH=/x", "systemd-run nice ", False),
    ],
)
def test_a_launcher_that_finds_the_program_is_started_alone(before: str, first: str, rest: str, finds: bool) -> None:
    found = unwrap((*shlex.split(before), *ENGINE)).first()
    assert found == (tuple(first.split()), (*rest.split(), *ENGINE), finds)
