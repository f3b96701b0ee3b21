"""What changed in llama.cpp, by build number.

Changes of its command line are here; a change of a rule of memory is beside that rule. A change is known to lie between
two builds: the last one seen without it and the first one seen with it. Flags are refused only where they are surely
absent, and written only where they are surely present.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from autofit.domain.plan import Finding
from autofit.domain.values import dataclass
from autofit.errors import UsageError

from autofit_llama.engine.codes import finding

#: the source that docstrings cite as FILE or FILE:NAME; tools/check_sources.py says what a newer one changed
SOURCE = "llama.cpp of llama-cpp-python 0.3.36"
REFERENCE = 11311  #: its build: what is followed where no build is named
NEWEST = 11434  #: the newest build that memory was held against


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`without`: the last build known not to have it; `has`: the first one known to have it.

    Of a rule of memory, `name` says what it is about in words, and `larger` whether a launch takes no less with the
    change than without: builds between the two follow the rule that takes more. `source` names it in both versions.
    """

    without: int
    has: int
    source: str
    name: str = ""
    larger: bool = True

    def surely_in(self, build: int) -> bool:
        return build >= self.has

    def surely_not_in(self, build: int) -> bool:
        return build <= self.without

    def is_between(self, build: int) -> bool:
        """Whether it is not known which rule the build follows."""
        return self.without < build < self.has


_CHANGES = {
    "n-cpu-moe": Change(without=0, has=6301, source="pull request 15077"),
    "flash-attn-value": Change(without=6301, has=6451, source="pull request 15434"),
    "all-layers-by-default": Change(without=6301, has=6451, source="pull request 15434"),
    "cache-ram": Change(without=6451, has=7079, source="pull request 16391"),
    "four-slots": Change(without=6451, has=7079, source="pull requests 16736 and 17997"),
    "fit": Change(without=7079, has=7549, source="pull request 16653"),
    "layer-words": Change(without=7079, has=8864, source="common/arg.cpp: -ngl auto and all"),
    "spec-draft": Change(without=8864, has=9297, source="pull requests 22397 and 22964"),
    "load-mode": Change(without=9297, has=10434, source="pull request 20834"),
    "n-cpu-ffn": Change(without=10434, has=10989, source="pull request 26622"),
    "lazy-mode": Change(without=10434, has=10989, source="pull request 27794"),
    "kv-unified-per-slot": Change(without=10434, has=10989, source="release notes of 0.4.0"),
    "no-mmap-flags": Change(without=10874, has=10875, source="pull request 28334"),
}
#: rules of memory; where it is not known which one a build has, the one that takes more is followed
_RULES = {
    "few-outputs": Change(without=9453, has=9464, source="tools/server/server-context.cpp:server_output_limits"),
    "fit-draft": Change(without=9272, has=11063, source="common/fit.h:common_fit_extra_model"),
}
_SETTINGS_FILES = Change(without=9297, has=11063, source="pull request 26118")

#: option -> the change that brought it
_OPTIONS = {
    "n-cpu-moe": "n-cpu-moe",
    "cache-ram": "cache-ram",
    "fit": "fit",
    "fit-target": "fit",
    "fit-ctx": "fit",
    "fit-print": "fit",
    "spec-draft-n-max": "spec-draft",
    "spec-draft-n-min": "spec-draft",
    "load-mode": "load-mode",
    "n-cpu-ffn": "n-cpu-ffn",
    "lazy-mode": "lazy-mode",
    "kv-unified-per-slot": "kv-unified-per-slot",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Legacy:
    """An option that builds with `change` refuse, and what to write instead."""

    kind: str
    spellings: tuple[str, ...]
    negations: tuple[str, ...] = ()
    env: str
    change: str
    successor: str


LEGACY = (
    Legacy(
        kind="switch",
        spellings=("-fa", "--flash-attn"),
        env="LLAMA_ARG_FLASH_ATTN",
        change="flash-attn-value",
        successor="-fa on",
    ),
    Legacy(
        kind="bool",
        spellings=("--mmap",),
        negations=("--no-mmap",),
        env="LLAMA_ARG_MMAP",
        change="no-mmap-flags",
        successor="-lm mmap, or -lm none for --no-mmap",
    ),
    Legacy(
        kind="switch",
        spellings=("--mlock",),
        env="LLAMA_ARG_MLOCK",
        change="no-mmap-flags",
        successor="-lm mmap+mlock, or -lm mlock with --no-mmap",
    ),
    Legacy(
        kind="bool",
        spellings=("-dio", "--direct-io"),
        negations=("-ndio", "--no-direct-io"),
        env="LLAMA_ARG_DIO",
        change="no-mmap-flags",
        successor="-lm dio",
    ),
    Legacy(
        kind="int",
        spellings=("--draft", "--draft-n", "--draft-max"),
        env="LLAMA_ARG_DRAFT_MAX",
        change="spec-draft",
        successor="--spec-draft-n-max",
    ),
    Legacy(
        kind="int",
        spellings=("--draft-min", "--draft-n-min"),
        env="LLAMA_ARG_DRAFT_MIN",
        change="spec-draft",
        successor="--spec-draft-n-min",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A build of llama.cpp; `newer` than is known here, and so with flags unknown."""

    build: int
    newer: bool = False

    @property
    def has_unknown_flags(self) -> bool:
        """Whether it may have flags that are not known here: newer ones, or ones that are gone since."""
        return self.newer or self.build != REFERENCE

    def has(self, change: str) -> bool:
        """Whether this build surely has it."""
        return (_CHANGES.get(change) or _RULES[change]).surely_in(self.build)

    def follows(self, rule: Change) -> bool:
        """Whether memory is counted by the rule as it is since the change."""
        return self.build >= rule.has or (rule.larger and self.build > rule.without)

    def lacks(self, change: str) -> bool:
        """Whether this build surely lacks it."""
        return _CHANGES[change].surely_not_in(self.build)

    def offers(self, option: str) -> bool:
        """Whether the option may be written in a command for this build."""
        return option not in _OPTIONS or self.has(_OPTIONS[option])

    def refuses(self, option: str) -> bool:
        """Whether this build is too old for the option."""
        return option in _OPTIONS and self.lacks(_OPTIONS[option])

    @property
    def reads_files(self) -> bool:
        """Whether this build surely takes settings from llama.cpp/config.ini."""
        return _SETTINGS_FILES.surely_in(self.build)

    @property
    def may_read_files(self) -> bool:
        return not _SETTINGS_FILES.surely_not_in(self.build)

    @property
    def name(self) -> str:
        return f"b{self.build}"


LATEST = Version(build=REFERENCE)
NEWER = Version(build=NEWEST, newer=True)

_BUILD = r"(?:^|\bb|\bbuild:?\s*|\bversion:?\s*)(\d{3,6})\b"
_RELEASE = r"\bv?(\d+)\.(\d+)(?:\.(\d+))?"


def find_version(text: str | None) -> tuple[Version, tuple[Finding, ...]]:
    """The version that `--engine-version` or an engine's own `--version` names; `None` is the reference.

    Understands `b8864`, `8864`, `version: 8864 (abcdef)`, `0.4.1-dev (build 10989)`, `0.5.0`. A newer build
    than is known here is taken for the newest, with a finding.

    Raises:
        UsageError: no build number and no release in it.
    """
    if text is None:
        return LATEST, ()
    found = re.search(_BUILD, text.strip())
    release = re.search(_RELEASE, text)
    if found:
        build = int(found[1])
    elif release:
        # releases are numbered since shortly before 0.4.0, the first without the memory-mapping flags
        number = int(release[1]), int(release[2])
        build = 11063 if number >= (0, 5) else 10989 if number == (0, 4) else 10874
        if number > (0, 5):
            return NEWER, (_newer(text),)
    else:
        raise UsageError(
            f"not a version of llama.cpp: {text[:40]!r}",
            hint="write a build such as b8864, or a release such as 0.5.0",
        )
    if build > NEWEST:
        return NEWER, (_newer(f"b{build}"),)
    version = Version(build=build)
    return version, _uncertain(version)


def _newer(name: str) -> Finding:
    return finding(
        "engine-version-newer",
        f"llama.cpp {name} is newer than b{NEWEST}; its flags are taken to be the same",
    )


def _uncertain(version: Version) -> tuple[Finding, ...]:
    between = [key for key, change in _CHANGES.items() if change.without < version.build < change.has]
    findings = []
    if version.build < REFERENCE - 1000:
        message = f"memory figures are those of llama.cpp b{REFERENCE}; {version.name} may differ"
        findings.append(finding("engine-version-older", message))
    if between:
        message = f"it is not known whether llama.cpp {version.name} has: {_words(between)}"
        findings.append(finding("engine-version-uncertain", message))
    return tuple(findings)


def _words(keys: Iterable[str]) -> str:
    return ", ".join(key.replace("-", " ") for key in keys)
