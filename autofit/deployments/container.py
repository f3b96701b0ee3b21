"""Commands of containers, as `docker run` has them: what a manifest says, in the words that one parser reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.deployments.shell import commands, script_of
from autofit.deployments.written import IsEngine, Written
from autofit.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What a manifest says of a container.

    `entrypoint` `None`: that of the image. `volumes` are `SOURCE:TARGET`, `gpus` the value of `--gpus`.
    """

    line: int
    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    environ: Mapping[str, str]
    volumes: Sequence[str] = ()
    gpus: str | None = None
    directory: str | None = None  #: inside of it
    unknown: str | None = None


def written(container: Container, is_engine: IsEngine, started_in: str | None) -> tuple[Written, ...]:
    """The commands of engines that a container starts: its own, or those of the shell script that it runs."""
    whole = (*(container.entrypoint or ()), *container.command)
    script = script_of(whole)
    if script is None:
        found = [(container.line, container.entrypoint, container.command, container.unknown)]
    else:
        inner = commands(script, is_engine, container.environ, line=container.line)
        found = [(one.line, one.argv[:1], one.argv[1:], one.unknown or container.unknown) for one in inner]
    return tuple(
        Written(line=line, argv=argv, directory=started_in, unknown=unknown)
        for line, entrypoint, command, unknown in found
        if is_engine(argv := _docker(container, entrypoint, command))
    )


def _docker(container: Container, entrypoint: tuple[str, ...] | None, command: Sequence[str]) -> tuple[str, ...]:
    words = ["docker", "run"]
    words += ["--gpus", container.gpus] if container.gpus is not None else []
    words += [word for name, value in container.environ.items() for word in ("-e", f"{name}={value}")]
    words += [word for volume in container.volumes for word in ("-v", volume)]
    words += ["-w", container.directory] if container.directory is not None else []
    rest: Sequence[str] = command
    if entrypoint:
        words += ["--entrypoint", entrypoint[0]]
        rest = (*entrypoint[1:], *command)
    return (*words, container.image, *rest)
