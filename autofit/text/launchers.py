"""What stands in front of a command and starts it: `nice -n 5`, `env A=1`, `numactl -m 0`, `uv run`.

Each is a row of data: which of its options take a value, and what they do to the variables and the directory of the
command. Nothing is run or looked up. Options are read as getopt does up to the first word that is none: `-n5`, `-n 5`,
`-vn5`, `--adjustment=5`, `--adjustment 5`, and long ones by any beginning that means one alone.

Sources: the manuals of coreutils 9, util-linux 2.40, numactl 2.0.18, sudo 1.9, systemd 257, GNU time 1.9, uv 0.9,
conda 25, GNU Screen 5.0 and Slurm 24.11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import dataclass
from autofit.errors import UsageError

ASSIGNMENT = lazy_pattern(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
SHELLS = frozenset(("sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "busybox", "fish"))
MAX_LAUNCHERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """The command line of one launcher, as far as it must be read to find the command behind it.

    Of its options, written with their dashes, `valued` take a value in the same word or the next; of these `sets` name
    a variable with its value, `unsets` one that goes, `moves` a directory. `clears` leave the command no variables.
    `resets`: it hands none on, unless one of `keeps` is given. `finds`: it looks for the program on the `PATH`
    that it has itself, whatever it leaves of that. `operands` are words of its own before the command.
    """

    valued: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()  #: what must follow its name: `run`
    operands: int = 0
    assigns: bool = False  #: NAME=VALUE may stand before the command
    sets: frozenset[str] = frozenset()
    unsets: frozenset[str] = frozenset()
    clears: frozenset[str] = frozenset()
    moves: frozenset[str] = frozenset()
    resets: bool = False
    keeps: frozenset[str] = frozenset()
    finds: bool = False
    splits: frozenset[str] = frozenset()  #: options whose value is split into words that take its place
    modules: frozenset[str] = frozenset()  #: options after which the command is a module of Python
    counts: bool = False  #: `-5` and `--5` are numbers, not options
    is_builtin: bool = False  #: of the shell alone: no program


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UV = _names(
    "--extra --no-extra --group --no-group --only-group --env-file -w --with --with-editable --with-requirements "
    "--package --directory --project -p --python --index --default-index -i --index-url --extra-index-url -f "
    "--find-links -P --upgrade-package --resolution --prerelease --exclude-newer --link-mode -C --config-setting "
    "--no-build-package --no-binary-package --refresh-package --reinstall-package --cache-dir --config-file --color "
    "--index-strategy --keyring-provider --python-platform --allow-insecure-host --fork-strategy --from -b "
    "--build-constraints --overrides --constraints -c --torch-backend"
)
_SYSTEMD = _names(
    "-H --host -M --machine -u --unit -p --property --description --slice --uid --gid --nice --working-directory -E "
    "--setenv --service-type --on-active --on-boot --on-startup --on-unit-active --on-unit-inactive --on-calendar "
    "--timer-property --path-property --socket-property --expand-environment --background --job-mode -C --capsule"
)
_SUDO = _names(
    "-C --close-from -D --chdir -g --group -h --host -p --prompt -R --chroot -r --role -t --type -T --command-timeout "
    "-U --other-user -u --user"
)
_NUMACTL = _names(
    "-i --interleave -w --weighted-interleave -p --preferred -P --preferred-many -m --membind -N --cpunodebind -C "
    "--physcpubind -S --shm -f --file -L --length -o --offset -M --shmmode -I --shmid"
)
_SRUN = _names(
    "-A --account -c --cpus-per-task -C --constraint -D --chdir -e --error -G --gpus --gres --gpus-per-node "
    "--gpus-per-task -i --input -J --job-name -m --distribution --mem --mem-per-gpu -n --ntasks -N --nodes "
    "--ntasks-per-node -o --output -p --partition -q --qos -t --time -w --nodelist -x --exclude --export --mpi "
    "--cpu-bind --gpu-bind --container-image --container-mounts --jobid --reservation"
)
_CONDA = Launcher(
    words=("run",),
    valued=_names("-n --name -p --prefix --cwd -e --env"),
    moves=_names("--cwd"),
)

LAUNCHERS: Mapping[str, Launcher] = {
    "env": Launcher(
        valued=_names("-u --unset -C --chdir -S --split-string -a --argv0"),
        unsets=_names("-u --unset"),
        clears=_names("-i --ignore-environment -"),
        moves=_names("-C --chdir"),
        splits=_names("-S --split-string"),
        assigns=True,
    ),
    "exec": Launcher(valued=_names("-a"), clears=_names("-c"), is_builtin=True),
    "command": Launcher(is_builtin=True),
    "nice": Launcher(valued=_names("-n --adjustment"), counts=True),
    "nohup": Launcher(),
    "setsid": Launcher(),
    "time": Launcher(valued=_names("-f --format -o --output")),
    "timeout": Launcher(valued=_names("-s --signal -k --kill-after"), operands=1),
    "stdbuf": Launcher(valued=_names("-i --input -o --output -e --error")),
    "ionice": Launcher(valued=_names("-c --class -n --classdata -p --pid -P --pgid -u --uid")),
    "chrt": Launcher(valued=_names("-T --sched-runtime -P --sched-period -D --sched-deadline"), operands=1),
    "taskset": Launcher(operands=1),
    "numactl": Launcher(valued=_NUMACTL),
    "choom": Launcher(valued=_names("-n --adjust -p --pid")),
    "prlimit": Launcher(valued=_names("-p --pid -o --output")),
    "cgexec": Launcher(valued=_names("-g")),
    "sudo": Launcher(
        valued=_SUDO, moves=_names("-D --chdir"), assigns=True, resets=True, keeps=_names("-E --preserve-env")
    ),
    "doas": Launcher(valued=_names("-C -u"), resets=True),
    "gosu": Launcher(operands=1),
    "su-exec": Launcher(operands=1),
    "tini": Launcher(valued=_names("-p -e")),
    "dumb-init": Launcher(valued=_names("-r --rewrite")),
    "catchsegv": Launcher(),
    "screen": Launcher(valued=_names("-c -e -h -p -s -S -t -T")),
    "srun": Launcher(valued=_SRUN),
    "unbuffer": Launcher(),
    "caffeinate": Launcher(valued=_names("-t -w")),
    "systemd-run": Launcher(
        valued=_SYSTEMD,
        sets=_names("-E --setenv"),
        moves=_names("--working-directory"),
        resets=True,
        keeps=_names("--scope"),
        finds=True,  # src/run/run.c:run, find_executable of systemd 252
    ),
    "systemd-inhibit": Launcher(valued=_names("--what --who --why --mode")),
    "uv": Launcher(words=("run",), valued=_UV, moves=_names("--directory"), modules=_names("-m --module")),
    "uvx": Launcher(valued=_UV, moves=_names("--directory")),
    "conda": _CONDA,
    "mamba": _CONDA,
    "micromamba": _CONDA,
    "poetry": Launcher(words=("run",), valued=_names("-C --directory -P --project"), moves=_names("-C --directory")),
    "pdm": Launcher(words=("run",), valued=_names("-p --project --venv")),
    "pipenv": Launcher(words=("run",)),
    "pixi": Launcher(words=("run",), valued=_names("-e --environment --manifest-path -p --platform")),
    "rye": Launcher(words=("run",), valued=_names("--pyproject")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a launcher does to variables: all go (`name` `None`), one goes (`value` `None`), one is set, or one that
    went with all others is handed on (`is_handed_on`)."""

    name: str | None = None
    value: str | None = None
    is_handed_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped:
    """A command taken out of its launchers.

    `launchers` are the words of each as they were written, `argv` the command (empty: there is none), `directory`
    where they start it, joined where several say so.
    """

    launchers: tuple[tuple[str, ...], ...]
    argv: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    directory: str | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """All launchers as they were written."""
        return tuple(word for words in self.launchers for word in words)

    @property
    def programs(self) -> tuple[str, ...]:
        """The launchers as programs: words that only a shell knows go, or become what has the same effect."""
        return tuple(word for words in self.launchers for word in _as_program(words))

    def first(self) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """The launchers to become at once, as programs; the words that they start; and whether the last of these
        launchers looks for the program of those words itself.

        All of them, but for one that does: it is alone, as `PATH` is what those before it leave.
        """
        for at, words in enumerate(self.launchers):
            launcher = launcher_of(words)
            if launcher is not None and launcher.finds:
                before = [word for one in self.launchers[:at] for word in _as_program(one)]
                n = at if before else at + 1
                rest = (*(word for one in self.launchers[n:] for word in one), *self.argv)
                return (tuple(before), rest, False) if before else (words, rest, True)
        return self.programs, self.argv, False

    @property
    def assigned(self) -> tuple[str, ...]:
        """The names of the variables that launchers set."""
        return tuple(change.name for change in self.changes if change.name is not None and change.value is not None)

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that the command will have, of those around the launchers."""
        found = before = dict(environ)
        for change in self.changes:
            if change.name is None:
                before, found = found, {}
            elif change.is_handed_on:
                found |= {name: value for name, value in before.items() if name == change.name}
            elif change.value is None:
                found.pop(change.name, None)
            else:
                found[change.name] = change.value
        return found


def unwrap(words: tuple[str, ...]) -> Wrapped:
    """The command behind all launchers that `words` begin with.

    Raises:
        UsageError: an option of a launcher without its value, quotes that do not end, or launchers without end.
    """
    launchers: list[tuple[str, ...]] = []
    changes: list[Change] = []
    directory: str | None = None
    rest = list(words)
    for _ in range(MAX_LAUNCHERS):
        launcher = launcher_of(rest)
        if launcher is None:
            return Wrapped(launchers=tuple(launchers), argv=tuple(rest), changes=tuple(changes), directory=directory)
        read = _read(launcher, rest)
        launchers.append(tuple(read.words))
        changes += read.changes
        if read.directory is not None:
            directory = read.directory if directory is None else _joined(directory, read.directory)
        rest = read.rest
    raise UsageError(f"more than {MAX_LAUNCHERS} launchers before the command", hint="give the command itself")


def launcher_of(words: list[str] | tuple[str, ...]) -> Launcher | None:
    """The launcher that a command begins with."""
    if not words:
        return None
    launcher = LAUNCHERS.get(words[0].rpartition("/")[2])
    if launcher is None or not launcher.words:
        return launcher
    at = 1
    while at < len(words) and words[at].startswith("-"):  # options before the word: uv --quiet run
        at += 2 if words[at] in launcher.valued else 1
    return launcher if tuple(words[at : at + 1]) == launcher.words else None


def _as_program(words: tuple[str, ...]) -> tuple[str, ...]:
    launcher = launcher_of(words)
    if launcher is None or not launcher.is_builtin:
        return words
    cleared = any(word[:1] == "-" and "c" in word for word in words[1:]) and bool(launcher.clears)
    return ("env", "-i") if cleared else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    words: list[str]
    rest: list[str]
    changes: list[Change]
    directory: str | None


def _read(launcher: Launcher, words: list[str]) -> _Read:
    """One launcher, up to the next word that is not its own."""
    taken, rest = words[:1], words[1:]
    changes: list[Change] = []
    given: list[tuple[str, str | None]] = []
    left = list(launcher.words)
    while rest and (left or _is_option(launcher, rest[0])):
        if not _is_option(launcher, rest[0]):
            taken.append(rest.pop(0))
            left.pop(0)
            continue
        end = rest[0] == "--"
        found, n_words = _option(launcher, words[0], rest)
        taken, rest = taken + rest[:n_words], rest[n_words:]
        given += found
        split = next((value for name, value in found if name in launcher.splits and value is not None), None)
        if split is not None:
            n_own = len(taken) - n_words
            taken, rest = taken[:n_own], _split(words[0], split) + rest
        if end or any(name in launcher.modules for name, _ in found):
            break
    names = {name for name, _ in given}
    if names & launcher.clears or (launcher.resets and not names & launcher.keeps):
        changes.append(Change())
    changes += [Change(name=value) for name, value in given if name in launcher.unsets]
    changes += [_set(value or "") for name, value in given if name in launcher.sets]
    while launcher.assigns and rest and (match := ASSIGNMENT.fullmatch(rest[0])):
        changes.append(Change(name=match[1], value=match[2]))
        taken.append(rest.pop(0))
    taken, rest = taken + rest[: launcher.operands], rest[launcher.operands :]
    if names & launcher.modules:
        taken = [word for word in taken if word not in launcher.modules]
        rest = ["python", "-m", *rest]
    moved = [value for name, value in given if name in launcher.moves and value]
    return _Read(words=taken, rest=rest, changes=changes, directory=moved[-1] if moved else None)


def _is_option(launcher: Launcher, word: str) -> bool:
    return word.startswith("-") and (word != "-" or "-" in launcher.clears)


def _option(launcher: Launcher, name: str, words: list[str]) -> tuple[list[tuple[str, str | None]], int]:
    """What the first word gives, as options with their values, and how many words that takes.

    Raises:
        UsageError: the value is missing.
    """
    word = words[0]
    if word in ("-", "--") or (launcher.counts and re.fullmatch(r"--?[0-9]+", word)):
        return [(word, None)], 1
    if word.startswith("--"):
        spelled, equals, value = word.partition("=")
        option = _completed(launcher, spelled)
        if equals or option not in launcher.valued:
            return [(option, value if equals else None)], 1
        return [(option, _next(name, option, words))], 2
    found: list[tuple[str, str | None]] = []
    for at, letter in enumerate(word[1:], 2):
        option = f"-{letter}"
        if option not in launcher.valued:
            found.append((option, None))
        elif word[at:]:
            return [*found, (option, word[at:])], 1
        else:
            return [*found, (option, _next(name, option, words))], 2
    return found, 1


def _completed(launcher: Launcher, spelled: str) -> str:
    """A long option by its beginning, where that is of one alone."""
    known = launcher.valued | launcher.clears | launcher.keeps | launcher.modules
    if spelled in known:
        return spelled
    close = [option for option in known if option.startswith(spelled)]
    return close[0] if len(close) == 1 and len(spelled) > 3 else spelled


def _next(name: str, option: str, words: list[str]) -> str:
    if len(words) < 2:
        raise UsageError(f"{printable(name, 60)} {option}: a value is expected", hint="and then the command")
    return words[1]


def _set(text: str) -> Change:
    """A variable of `--setenv NAME=VALUE`; `NAME` alone hands on that of the caller."""
    name, equals, value = text.partition("=")
    return Change(name=name, value=value if equals else None, is_handed_on=not equals)


def _split(name: str, text: str) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{printable(name, 60)} '{printable(text, 60)}': {error}") from None


def _joined(first: str, then: str) -> str:
    return then if then.startswith("/") else f"{first}/{then}"
