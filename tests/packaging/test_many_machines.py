"""docs/many-machines.md: servers and networks are written as they are read. Its transcripts are run with all others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from autofit.domain.servers import parse_links, parse_servers

from support import ROOT
from support.pages import reader
from support.transcripts import printed

PAGE = (ROOT / "docs/many-machines.md").read_text(encoding="utf-8")


def test_servers_and_networks_are_written_as_they_are_read() -> None:
    written = re.findall(r"^autofit .* --rpc (\S+)", PAGE, re.MULTILINE)
    assert len(written) > 2 and all(map(parse_servers, written))
    links = re.findall(r"--link (\S+)", PAGE)
    assert links and all(map(parse_links, links))


@pytest.mark.slow
@pytest.mark.parametrize("command", re.findall(r"^autofit vllm .*--format json.*$", PAGE, re.MULTILINE))
def test_commands_of_nodes_are_in_the_plan(command: str, tmp_path: Path) -> None:
    with reader(tmp_path):
        lines, code = printed(command)
    nodes = json.loads("\n".join(lines[: lines.index("}") + 1]))["nodes"]
    assert code == 0 and [node["role"] for node in nodes] == ["head", "worker"]
    assert any("HEAD_ADDRESS" in word for word in nodes[1]["commands"][-1])
