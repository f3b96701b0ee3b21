"""`autofit BACKEND MODEL`: one ready command on stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from autofit.cli.options import add_options, add_output, given
from autofit.domain.text import printable
from autofit.errors import PluginError, UsageError
from autofit.host import blamed, host, resolve
from autofit.pipeline import plan_of, stated_options
from autofit.profiles import list_presets
from autofit.settings.layers import HERE
from autofit.settings.options import BY_NAME, OWN

if TYPE_CHECKING:
    import argparse
    from types import SimpleNamespace

    from autofit.domain.plan import Plan
    from autofit.hookspecs import RendererRef


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} MODEL [options] [-- engine flags, kept exactly]"
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a file, a directory, a name (docs/names.md), or example:NAME"
    )
    add_options(parser)
    add_output(parser)


_EXAMPLES = {
    "MODEL": "for this machine, as it is now",
    "MODEL -c 64k --parallel 4": "four sequences of 64k tokens",
    "MODEL --on rtx-3090 --ram 64GiB": "for hardware that you do not have",
    "MODEL --preset chat --explain": "with a reason for every setting",
    "ORG/REPO:Q4_K_M": "a repository's model, without downloading it",
    "MODEL -- --port 9000": "engine flags go after --, and are kept exactly",
}


def add_help(parser: argparse.ArgumentParser, backend_name: str) -> None:
    """What only a reader of `--help` needs: the backend's own options and KV types, presets, formats and examples."""
    import argparse

    from autofit.sources.examples import example_names

    backend = host().backend(backend_name)
    for action in parser._actions:
        if action.dest in BY_NAME and action.dest not in OWN | backend.supports:
            action.help = argparse.SUPPRESS
        if action.dest == "kv":
            action.help = f"{action.help}: {', '.join(backend.kv_types)}"
    sections = {
        "presets": list_presets(host().profile_dirs()),
        "formats": {name: ref.summary for name, ref in host().renderers().items()},
        "examples": {f"{parser.prog} {words}": about for words, about in _EXAMPLES.items()},
    }
    if "gguf" in backend.formats[:1]:
        sections["models that come with autofit"] = dict.fromkeys((f"example:{name}" for name in example_names()), "")
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=parser._get_formatter()._width)
    parser.epilog = "\n\n".join(_section(title, rows) for title, rows in sections.items())


def _section(title: str, rows: Mapping[str, str]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join([f"{title}:", *(f"  {word:<{width}}  {about}".rstrip() for word, about in rows.items())])


def run(args: argparse.Namespace | SimpleNamespace, backend_name: str, engine_args: list[str] | None) -> int:
    options = stated_options(backend_name, given(args), HERE)
    chosen = _format(args.format)
    details = args.explain or not chosen.no_fit  # nobody would see them otherwise
    planned = partial(
        plan_of, backend_name, args.model, None, options, HERE, engine_args=engine_args or (),
        deploys=not chosen.words_only,
    )  # fmt: skip
    force = options.get("force", False)
    from autofit.cli.telling import Waiting, picks

    if details or args.quiet or not (sys.stdout.isatty() and sys.stderr.isatty()):
        with Waiting("planning"):
            plan = planned(details=details)
        return show(plan, args, force=force)
    codes: list[int] = []  # somebody reads: the answer first, then what else there is to choose
    with Waiting("planning") as waiting:

        def answer(first: Plan) -> None:
            waiting.stop()
            codes.append(show(first, args, force=force))
            waiting.start("looking for other choices")

        plan = planned(details=False, first=answer)
    for line in picks(plan):
        print(line, file=sys.stderr)
    return codes[0]


def show(plan: Plan, args: argparse.Namespace | SimpleNamespace, *, force: bool) -> int:
    """The product on stdout, all else on stderr. A command that does not fit is printed only with `--force`."""
    from autofit.cli.telling import explanation, room, summary

    chosen = _format(args.format)
    if plan.fits or force or not chosen.no_fit:
        render = resolve(chosen.factory)
        said = {"columns": room()} if chosen.wraps else {}  # before stdout is kept from what plugins print
        with blamed(chosen.factory):
            product = render(plan, **said)
            if not isinstance(product, str):
                raise PluginError(f"{chosen.factory} must return text, not {type(product).__name__}")
        write_product(product)
    elif not sys.stdout.isatty():  # `| sh` and `eval` must not take silence for success
        write_product(chosen.no_fit)
    if not args.quiet:
        for line in summary(plan):
            print(line, file=sys.stderr)
    elif not plan.fits:
        from autofit.render import text

        print(f"autofit: {text.no_fit_and_nearest(plan)}", file=sys.stderr)
    if args.explain:
        for line in explanation(plan):
            print(line, file=sys.stderr)
    return 0 if plan.fits else 3


def _format(name: str) -> RendererRef:
    renderers = host().renderers()
    if name not in renderers:
        raise UsageError(f"no format '{printable(name, 60)}'", hint=f"known: {', '.join(sorted(renderers))}")
    return renderers[name]


def write_product(product: str) -> None:
    """Write to stdout what a format made: the bytes of file names as they are, whatever the locale.

    Raises:
        UsageError: it holds what a terminal would act on, and stdout is one.
    """
    end = "" if product.endswith("\0") else "\n"
    if sys.stdout.isatty() and not all(c.isprintable() or c in "\n\0" or c >= "\udca0" for c in product):
        raise UsageError(
            "the command holds control characters, and stdout is a terminal", hint="write them into a pipe"
        )
    try:
        data = (product + end).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:  # half of a character, in a format of a plugin
        raise UsageError(f"the output is not text at character {error.start}") from None
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # a stream that somebody put there
        print(product, end=end)
        return
    sys.stdout.flush()
    binary.write(data)
