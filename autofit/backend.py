"""What an engine's plugin does. Hooks register it; the work is methods of this class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from autofit.domain.machine import Machine
from autofit.domain.memory import Kind
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Code, Plan
from autofit.domain.request import NOTHING_ASKED, Request
from autofit.domain.values import dataclass, field
from autofit.errors import UsageError
from autofit.text.programs import n_module_words, program_name

if TYPE_CHECKING:
    from autofit.domain.efficiency import Efficiencies
    from autofit.domain.machine import Device, Offered
    from autofit.domain.observed import Observed
    from autofit.domain.quantization import Quantization, Recipe
    from autofit.domain.repair import Repair
    from autofit.logs.watch import Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCommand:
    """An engine's command line, taken apart as the engine would.

    `model` is the reference it names (path, directory or repository), `companions` the other models it loads by
    role (`mmproj`, `draft`, `lora`); `settings` is the backend's own frozen value. `sought` are companions that the
    backend can do without: they are left out where they are not found. `servers` (HOST:PORT) lend it devices of other
    machines.
    """

    program: tuple[str, ...]
    model: str | None
    companions: Mapping[str, str]
    settings: Any
    sought: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The models that a server loads as they are asked for, each as a command: `commands` with their lines in the file
    `path`, of which `at_once` may be loaded at the same time (`None`: all). `limit` is the flag that says so.

    `loads_first`: the first is loaded at the start; else none is."""

    path: str
    commands: tuple[tuple[int, tuple[str, ...]], ...]
    at_once: int | None
    limit: str
    loads_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Contained:
    """What a container of an engine's image starts, as a command of the engine; its paths are the container's.

    `apis` are those that the image computes with (none: the CPU alone), `None` where that is not known. `directory`
    is where it starts.
    """

    argv: tuple[str, ...]
    apis: frozenset[str] | None = None
    directory: str | None = None


class Backend(ABC):
    """One serving engine: what it accepts, what it costs, how it is started.

    A backend is pure: it reads no clock and no environment, and no file but what its own command line names.
    """

    name: ClassVar[str]  #: the word on autofit's command line
    engine: ClassVar[str]  #: the engine's name as its authors write it, for messages
    programs: ClassVar[tuple[str, ...]]  #: programs whose commands `check` gives to this backend
    formats: ClassVar[tuple[str, ...]]  #: model formats it serves
    #: names of environment variables that the engine reads; a name that ends in `_` stands for all that begin so
    variables: ClassVar[tuple[str, ...]] = ()
    #: which of autofit's options `plan` honors; any other that is set is refused before `plan` is called
    supports: ClassVar[frozenset[str]] = frozenset({"context", "min_context", "max_context", "margin", "device"})
    kv_types: ClassVar[tuple[str, ...]] = ()  #: values of `kv`, but for `auto`
    small_kv: ClassVar[str] = ""  #: the one of them that saves half of the cache and loses least; empty: there is none
    least_kv_bits: ClassVar[int] = 4  #: of an element of the cache, at least, where `kv` is left to the plan
    #: codes of its own findings, beside those that all backends share (`autofit.planning.findings`)
    findings: ClassVar[Mapping[str, Code]] = {}
    #: programs that print the engine's version for `--version`; the first that is installed is asked
    asked: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()  #: Python distributions that bring the engine along
    #: the programs among `programs` that load a model, which `run` and the shims fill in
    wrapped: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()  #: modules that do so too, started by `python -m`
    #: other programs of the engine, which are started as they are: those that run a model (and why no plan is made for
    #: them), and those that run none
    unplanned: ClassVar[Mapping[str, str]] = {}
    tools: ClassVar[frozenset[str]] = frozenset()
    #: flags with which such a program prints something and ends
    informing: ClassVar[frozenset[str]] = frozenset({"-h", "--help", "--version"})
    irrelevant: ClassVar[frozenset[str]] = frozenset()  #: flags whose value changes no byte, so that it may be unknown
    file_flags: ClassVar[frozenset[str]] = frozenset()  #: flags whose value is a file that it reads, or a folder
    #: readers of files that hold commands of the engine alone, by the end of the file's name: `text -> [(line, argv)]`
    command_files: ClassVar[Mapping[str, str]] = {}
    spans_nodes: ClassVar[bool] = False  #: one model of it runs on several machines, each with its own command
    has_workers: ClassVar[bool] = False  #: it starts a process for each device, which share tensors in /dev/shm
    port: ClassVar[int] = 8000  #: that the engine listens on, unless `--port` says another
    python_class: ClassVar[str] = ""  #: the class that `Plan.kwargs` are for: `llama_cpp.Llama`
    #: parts of its log that tell how far a plan was off: more of one is more memory (1), or is less (-1)
    calibrates: ClassVar[Mapping[Kind, int]] = {"weights": 1, "cache": 1, "compute": 1}
    #: numbers that its log tells beside bytes: in words -> the fact of the log, and the figure of `Plan.engine_report`
    counts: ClassVar[Mapping[str, tuple[str, str]]] = {}
    #: whether its plans let one token read from several devices at the same time (tensor parallelism)
    reads_at_once: ClassVar[bool] = True
    measurements: ClassVar[frozenset[str]] = frozenset()  #: figures that `check` takes instead of its own
    #: it measures free memory while it starts, and sizes itself by it: nothing else may start on its devices meanwhile
    measures_at_start: ClassVar[bool] = False

    @abstractmethod
    def parse(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        version: str | None = None,
        model: str | None = None,
    ) -> ParsedCommand:
        """Take a command of this engine apart, with its own spellings, aliases and defaults.

        `argv` starts with the program word(s), or with a flag. `env` holds the engine's own variables by name and
        texts of its settings files by path; `version` is the engine's, the newest known if not given. `model` is
        the reference that will be written into the command, which names none.

        Raises:
            UsageError: a flag or value that this version of the engine refuses.
        """

    def program_in(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The words of a command that start the engine (`vllm serve`, `python -m MODULE`); the rest are its flags.

        None: the command loads no model, since it prints its help or is another subcommand. It is started as it is.

        Raises:
            UsageError: a program that is known by name, and not planned for.
        """
        n = n_module_words(argv) if self.starts_module(argv) else 1
        is_ours = n > 1 or program_name(argv) in (self.wrapped or self.programs)
        return tuple(argv[:n]) if is_ours and not self.informing & set(argv[n:]) else ()

    def why_unplanned(self, argv: Sequence[str]) -> str | None:
        """Why a command of one of the engine's other programs is started as it is; `None`: it is none of them."""
        name = program_name(argv)
        if self.informing & set(argv[1:]):
            return None
        return "it runs no model" if name in self.tools else self.unplanned.get(name)

    def starts_module(self, argv: Sequence[str]) -> bool:
        """Whether a command starts one of `modules`."""
        n = n_module_words(argv)
        return n > 0 and argv[n - 1] in self.modules

    def context_flag(self, argv: Sequence[str]) -> str:
        """The flag of a command's program for the context of its sequences; empty: it has none."""
        return ""

    def port_flag(self, argv: Sequence[str]) -> str:
        """The flag of a command's program for the port that it listens on; empty: it listens on none."""
        return "--port"

    def version_in(self, text: str, path: str = "") -> str | None:
        """What `engine_version` may be for an engine that says `text` of itself, or that lies at `path`.

        `None`: it says nothing that names a version, and the newest known is planned for.
        """
        return None

    def image(self, version: str | None, api: str | None) -> str | None:
        """A container image that brings the engine in this version, for devices of one kind (`None`: the CPU alone).

        `None`: there is none that is known.
        """
        return None

    def in_image(
        self, image: str, words: Sequence[str], *, entrypoint: Sequence[str] | None = None
    ) -> Contained | None:
        """What a container of an image of the engine starts with `words` behind it; `None`: that is not known.

        `image` is as it is written, with its tag. `entrypoint` takes the place of the image's own.

        Raises:
            UsageError: words that the image's own program refuses, or of which no command of the engine comes.
        """
        return None

    def flags(self, program: str = "") -> Mapping[str, Sequence[str] | None]:
        """The flags of a program of the engine, or of the one that `plan` starts, as the newest version has them: the
        words that a flag takes, none where it takes any value, `None` where it takes no value. For completion alone."""
        return {}

    def served(self, argv: Sequence[str], environ: Mapping[str, str], version: str | None) -> Served | None:
        """The models of a file that a command of this engine loads as they are asked for; `None`: it loads its own.

        Raises:
            UsageError: a file that is not there, or not well formed.
        """
        return None

    def alone(self, argv: Sequence[str], version: str | None) -> tuple[Sequence[int], tuple[str, ...]] | None:
        """Which of the GPUs of NVIDIA a command names, by their places among all, and the command that names the same
        where it sees these alone. `None`: it names none, or not by their places."""
        return None

    def offers(self, servers: Sequence[str], version: str | None = None) -> Sequence[Offered]:
        """What servers on other machines (HOST:PORT) offer an engine of this version, asked in bounded time.

        One for each, in their order; one that is not there, or does not understand this version, offers nothing and
        says why.

        Raises:
            UsageError: an address that is none, or an engine that knows no such servers.
        """
        raise UsageError(f"{self.engine} takes no devices from servers of other machines")

    def settings_files(self, environ: Mapping[str, str]) -> tuple[str, ...]:
        """Paths of files, whether they exist or not, that this engine takes settings from beside its command line."""
        return ()

    def beside(self, names: Sequence[str]) -> Mapping[str, str]:
        """Of the files of a model's folder, those that the engine could load with it: role -> name.

        They come to `plan` in `Request.beside`, read, to be offered; they are not part of the plan.
        """
        return {}

    def loads(self, command: ParsedCommand, written: str, offered: Mapping[str, str]) -> Mapping[str, str]:
        """Of the files that a model's repository offers beside it, those that the engine loads without being told to.

        `written` is what the command says for the model; `offered` and what is returned are role -> reference.
        """
        return {}

    def quantizations(self, model: ModelSpec, words: Sequence[str] = ()) -> Sequence[Quantization]:
        """Every form in which this engine could be given `model`, exact bytes with each; none if it has no say.

        `words` are flags of the program that makes such forms, for the types that it gives.

        Raises:
            UsageError: flags that the program refuses. ModelError: there is nothing to quantize.
        """
        return ()

    def recipe(self, model: ModelSpec, size_bytes: int, words: Sequence[str] = ()) -> Recipe | None:
        """The largest form of at most `size_bytes` that can be made of `model`, and the command that makes it.

        `None`: this engine's forms are not made to measure. `words` as for `quantizations`.

        Raises:
            UsageError: nothing is that small, or flags that the program refuses. ModelError
        """
        return None

    def efficiencies(self) -> Efficiencies:
        """What the engine reaches of the nominal rates of hardware, by which its plans expect their rates.

        Those that nothing was measured of, unless it says others.
        """
        from autofit.domain.efficiency import Efficiencies

        return Efficiencies()

    @abstractmethod
    def plan(self, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request) -> Plan:
        """The best plan that keeps every flag of `command` exactly and fits.

        Nothing that fits is an answer too: a plan with `fits` false, the nearest one, and an error finding with
        the shortfall.

        Raises:
            UsageError, EngineRefusalError, UnsupportedModelError
        """

    @abstractmethod
    def check(
        self, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request = NOTHING_ASKED
    ) -> Plan:
        """What this command takes as it stands; nothing is changed.

        Of `request`, `margin`, `device`, `mean_tokens`, `engine_version` and `measured` count.

        Raises:
            EngineRefusalError: the engine would refuse to start with these arguments.
        """

    def claims(self, plan: Plan, machine: Machine) -> Mapping[str, int]:
        """Bytes of each pool that a process of the plan holds at most, for whoever plans beside it.

        What the plan uses, unless the engine fills up to a share of the device whatever it needs there.
        """
        return {pool.id: pool.used_bytes for pool in plan.memory.pools}

    def watch(self) -> Watch | None:
        """A reader of what the engine prints, fed as it comes: `autofit.logs.watch.Watch` with the engine's messages.

        `None`: its output is not understood.
        """
        return None

    def places(self, machine: Machine) -> Mapping[str, str]:
        """The names that the engine's log has for devices of `machine`: name -> pool. Places in RAM need none."""
        return {}

    def devices_in(self, observed: Observed) -> Sequence[Device]:
        """The devices that a log names, in the engine's order, with what it says of them; their ids are its places."""
        return ()

    def command_in(self, observed: Observed) -> Sequence[str]:
        """A command that comes to what a log shows, where the log does not have its own; empty: it does not tell."""
        return ()

    def model_in(self, observed: Observed) -> tuple[ModelSpec | None, tuple[str, ...]]:
        """The model of a log, rebuilt from it, and what its figures rest on; `None`, and what the log lacks for it."""
        return None, ()

    def dry_run(self, argv: Sequence[str], environ: Mapping[str, str]) -> Sequence[str]:
        """The command that asks an installed engine what `argv` takes, without taking it; empty: there is none."""
        return ()

    def read_dry_run(self, text: str) -> Observed:
        """What the command of `dry_run` printed.

        Raises:
            UsageError: it says nothing of memory.
        """
        raise NotImplementedError

    def benchmark(self, model: str) -> Sequence[str]:
        """The command of the engine's own benchmark of a model file, offloaded as a whole; empty: it has none."""
        return ()

    def read_benchmark(self, text: str) -> Sequence[Mapping[str, Any]]:
        """What the command of `benchmark` printed: rows with `model`, `test` and `tokens_per_s`.

        Raises:
            EngineError: it is not a result.
        """
        raise NotImplementedError

    def repair(
        self,
        observed: Observed,
        argv: Sequence[str],
        machine: Machine,
        request: Request,
        model: ModelSpec | None = None,
    ) -> Repair | None:
        """Why the run of this log ran out of memory, and what to change. Pure.

        `argv` is its command, empty where nobody knows it; `machine` what the log and the user say of it, with the
        devices of `devices_in`; `model` is read, or `None` where only the log is there.

        `None`: the backend has no answer to logs.
        """
        return None

    def command(self, request: Request, *, model: str | None = None) -> ParsedCommand:
        """The engine's own flags of a request, taken apart once: what `plan` keeps."""
        argv = (*(request.program or (self.programs[0],)), *request.engine_args)
        return self.parse(argv, request.engine_env, version=request.engine_version, model=model)
