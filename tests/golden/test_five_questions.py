"""docs/five-questions.md: its commands print what is shown, its tables are the plans, and its sentences repeat them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import autofit
import pytest

from support import ROOT, five_questions, recorded
from support.transcripts import Transcript, printed, same, transcripts
from support.vllm_checkpoints import write_mixtral_checkpoints

PAGE = (ROOT / five_questions.PATH).read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\d)\. .*?\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

#: what others say, and cards as they are sold
QUOTED = {
    "1": ["93.4 GB"],
    "2": ["56.4 GB", "23.6 GB", "3.2 bits", "2 bytes"],
    "3": [],
    "4": ["13 GB", "16 GB", "12 GB", "11.7 GB", "2 bits"],
    "5": ["4 bits"],
}
FIGURE = re.compile(r"~\d[\d,]*(?:\.\d+)?|(?<!A100 )(?<!\d)\d[\d,]*(?:\.\d+)? ?(?:GiB|GB|MiB|bits?|bytes|tokens)\b")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mixtral_checkpoints(tmp_path)
    monkeypatch.chdir(tmp_path)


def cases() -> Iterator[tuple[Transcript, int]]:
    """The transcripts, each with the exit code that the page tells after it."""
    every = transcripts(PAGE)
    for i, each in enumerate(every):
        if each.command != "echo $?":
            after = every[i + 1] if i + 1 < len(every) else None
            told = int(after.shown[0]) if after and after.command == "echo $?" else None
            yield each, told


@pytest.mark.slow
@pytest.mark.parametrize(("transcript", "code"), [pytest.param(*case, id=case[0].command) for case in cases()])
def test_a_command_prints_what_is_shown(transcript: Transcript, code: int | None) -> None:
    lines, exit_code = printed(transcript.command)
    assert same(transcript.shown, lines), "\n".join(lines)
    fails = transcript.shown[0] == "false" or any("must be divisible" in line for line in transcript.shown)
    assert exit_code == (code if code is not None else 3 if fails else 0)


def commands_of_shells() -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("command", commands_of_shells())
def test_the_command_of_an_answer_fits(command: str) -> None:
    lines, code = printed(command)
    assert code == 0 and lines[0].split()[0] in ("llama-server", "vllm")


def test_each_question_ends_with_an_answer_and_its_command() -> None:
    assert len(SECTIONS) == 5 == len(commands_of_shells())
    for text in SECTIONS.values():
        answer = text.partition("**Answer.** ")[2]
        sentences, _, command = answer.partition("\n\n```sh\n")
        assert len(re.findall(r"[.:](?:\s|$)", re.sub(r"^(?:Yes|No):", "", sentences))) >= 2
        assert command.startswith("autofit ")


@pytest.mark.parametrize("number", SECTIONS)
def test_sentences_repeat_figures_that_were_printed(number: str) -> None:
    text = SECTIONS[number]
    shown = [line for each in transcripts(text) for line in (each.command, *each.shown)]
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    printed_text = "\n".join([*shown, *tables, *QUOTED[number]])
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    prose = " ".join("\n".join(line for line in prose.splitlines() if not line.startswith("|")).split())
    figures = FIGURE.findall(prose)
    assert figures
    for figure in figures:
        spaced = " ?".join(map(re.escape, figure.split()))
        assert re.search(rf"(?<![\d.,]){spaced}(?!\d)", printed_text), figure


def test_files_are_counted_in_gb_too() -> None:
    model = autofit.read_model("example:mixtral-8x7b-f16")
    assert "are 86.99 GiB (93.4 GB)" in PAGE
    assert f"{sum(tensor.n_bytes for tensor in model.tensors) / 1e9:.1f} GB" == "93.4 GB"


@pytest.mark.slow
@pytest.mark.parametrize("name", five_questions.TABLES)
def test_a_table_is_what_the_plans_say(name: str) -> None:
    assert five_questions.table(PAGE, name) == list(five_questions.TABLES[name]())


def test_parts_of_the_card_by_the_engine_and_by_hand() -> None:
    """The cache by its formula; it and the compute buffer as the engine allocated them for the same model in Q4_K_M."""
    rows = {label: int(n.replace(",", "")) for label, n, *_ in five_questions.table(PAGE, "parts")}
    of_cache, of_compute = rows["cache, 65536 cells, f16"], rows["compute buffer"]
    assert of_cache == 56 * 65_536 * 8 * 128 * 2 * 2
    (allocated,) = (
        row["devices"]
        for row in recorded.rows()
        if (row["model"], row["api"]) == ("mixtral-8x22b-Q4_K_M", "cuda") and row["args"] == ["-c", "0", "-ngl", "999"]
    )
    assert allocated[0][1] == of_cache
    assert 0 <= allocated[0][2] - of_compute < 4096  # with four sequences instead of one
    model = autofit.read_model("example:mixtral-8x22b-q3_k_m")
    embedding = next(tensor for tensor in model.tensors if tensor.name == "token_embd.weight")
    assert rows["weights"] == sum(tensor.n_bytes for tensor in model.tensors) - embedding.n_bytes
    assert round(56.4e9 * 8 / 141e9, 3) == 3.2


def test_gptq_in_groups_ordered_by_activation_is_refused() -> None:
    path = Path("Mixtral-8x7B-Instruct-v0.1-GPTQ/config.json")
    config = json.loads(path.read_text())
    config["quantization_config"]["group_size"] = 128
    path.write_text(json.dumps(config))
    assert printed("autofit vllm ./Mixtral-8x7B-Instruct-v0.1-GPTQ --on a100-40gb")[1] == 3


def test_lines_may_be_left_out_and_not_changed() -> None:
    assert same(("a", "...", "c"), ["a", "b", "c"])
    assert same(("...", "b", "..."), ["a", "b", "c"])
    assert not same(("a", "...", "d"), ["a", "b", "c"])
    assert not same(("a", "...", "b", "c"), ["a", "b", "c"])  # nothing is left out there
    assert not same(("a", "c"), ["a", "b", "c"])
