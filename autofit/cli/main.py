"""`autofit`: one catch for expected errors; options are built only for the chosen command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from autofit.cli.streams import give_up_stdout, open_streams

if TYPE_CHECKING:
    import argparse

    from autofit.hookspecs import BackendRef, CommandRef

EPILOG = """\
exit codes: 0 fits (check: or starts) · 3 does not fit · 2 usage · 1 other error
`autofit COMMAND --help` shows the options of a command; docs/cli.md shows them all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run autofit; returns the exit code. stdout carries the product alone."""
    import gc

    gc.disable()  # a run is short, and a model has tens of thousands of tensors to walk again and again
    try:
        return reported(list(sys.argv[1:] if argv is None else argv))
    finally:
        if argv is None:
            gc.freeze()  # the process ends, and would look through all of it once more


def reported(arguments: list[str]) -> int:
    """Run autofit, with errors as messages; returns the exit code."""
    from autofit.errors import AutofitError

    open_streams()
    try:
        try:
            code = run(arguments)
        except SystemExit as done:  # argparse after --help
            code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
        sys.stdout.flush()
        return code
    except AutofitError as error:
        from autofit.host import is_debug

        if is_debug("traceback"):
            raise
        error.hint = misplaced(arguments, str(error)) or error.hint
        report(error)
        return error.exit_code
    except BrokenPipeError:
        # the reader of our output went away: nothing to say, and nobody to say it to
        give_up_stdout()
        return 1
    except OSError as error:
        report(error)
        give_up_stdout()
        return 1
    except MemoryError:
        print("autofit: out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def misplaced(arguments: Sequence[str], message: str) -> str | None:
    """What to do about an option of autofit's among the flags of the engine, which does not know it."""
    after = list(arguments)[list(arguments).index("--") + 1 :] if "--" in arguments else []
    unknown = [
        word.partition("=")[0] for word in after if word.startswith("--") and f"'{word.partition('=')[0]}'" in message
    ]
    if not unknown:
        return None
    from autofit.settings.options import OPTIONS

    own = {"--explain", "--quiet", "--format", *(option.flag for option in OPTIONS)}
    found = next((word for word in unknown if word in own), None)
    return f"{found} is an option of autofit: it goes before --" if found else None


def run(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        from autofit import __version__

        print(f"autofit {__version__}")
        return 0
    from autofit.host import product_on_stdout

    with product_on_stdout():
        return run_word(without_settings(arguments))


def without_settings(arguments: list[str]) -> list[str]:
    """The words without `--settings FILE`, which every command has: it goes where the variable of that name is."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    at = next((i for i, word in enumerate(arguments[:end]) if word.partition("=")[0] == "--settings"), None)
    if at is None:
        return arguments
    _, equals, file = arguments[at].partition("=")
    n_words = 1 if equals else 2
    if not equals:
        file = arguments[at + 1] if at + 1 < end else ""
    if not file:
        from autofit.errors import UsageError

        raise UsageError("--settings needs a file", hint="such as --settings ./autofit.toml")
    os.environ["AUTOFIT_SETTINGS"] = file
    return arguments[:at] + arguments[at + n_words :]


def run_word(arguments: list[str]) -> int:
    """Run the backend or command that the first word names."""
    from autofit.host import host, warn_broken

    backends, commands = host().backends(), host().commands()
    word = arguments[0] if arguments else "--help"
    if word in {"-h", "--help", "help"}:
        print_help(backends, commands)
        return 0 if arguments else 2
    try:
        if word in backends:
            return run_backend(backends[word], arguments[1:])
        if word in commands:
            return run_command(commands[word], arguments[1:])
    finally:
        if word != "plugins":  # which shows them in full
            warn_broken(host().records)
    from autofit.errors import UsageError
    from autofit.text.suggest import suggest

    raise UsageError(f"no command {word[:40]!r}", hint=suggest(word, [*backends, *commands]))


def run_backend(ref: BackendRef, arguments: list[str]) -> int:
    from autofit.cli import plan
    from autofit.cli.options import plain_arguments

    own, engine_args = split_at_dashes(arguments)
    if (plain := plain_arguments(own)) is not None:
        return plan.run(plain, ref.name, engine_args)
    parser = new_parser(ref.name, ref.summary)
    plan.add_arguments(parser)
    if {"-h", "--help"} & set(own):
        plan.add_help(parser, ref.name)
    return plan.run(parser.parse_args(own), ref.name, engine_args)


def run_command(ref: CommandRef, arguments: list[str]) -> int:
    from autofit.errors import PluginError
    from autofit.host import blamed, resolve

    command = resolve(ref.factory)
    own, engine_args = split_at_dashes(arguments)
    if not getattr(command, "TAKES_COMMAND", False):
        own = arguments
    if ref.factory.startswith("autofit.cli."):
        run: Callable[..., object] = command.run
        args = command.plain_arguments(own) if hasattr(command, "plain_arguments") else None
        if args is None:
            parser = new_parser(ref.name, ref.summary)
            command.add_arguments(parser)
            args = parser.parse_args(own)
    else:
        run = blamed(ref.factory, prints=True)(lambda args: command.run(args))
        parser = new_parser(ref.name, ref.summary)
        with blamed(ref.factory):
            command.add_arguments(parser)
        args = parser.parse_args(own)
    args.own, args.engine_args = own, engine_args
    code = run(args)
    if not isinstance(code, int):
        raise PluginError(f"{ref.factory}: run() must return an exit code, not {type(code).__name__}")
    return code


def split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """autofit's own arguments, and those after `--` (None if there is no `--`)."""
    if "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def new_parser(word: str, summary: str) -> argparse.ArgumentParser:
    import argparse

    from autofit.cli.telling import columns

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            from autofit.errors import UsageError

            raise UsageError(f"{word}: {message}", hint=_hint(self, word, message))

        def _print_message(self, message: str, file: Any = None) -> None:
            print(message, end="", file=file)  # argparse drops what cannot be written, without a word

    formatter = partial(argparse.HelpFormatter, width=columns() - 2)  # which alone would load shutil to measure
    return Parser(prog=f"autofit {word}", description=summary, allow_abbrev=False, formatter_class=formatter)


def _hint(parser: argparse.ArgumentParser, word: str, message: str) -> str:
    """What to do about arguments that are not autofit's: the engine's go behind `--`."""
    option, needs, _ = message.removeprefix("argument ").partition(": expected one argument")
    if needs:
        return f"{option.split('/')[-1]}=VALUE also takes a value that begins with -; see `autofit {word} --help`"
    _, found, rest = message.partition("unrecognized arguments: ")
    usage = parser.usage or ""
    takes_command = usage.endswith("-- ENGINE COMMAND")
    if not found or "-- " not in usage or not (takes_command or rest.startswith("-")):
        return f"see `autofit {word} --help`"
    from autofit.text.suggest import close_names

    flags = [name for action in parser._actions for name in action.option_strings]
    close = close_names(rest.split()[0], flags, 1, cutoff=0.8) if rest.startswith("-") else None
    after = (
        _command_after(word, rest)
        if takes_command
        else f"flags of the engine go after --: autofit {word} ... -- {rest}"
    )
    return f"{close} {after}" if close else after


def _command_after(word: str, rest: str) -> str:
    """Where the command goes that `rest` is, or is a part of: flags alone, or a model, are no command."""
    from autofit.host import host

    programs = [program for ref in host().backends().values() for program in ref.programs]
    if rest.split()[0].replace("\\", "/").rpartition("/")[2] in programs:
        return f"the command goes after --: autofit {word} ... -- {rest}"
    first = [ref.programs[0] for ref in host().backends().values() if ref.programs]
    return (
        f"the whole command of the engine goes after --: autofit {word} ... -- ENGINE COMMAND, "
        f"with its model and flags ({', '.join(first)})"
    )


def print_help(backends: Mapping[str, BackendRef], commands: Mapping[str, CommandRef]) -> None:
    lines = [
        "autofit turns a model file and a machine into a launch command that fits",
        "",
        "usage: autofit COMMAND ...",
        "",
    ]
    both: tuple[Mapping[str, BackendRef | CommandRef], ...] = (backends, commands)
    rows = [(name, ref.summary) for refs in both for name, ref in refs.items()]
    width = max((len(name) for name, _ in rows), default=0)
    lines += [f"  {name:<{width}}  {summary}" for name, summary in rows]
    print("\n".join([*lines, "", EPILOG]))


def report(error: Exception) -> None:
    """One line that names the thing and the number, and one that says what to do."""
    from autofit.domain.text import printable

    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'standard output'}: {error.strerror}"
    print(f"autofit: {printable(text, 1000)}", file=sys.stderr)
    hint = getattr(error, "hint", None)
    if hint:
        print(f"  {printable(hint, 1000)}", file=sys.stderr)
