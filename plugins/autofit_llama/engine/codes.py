"""Codes of the findings that only plans of llama.cpp have."""

from __future__ import annotations

from functools import partial

from autofit.domain.plan import Code
from autofit.planning.findings import codes, tell

OWN = {
    "runs-short": Code(
        "warning",
        "the engine starts; memory runs short when the prompt cache, a long prompt or an image takes its share",
        "take the value that the plan names for what grows; `--strict` counts it as not fitting",
    ),
    "engine-fit-gave-up": Code(
        "warning",
        "llama.cpp's own --fit gives up, and the command runs unchanged",
        "let `autofit llama MODEL` place the layers",
    ),
    "no-pipeline-parallelism": Code(
        "info",
        "llama.cpp turns pipeline parallelism off: its compute buffers do not fit",
        "a smaller `-ub` or a shorter `-c` leaves memory for the copies",
    ),
    "bench-combinations": Code(
        "info",
        "llama-bench runs several combinations; the one with the least memory left is shown",
        "give each flag one value to see one combination",
    ),
    "bounded-compute": Code(
        "info",
        "no compute graph for this architecture: compute buffers are upper bounds",
        "`autofit verify MODEL` asks an installed llama.cpp",
    ),
    "context-price": Code(
        "info", "the decode rate that the context costs", "take the shorter `-c` that the message names"
    ),
    "draft-head": Code(
        "info",
        "the model has a draft head (MTP): how much faster it decodes with it",
        "add the flags that the message names",
    ),
    "file-beside": Code(
        "info",
        "a file of the model's folder that the engine could load with it",
        "add the flags that the message names; its memory is counted then",
    ),
    "device-left-out": Code(
        "info", "a device that would not make the plan faster is not used", "name the devices to use: `-- -dev LIST`"
    ),
    "engine-fit": Code(
        "info", "the engine's own --fit may change settings that are not given", "`-fit off` keeps the command as it is"
    ),
    "engine-fork": Code(
        "warning",
        "an engine made from llama.cpp, whose own changes are not known: more memory is kept free",
        "`autofit verify MODEL` compares with the engine's own figures",
    ),
    "engine-version-newer": Code(
        "warning",
        "the engine is newer than the newest that autofit knows",
        "a newer autofit, or `autofit verify MODEL` to compare",
    ),
    "engine-version-older": Code(
        "warning",
        "the engine is older than the oldest whose memory is known",
        "a newer build of llama.cpp, or `autofit verify MODEL` to compare",
    ),
    "engine-version-uncertain": Code("info", "the engine's build number is unknown", "`--engine-version` names it"),
    "file-may-be-refused": Code(
        "warning",
        "the build of llama.cpp that figures are of refuses to load this file; the one in use may not",
        "a newer build, or a file that was converted anew",
    ),
    "experimental-split": Code("info", "-sm tensor is experimental in llama.cpp", "`-sm layer` is the default"),
    "inputs-one-micro-batch": Code(
        "warning", "inputs longer than a micro-batch are rejected", "an `-ub` as long as the longest input"
    ),
    "large-prompt-cache": Code(
        "info",
        "memory runs short once the prompt cache reaches its limit",
        "take the `--cache-ram` that the message names",
    ),
    "lossless-cache": Code("info", "the KV cache keeps all precision: what q8_0 would gain", "`--kv q8_0` takes it"),
    "micro-batch": Code(
        "info",
        "a larger micro-batch: how much faster prompts are, and what decoding pays for it",
        "the smaller `-ub` that the message names decodes faster",
    ),
    "newest-build-short": Code(
        "warning",
        "no build was named, and the newest recorded build needs more memory than there is",
        "name the build that runs: `--engine-version`",
    ),
    "no-overlap": Code(
        "info",
        "micro-batches run on one device after the other, to save the copies for overlapping",
        "a shorter `-c` or a smaller `-ub` leaves memory for the copies",
    ),
    "other-models": Code(
        "warning",
        "requests load further models of a settings file in place of the first, which alone is counted",
        "`autofit fleet` plans for several models at once",
    ),
    "prompt-cache": Code(
        "info",
        "the prompt cache is larger than the default: how many tokens of past prompts it keeps",
        "`-- --cache-ram N` sets another size in MiB",
    ),
    "no-embeddings": Code(
        "warning", "an embedding model is served without embeddings: requests for them are refused", "add `--embedding`"
    ),
    "number-cut": Code("warning", "llama.cpp reads the beginning of a number alone", "write the number alone"),
    "rate-in-all": Code("info", "how many tokens/s all sequences decode together"),
    "reads-from-disk": Code(
        "warning",
        "memory-mapped weights do not fit in RAM and are read from disk",
        "more RAM, or a smaller quantization (`autofit quants MODEL`)",
    ),
    "settings-file-unsure": Code(
        "warning",
        "it is not known whether this version reads the settings file; its settings are not counted",
        "give the settings as flags",
    ),
    "slots-share-context": Code(
        "info", "slots share one context, each limited to the trained context", "a longer `-c`, or fewer slots: `-np`"
    ),
    "split-length": Code(
        "warning", "-ts has more or fewer numbers than there are devices", "give `-ts` one number for each device"
    ),
    "unknown-flags": Code(
        "warning",
        "flags that autofit does not know: passed through, their memory is not counted",
        "check the spelling; keep memory for them free with `--margin`",
    ),
    "unlimited-prompt-cache": Code(
        "warning", "the prompt cache has no limit and may fill all RAM", "`--cache-ram N` sets a limit in MiB"
    ),
    "unread-settings": Code("warning", "settings that this program or version does not read", "leave them out"),
    "workers": Code(
        "info",
        "what other machines run before the plan, to lend it their devices",
        "run what is printed for each machine first",
    ),
    "unverified-device": Code(
        "info",
        "the figures for this API are not verified on hardware",
        "`autofit verify MODEL` compares with the engine, `autofit report` tells us",
    ),
    "unverified-overrides": Code(
        "warning",
        "some -ot patterns abort under -sm tensor, and not all of them are detected",
        "`-sm layer`, or no `-ot`",
    ),
}
finding = partial(tell, codes(OWN))
