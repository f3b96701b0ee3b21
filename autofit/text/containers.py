"""`docker run [options] IMAGE [words]`, and the same of podman and nerdctl, taken apart: what starts, and what it sees.

Nothing is run or looked up. Options stand before the image; short ones may be joined (`-itv/m:/models`), a value may
follow `=`. What an image starts, and which build of an engine it holds, is its engine's to say.

Sources: `docker run --help` of Docker 28.2 (cli/command/container/opts.go, opts/gpus.go), podman-run(1) of 4.3, and
the CDI names of the NVIDIA container toolkit (`nvidia.com/gpu=0`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from autofit.domain.text import printable
from autofit.domain.values import dataclass
from autofit.domain.words import in_json
from autofit.errors import UsageError
from autofit.text.programs import RUNNERS

_HINT = "only `docker run [options] IMAGE [words]` is understood; or give the engine's own command"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: options that take a value, and change neither memory nor devices nor what is started
_VALUED = _names(
    "--add-host --annotation -a --attach --blkio-weight --blkio-weight-device --cap-add --cap-drop --cgroup-parent "
    "--cgroupns --cidfile --cpu-count --cpu-percent --cpu-period --cpu-quota --cpu-rt-period --cpu-rt-runtime "
    "-c --cpu-shares --cpus --cpuset-cpus --cpuset-mems --detach-keys --device-cgroup-rule --device-read-bps "
    "--device-read-iops --device-write-bps --device-write-iops --dns --dns-option --dns-opt --dns-search --domainname "
    "--expose --group-add --health-cmd --health-interval --health-retries --health-start-interval "
    "--health-start-period --health-timeout -h --hostname --io-maxbandwidth --io-maxiops --ip --ip6 --ipc --isolation "
    "--kernel-memory -l --label --label-file --link --link-local-ip --log-driver --log-opt --mac-address "
    "--memory-reservation --memory-swap --memory-swappiness --name --network --net --network-alias --net-alias "
    "--oom-score-adj --pid --pids-limit --platform -p --publish --pull --restart --security-opt --shm-size "
    "--stop-signal --stop-timeout --storage-opt --sysctl --ulimit -u --user --userns --uts --volume-driver"
    # podman's and nerdctl's own
    " --arch --authfile --cgroup-conf --cgroups --chrootdirs --conmon-pidfile --creds --decryption-key --env-merge "
    "--gidmap --health-on-failure --hostuser --image-volume --init-path --init-ctr --os --passwd-entry --personality "
    "--pidfile --pod --pod-id-file --preserve-fds --requires --sdnotify --seccomp-policy --secret --shm-size-systemd "
    "--subgidname --subuidname --systemd --timeout --tz --uidmap --umask --unsetenv --variant --retry --retry-delay"
)
_SWITCHES = _names(
    "-d --detach --disable-content-trust --help --init -i --interactive --no-healthcheck --oom-kill-disable "
    "--privileged -P --publish-all -q --quiet --read-only --rm --sig-proxy -t --tty --use-api-socket"
    " --env-host --http-proxy --no-hosts --no-hostname --passwd --read-only-tmpfs --replace --rmi --rootfs "
    "--tls-verify --unsetenv-all"
)
#: options that say something here, by the name that they are kept under
_TOLD = {
    "-v": "volume", "--volume": "volume", "--mount": "mount", "--tmpfs": "tmpfs", "--volumes-from": "volumes-from",
    "-e": "env", "--env": "env", "--env-file": "env-file", "--gpus": "gpus", "--device": "device",
    "--runtime": "runtime", "-m": "memory", "--memory": "memory", "-w": "workdir", "--workdir": "workdir",
    "--entrypoint": "entrypoint",
}  # fmt: skip
#: options between the program and `run`; those that name another machine are refused
_BEFORE = _names(
    "--config -l --log-level --tlscacert --tlscert --tlskey --root --runroot --storage-driver --storage-opt --tmpdir "
    "--cgroup-manager --conmon --events-backend --hooks-dir --network-cmd-path --runtime --runtime-flag --namespace -n "
    "--address -a --snapshotter --data-root"
)
_ELSEWHERE = _names("-H --host -c --context --connection --url -r --remote")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Where a container sees something of its host: `source` is a path, or `None` of what only the runner holds."""

    target: str
    source: str | None = None
    name: str = ""  #: of a volume, or what else it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs of one kind that a container is given: `words` are indices or UUIDs; with neither, all of them."""

    words: tuple[str, ...] = ()
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container as its command describes it.

    `prefix` are the words up to the image, `words` those after it. `entrypoint` takes the place of the image's own.
    `assigned` are variables with their values, `None` of one that is handed on from around. `nvidia` and `others` are
    the GPUs that it is given, `None`: none.
    """

    prefix: tuple[str, ...]
    image: str
    words: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    assigned: tuple[tuple[str, str | None], ...] = ()
    env_files: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    nvidia: Gpus | None = None
    others: Gpus | None = None
    memory_bytes: int | None = None
    directory: str | None = None

    @property
    def runner(self) -> str:
        return self.prefix[0]

    def variables(self, around: Mapping[str, str]) -> dict[str, str]:
        """Those that its command sets, of what it hands on from around."""
        found: dict[str, str] = {}
        for name, value in self.assigned:
            if value is not None:
                found[name] = value
            elif name in around:
                found[name] = around[name]
        return found

    def outside(self, word: str) -> str:
        """A word of the command inside, with paths of the host in place of those that the container sees."""
        return _moved(word, [(mount.target, mount.source) for mount in self.mounts if mount.source is not None])

    def inside(self, word: str) -> str:
        """A word with the paths that the container sees in place of the host's."""
        return _moved(word, [(mount.source, mount.target) for mount in self.mounts if mount.source is not None])

    def is_outside(self, path: str) -> bool:
        """Whether a path of the host is in what the container is given."""
        return any(mount.source is not None and _is_below(path, mount.source) for mount in self.mounts)

    def holding(self, path: str) -> Mount | None:
        """The innermost mount that holds a path of the container."""
        found = [mount for mount in self.mounts if _is_below(path, mount.target)]
        return max(found, key=lambda mount: len(mount.target), default=None)


def container_of(words: tuple[str, ...]) -> Container | None:
    """The container that a command starts; `None`: its program is no runner of containers.

    Raises:
        UsageError: another command of such a program, an option that is not known, or one that makes no sense.
    """
    if not words or words[0].rpartition("/")[2] not in RUNNERS:
        return None
    name = words[0].rpartition("/")[2]
    at = _after_run(name, words)
    given: list[tuple[str, str]] = []
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        if words[at] == "--":
            at += 1
            break
        found, n_words = _option(name, words[at : at + 2])
        given += found
        at += n_words
    if at >= len(words):
        raise UsageError(f"{name} run: no image", hint=_HINT)
    return _container(words[: at + 1], words[at + 1 :], given)


def _after_run(name: str, words: tuple[str, ...]) -> int:
    """The place after `run`."""
    at = 1
    while at < len(words) and words[at].startswith("-"):
        option, equals, _ = words[at].partition("=")
        if option in _ELSEWHERE:
            raise UsageError(
                f"{name} {printable(option, 40)}: a container on another machine, of which nothing is seen from here",
                hint="plan for its hardware and the engine's own command: autofit check --on ... -- ENGINE COMMAND",
            )
        at += 2 if option in _BEFORE and not equals else 1
    if words[at : at + 1] == ("container",):
        at += 1
    if words[at : at + 1] != ("run",):
        said = printable(" ".join(words[1 : at + 1]), 60) or "nothing after it"
        raise UsageError(f"{name}: {said}, which starts no engine that can be seen", hint=_HINT)
    return at + 1


def _option(name: str, words: tuple[str, ...]) -> tuple[list[tuple[str, str]], int]:
    """What the first word gives, and how many words that takes.

    Raises:
        UsageError: an option that is not known, or without its value.
    """
    word = words[0]
    if word.startswith("--"):
        option, equals, value = word.partition("=")
        if option in _SWITCHES:
            is_on = not equals or value.lower() in ("1", "t", "true")
            return [(option, "")] if is_on else [], 1
        _check_option(name, option)
        if not equals and len(words) < 2:
            raise UsageError(f"{name} run {option}: a value is expected", hint=_HINT)
        return [(option, value if equals else words[1])], 1 if equals else 2
    found: list[tuple[str, str]] = []
    for at, letter in enumerate(word[1:], 2):
        option = f"-{letter}"
        if option in _SWITCHES:
            found.append((option, ""))
            continue
        _check_option(name, option)
        if word[at:]:
            return [*found, (option, word[at:].removeprefix("="))], 1
        if len(words) < 2:
            raise UsageError(f"{name} run {option}: a value is expected", hint=_HINT)
        return [*found, (option, words[1])], 2
    return found, 1


def _check_option(name: str, option: str) -> None:
    if option not in _VALUED and option not in _TOLD:
        raise UsageError(
            f"{name} run: {printable(option, 60)} is an unknown option: whether a value follows it cannot be told",
            hint="leave it out for autofit check, or write its value behind =",
        )


def _container(prefix: tuple[str, ...], words: tuple[str, ...], given: list[tuple[str, str]]) -> Container:
    """The container of its options.

    Raises:
        UsageError: a value that makes no sense.
    """
    told: dict[str, list[str]] = {}
    for option, value in given:
        told.setdefault(_TOLD.get(option, option), []).append(value)
    image = prefix[-1]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,400}", image):
        raise UsageError(f"{prefix[0].rpartition('/')[2]} run: '{printable(image, 80)}' names no image", hint=_HINT)
    if "volumes-from" in told:
        raise UsageError(
            "--volumes-from: what another container sees is not looked up", hint="name the folders with -v HOST:INSIDE"
        )
    assigned = [_assignment(text) for text in told.get("env", ())]
    entrypoint = told.get("entrypoint", [None])[-1]
    directory = told.get("workdir", [None])[-1]
    return Container(
        prefix=prefix,
        image=image,
        words=words,
        entrypoint=None if entrypoint is None else _entrypoint(entrypoint),
        assigned=tuple(assigned),
        env_files=tuple(told.get("env-file", ())),
        mounts=(*map(_volume, told.get("volume", ())), *_mounts(told.get("mount", ()))),
        nvidia=_nvidia(told, dict(assigned)),
        others=_others(told),
        memory_bytes=_memory(told["memory"][-1]) if "memory" in told else None,
        directory=directory,
    )


def _assignment(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    return name, value if equals else None


def repository_of(image: str) -> str:
    """The name of an image without its tag and digest; the colon of a registry's port stays."""
    name = image.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def tag_of(image: str) -> str:
    """The tag of an image; empty where there is none."""
    return image.partition("@")[0].removeprefix(repository_of(image)).removeprefix(":")


def env_file(text: str) -> tuple[tuple[str, str | None], ...]:
    """The variables of a file of `--env-file`: lines of NAME=VALUE, or of a NAME that is handed on; `#` comments."""
    lines = (line.lstrip() for line in text.splitlines())
    return tuple(_assignment(line) for line in lines if line and not line.startswith("#"))


def _entrypoint(text: str) -> tuple[str, ...]:
    """The program that `--entrypoint` names; podman takes a list of words in JSON too, an empty one takes it away."""
    if text.startswith("["):
        import json

        try:
            words = json.loads(text)
        except (ValueError, RecursionError):
            words = None
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise UsageError(f"--entrypoint {printable(text, 60)}: neither a program nor JSON of its words", hint=_HINT)
        return tuple(words)
    return (text,) if text else ()


def _volume(text: str) -> Mount:
    """`HOST:INSIDE[:options]`, `NAME:INSIDE`, or `INSIDE` alone."""
    source, colon, rest = text.partition(":")
    if not colon:
        return Mount(target=_target(text, text), name="a new volume")
    target = _target(rest.partition(":")[0], text)
    if source.startswith(("/", ".", "~")):
        return Mount(target=target, source=source.rstrip("/") or "/")
    return Mount(target=target, name=f"the volume {printable(source, 60)}")


def _mounts(texts: Iterable[str]) -> Iterable[Mount]:
    for text in texts:
        fields = dict(_assignment(field) for field in _fields(text))
        target = fields.get("target") or fields.get("dst") or fields.get("destination") or ""
        source = fields.get("source") or fields.get("src")
        kind = fields.get("type") or "volume"
        path = source if kind == "bind" else None
        yield Mount(
            target=_target(target, text),
            source=None if path is None else path.rstrip("/") or "/",
            name=f"the {printable(kind, 20)} {printable(source or '', 60)}".strip(),
        )


def _target(path: str, said: str) -> str:
    if not path.startswith("/"):
        raise UsageError(
            f"'{printable(said, 80)}': a place inside the container begins with /", hint="write -v /host/folder:/inside"
        )
    return path.rstrip("/") or "/"


def _fields(text: str) -> list[str]:
    import csv

    try:
        return next(csv.reader([text]), [])
    except csv.Error as error:
        raise UsageError(f"{printable(text, 60)}: {error}", hint=_HINT) from None


def _nvidia(told: Mapping[str, list[str]], assigned: Mapping[str, str | None]) -> Gpus | None:
    """NVIDIA's GPUs, by `--gpus`, a CDI name or the runtime and its variable."""
    given = [_gpus(text) for text in told.get("gpus", ())]
    kinds = [text.partition("=") for text in told.get("device", ()) if text.startswith("nvidia.com/")]
    given += [Gpus() if name == "all" else Gpus(words=(_index(name),)) for _, _, name in kinds]
    if "nvidia" in told.get("runtime", ()):
        visible = assigned.get("NVIDIA_VISIBLE_DEVICES") or "all"
        if visible not in ("none", "void"):
            given.append(Gpus() if visible == "all" else Gpus(words=tuple(map(_index, visible.split(",")))))
    if not given:
        return None
    if any(not (gpus.words or gpus.count) for gpus in given):
        return Gpus()
    words = tuple(dict.fromkeys(word for gpus in given for word in gpus.words))
    counts = [gpus.count for gpus in given if gpus.count is not None]
    if words and counts:
        raise UsageError("--gpus: a number of GPUs and a list of them", hint="leave one of them out")
    return Gpus(words=words) if words else Gpus(count=max(counts))


def _gpus(text: str) -> Gpus:
    """`all`, a number, `device=0`, or a list in quotes of its own: `"device=0,1"`.

    Raises:
        UsageError: what Docker refuses, or something else.
    """
    words: tuple[str, ...] = ()
    count: str | None = None
    for field in _fields(text):
        key, equals, value = field.partition("=")
        if not equals:
            key, value = "count", field
        if key == "device":
            words = tuple(map(_index, value.split(",")))
        elif key == "count":
            count = value
        elif key not in ("driver", "capabilities", "options"):
            raise UsageError(f"--gpus {printable(text, 60)}: no '{printable(key, 20)}' in it is known", hint=_ALL)
    if words and count is not None:
        raise UsageError(
            f"docker refuses --gpus {printable(text, 60)}: a list of devices and a number",
            hint="a list needs quotes of its own: --gpus '\"device=0,1\"'",
        )
    if words:
        return Gpus(words=words)
    if count in (None, "all", "-1"):
        return Gpus()
    if count is None or not (count.isascii() and count.isdigit() and len(count) < 5 and int(count)):
        raise UsageError(f"--gpus {printable(text, 60)}: neither all nor a number of GPUs", hint=_ALL)
    return Gpus(count=int(count))


_ALL = "write --gpus all, --gpus 2 or --gpus device=0"


def _index(word: str) -> str:
    word = word.strip()
    if not re.fullmatch(r"[A-Za-z0-9-]{1,80}", word) or ":" in word:
        raise UsageError(f"'{printable(word, 60)}' names no GPU", hint=_ALL)
    return word


def _others(told: Mapping[str, list[str]]) -> Gpus | None:
    """GPUs of the other makers, which come as files of /dev, or as a CDI name.

    Raises:
        UsageError: one of several such files, of which it is not known which GPU it is.
    """
    if "--privileged" in told:
        return Gpus()
    for text in told.get("device", ()):
        path = text.partition(":")[0]
        if path in ("/dev/dri", "/dev/dxg", "/dev/accel"):
            return Gpus()
        if path.startswith("/dev/dri/"):
            raise UsageError(
                f"--device {printable(path, 60)}: which GPU that is cannot be told here",
                hint="write --device /dev/dri, and choose with autofit's own --device",
            )
        if re.match(r"[a-z0-9.]+/gpu=", path) and not path.startswith("nvidia.com/"):
            name = path.partition("=")[2]
            return Gpus() if name == "all" else Gpus(words=(_index(name),))
    return None


def _memory(text: str) -> int:
    """Bytes of `8g`: binary units of one letter, as Docker reads them (go-units: RAMInBytes).

    Raises:
        UsageError: no size.
    """
    match = re.fullmatch(r"(\d{1,15})(?:\.(\d{1,6}))? ?([bkmgtp])?(?:i?b)?", text.strip().lower(), re.ASCII)
    if match is None:
        raise UsageError(f"--memory {printable(text, 40)}: not a size", hint="write it as 8g or 512m")
    unit: int = 1024 ** "bkmgtp".index(match[3] or "b")
    fraction = match[2] or "0"
    return int(match[1]) * unit + int(fraction) * unit // int(10 ** len(fraction))


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder == "/" else f"{folder}/")


def _moved(word: str, pairs: Iterable[tuple[str | None, str | None]]) -> str:
    """A word in which each first path that is a whole one, or begins one, is the second; the longest counts."""
    is_json = word[:1] in ("{", "[")
    found = {first: then for first, then in pairs if first and then}
    found = {in_json(first): in_json(then) for first, then in found.items()} if is_json else found
    longest = sorted((re.escape(first) for first in found if first != "/"), key=len, reverse=True)
    if longest:
        pattern = rf"(?:^|(?<=[\"',:;=\s\[{{]))({'|'.join(longest)})(?=$|[/\"',:;=\s\]}}])"
        word, n_moved = re.subn(pattern, lambda match: "" if found[match[1]] == "/" else found[match[1]], word)
        if n_moved:
            return word or "/"
    if "/" in found and word.startswith("/"):
        return found["/"] + word
    return word
