"""What the page asks of autofit, as JSON texts: the same functions as behind the command line, and its words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from autofit.domain.text import printable
from autofit.errors import AutofitError, UsageError
from autofit.host import blamed, host, resolve
from autofit.settings.layers import Surroundings
from autofit.settings.options import CHECKED, OPTIONS, OWN

MOST_KEPT = 4  #: plans that formats are made of without planning again
AROUND = Surroundings(environ={}, directory=".")  #: a page has no variables, and no settings files
#: flags of engines that are worth a slider: their spellings, what it counts, and how many of them a model has
DIALS = {"llama": [(("--n-cpu-moe", "-ncmoe"), "layers with experts in RAM", lambda model: _n_expert_layers(model))]}


def answer(text: str) -> str:
    """The answer to a request, `{"ask": NAME, ...}`; errors are answers too."""
    try:
        request = json.loads(text)
        found = ASKED[request["ask"]](request)
    except AutofitError as error:
        hint = getattr(error, "hint", None)
        said = {"message": printable(str(error), 1000), "hint": printable(hint, 1000) if hint else None}
        return json.dumps({"error": {**said, "kind": type(error).__name__}})
    except MemoryError:
        return json.dumps({"error": {"message": "out of memory", "hint": None, "kind": "MemoryError"}})
    return json.dumps(found, allow_nan=False)


# -- what there is to choose from ---------------------------------------------------------------------------------


def facts(request: Mapping[str, Any]) -> dict[str, Any]:
    """Options, backends, formats, presets, profiles and examples."""
    from autofit import __version__
    from autofit.profiles import list_presets
    from autofit.sources.examples import example_names

    dirs = host().profile_dirs()
    return {
        "version": __version__,
        "options": [
            {
                "name": one.name,
                "flag": one.flag,
                "flags": [*one.flags, one.flag],
                "help": one.help.replace("%%", "%"),
                "metavar": one.metavar,
                "choices": list(one.choices),
                "checked": one.name in CHECKED,
            }
            for one in OPTIONS
        ],
        "backends": [_backend(name, ref.summary) for name, ref in host().backends().items()],
        "formats": [{"name": name, "about": ref.summary} for name, ref in host().renderers().items()],
        "presets": list_presets(dirs),
        "profiles": profiles(dirs),
        "examples": [f"example:{name}" for name in example_names()],
    }


def _backend(name: str, about: str) -> dict[str, Any]:
    backend = host().backend(name)
    return {
        "name": name,
        "engine": backend.engine,
        "about": about,
        "formats": list(backend.formats),
        "kv_types": list(backend.kv_types),
        "options": sorted(OWN | set(backend.supports)),
        "programs": list(host().backends()[name].programs),
    }


def profiles(dirs: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every hardware profile in a line. Read as TOML alone: a schema is checked when one is used."""
    from autofit.profiles import files, parse_toml, read_text

    rows = []
    for name, path in sorted(files("hardware", dirs).items()):
        table = parse_toml(read_text(path), str(path))
        sizes = table.get("host", {}).get("sizes_gib", [])
        rows.append(
            {
                "id": name,
                "name": table.get("name", name),
                "vendor": table.get("vendor", ""),
                "machine": table.get("kind") == "machine",
                "sized": table.get("memory_total_bytes") is None and table.get("kind") == "gpu",
                "bytes": table.get("memory_total_bytes"),
                "sizes_gib": sizes,
            }
        )
    return rows


# -- the model ----------------------------------------------------------------------------------------------------


def model(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is, and which backends serve it."""
    from autofit.pipeline import read_model
    from autofit.quants import quantizations  # noqa: F401 - loaded while people read
    from autofit.readers import role_of

    found = read_model(request["model"])
    serving = [name for name in host().backends() if found.format in host().backend(name).formats]
    return {
        "name": printable(found.name, 120),
        "format": found.format,
        "architecture": printable(found.architecture, 60),
        "role": role_of(found),
        "weights_bytes": found.weights_bytes,
        "parameters": found.n_parameters,
        "layers": len(found.layers),
        "context_train_tokens": found.context_train_tokens,
        "experts": max((layer.n_experts for layer in found.layers), default=0),
        "backends": serving,
        "dials": {name: dials for name in serving if (dials := _dials(name, found))},
    }


def _dials(backend: str, found: Any) -> list[dict[str, Any]]:
    rows = [{"flags": flags, "about": about, "most": most(found)} for flags, about, most in DIALS.get(backend, ())]
    return [row for row in rows if row["most"]]


def _n_expert_layers(found: Any) -> int:
    return sum(1 for layer in found.layers if layer.n_experts)


def describe(request: Mapping[str, Any]) -> dict[str, Any]:
    """A model's header without its vocabulary, small enough for a link; empty for what has more than one file."""
    from base64 import urlsafe_b64encode

    from autofit.errors import ModelError
    from autofit.pipeline import read_model
    from autofit.readers.description import describe as described

    try:
        return {"header": urlsafe_b64encode(described(read_model(request["model"]))).decode().rstrip("=")}
    except ModelError:
        return {"header": ""}


# -- plans --------------------------------------------------------------------------------------------------------

_plans: dict[str, Any] = {}  #: by request, the last ones


def plan(request: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of `autofit BACKEND MODEL OPTIONS -- FLAGS`. `json` is what `--format json` prints.

    With `details` false other plans, and what would fit where nothing does, are not looked for.
    """
    return _shown(_planned(request))


def _planned(request: Mapping[str, Any]) -> Any:
    from autofit.pipeline import plan_of, stated_options

    details = bool(request.get("details", True))
    key = json.dumps([request.get(name) for name in ("backend", "model", "options", "flags")] + [details])
    if key in _plans:
        return _plans[key]
    backend, named = request["backend"], request["model"]
    options = stated_options(backend, _given(request), AROUND)
    if not options.get("on"):
        raise UsageError("no hardware is named", hint="add a card, or a machine: rtx-3090, m3-max-36gb, cpu")
    flags = words(request.get("flags") or "")
    made = plan_of(backend, named, None, options, AROUND, engine_args=flags, details=details, nearest=details)
    while len(_plans) >= MOST_KEPT:
        del _plans[next(iter(_plans))]
    _plans[key] = made
    return made


def _given(request: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request that say something, as the command line would have them."""
    known = {one.name for one in OPTIONS}
    given = {name: value for name, value in request.get("options", {}).items() if value not in ("", None, [], False)}
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise UsageError(f"no option {printable(unknown, 60)!r}")
    return given


def words(text: str | list[str]) -> tuple[str, ...]:
    """Flags as a shell takes them apart.

    Raises:
        UsageError: a quotation does not end.
    """
    import shlex

    if isinstance(text, list):
        return tuple(map(str, text))
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"flags: {error}", hint="each quotation mark needs its second") from error


def _shown(found: Any) -> dict[str, Any]:
    from autofit.render.json import render
    from autofit.text import shell

    return {
        "json": render(found),
        "verdict": verdict(found),
        "state": state(found),
        "command": shell.command(found.argv, sorted(found.env.items())),
    }


def state(found: Any) -> str:
    """One word: `full`, `ram` (weights wait in RAM), `starts` or `no`."""
    from autofit.planning.offers import at_full_speed

    if not found.fits or found.verdict == "does not fit":
        return "no"
    if found.verdict == "starts":
        return "starts"
    return "full" if at_full_speed(found) else "ram"


def verdict(found: Any) -> str:
    """The plan in one sentence."""
    from autofit.domain.units import format_bytes
    from autofit.render import text

    kind = state(found)
    if kind == "no":
        said = text.no_fit(found)
        return f"It {said.removeprefix('it ')}" if "does not fit" in said[:20] else f"It does not fit: {said}"
    if kind == "starts":
        lacks = [(pool.shortfall_bytes, pool) for pool in found.memory.pools if pool.shortfall_bytes > 0]
        where = "; ".join(f"{pool.id} lacks {format_bytes(lack)} then" for lack, pool in lacks)
        return f"It starts, and runs short of memory later: {where}"
    first = "It fits at full speed" if kind == "full" else "It fits with a part of the weights in RAM"
    context = f"{found.context_tokens:,} tokens of context" if found.context_tokens else ""
    figures = ", ".join(filter(None, (context, _rate(found.speed))))
    return f"{first}: {figures}." if figures else f"{first}."


def _rate(speed: Any) -> str:
    """The rate in words; nothing where none is known."""
    from autofit.domain.units import format_rate

    if speed is None or not speed.decodes:
        return ""
    full, start = speed.decode_tokens_per_s, speed.start_tokens_per_s
    if start is not None and start > 1.1 * full:
        return f"about {format_rate(start)} tokens/s, {format_rate(full)} once it is full"
    return f"about {format_rate(full)} tokens/s"


def render(request: Mapping[str, Any]) -> dict[str, Any]:
    """A plan in one of the output formats; what does not fit has none, as on the command line."""
    found = _planned(request)
    name = request["format"]
    renderers = host().renderers()
    if name not in renderers:
        raise UsageError(f"no format {printable(name, 60)!r}", hint=f"known: {', '.join(sorted(renderers))}")
    chosen = renderers[name]
    if not (found.fits or found.verdict == "starts") and chosen.no_fit and not request.get("force"):
        return {"text": chosen.no_fit.rstrip("\0"), "fits": False}
    with blamed(chosen.factory):
        product = resolve(chosen.factory)(found)
    return {"text": product, "fits": found.fits}


def point(request: Mapping[str, Any]) -> dict[str, Any]:
    """One point of the curves: memory of each pool and the rates, at one context."""
    options = {**request.get("options", {}), "context": str(request["context"]), "min_context": "", "max_context": ""}
    try:
        found = _planned({**request, "options": options, "details": False})
    except AutofitError as error:
        return {"context": request["context"], "state": "no", "because": printable(error.message, 200), "pools": []}
    speed = found.speed if found.fits else None
    return {
        "context": request["context"],
        "state": state(found),
        "pools": [{"id": p.id, "used": p.used_bytes, "free": p.free_bytes} for p in found.memory.pools],
        "decode": None if speed is None or not speed.decodes else [speed.decode_tokens_per_s, speed.low, speed.high],
        "prefill": None if speed is None else speed.prefill_tokens_per_s,
    }


# -- other questions ----------------------------------------------------------------------------------------------


def quants(request: Mapping[str, Any]) -> dict[str, Any]:
    """Every quantization of the model on the hardware that `options` name: a column of the table."""
    from autofit.pipeline import read_model
    from autofit.quants import device_shortfall, quantizations

    given = {name: value for name, value in _given(request).items() if name not in ("force", "strict")}
    found = quantizations(read_model(request["model"]), backend=request["backend"], settings=AROUND, **given)
    chosen, because = found.choices[request["backend"]]
    return {
        "because": printable(because, 300),
        "rows": [
            {
                "name": row.quantization.name,
                "bytes": row.quantization.file_bytes or row.quantization.weights_bytes,
                "bits": round(row.bits_per_weight, 2),
                "state": "full" if row.full_speed else "ram" if row.fits else "no",
                "context": row.context_tokens,
                "decode": row.decode_tokens_per_s,
                "chosen": row is chosen,
                "at_hand": row.quantization.at_hand,
                "because": "" if row.fits else device_shortfall(row) or printable(row.because, 160),
            }
            for row in found.rows
            if row.quantization.weights_bytes is not None and not row.quantization.same_as
        ],
    }


def check(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a pasted text is about: a command is checked, the log of a start is explained."""
    from autofit.logs.commands import goes_on, joined

    text = request["text"].replace("\r\n", "\n")
    lines = text.strip().split("\n")
    first = lines[0].strip().removeprefix("$ ")
    used = 1
    while used < len(lines) and goes_on(first):
        first, used = joined(first, lines[used]), used + 1
    if not "".join(lines[used:]).strip() and _is_command(first):
        return {"kind": "command", **_checked(first, request)}
    return {"kind": "log", **_fixed(text, request)}


def _is_command(line: str) -> bool:
    from autofit.inputs import split_assignments
    from autofit.text.launchers import unwrap

    try:
        host().backend_of_program(unwrap(split_assignments(words(line))[1]).argv)
    except AutofitError:
        return False
    return True


def _checked(line: str, request: Mapping[str, Any]) -> dict[str, Any]:
    import autofit
    from autofit.errors import ModelNotFoundError, RemoteError

    given = {name: value for name, value in _given(request).items() if name in CHECKED}
    argv = words(line)
    asked: dict[str, Any] = {"settings": AROUND, **given}
    instead = request.get("model")
    try:
        return _shown(autofit.check(argv, **asked))
    except (ModelNotFoundError, RemoteError, UsageError):
        if not instead:
            raise
        # the file that the command names lies elsewhere: the page's model stands for it
        found = _shown(autofit.check(argv, model=autofit.read_model(instead), **asked))
        return {**found, "instead": instead}


def _fixed(text: str, request: Mapping[str, Any]) -> dict[str, Any]:
    from autofit.fix import fix, in_words
    from autofit.settings.layers import collect
    from autofit.text import shell

    names = ("on", "ram", "engine_version")
    stated = {name: value for name, value in _given(request).items() if name in names}
    options = collect(stated, None, "", lambda name: {}, names)
    found = fix(
        [text.encode("utf-8", "surrogateescape")],
        ram=options.get("ram"),
        on=options.get("on", ()),
        engine_version=options.get("engine_version"),
    )
    failure = found.observed.failure
    return {
        "words": in_words(found),
        "failed": failure is not None,
        "commands": [{"command": shell.shown(one.argv), "because": one.because} for one in found.repair.changes],
    }


# -- the page's files ---------------------------------------------------------------------------------------------


def keep_what_is_read() -> None:
    """Read each model once: a slider plans for it again and again. `forget` after files have changed."""
    from autofit import references
    from autofit.domain.model import ModelFiles
    from autofit.domain.values import replace

    locate, read, kept, told = references.locate, references.read, {}, {}

    @cache
    def locate_once(reference: str) -> Any:
        if reference in told:
            return ModelFiles(reference=reference, paths=(told[reference],), written=reference)
        files = locate(reference)
        # an example's own path is one of this page
        return replace(files, written=reference) if reference.startswith("example:") else files

    def read_once(files: Any) -> Any:
        if id(files) not in kept:
            kept[id(files)] = files, read(files)
        return kept[id(files)][1]

    references.locate, references.read = locate_once, read_once  # before `autofit.pipeline` takes them over

    def forget(request: Mapping[str, Any]) -> dict[str, Any]:
        locate_once.cache_clear()
        kept.clear()
        _plans.clear()
        return {}

    def tell(request: Mapping[str, Any]) -> dict[str, Any]:
        """A description stands for a file of this name, which a link cannot hold; without one the file itself does."""
        if request.get("path"):
            told[request["name"]] = request["path"]
        else:
            told.pop(request["name"], None)
        return forget(request)

    ASKED.update(forget=forget, tell=tell)


ASKED: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "facts": facts,
    "model": model,
    "describe": describe,
    "plan": plan,
    "render": render,
    "point": point,
    "quants": quants,
    "check": check,
}
