"""Commands of containers, as `docker run` has them: what a manifest says, in the words that one parser reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from autofit.deployments.shell import commands, script_of
from autofit.deployments.written import MAX_WORDS_BYTES, SECRET, UNKNOWN, IsEngine, Written, check_measure
from autofit.domain.values import dataclass, replace
from autofit.errors import UsageError
from autofit.text.launchers import ASSIGNMENT, unwrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What a manifest says of a container.

    `entrypoint` `None`: that of the image. `volumes` are `SOURCE:TARGET`, `gpus` the value of `--gpus`, `devices` those
    of `--device`; `sees_all`: the file does not say which devices it is given.
    """

    line: int
    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    environ: Mapping[str, str]
    volumes: Sequence[str] = ()
    gpus: str | None = None
    devices: Sequence[str] = ()
    sees_all: bool = False
    directory: str | None = None  #: inside of it
    memory: str | None = None  #: the most RAM it may take, as `--memory` has it
    unknown: str | None = None


def written(container: Container, is_engine: IsEngine, started_in: str | None) -> tuple[Written, ...]:
    """The commands of engines that a container starts: its own, or those of the shell script that it runs.

    Raises:
        UsageError: as of the script; more than any container is given.
    """
    whole = (*(container.entrypoint or ()), *container.command)
    check_measure(container.line, n_variables=len(container.environ))
    if sum(map(len, whole)) > MAX_WORDS_BYTES:
        raise UsageError(f"line {container.line}: a command beyond {MAX_WORDS_BYTES} bytes")
    script = script_of(whole)
    started = [container]
    if script is not None:
        inner = commands(script, is_engine, container.environ, line=container.line)
        started = [_inside(container, one) for one in inner]
    return tuple(
        Written(line=one.line, argv=argv, directory=started_in, unknown=one.unknown)
        for one in started
        if is_engine(argv := _docker(one))
    )


def of_any_image(container: Container, is_engine: IsEngine, directory: str | None) -> tuple[Written, ...]:
    """The command itself, where its image is not known as an engine's: with its own paths, and all devices."""
    argv = (*(container.entrypoint or ()), *container.command)
    given = tuple((name, value) for name, value in container.environ.items() if UNKNOWN not in value)
    if is_engine(argv):
        return (Written(line=container.line, argv=argv, environ=given, directory=directory, unknown=container.unknown),)
    script = script_of(argv)
    if script is None:
        return ()
    found = commands(script, is_engine, container.environ, line=container.line)
    return tuple(replace(one, environ=given + one.environ, unknown=one.unknown or container.unknown) for one in found)


def _inside(container: Container, command: Written) -> Container:
    """The container as if it started a command of its script: without the shell and what stands before the engine."""
    assigned = list(takewhile(ASSIGNMENT.fullmatch, command.argv))
    wrapped = unwrap(command.argv[len(assigned) :])
    given = {name: value for name, _, value in (word.partition("=") for word in assigned)}
    return replace(
        container,
        line=command.line,
        entrypoint=wrapped.argv[:1],
        command=wrapped.argv[1:],
        environ=wrapped.variables({**container.environ, **dict(command.environ), **given}),
        unknown=command.unknown or container.unknown,
    )


def _docker(container: Container) -> tuple[str, ...]:
    words = ["docker", "run"]
    words += ["--gpus", "all", "--privileged"] if container.sees_all else []
    words += ["--gpus", container.gpus] if container.gpus is not None else []
    words += [word for device in container.devices for word in ("--device", device)]
    given = {name: value for name, value in container.environ.items() if not SECRET.search(name)}
    words += [word for name, value in given.items() if UNKNOWN not in value for word in ("-e", f"{name}={value}")]
    words += ["--memory", container.memory] if container.memory is not None else []
    volumes = {volume.partition(":")[2].partition(":")[0]: volume for volume in container.volumes}
    words += [word for volume in volumes.values() for word in ("-v", volume)]
    words += ["-w", container.directory] if container.directory is not None else []
    entrypoint = container.entrypoint or ()
    words += ["--entrypoint", entrypoint[0]] if entrypoint else []
    return (*words, container.image, *entrypoint[1:], *container.command)
