"""Which build of llama.cpp a text names: a build number, a release, what `--version` prints, a tag of an image.

Source: llama_print_build_info, in the template of build-info; CMakeLists.txt (LLAMA_VERSION), workflows/docker.yml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from autofit.domain.patterns import lazy_pattern
from autofit.domain.plan import Finding
from autofit.domain.text import printable
from autofit.domain.units import MIB
from autofit.errors import UsageError

from autofit_llama.engine.builds import around, builds
from autofit_llama.engine.codes import finding
from autofit_llama.engine.versions import LATEST, NEWEST, OLDEST, REFERENCE, Version

_BUILD = lazy_pattern(r"(?:^|\bb|\bbuild:?\s*|\bversion:?\s*|\bllama[-.]cpp[-_ ]|^0\.0\.)(\d{3,6})\b(?!\.)")
#: at the start, or of what calls itself llama: the number of another program's release says nothing
_RELEASE = lazy_pattern(r"(?:^(?:version:\s*)?|llama.*?(?<![\d.]))v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?![\d.]*\d)")


#: builds of releases: the sources of v0.5.0 are those of b11149; those of v0.4.0 lie between b10798 and b10816
RELEASES = {(0, 5, 0): 11149, (0, 4, 0): 10807}


#: engines made from llama.cpp, by what their paths, images and versions have in them
FORKS = {"ik_llama": "ik_llama.cpp", "ik-llama": "ik_llama.cpp", "llamafile": "llamafile"}
#: those with flags of their own, in which no llama-server command can be written
STRANGERS = {
    "koboldcpp": "KoboldCpp",
    "ollama": "Ollama",
    "lm studio": "LM Studio",
    "lm-studio": "LM Studio",
    "lmstudio": "LM Studio",
}


def find_version(text: str | None) -> tuple[Version, tuple[Finding, ...]]:
    """The version that `--engine-version` or an engine's own `--version` names; `None` is the reference.

    Understands `b8864`, `8864`, `version: 8864 (abcdef)`, `0.4.1-dev (build 10989)`, `0.5.0`, `server-cuda-b8121`,
    `llama-cpp-python 0.3.36`, `ik_llama.cpp`. A newer build than is known here is taken for the newest, with a margin.

    Raises:
        UsageError: no build number, release or fork in it, or an engine that has no command of llama.cpp's.
    """
    if text is None:
        return LATEST, ()
    text = text.strip()[:400]
    stranger = _named(text, STRANGERS)
    if stranger is not None:
        raise UsageError(
            f"{stranger} has flags and defaults of its own, which are not known here",
            hint="plan for llama.cpp: its own rules decide how its runner allocates, and where is its own choice",
        )
    fork = _named(text, FORKS)
    if fork is not None:
        version = Version(build=REFERENCE, newer=True, fork=fork)
        return version, (_assumed(version, f"{fork} is a fork of llama.cpp, taken for b{REFERENCE}"),)
    build, sure = _build(text)
    if build > NEWEST:
        version = Version(build=NEWEST, newer=True, asked=build)
        named = f"b{build}" if sure else printable(text, 40)
        message = f"llama.cpp {named} is newer than b{NEWEST}, the newest that is known; it is taken for that"
        return version, (_assumed(version, message),)
    version = Version(build=build)
    return version, _uncertain(version, None if sure else printable(text, 40))


def version_in(text: str, path: str = "") -> str | None:
    """What of an engine's own words, or of the place where it lies, `find_version` understands; `None`: nothing."""
    fork = _named(path, {**FORKS, **STRANGERS})
    if fork is not None:
        return fork
    try:
        find_version(text)
    except UsageError:
        return None
    return text


def stranger_of(program: str) -> str | None:
    """The engine made from llama.cpp that a program is, whose commands are not llama-server's."""
    return _named(program, {**STRANGERS, "llamafile": "llamafile"}) or ("LM Studio" if program == "lms" else None)


def _named(text: str, names: Mapping[str, str]) -> str | None:
    lower = text.lower()
    return next((name for part, name in names.items() if part in lower), None)


def _build(text: str) -> tuple[int, bool]:
    """The build, and whether it is that one and not one near it."""
    package = re.search(r"llama[-_]cpp[-_]python[- =]*(\d+\.\d+\.\d+)", text)
    if package:
        return _packaged(package[1])
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


def _packaged(release: str) -> tuple[int, bool]:
    from autofit_llama.engine.package_builds import PACKAGES  # few engines are found by their package

    if release not in PACKAGES:
        raise UsageError(
            f"it is not known which llama.cpp is in llama-cpp-python {release}",
            hint=f"known: {list(PACKAGES)[-1]} to {next(iter(PACKAGES))}; --engine-version b{REFERENCE} names a build",
        )
    return PACKAGES[release]


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


def _assumed(version: Version, message: str) -> Finding:
    """That the version is outside what is recorded, and what is left free for it."""
    code = "engine-fork" if version.fork else "engine-version-newer" if version.newer else "engine-version-older"
    more = version.behind_bytes // MIB
    return finding(code, f"{message}, and {more} MiB more are left free on each device, which is assumed")


def _uncertain(version: Version, named: str | None) -> tuple[Finding, ...]:
    findings = []
    near = around(version.build)
    if named is not None:
        known = " to ".join(f"b{build}" for build in near)
        message = f"llama.cpp {named}: its build is not known exactly; it is one of {known}"
        findings.append(finding("engine-version-uncertain", message))
    if version.build < OLDEST:
        message = f"llama.cpp {version.name} is older than b{OLDEST}, the oldest whose memory is known"
        findings.append(_assumed(version, message))
    return tuple(findings)
