"""docs/many-machines.md: servers and networks are written as they are read. Its transcripts are run with all others."""

from __future__ import annotations

import re

from autofit.domain.servers import parse_links, parse_servers

from support import ROOT

PAGE = (ROOT / "docs/many-machines.md").read_text(encoding="utf-8")


def test_servers_and_networks_are_written_as_they_are_read() -> None:
    written = re.findall(r"^autofit .* --rpc (\S+)", PAGE, re.MULTILINE)
    assert len(written) > 2 and all(map(parse_servers, written))
    links = re.findall(r"--link (\S+)", PAGE)
    assert links and all(map(parse_links, links))
