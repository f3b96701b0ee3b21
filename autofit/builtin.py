"""What autofit itself offers through its own hooks."""

from __future__ import annotations

from collections.abc import Iterable

from autofit.hookspecs import (
    CommandRef,
    HardwareSourceRef,
    ModelReaderRef,
    ModelSourceRef,
    RendererRef,
    hookimpl,
)


@hookimpl
def autofit_register_commands() -> Iterable[CommandRef]:
    return (
        CommandRef("check", "will this engine command fit? where does each byte go?", "autofit.cli.check"),
        CommandRef("run", "fill in what an engine's command leaves open, and start it", "autofit.cli.run"),
        CommandRef("shims", "a folder of programs that let scripts' engines through `run`", "autofit.cli.shims"),
        CommandRef("quants", "every quantization: exact size, fit and rates; which to take", "autofit.cli.quants"),
        CommandRef("fleet", "several models on one machine or many: what goes where, with proof", "autofit.cli.fleet"),
        CommandRef("curve", "memory and decode rate against the context, as a plot or SVG", "autofit.cli.curve"),
        CommandRef("advise", "which hardware takes a model, at what price; what fits here", "autofit.cli.advise"),
        CommandRef("report", "one small file for a bug report, without weights or secrets", "autofit.cli.report"),
        CommandRef(
            "fix", "why an engine ran out of memory, out of its log, and the smallest change", "autofit.cli.fix"
        ),
        CommandRef("verify", "the plan beside the engine's dry run or the log of a boot", "autofit.cli.verify"),
        CommandRef(
            "calibration",
            "what starts here took beside their plans",
            "autofit.cli.calibration",
        ),
        CommandRef("inspect", "what is in a model file: tensors by group and type, layers", "autofit.cli.inspect"),
        CommandRef("models", "what lies in the caches on this machine, and whether it fits here", "autofit.cli.models"),
        CommandRef(
            "hardware",
            "what this machine has, or a profile of one that you do not have",
            "autofit.cli.hardware",
        ),
        CommandRef("web", "the page that plans in a browser, with this machine filled in", "autofit.cli.web"),
        CommandRef("trust", "let the autofit.toml of a directory set engine flags", "autofit.cli.trust"),
        CommandRef("mcp", "plan, check, inspect and advise for assistants (needs the extra mcp)", "autofit.cli.mcp"),
        CommandRef("completion", "what a shell needs to complete commands of autofit", "autofit.cli.completion"),
        CommandRef("plugins", "which plugins are in use, and which are broken", "autofit.cli.plugins"),
    )


NO_FIT = "# it does not fit"  #: in files whose comments begin so


@hookimpl
def autofit_register_renderers() -> Iterable[RendererRef]:
    return (
        RendererRef(
            "shell",
            "one ready command line of a POSIX shell",
            "autofit.render.shell:render",
            "false",
            "autofit.render.shell:render_fleet",
            words_only=True,
            wraps=True,
        ),
        RendererRef(
            "eval",
            "the same, all in quotes, for eval",
            "autofit.render.shell:render_eval",
            "false",
            words_only=True,
            wraps=True,
        ),
        RendererRef(
            "nul", "arguments that end in a NUL byte, for xargs -0", "autofit.render.shell:render_nul", "false\0"
        ),
        RendererRef("lines", "one argument per line", "autofit.render.shell:render_lines", "false"),
        RendererRef("fish", "one command line of fish", "autofit.render.shell:render_fish", "false", wraps=True),
        RendererRef(
            "powershell",
            "one command line of PowerShell",
            "autofit.render.shell:render_powershell",
            "throw 'it does not fit'",
            wraps=True,
        ),
        RendererRef(
            "json", "the whole plan, schema 1", "autofit.render.json:render", "", "autofit.render.json:render_fleet"
        ),
        RendererRef("kwargs", "keyword arguments for Python", "autofit.render.python:render"),
        RendererRef("toml", "a preset of autofit", "autofit.render.preset:render", NO_FIT),
        RendererRef(
            "systemd", "a systemd unit", "autofit.render.systemd:render", NO_FIT, "autofit.render.systemd:render_fleet"
        ),
        RendererRef("dockerfile", "a Dockerfile on the engine's image", "autofit.render.dockerfile:render", NO_FIT),
        RendererRef(
            "compose", "a Compose file", "autofit.render.compose:render", NO_FIT, "autofit.render.compose:render_fleet"
        ),
        RendererRef(
            "kubernetes",
            "a Deployment and a Service",
            "autofit.render.kubernetes:render",
            NO_FIT,
            "autofit.render.kubernetes:render_fleet",
        ),
        RendererRef("lws", "a LeaderWorkerSet, for several machines", "autofit.render.lws:render", NO_FIT),
        RendererRef("kserve", "an InferenceService of KServe", "autofit.render.kserve:render", NO_FIT),
        RendererRef(
            "llama-swap",
            "a model of llama-swap",
            "autofit.render.swap:render",
            NO_FIT,
            "autofit.render.swap:render_fleet",
        ),
    )


@hookimpl
def autofit_register_model_readers() -> Iterable[ModelReaderRef]:
    return (
        ModelReaderRef("gguf", "GGUF v2 and v3, split files", "autofit.readers:read_model", (".gguf",), b"GGUF"),
        ModelReaderRef(
            "safetensors",
            "safetensors files, directories, and what else can be told from its first bytes",
            "autofit.readers:read_model",
            (".safetensors", ".json", "/", ""),
        ),
        ModelReaderRef(
            "description", "a model described without its weights", "autofit.readers:read_model", (".json.gz",)
        ),
    )


@hookimpl
def autofit_register_model_sources() -> Iterable[ModelSourceRef]:
    return (
        ModelSourceRef("path", "a file or a directory", "autofit.sources:find_path", ("", "file")),
        ModelSourceRef("example", "the models described inside autofit", "autofit.sources.examples:find", ("example",)),
        ModelSourceRef(
            "hub",
            "a repository, ORG/REPO[:QUANT or FILE][@REVISION], on disk or at Hugging Face",
            "autofit.sources.hub:find",
            ("", "hf"),
            "autofit.sources.hub_cache:stored",
        ),
        ModelSourceRef(
            "url", "a GGUF or safetensors file by its address", "autofit.sources.url:find", ("http", "https")
        ),
        ModelSourceRef(
            "ollama",
            "a model of Ollama's, on disk or in its registry",
            "autofit.sources.ollama:find",
            ("ollama",),
            "autofit.sources.ollama:stored",
        ),
        ModelSourceRef("docker", "a model of Docker's registry", "autofit.sources.docker:find", ("docker",)),
        ModelSourceRef(
            "lmstudio",
            "a model in LM Studio's folder",
            "autofit.sources.lmstudio:find",
            ("lmstudio",),
            "autofit.sources.lmstudio:stored",
        ),
        ModelSourceRef(
            "modelscope",
            "a repository that ModelScope's client has downloaded",
            "autofit.sources.modelscope:find",
            ("modelscope",),
            "autofit.sources.modelscope:stored",
        ),
    )


@hookimpl
def autofit_register_hardware_sources() -> Iterable[HardwareSourceRef]:
    return (
        HardwareSourceRef(
            "NVIDIA",
            "NVML, nvidia-smi, and the kernel module",
            "autofit.hardware.nvidia:find",
            library="libnvidia-ml.so.1",
            unanswered="autofit.hardware.nvidia:unanswered",
            # nodes and modules too: a container or WSL may hide the library from the loader's cache
            signs=(
                "libnvidia-ml.so.1",
                "nvidia-smi",
                "/proc/driver/nvidia",
                "/dev/nvidiactl",
                "/dev/dxg",
                "/proc/device-tree/compatible",
            ),
        ),
        HardwareSourceRef(
            "AMD",
            "sysfs, amdsmi, rocm-smi",
            "autofit.hardware.amd:find",
            library="/dev/kfd",
            signs=("/sys/class/drm", "/dev/kfd"),
        ),
        HardwareSourceRef(
            "Intel", "sysfs and the kernel's ioctls", "autofit.hardware.intel:find", signs=("/sys/class/drm",)
        ),
        HardwareSourceRef(
            "Apple", "sysctl, and the working set of its GPU", "autofit.hardware.apple:find", signs=("/System/Library",)
        ),
    )
