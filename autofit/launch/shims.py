"""A folder of shims: small programs by the names of engines, which start them through `autofit run`.

The folder stands first in `PATH`, as those of ccache do. A shim looks for the program behind itself, and lets it be
started as it is when it is told to (`AUTOFIT_SHIMS=0`), when the command loads no model, or when autofit is not there
or fails: a shim is in the way of other people's scripts.

It never finds itself: its own folder, and those of shims that have started it (`AUTOFIT_SHIM_SKIP`), are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.files import SHIM_MARK, is_own, is_shim, write_whole
from autofit.text import shell

OFF = "AUTOFIT_SHIMS"  #: with `0`, shims start the program behind them as it is
SKIP = "AUTOFIT_SHIM_SKIP"
OPTIONS = "AUTOFIT_SHIM_OPTIONS"  #: options of `autofit run`, for the shims of the script that it started
RECORD = "AUTOFIT_SHIM_RECORD"  #: a file to write commands to, instead of starting them
PYTHONS = ("python", "python3")
MAX_SHIM_BYTES = 1 << 16
NOTHING: Mapping[str, tuple[Iterable[str], str]] = {}

_HEAD = """\
{mark}# Starts the program of this name behind it on PATH through `autofit run`. {off}=0 turns it off.
name=${{0##*/}}
here=${{0%/*}}
case $0 in */*) ;; *) here=. ;; esac
case $here in /*) ;; *) here=$PWD/$here ;; esac
skip=${{{skip}:+${skip}}}:$here:
real=
IFS=:
set -f
for folder in $PATH; do
  case $folder in /*) ;; *) continue ;; esac
  case $skip in *":$folder:"*) continue ;; esac
  if [ -f "$folder/$name" ] && [ -x "$folder/$name" ] && ! [ "$folder/$name" -ef "$0" ]; then
    real=$folder/$name
    break
  fi
done
set +f
unset IFS
as_it_is() {{
  [ -n "$real" ] && exec "$real" "$@"
  echo "$name: not found: PATH has no such program behind autofit's shim $here/$name" >&2
  exit 127
}}
# what is only written down need not be there
[ -n "$real" ] || [ -n "${{{record}-}}" ] || as_it_is
case ${{{off}-}} in 0 | off | no | false) as_it_is "$@" ;; esac
"""
_ENGINE = """\
for word; do
  case $word in {informing}) as_it_is "$@" ;; esac
done
"""
_UNPLANNED = """\
if [ -z "${{{record}-}}" ]; then
  echo "autofit: $name is started as it is: "{why} >&2
  as_it_is "$@"
fi
"""
_PYTHON = """\
is_engine() {{
  while [ $# -gt 0 ]; do
    case $1 in
      -X | -W) [ $# -gt 1 ] || return 1; shift 2 ;;
      -[XW]* | --?*) shift ;;
      -m | -[A-Za-z]*m) case ${{2-}} in {modules}) return 0 ;; esac; return 1 ;;
      - | -- | -*c*) return 1 ;;
      -*) shift ;;
      *) return 1 ;;
    esac
  done
  return 1
}}
is_engine "$@" || as_it_is "$@"
"""
#: of docker, podman and nerdctl: only `run`, and only of what may be an engine's, is any of ours
_RUNNER = """\
runs=
engine=
for word; do
  case $word in
    run) runs=1 ;;
    {words}) engine=1 ;;
  esac
done
[ -n "$runs" ] && [ -n "$engine" ] || as_it_is "$@"
"""
_TAIL = """\
if ! [ -x {python} ]; then
  echo "autofit: not there any more: $name is started as it is ($here/$name)" >&2
  as_it_is "$@"
fi
export {skip}="$skip"
exec {python} -E -P -c '
import os, sys
{own}
try:
    from autofit.cli.shim import main
except BaseException as error:
    name, real = sys.argv[1:3]
    sys.stderr.write(f"autofit: cannot be used ({{type(error).__name__}}: {{error}}): {{name}} is started as it is\\n")
    sys.stderr.flush()
    os.execv(real, [real, *sys.argv[3:]])
sys.exit(main(sys.argv[1:]))' "$name" "$real" "$@"
"""


def shim_texts(
    python: str,
    own: str,
    programs: Mapping[str, Iterable[str]],
    modules: Iterable[str],
    unplanned: Mapping[str, tuple[Iterable[str], str]] = NOTHING,
    runners: Iterable[str] = (),
    images: Iterable[str] = (),
) -> dict[str, str]:
    """The shims by name: of `programs`, with the flags after which each ends by itself, and of Python for `modules`.
    `own` is what `python` runs before it imports autofit.

    Those of `unplanned` only say why their program is started as it is. Those of `runners` of containers pass on what
    starts one of `images` (the ends of their names), or names one of `programs`.
    """
    head = _HEAD.format(mark=SHIM_MARK, off=OFF, skip=SKIP, record=RECORD)
    tail = _TAIL.format(python=shell.word(python, always=True), skip=SKIP, own=_inside(own))
    texts = {name: head + _ENGINE.format(informing=_patterns(flags)) + tail for name, flags in programs.items()}
    for name, (flags, why) in unplanned.items():
        says = _UNPLANNED.format(record=RECORD, why=shell.word(why, always=True))
        texts[name] = head + _ENGINE.format(informing=_patterns(flags)) + says + tail
    engines = _RUNNER.format(words=" | ".join([*map(_image_pattern, sorted(images)), _patterns(programs)]))
    texts |= dict.fromkeys(runners, head + engines + tail)
    patterns = _patterns(modules)
    return {**texts, **(dict.fromkeys(PYTHONS, head + _PYTHON.format(modules=patterns) + tail) if patterns else {})}


def _inside(python: str) -> str:
    """Python between the single quotes of a shell."""
    return python.replace("'", "'\\''")


def _patterns(words: Iterable[str]) -> str:
    """Words as a pattern of `case`."""
    return " | ".join(shell.word(word, always=True) for word in sorted(words))


def _image_pattern(name: str) -> str:
    """The end of an image's name as patterns of `case`: with a registry before it or not, a tag or digest behind it."""
    quoted = shell.word(name, always=True)
    return " | ".join(f"{before}{quoted}{behind}" for before in ("", "*/") for behind in ("", ":*", "@*"))


def write_shims(folder: Path, texts: Mapping[str, str]) -> None:
    """Write shims into a folder, over those that are there, and over nothing else.

    Raises:
        UsageError: a file of this name is none, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            path = folder / name
            if os.path.lexists(path) and not is_shim(str(path)):
                raise UsageError(
                    f"{printable(str(path))}: there is another program of this name", hint="name a folder of their own"
                )
            if not (is_shim(str(path)) and path.read_text(encoding="utf-8") == text and os.access(path, os.X_OK)):
                write_whole(path, text.encode("utf-8", "surrogateescape"))
                path.chmod(0o755)
    except OSError as error:
        raise UsageError(f"{printable(str(folder))}: {error.strerror or error}") from error


def own_folder(homes: Iterable[Path | None], texts: Mapping[str, str]) -> Path:
    """A folder with these shims in the first of `homes` where programs can be started, made if it is not there.

    Raises:
        UsageError: there is none.
    """
    import hashlib

    digest = hashlib.sha256(
        "\0".join(f"{name}\0{text}" for name, text in sorted(texts.items())).encode("utf-8", "surrogateescape")
    )
    problem = "no directory of the user is there"
    for home in homes:
        if home is None:
            continue
        folder = home / f"shims-{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_shims(folder, texts)
        except (OSError, UsageError) as error:
            problem = str(error)
            continue
        if not is_own(folder):
            problem = f"{printable(str(folder))} is not this user's alone"
        elif not all(os.access(folder / name, os.X_OK) for name in texts):
            problem = f"{printable(str(folder))}: no program may be started there"  # mounted so
        else:
            return folder
    raise UsageError(f"shims cannot be written: {problem}", hint="`autofit shims DIR` writes them elsewhere")


def with_shims(environ: Mapping[str, str], folder: Path, options: str) -> dict[str, str]:
    """Variables for a script whose engines pass through autofit."""
    return {
        **environ,
        "PATH": f"{folder}:{environ.get('PATH') or '/usr/bin:/bin'}",
        OPTIONS: options,
    }
