"""The tables of docs/five-questions.md, out of the plans."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from autofit.domain.units import format_bytes

from support.transcripts import printed

PATH = "docs/five-questions.md"
OF_22B = "autofit llama example:mixtral-8x22b-q3_k_m"
MIXTRAL = "Mixtral-8x7B-Instruct-v0.1"
Row = list[str]


def plan(command: str) -> dict[str, Any]:
    """The plan of a command that fits, as its JSON has it."""
    lines, code = printed(f"{command} -q --format json")
    assert code == 0, command
    return json.loads("\n".join(lines))


def parts() -> Iterator[Row]:
    """What lies on the A100 80GB, and what is left of what is free."""
    command = f"{OF_22B} --on a100-80gb --ram 128GiB -c 65536"
    (card, _) = plan(command)["pools"]
    for item in (item for item in card["items"] if item["kind"] != "reserve"):
        yield [item["label"], *_sizes(item["bytes"]), item["basis"]]
    yield ["**used**", *_sizes(card["used_bytes"]), ""]
    yield ["free before", *_sizes(card["free_bytes"]), ""]
    yield ["free after", *_sizes(card["free_bytes"] - card["used_bytes"]), ""]
    (smaller, _) = plan(f"{command} --kv q8_0")["pools"]
    yield ["cache with `--kv q8_0`", *_sizes(smaller["cache_bytes"]), "exact"]


def _sizes(size_bytes: int) -> Row:
    return [f"{size_bytes:,}", format_bytes(size_bytes), f"{size_bytes / 1e9:.2f} GB"]


def cards() -> Iterator[Row]:
    """One to four RTX 3090 with 64 and 128 GiB of RAM."""
    for n in range(1, 5):
        for ram in (64, 128):
            text = "\n".join(printed(f"{OF_22B} --on {n}xrtx-3090 --ram {ram}GiB -c 65536")[0])
            in_ram = _told(r"  host .* weights (\S+ [GM]iB)", text)
            kv = re.search(r" -ctk (\S+)", text)
            prompts = _told(r"prompt processing (\S+)", text)
            yield [str(n), f"{ram} GiB", in_ram, kv[1] if kv else "f16", _decode(text), prompts]


def a100() -> Iterator[Row]:
    """Three forms of the weights on one, two and four A100."""
    for form, suffix in (("bf16", ""), ("AWQ", "-AWQ"), ("GPTQ", "-GPTQ")):
        for card in ("a100-40gb", "a100-80gb"):
            for n in (1, 2, 4):
                text = "\n".join(printed(f"autofit vllm ./{MIXTRAL}{suffix} --on {n}x{card} --ram 256GiB")[0])
                ranks = re.search(r"--(tensor|pipeline)-parallel-size (\d)", text)
                together = re.search(r"; (?:all )?(\d+) .* at a time at (\S+) tokens on average, (\S+)", text)
                assert together, text
                in_ram = re.search(r"(\S+ GiB) of weights stay in RAM", text)
                yield [
                    form,
                    f"{n} × {card}",
                    f"{ranks[1][0].upper()}P {ranks[2]}" if ranks else "–",
                    _told(r"GPU0 .* weights (\S+ [GM]iB)", text),
                    in_ram[1] if in_ram else "–",
                    _told(r"context (\S+) tokens", text),
                    _told(r"KV cache (\S+) tokens", text),
                    _decode(text),
                    f"{together[1]} at {together[2]} tokens: {together[3]}",
                ]


def _decode(text: str) -> str:
    return _told(r"decode (.*?)(?: tokens/s \([^)]*\))", text)


def _told(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return found[1]


TABLES: dict[str, Callable[[], Iterator[Row]]] = {"parts": parts, "cards": cards, "a100": a100}


def table(page: str, name: str) -> list[Row]:
    """The rows of a table that is marked on the page, without its head."""
    (body,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in body.splitlines()[2:]]


def with_tables(page: str) -> str:
    """The page with today's rows."""
    for name, rows in TABLES.items():
        pattern = rf"(<!-- {name} -->\n.*\n.*\n)(?:.*\n)*?(<!-- end -->)"
        lines = "".join(f"| {' | '.join(row)} |\n" for row in rows())
        page = re.sub(pattern, lambda found, lines=lines: found[1] + lines + found[2], page)
    return page
