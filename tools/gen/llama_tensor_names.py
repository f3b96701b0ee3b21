"""Writes plugins/autofit_llama/logs/tensor_names.json: the tensors that each architecture of llama.cpp loads.

    python tools/gen/llama_tensor_names.py TREE

TREE is llama.cpp's source. Names come from the calls in `load_arch_tensors` of src/models/*.cpp. A log tells how many
tensors there are, and these which ones they can be.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "plugins" / "autofit_llama" / "logs" / "tensor_names.json"
_CALL = re.compile(r'create_tensor\(tn\(LLM_TENSOR_(\w+),\s*(?:"(\w+)")?')
_QKV = tuple(f"attn_{part}.{kind}" for part in ("qkv", "q", "k", "v") for kind in ("weight", "bias"))


def main(tree: Path) -> int:
    table = (tree / "src" / "llama-arch.cpp").read_text()
    model = (tree / "src" / "llama-model.cpp").read_text()
    spelled = dict(re.findall(r'\{\s*LLM_TENSOR_(\w+),\s*"([^"]+)"', table))
    archs = dict(re.findall(r'\{\s*LLM_ARCH_(\w+),\s*"([^"]+)"', table))
    classes: dict[str, str] = {}
    for cases, made in re.findall(r"((?:case LLM_ARCH_\w+:\s*)+)return new llama_model_(\w+)\(", model):
        for arch in re.findall(r"LLM_ARCH_(\w+)", cases):
            classes[archs[arch]] = made
    loader = re.compile(r"void llama_model_(\w+)::load_arch_tensors\([^)]*\) \{(.*?)\n\}", re.DOTALL)
    sources = sorted((tree / "src" / "models").glob("*.cpp"))
    bodies = {name: body for path in sources for name, body in loader.findall(path.read_text())}
    header = (tree / "src" / "models" / "models.h").read_text()
    parents = dict(re.findall(r"struct llama_model_(\w+) : public llama_model_(\w+)", header))
    found = {}
    for arch, name in sorted(classes.items()):
        while name not in bodies and name in parents:
            name = parents[name]
        if name in bodies:
            found[arch] = sorted(names(bodies[name], spelled))
    rows = (f"{json.dumps(arch)}: {json.dumps(' '.join(known))}" for arch, known in found.items())
    TARGET.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(f"{len(found)} architectures")
    return 0


def names(body: str, spelled: dict[str, str]) -> set[str]:
    """Names without their block."""
    found: set[str] = set()
    for key, suffix in _CALL.findall(body):
        name = spelled.get(key)
        if name is not None:
            found.add(re.sub(r"^\w*blk\.%d\.", "", name) + (f".{suffix}" if suffix else ""))
    if "create_tensor_qkv" in body:
        found |= set(_QKV)
    if "create_tensor_gate_up_exps" in body:
        found |= {f"ffn_{part}_exps.weight" for part in ("gate", "up", "gate_up")}
    return found


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
