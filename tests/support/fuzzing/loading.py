"""What only the loader of llama.cpp looks at: types of keys, shapes and numbers of tensors, of every architecture."""

from __future__ import annotations

import copy
import random
from typing import Any

from autofit_llama.engine.versions import LATEST
from autofit_llama.loading.check import check_loads
from support.descriptors import build, description, names
from support.fuzzing.gguf import mutated

KINDS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)


def make(rng: random.Random) -> Any:
    name = rng.choice(names("tiny"))
    base = description("tiny", name)
    changes = mutated(copy.deepcopy(base), rng)
    types = {key: rng.choice(KINDS) for key, kind, _ in rng.sample(base["kv"], 2) if isinstance(kind, int)}
    more = [f"blk.{rng.randrange(3)}.{rng.choice(('x', 'attn_q', 'ffn_up'))}.weight"] if rng.random() < 0.2 else []
    return {"base": name, "changes": changes, "types": types, "more": more}


def run(given: Any) -> None:
    base = copy.deepcopy({"header_bytes": 0, "file_bytes": 0, **description("tiny", given["base"])})
    changed, types = given["changes"], given["types"]
    kv = {key: [kind, value] for key, kind, value in base["kv"]} | changed["kv"]
    base["kv"] = [[key, types.get(key, row[0]), row[1]] for key, row in kv.items() if row is not None]
    tensors = {name: [dims, kind] for name, dims, kind, _ in base["tensors"]}
    rows = []
    for name, (dims, kind) in tensors.items():
        new = changed["tensors"].get(name, [name, dims, kind])
        if new is not None:
            rows.append([new[0], new[1] or [1], 0, 0])
    base["tensors"] = rows + [[name, [32], 0, 0] for name in given["more"]]
    if not isinstance(next((value for key, _, value in base["kv"] if key == "general.architecture"), None), str):
        return  # the reader refuses it
    check_loads(build([base], ["m.gguf"]), LATEST)
