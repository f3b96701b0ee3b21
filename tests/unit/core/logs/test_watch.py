"""Watching any engine: how processes end, several runs in one log, floods, and bounds."""

from __future__ import annotations

import re
import time

import pytest
from autofit.logs.messages import Message
from autofit.logs.notes import MAX_FACTS, Notes
from autofit.logs.numbers import bytes_of, rounding_of, whole
from autofit.logs.watch import MAX_TIMES, Watch


def _part(notes: Notes, match: re.Match[str]) -> None:
    notes.part(match["place"], "weights", int(match["n"]), "buffer", adds=True)


def _fact(notes: Notes, match: re.Match[str]) -> None:
    notes.fact(match["name"], match["value"])


MESSAGES = (
    Message("starting", "starting", lambda notes, match: notes.begin(), "toy"),
    Message("takes ", r"(?P<place>\w+) takes (?P<n>\d+)", _part, "toy"),
    Message("fact ", r"fact (?P<name>\w+)=(?P<value>\w+)", _fact, "toy"),
    Message("no room", "no room", lambda notes, match: notes.fail("device memory", match[0], place="A"), "toy"),
    Message("of size ", r"of size (?P<n>\d+)", lambda n, m: n.fail("device memory", m[0], requested_bytes=int(m["n"])), "toy"),
    Message("again", "again", lambda notes, match: notes.recover(), "toy"),
    Message("serving", "serving", lambda notes, match: notes.at("ready"), "toy"),
)  # fmt: skip


def watch(text: str, exit_code: int | None = None):
    reader = Watch("toy", MESSAGES)
    reader.feed(text.encode())
    return reader.close(exit_code)


def test_parts_add_up_and_lines_of_the_engine_are_counted() -> None:
    seen = watch("A takes 5\nsomething else\n2026-01-01T00:00:00Z stderr F A takes 7\n")
    assert [(part.place, part.n_bytes) for part in seen.parts] == [("A", 12)]
    assert seen.n_lines == 2
    assert seen.places == ("A",)
    assert seen.sum_bytes("A", "weights") == 12


def test_two_messages_in_one_line_both_count() -> None:
    assert watch("A takes 5 B takes 6").places == ("A", "B")


def test_a_log_of_nothing_says_so() -> None:
    assert watch("hello\nworld\n").n_lines == 0
    assert watch("Killed\n").failure is None  # of whom?


def test_a_failure_is_told_over_several_lines() -> None:
    failure = watch("starting\nno room\nbuffer of size 7\n").failure
    assert failure is not None
    assert (failure.place, failure.requested_bytes, failure.line) == ("A", 7, 2)


def test_the_first_failure_counts_and_one_far_behind_it_is_another() -> None:
    failure = watch("no room\n" + "x\n" * 100 + "of size 7\n").failure
    assert failure is not None
    assert failure.requested_bytes is None


def test_an_engine_may_get_over_a_failure() -> None:
    seen = watch("no room\nagain\nserving\n")
    assert seen.failure is None
    assert [one.place for one in seen.recovered] == ["A"]
    assert seen.is_ready


def test_of_several_runs_the_last_that_failed_is_told_unless_the_last_one_serves() -> None:
    restarts = watch("starting\nA takes 1\nno room\nstarting\nA takes 2\nno room\nstarting\n")
    assert (restarts.n_runs, restarts.sum_bytes("A", "weights")) == (2, 2)
    assert restarts.ran_out
    assert not watch("starting\nno room\nstarting\nserving\n").ran_out


@pytest.mark.parametrize("exit_code", [137, -9])
def test_sigkill_is_what_the_kernel_sends_but_others_may_too(exit_code: int) -> None:
    failure = watch("A takes 1\n", exit_code).failure
    assert failure is not None
    assert (failure.cause, failure.is_certain) == ("killed", False)


@pytest.mark.parametrize(
    "line",
    [
        "[123.4] Out of memory: Killed process 4242 (llama-server) total-vm:9kB, anon-rss:2048kB, file-rss:1024kB",
        "Memory cgroup out of memory: Killed process 1 (python3) total-vm:9kB, anon-rss:3072kB, file-rss:0kB",
        '        "OOMKilled": true,',
        "    Reason:       OOMKilled",
        "llama.service: Failed with result 'oom-kill'.",
    ],
)
def test_the_kernels_words(line: str) -> None:
    seen = watch(f"A takes 1\n{line}\n", 137)
    assert seen.failure is not None
    assert (seen.failure.cause, seen.failure.is_certain) == ("RAM", True)
    if "rss" in line:
        assert seen.facts["killed.resident_bytes"] == 3 << 20


def test_words_that_only_look_like_it() -> None:
    assert (
        watch(
            'A takes 1\n"OOMKilled": false,\nKilled Bill is a film of 2003, and much was said of it, which goes on and on and on and on and on\n'
        ).failure
        is None
    )


@pytest.mark.parametrize("exit_code", [0xC0000017, 0xC0000017 - (1 << 32)])
def test_windows_says_no_memory_by_its_status(exit_code: int) -> None:
    failure = watch("A takes 1\n", exit_code).failure
    assert failure is not None
    assert failure.cause == "RAM"


@pytest.mark.parametrize("exit_code", [0, 1, 2, 130, 139, -11, -15, None])
def test_other_exit_statuses_say_nothing_of_memory(exit_code: int | None) -> None:
    assert watch("A takes 1\n", exit_code).failure is None


def test_a_flood_costs_bounded_time_and_memory() -> None:
    reader = Watch("toy", MESSAGES)
    start = time.perf_counter()
    for n in range(40):
        reader.feed(b"A takes 1\n" * 5000)
        reader.feed("".join(f"fact f{n}x{i}=1\n" for i in range(1000)).encode())
    seen = reader.close()
    assert seen.sum_bytes("A", "weights") == MAX_TIMES
    assert len(seen.facts) == MAX_FACTS
    reader.feed(b"no room\n")
    assert reader.observed.ran_out  # what else it may say is still heard
    assert time.perf_counter() - start < 20


def test_words_of_a_failure_are_safe_for_a_terminal() -> None:
    evil = Message("boom", r"boom.*", lambda notes, match: notes.fail("other", match[0]), "toy")
    reader = Watch("toy", (evil,))
    reader.feed(b"boom \x07\x1b]0;x\x07 \xe2\x80\xae" + b"y" * 5000)
    failure = reader.close().failure
    assert failure is not None
    assert failure.words.isprintable()
    assert len(failure.words) <= 400


def test_numbers_of_logs() -> None:
    assert bytes_of("4403.49", "MiB") == round(4403.49 * (1 << 20))
    assert bytes_of("1.5", "GB") == 3 << 29  # engines that write GB divide by 2**30
    assert [bytes_of(text, "MiB") for text in ("", "1.2.3", "x", "9" * 40)] == [None] * 4
    assert bytes_of("5", "parsec") is None
    assert rounding_of("4403.49", "MiB") == (1 << 20) // 200 + 1
    assert rounding_of("12", "b") == 0
    assert [whole(text) for text in ("2,925,232", "", "-1", "9" * 30)] == [2925232, None, None, None]
