"""What findings say to do can be done: options, flags and commands that remedies name are there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from autofit.domain.plan import Code
from autofit.host import host
from autofit.settings.options import OPTIONS

OF_CONTAINERS = {"--shm-size", "--ipc"}
OF_VERIFY = {"--log"}


def codes() -> Iterator[tuple[str, str, Code]]:
    for name in host().backends():
        for code, about in host().backend(name).findings.items():
            yield name, code, about


@pytest.mark.parametrize(
    ("backend", "code", "about"), list(codes()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_code_says_what_it_means_and_what_to_do(backend: str, code: str, about: Code) -> None:
    assert about.meaning and not about.meaning.endswith(".")
    assert about.remedy or about.severity == "info", "whoever is warned is told what to do"
    quoted = " ".join(re.findall(r"`([^`]+)`", about.remedy))
    own = {flag for option in OPTIONS for flag in (option.flag, *option.flags)}
    known = own | set(host().backend(backend).flags()) | OF_CONTAINERS | OF_VERIFY
    for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", quoted):
        assert flag in known, flag
    for word in re.findall(r"autofit ([a-z]+)", quoted):
        assert word in {**host().backends(), **host().commands()}, word
