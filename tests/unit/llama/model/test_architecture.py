"""The records of architectures: whole, consistent in themselves, and loaded one family at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autofit_llama.model.architecture import UNKNOWN, Architecture, architecture_of, every_architecture, is_known
from autofit_llama.model.caches import ATTENTION, NO_CACHE
from autofit_llama.model.family_index import FAMILIES
from autofit_llama.model.metadata_reader import KEYS

ROOT = Path(__file__).resolve().parents[4]
RECORDS = {record.name: record for record in every_architecture()}
REQUIRED = ("name", "source", "hparams", "rope", "output", "scales", "graph")

#: keys that only a state beside the attention reads, and those of an indexer's cache
STATE = {"ssm_d_conv", "ssm_d_state", "wkv_head_size", "n_shortconv_l_cache", "n_embd_head_kda"}
INDEXER = {"indexer_head_size"}


def fields(record: Architecture) -> set[str]:
    return {name.rstrip("?[]") for name in record.hparams.fields.split()}


def test_architectures_that_people_use_are_known() -> None:
    assert len(RECORDS) >= 150
    assert {"llama", "qwen3moe", "deepseek2", "gpt-oss", "mamba2", "t5", "bert", "gemma4"} <= set(RECORDS)


@pytest.mark.parametrize("field", REQUIRED)
def test_a_record_without_a_field_that_the_engine_spells_out_is_an_error(field: str) -> None:
    known = {name: getattr(RECORDS["llama"], name) for name in REQUIRED}
    assert Architecture(**known).name == "llama"
    del known[field]
    with pytest.raises(TypeError, match=field):
        Architecture(**known)


def test_the_index_has_every_record_where_it_is() -> None:
    assert {name: architecture_of(name) for name in FAMILIES} == RECORDS
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gen" / "llama_families.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_architecture_without_a_record_is_unknown() -> None:
    assert not is_known("newest")
    assert architecture_of("newest") is UNKNOWN


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_record_is_consistent(name: str) -> None:
    record = RECORDS[name]
    assert fields(record) <= set(KEYS)
    assert record.source.endswith(".cpp")
    if record.memory in (ATTENTION, NO_CACHE) and name != "clef":  # its states begin anew with each text
        assert not fields(record) & (STATE | INDEXER), "keys of a state or an indexer, and no cache for them"
    if record.memory is NO_CACHE:
        assert record.draft_graph is None
    if record.draft_tensors.skipped is not None:
        assert record.draft_tensors.loadable


def test_one_model_loads_its_own_family_alone() -> None:
    code = (
        "import sys; from autofit_llama.model.architecture import architecture_of; architecture_of('gpt-oss');"
        "print(*sorted(name for name in sys.modules if name.startswith('autofit_llama.families.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["autofit_llama.families.openai"]
