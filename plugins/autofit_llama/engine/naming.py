"""Which build of llama.cpp a text names: a build number, a release, what `--version` prints, a tag of an image.

Source: llama_print_build_info, in the template of build-info; CMakeLists.txt (LLAMA_VERSION), workflows/docker.yml.
"""

from __future__ import annotations

import re

from autofit.domain.plan import Finding
from autofit.domain.text import printable
from autofit.errors import UsageError

from autofit_llama.engine.builds import around, builds
from autofit_llama.engine.codes import finding
from autofit_llama.engine.versions import LATEST, NEWER, NEWEST, Version

_BUILD = re.compile(r"(?:^|\bb|\bbuild:?\s*|\bversion:?\s*|\bllama[-.]cpp[-_ ]|^0\.0\.)(\d{3,6})\b(?!\.)")
_RELEASE = re.compile(r"(?<![\d.])v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?![\d.]*\d)")


#: builds of releases: the sources of v0.5.0 are those of b11149; those of v0.4.0 lie between b10798 and b10816
RELEASES = {(0, 5, 0): 11149, (0, 4, 0): 10807}


def find_version(text: str | None) -> tuple[Version, tuple[Finding, ...]]:
    """The version that `--engine-version` or an engine's own `--version` names; `None` is the reference.

    Understands `b8864`, `8864`, `version: 8864 (abcdef)`, `0.4.1-dev (build 10989)`, `0.5.0`, `server-cuda-b8121`. A
    newer build than is known here is taken for the newest, with a finding.

    Raises:
        UsageError: no build number and no release in it.
    """
    if text is None:
        return LATEST, ()
    build, sure = _build(text.strip()[:400])
    if build > NEWEST:
        return NEWER, (_newer(f"b{build}"),)
    version = Version(build=build)
    return version, _uncertain(version, None if sure else printable(text.strip(), 40))


def _build(text: str) -> tuple[int, bool]:
    """The build, and whether it is that one and not one near it."""
    found = _BUILD.search(text)
    if found and int(found[1]):
        return int(found[1]), True
    release = _RELEASE.search(text)
    if release is None:
        raise UsageError(
            f"not a version of llama.cpp: {text[:40]!r}",
            hint="write a build such as b8864, or a release such as 0.5.0",
        )
    return _build_of((int(release[1]), int(release[2]), int(release[3] or 0)))


def _build_of(release: tuple[int, int, int]) -> tuple[int, bool]:
    """A build of a release: one between the last that calls itself something older and the first that does not.

    The number is raised in the commit that is released: b11149, which is v0.5.0, is the first that calls itself so.
    """
    if release in RELEASES:
        return RELEASES[release], True
    dated = [(tuple(map(int, build.version.split("."))), build.number) for build in builds() if build.version]
    before = [number for named, number in dated if named < release]
    after = [number for named, number in dated if named >= release]
    if not after:
        return NEWEST + 1, False
    return (max(before) + 1 if before else after[0]), False


def _newer(name: str) -> Finding:
    return finding(
        "engine-version-newer",
        f"llama.cpp {name} is newer than b{NEWEST}; its flags are taken to be the same",
    )


def _uncertain(version: Version, named: str | None) -> tuple[Finding, ...]:
    findings = []
    near = around(version.build)
    if named is not None:
        known = " to ".join(f"b{build}" for build in near)
        message = f"llama.cpp {named}: its build is not known exactly; it is one of {known}"
        findings.append(finding("engine-version-uncertain", message))
    if version.build < near[0]:
        message = f"llama.cpp {version.name} is older than b{near[0]}, the oldest that is known; it is taken for that"
        findings.append(finding("engine-version-older", message))
    return tuple(findings)
