"""Simple commands are read without `argparse`, and as it reads them."""

from __future__ import annotations

import contextlib
import io
from types import ModuleType

import pytest
from autofit.cli import check, plan
from autofit.cli.main import new_parser
from autofit.cli.options import plain_arguments
from autofit.errors import UsageError
from autofit.settings.options import CHECKED, OPTIONS
from hypothesis import example, given, settings
from hypothesis import strategies as st

FLAGS = [flag for option in OPTIONS for flag in (*option.flags, option.flag)]
VALUES = [
    "m.gguf",
    "rtx-3090",
    "64GiB",
    "-1",
    "-",
    "",
    " ",
    "a b",
    "--",
    "-c4096",
    "--context=8k",
    "--cont",
    "-qc",
    "é",
]
WORDS = [*FLAGS, *VALUES, *VALUES, "--format", "--explain", "-q", "--quiet", "-h", "--help", "--nothing", "-x"]


def by_argparse(words: list[str], command: ModuleType = plan) -> dict[str, object] | None:
    parser = new_parser("llama", "")
    command.add_arguments(parser)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return vars(parser.parse_args(words))
    except (UsageError, SystemExit):
        return None


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=7))
@example(["m.gguf", "--on", "a", "--on", "b", "-c", "8k", "-c", "9k", "-q", "--force"])
@example(["--on", "rtx-3090", "m.gguf", "--ram", "64GiB"])
@example(["--explain", "m.gguf"])
@example(["m.gguf", "--on"])
def test_as_argparse_reads_them(words: list[str]) -> None:
    found = plain_arguments(words)
    assert found is None or vars(found) == by_argparse(words)
    found = check.plain_arguments(words)
    assert found is None or vars(found) == by_argparse(words, check)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["m.gguf"],
        ["--on", "rtx-3090", "--on", "t4", "--ram", "64GiB", "m.gguf", "-q", "--format", "json", "--strict"],
        *([option.flag] for option in OPTIONS if option.metavar is None),
        *([flag, "x"] for option in OPTIONS if option.metavar for flag in (*option.flags, option.flag)),
    ],
    ids=" ".join,
)  # fmt: skip
def test_simple_commands_need_no_argparse(words: list[str]) -> None:
    found = plain_arguments(words)
    assert found is not None and vars(found) == by_argparse(words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--on", "rtx-3090", "--on", "t4", "--ram", "64GiB", "-q", "--format", "json"],
        *([option.flag, "x"] for option in OPTIONS if option.metavar and option.name in CHECKED),
    ],
    ids=" ".join,
)
def test_nor_do_simple_checks(words: list[str]) -> None:
    found = check.plain_arguments(words)
    assert found is not None and vars(found) == by_argparse(words, check)


@pytest.mark.parametrize("words", [["m.gguf"], ["--from", "a.sh"], ["--prefer", "speed"], ["--if-any"]])
def test_other_checks_are_left_to_it(words: list[str]) -> None:
    assert check.plain_arguments(words) is None


@pytest.mark.parametrize(
    "words", [["a", "b"], ["--context=8k"], ["-c8k"], ["-c", "-1"], ["--cont", "8k"], ["-h"], [""]]
)
def test_what_is_not_simple_is_left_to_it(words: list[str]) -> None:
    assert plain_arguments(words) is None
