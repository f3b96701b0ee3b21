"""Which release of vLLM a plan is for, and whose rules it follows.

Every release from the oldest known to the newest known one has records. One between two of them (a development build, a
release candidate, a post release) takes the safer of both; one after the newest takes the newest's rules and a margin.
"""

from __future__ import annotations

import re
from typing import Literal

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import dataclass, replace
from autofit.errors import UsageError

from autofit_vllm.engine.history import defaults_at, facts_at, release_key, releases

NEWEST = "0.33.0"
OLDEST = "0.10.0"
#: the source that docstrings cite as FILE or FILE:NAME; tools/check_sources.py says what a newer one changed
SOURCE = f"vllm {NEWEST}"

Status = Literal["known", "between", "newer"]

#: 0.21.0, v0.21, 0.21.1.dev3+g1a2b3c, 0.22.0rc1, 0.8.5.post1, 0.33.0+cu130
_VERSION = lazy_pattern(
    r"(?:vllm\s*(?:==)?\s*)?v?(?P<version>(?P<numbers>\d{1,6}(?:\.\d{1,6}){1,3})[.-]?"
    r"(?:(?P<pre>a|b|rc)\.?(?P<n_pre>\d{1,6})\.?)?(?:(?P<post>post)\d{0,6}\.?)?(?:(?P<dev>dev)\d{0,9})?"
    r"(?:\+[a-z0-9._-]{1,80})?)(?:-[a-z0-9._-]{1,80})?",
    re.ASCII,
)
MAX_TEXT_CHARS = 300
_MOVING = ("nightly", "main", "latest")  #: names of builds that are another one every day
_UNTAGGED = (0, 1, 0, 0)  #: 0.1.devN: what a source without tags calls itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A rule that moved: the first release that has it as it is now, and where it stands there and stood before."""

    since: str
    source: str  #: FILE:NAME of the newest known release
    before: str  #: the last release without it, and what stood there


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The vLLM that a plan is for: `version` as it calls itself, `release` whose rules are followed."""

    version: str
    release: str
    status: Status = "known"
    neighbors: tuple[str, ...] = ()  #: `between`: the known releases before and after

    @property
    def newest(self) -> bool:
        """Whether the newest known rules are followed."""
        return self.release == NEWEST

    def has(self, change: Change) -> bool:
        return self.newest or release_key(self.release) >= release_key(change.since)

    def sides(self) -> tuple[Engine, ...]:
        """This engine by the rules of each release that it lies between, the newer first; itself if it is known."""
        return tuple(replace(self, release=release) for release in reversed(self.neighbors)) or (self,)

    @property
    def least_capability(self) -> tuple[int, int]:
        """The oldest GPUs that the published wheel holds kernels for (docker/Dockerfile: torch_cuda_arch_list)."""
        if self.newest:
            return (7, 5)
        major, minor = facts_at(self.release)["least_capability"]
        return major, minor

    @property
    def default_gpu_memory_utilization(self) -> float:
        """config/cache.py:CacheConfig.gpu_memory_utilization"""
        return _UTILIZATION if self.newest else float(defaults_at(self.release).get(_UTILIZES, _UTILIZATION))

    @property
    def cudagraph_estimate_deducted(self) -> bool:
        """vllm/envs.py:VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"""
        return self.newest or bool(facts_at(self.release)["graphs_deducted"])


_UTILIZATION, _UTILIZES = 0.92, "gpu_memory_utilization"
DEFAULT = Engine(version=NEWEST, release=NEWEST)


def _tag(text: str) -> str:
    """Of an image, `vllm/vllm-openai:v0.21.0-x86_64`, its tag; of one without a tag the moving one."""
    text = text.partition("@")[0]
    name, colon, tag = text.rpartition(":")
    if colon and "/" not in tag:
        return tag if re.fullmatch(r"[a-z0-9._:/-]+", name) else text
    return "latest" if re.fullmatch(r"[a-z0-9._:-]+(/[a-z0-9._-]+)+", text) else text


def find_version(text: str) -> tuple[str, Engine | None] | None:
    """The version that a text names, and its engine, `None` of one older than any known; `None`: no version."""
    found = _VERSION.fullmatch(_tag(text.strip().lower()[:MAX_TEXT_CHARS]))
    if found is None:
        return None
    try:
        return found["version"], find_engine(text)
    except UsageError:
        return found["version"], None


def find_engine(text: str | None) -> Engine:
    """The engine that a version names; `None` is the newest known.

    Raises:
        UsageError: no version of vLLM, or one older than any known.
    """
    if text is None:
        return DEFAULT
    words = _tag(text.strip().lower()[:MAX_TEXT_CHARS])
    if words.partition("-")[0] in _MOVING:
        return Engine(version=printable(words, 40), release=NEWEST, status="newer")
    found = _VERSION.fullmatch(words)
    if found is None:
        raise UsageError(
            f"'{printable(text, 40)}' is not a version of vLLM", hint="such as 0.21.0, 0.21.1.dev3 or nightly"
        )
    numbers = release_key(found["numbers"])
    version = found["version"]
    if numbers == _UNTAGGED and found["dev"]:
        return Engine(version=version, release=NEWEST, status="newer")
    plain = not (found["pre"] or found["post"] or found["dev"])
    known = {release_key(release): release for release in releases()} if numbers != release_key(NEWEST) else {}
    if plain and (numbers in known or numbers == release_key(NEWEST)):
        return Engine(version=version, release=known.get(numbers, NEWEST))
    phase = -2 if found["dev"] and not found["post"] else -1 if found["pre"] else 1 if found["post"] else 0
    place = (*numbers, phase)
    if place > (*release_key(NEWEST), 0):
        return Engine(version=version, release=NEWEST, status="newer")
    if place < (*release_key(OLDEST), 0):
        raise UsageError(f"vLLM {version} is older than any that autofit knows", hint=f"the oldest is {OLDEST}")
    before = [release for release in releases() if (*release_key(release), 0) < place]
    after = [release for release in releases() if (*release_key(release), 0) > place]
    return Engine(version=version, release=after[0], status="between", neighbors=(before[-1], after[0]))
