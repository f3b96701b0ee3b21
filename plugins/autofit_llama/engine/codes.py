"""Codes of the findings that only plans of llama.cpp have."""

from __future__ import annotations

from functools import partial

from autofit.domain.plan import Code
from autofit.planning.findings import codes, tell

OWN = {
    "runs-short": Code("warning", "the engine starts, and memory runs short when something has grown"),
    "engine-fit-gave-up": Code("warning", "llama.cpp's own --fit gives up, and the command runs unchanged"),
    "no-pipeline-parallelism": Code("info", "llama.cpp turns pipeline parallelism off: its compute buffers do not fit"),
    "bench-combinations": Code(
        "info", "llama-bench runs several combinations; the one with the least memory left is shown"
    ),
    "bounded-compute": Code("info", "no compute graph for this architecture: compute buffers are upper bounds"),
    "context-price": Code("info", "the decode rate that the context costs"),
    "draft-head": Code("info", "the model's own draft head (MTP) would make decoding faster"),
    "file-beside": Code("info", "a file of the model's folder that the engine could load with it"),
    "device-left-out": Code("info", "a device that would not make the plan better is not used"),
    "engine-fit": Code("info", "the engine's own --fit may change settings that are not given"),
    "engine-fork": Code("warning", "an engine made from llama.cpp, whose own changes are not known"),
    "engine-version-newer": Code("warning", "the engine is newer than the newest that autofit knows"),
    "engine-version-older": Code("warning", "the engine is older than the oldest whose memory is known"),
    "engine-version-uncertain": Code("info", "the engine's build number is unknown"),
    "file-may-be-refused": Code("warning", "the file is one that the build which is known best refuses to load"),
    "experimental-split": Code("info", "-sm tensor is experimental in llama.cpp"),
    "inputs-one-micro-batch": Code("warning", "inputs longer than a micro-batch are rejected"),
    "large-prompt-cache": Code("info", "memory runs short once the prompt cache reaches its limit"),
    "lossless-cache": Code("info", "what a q8_0 KV cache would gain, that was not taken"),
    "micro-batch": Code("info", "a micro-batch that trades decode rate for prompt processing"),
    "newest-build-short": Code("warning", "no build was named, and the newest recorded one takes more than fits"),
    "no-overlap": Code("info", "micro-batches run on one device after the other, to save the copies for overlapping"),
    "other-models": Code(
        "warning", "models of a settings file that requests load in the place of the first, which is shown"
    ),
    "prompt-cache": Code("info", "a prompt cache that is larger than the default, and what it keeps"),
    "no-embeddings": Code("warning", "an embedding model whose embeddings are not turned on"),
    "number-cut": Code("warning", "a number that llama.cpp reads only in part"),
    "rate-in-all": Code("info", "the decode rate of all sequences at once"),
    "reads-from-disk": Code("warning", "memory-mapped weights do not fit in RAM and are read from disk"),
    "settings-file-unsure": Code("warning", "a settings file that this version may or may not read"),
    "slots-share-context": Code("info", "slots share one context, each limited to the trained context"),
    "split-length": Code("warning", "-ts has more or fewer numbers than there are devices"),
    "unknown-flags": Code("warning", "flags that autofit does not know: passed through, their memory is not counted"),
    "unlimited-prompt-cache": Code("warning", "the prompt cache has no limit and may fill all RAM"),
    "unread-settings": Code("warning", "settings that this program or version does not read"),
    "workers": Code("info", "what other machines start before the plan, to lend it their devices"),
    "unverified-device": Code("info", "the figures for this API are not verified on hardware"),
    "unverified-overrides": Code(
        "warning", "some -ot patterns abort under -sm tensor, and not all of them are detected"
    ),
}
finding = partial(tell, codes(OWN))
