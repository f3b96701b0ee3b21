"""GGUF headers: what is read from sound files, and what is said about broken ones."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from random import Random
from typing import Any

import pytest
from autofit.domain.model import StringArray
from autofit.errors import AutofitError, CorruptModelError, ModelNotFoundError
from autofit.readers.gguf import MAX_KEPT, read_gguf

from support import ggufs
from support.ggufs import Gguf, Raw, Strings, Tensor, Typed

ARCH = {"general.architecture": "llama"}


def write(tmp_path: Path, **fields: Any) -> Path:
    fields.setdefault("metadata", ARCH)
    return Gguf(**fields).write(tmp_path / "m.gguf")


# -- sound files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("big_endian", [False, True])
def test_versions_and_byte_orders_say_the_same(tmp_path: Path, version: int, big_endian: bool) -> None:
    reference = read_gguf(ggufs.write_llama(tmp_path / "a.gguf", n_layer=3, n_expert=4, n_head_kv=2))
    other = ggufs.llama(n_layer=3, n_expert=4, n_head_kv=2)
    other.version, other.big_endian = version, big_endian
    model = read_gguf(other.write(tmp_path / "b.gguf"))
    assert model.tensors == reference.tensors
    assert dict(model.metadata) == dict(reference.metadata)
    assert model.layers == reference.layers


def test_values_of_every_type(tmp_path: Path) -> None:
    limits = {
        "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31),
        "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "bool": True,
    }  # fmt: skip
    scalars = {f"k.{kind}": Typed(kind, value) for kind, value in limits.items()}
    arrays = {f"a.{kind}": Typed(kind, [value, value]) for kind, value in limits.items()}
    model = read_gguf(write(tmp_path, metadata={**ARCH, **scalars, **arrays, "s": "é \n", "e": Typed("i32", [])}))
    for kind, value in limits.items():
        assert model.metadata[f"k.{kind}"] == value
        assert type(model.metadata[f"k.{kind}"]) is type(value)
        assert model.metadata[f"a.{kind}"] == (value, value)
    assert model.metadata["s"] == "é \n"
    assert model.metadata["e"] == ()


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_strings_of_any_length_are_stepped_over(tmp_path: Path, big_endian: bool, seed: int) -> None:
    random = Random(seed)
    most = (3, 47, 60, 400)[seed]  # all short, just short, sometimes longer, mostly longer
    words = [random.randbytes(random.randint(0, most)) for _ in range(random.randint(1500, 2600))]
    words[::7] = [b"\0" * (len(word) // 2) for word in words[::7]]
    keys = {**ARCH, "words": Strings(len(words), tuple(words)), "after": 12345}
    model = read_gguf(write(tmp_path, metadata=keys, big_endian=big_endian))
    assert model.metadata["words"] == StringArray(count=len(words), element_type="str")
    assert model.metadata["after"] == 12345

    header = Gguf(metadata={**ARCH, "words": Strings(len(words), tuple(words))}, big_endian=big_endian).header()
    for cut in random.sample(range(100 + 8 * len(words), len(header)), 20):
        corrupt(raw(tmp_path, header[:cut]), f" of {len(words)} of words needs ")


def test_vocabularies_are_counted_not_kept(tmp_path: Path) -> None:
    model = read_gguf(ggufs.write_llama(tmp_path / "m.gguf", n_vocab=MAX_KEPT + 1))
    assert model.metadata["tokenizer.ggml.tokens"] == StringArray(count=MAX_KEPT + 1, element_type="str")
    assert model.metadata["tokenizer.ggml.scores"] == StringArray(count=MAX_KEPT + 1, element_type="f32")
    assert model.n_vocab == MAX_KEPT + 1


def test_the_summary_of_a_model(tmp_path: Path) -> None:
    model = read_gguf(ggufs.write_llama(tmp_path / "m.gguf", n_layer=2, n_embd=512, n_vocab=1000, n_ctx_train=8192))
    assert (model.name, model.format, model.architecture) == ("tiny", "gguf", "llama")
    assert (model.hidden_elements, model.n_vocab, model.context_train_tokens) == (512, 1000, 8192)
    assert model.files[0].size_bytes == (tmp_path / "m.gguf").stat().st_size


def test_sizes_shapes_and_offsets(tmp_path: Path) -> None:
    tensors = [
        Tensor("a", (512, 3, 2), "q4_K"),
        Tensor("b", (5,)),
        Tensor("c", (), "f32"),
        Tensor("d", (32,), "q8_0"),
    ]
    path = write(tmp_path, tensors=tensors, alignment=128)
    model = read_gguf(path)
    start = -(-len(Gguf(metadata=ARCH, tensors=tensors, alignment=128).header()) // 128) * 128
    assert [tensor[:4] for tensor in model.tensors] == [
        ("a", "q4_K", (2, 3, 512), 2 * 3 * 2 * 144),
        ("b", "f32", (5,), 20),
        ("c", "f32", (), 4),
        ("d", "q8_0", (32,), 34),
    ]
    assert [tensor.offset_bytes - start for tensor in model.tensors] == [0, 1792, 1920, 2048]
    assert model.tensors[0].ne == (512, 3, 2)


def test_the_last_tensor_needs_no_padding(tmp_path: Path) -> None:
    path = write(tmp_path, tensors=[Tensor("a", (5,))])
    last = read_gguf(path).tensors[-1]
    os.truncate(path, last.offset_bytes + last.n_bytes)
    assert read_gguf(path).tensors[-1] == last


def test_a_nameless_model_takes_the_name_of_its_file(tmp_path: Path) -> None:
    assert read_gguf(write(tmp_path)).name == "m"


def test_bytes_that_are_no_text_stay_distinct(tmp_path: Path) -> None:
    raw = Gguf(metadata=ARCH).value(Raw(struct.pack("<IQ", 8, 2) + b"\xff\xfe"))
    assert read_gguf(write(tmp_path, metadata={**ARCH, "k": Raw(raw)})).metadata["k"] == "\\xff\\xfe"


# -- shards ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_has_tensors", [True, False])
@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_shard_finds_all(tmp_path: Path, given: int, first_has_tensors: bool) -> None:
    whole = read_gguf(ggufs.write_llama(tmp_path / "w.gguf"))
    paths = ggufs.write_split(tmp_path, "m", ggufs.llama(), 3, first_has_tensors=first_has_tensors)
    model = read_gguf(paths[given])
    assert [file.path for file in model.files] == [str(path) for path in paths]
    assert [tensor[:4] for tensor in model.tensors] == [tensor[:4] for tensor in whole.tensors]
    assert {tensor.file_index for tensor in model.tensors} == set(range(not first_has_tensors, 3))
    assert (model.layers, model.name) == (whole.layers, "tiny")
    for path in paths:
        end = max(
            (t.offset_bytes + t.n_bytes for t in model.tensors if model.files[t.file_index].path == str(path)),
            default=0,
        )
        assert end <= path.stat().st_size


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = ggufs.write_split(tmp_path, "m", ggufs.llama(), 3)
    paths[1].unlink()
    with pytest.raises(ModelNotFoundError, match=r"m-00002-of-00003\.gguf: missing, shard 2 of 3$"):
        read_gguf(paths[2])


def test_no_shard_at_all_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"m-00001-of-00002\.gguf: no such file"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_shards_under_wrong_names(tmp_path: Path) -> None:
    paths = ggufs.write_split(tmp_path, "m", ggufs.llama(), 2)
    swap = tmp_path / "swap"
    paths[0].rename(swap)
    paths[1].rename(paths[0])
    swap.rename(paths[1])
    with pytest.raises(
        CorruptModelError, match=r"00001-of-00002.*shard 1 of 2, its metadata has split.no 1 \(from 0\) of 2"
    ):
        read_gguf(paths[0])


def test_whole_models_named_as_shards(tmp_path: Path) -> None:
    paths = [ggufs.write_llama(tmp_path / f"m-0000{i}-of-00002.gguf") for i in (1, 2)]
    with pytest.raises(CorruptModelError, match=r"says shard 1 of 2, its metadata has no split\.no"):
        read_gguf(paths[1])


def test_a_shard_that_lost_its_name(tmp_path: Path) -> None:
    path = ggufs.write_split(tmp_path, "m", ggufs.llama(), 2)[0].rename(tmp_path / "x.gguf")
    with pytest.raises(CorruptModelError, match="shard 1 of a model in 2 files") as caught:
        read_gguf(path)
    assert "00001-of-00002" in (caught.value.hint or "")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    shards = ggufs.split(ggufs.llama(), 2)
    shards[1].tensors = shards[0].tensors
    paths = [s.write(tmp_path / f"m-0000{i}-of-00002.gguf") for i, s in enumerate(shards, 1)]
    with pytest.raises(CorruptModelError, match=r"token_embd\.weight is in another shard too"):
        read_gguf(paths[0])


def test_shards_with_too_few_tensors(tmp_path: Path) -> None:
    shards = ggufs.split(ggufs.llama(), 2)
    shards[1].tensors = shards[1].tensors[:-1]
    paths = [s.write(tmp_path / f"m-0000{i}-of-00002.gguf") for i, s in enumerate(shards, 1)]
    with pytest.raises(CorruptModelError, match=r"split\.tensors\.count is 21, the shards have 20 tensors"):
        read_gguf(paths[0])


# -- broken files ---------------------------------------------------------------------------------------


def refused(path: Path) -> AutofitError:
    """The error for the file: one line that starts with its name, and a hint of one line."""
    with pytest.raises(AutofitError) as caught:
        read_gguf(path)
    error = caught.value
    assert error.exit_code == 1
    assert error.message.startswith(str(path))
    assert (error.message + (error.hint or "")).isprintable()
    return error


def corrupt(path: Path, cause: str) -> int:
    """The byte at which the file is refused, for this cause."""
    error = refused(path)
    assert isinstance(error, CorruptModelError)
    assert cause in error.message
    assert error.offset_bytes is not None and f": byte {error.offset_bytes}: " in error.message
    return error.offset_bytes


def raw(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "cause", "at"),
    [
        (b"", "the file is empty", 0),
        (b"GG", "not GGUF", 0),
        (b"PK\x03\x04" + bytes(60), "not GGUF: the file starts with 'PK", 0),
        (b"\x1b[2J" + bytes(60), "\\x1b[2J", 0),
        (b"tjgg" + bytes(60), "older than GGUF", 0),
        (b"GGUF\x03\0", "the version needs 4 bytes, 2 are left", 4),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1", 4),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4; versions 2 and 3", 4),
        (b"GGUF" + struct.pack(">IQQ", 1, 0, 0), "version 1", 4),
        (b"GGUF" + struct.pack("<IQ", 3, 0), "the counts needs 16 bytes, 8 are left", 8),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(99),
            "the header declares 1152921504606846976 tensors",
            8,
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60) + bytes(99), "metadata keys, but has at most", 16),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "no general.architecture", None),
    ],
)
def test_broken_starts(tmp_path: Path, data: bytes, cause: str, at: int | None) -> None:
    path = raw(tmp_path, data)
    if at is None:
        assert cause in refused(path).message
    else:
        assert corrupt(path, cause) == at


def test_every_truncation_of_a_header_is_refused(tmp_path: Path) -> None:
    model = ggufs.llama(n_layer=1, n_vocab=40)
    header = model.header()
    for length in range(0, len(header), 7):
        error = refused(raw(tmp_path, header[:length]))
        assert isinstance(error, CorruptModelError)
        assert (error.offset_bytes or 0) <= length


def test_a_file_whose_header_is_whole_says_how_much_of_its_data_is_missing(tmp_path: Path) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf")
    whole = read_gguf(path)
    last = whole.tensors[-1]
    end = last.offset_bytes + last.n_bytes
    for kept in (end - 1, whole.tensors[7].offset_bytes + 5, whole.tensors[0].offset_bytes):
        os.truncate(path, kept)
        cut = read_gguf(path)
        assert cut.missing_bytes == end - kept
        assert cut.tensors == whole.tensors
    os.truncate(path, end)
    assert read_gguf(path).missing_bytes == 0


def value(kind: int, data: bytes) -> Raw:
    return Raw(struct.pack("<I", kind) + data)


def array(kind: int, count: int, data: bytes = b"") -> Raw:
    return value(9, struct.pack("<IQ", kind, count) + data)


@pytest.mark.parametrize(
    ("lie", "cause"),
    [
        (value(8, struct.pack("<Q", 1 << 60)), "k needs 1152921504606846976 bytes"),
        (value(8, struct.pack("<Q", (1 << 64) - 1)), "k needs 18446744073709551615 bytes"),
        (value(13, b"\0" * 8), "k has the unknown type 13"),
        (array(8, 1 << 60), "k, an array of 1152921504606846976, needs 9223372036854775808 bytes"),
        (array(4, 1 << 62), "k, an array of 4611686018427387904, needs"),
        (array(9, 1, struct.pack("<IQ", 9, 1) * 99), "k is an array of arrays"),
        (array(77, 1, bytes(9)), "k is an array of the unknown type 77"),
        (
            array(8, 3, struct.pack("<Q", 1 << 61) + bytes(40)),
            "string 0 of 3 of k needs 2305843009213693952 bytes",
        ),
        (array(8, 3, struct.pack("<Q", (1 << 64) - 8) + bytes(40)), "string 0 of 3 of k needs"),
        (
            array(8, 2, struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 500)),
            "string 1 of 2 of k needs 500 bytes",
        ),
    ],
)
def test_lies_in_the_metadata(tmp_path: Path, lie: Raw, cause: str) -> None:
    # the header ends with the lie: nothing after it can save it
    corrupt(write(tmp_path, metadata={**ARCH, "k": lie}), cause)


def test_a_long_metadata_string_is_absurd(tmp_path: Path) -> None:
    path = write(tmp_path, metadata={**ARCH, "k": value(8, struct.pack("<Q", 1 << 23))})
    os.truncate(path, 1 << 24)
    corrupt(path, "k has 8388608 bytes; at most")


def test_a_header_without_end_is_absurd(tmp_path: Path) -> None:
    path = write(tmp_path, metadata={**ARCH, "k": array(0, 1 << 30)})
    os.truncate(path, 1 << 31)
    corrupt(path, "would end beyond 67108864 bytes, the limit of a header")


def test_strings_that_lead_far_into_the_data(tmp_path: Path) -> None:
    """A walk through the whole file would be possible here, and endless in a large one."""
    length = struct.pack("<Q", 1 << 30)
    path = write(tmp_path, metadata={**ARCH, "k": array(8, 4, length)})
    os.truncate(path, 1 << 40)
    corrupt(path, "string 0 of 4 of k would end beyond 67108864 bytes, the limit of a header")


def test_a_key_twice_and_a_key_without_name(tmp_path: Path) -> None:
    plain = Gguf(metadata={"aa": 1, "ab": 2})
    twice = plain.header().replace(b"ab", b"aa")
    assert corrupt(raw(tmp_path, twice), "metadata key aa is there twice") == 24 + 18
    corrupt(write(tmp_path, metadata={"": 1}), "an empty metadata key")


@pytest.mark.parametrize(
    "alignment", [Typed("u32", 0), Typed("u32", 48), "32", Typed("f32", 32.0), Typed("u64", 1 << 40)]
)
def test_an_alignment_that_is_none(tmp_path: Path, alignment: object) -> None:
    corrupt(write(tmp_path, metadata={**ARCH, "general.alignment": alignment}), "which is not a power of two")


def patched(tmp_path: Path, layout: str, at_end: int, *values: int) -> Path:
    """A file with one tensor, `layout` written over its table `at_end` bytes before the header's end."""
    model = Gguf(metadata=ARCH, tensors=[Tensor("t", (256, 4), "q4_K")])
    header = bytearray(model.header())
    struct.pack_into(layout, header, len(header) - at_end, *values)
    path = raw(tmp_path, bytes(header))
    os.truncate(path, model.size_bytes())
    return path


@pytest.mark.parametrize(
    ("layout", "at_end", "values", "cause"),
    [
        ("<Q", 28, (0,), "tensor t has a dimension of 0"),
        ("<QQ", 28, (1 << 62, 4), "its dimensions overflow"),
        ("<QQ", 28, (1 << 63, 1 << 63), "its dimensions overflow"),
        ("<Q", 28, (100,), "tensor t: rows of 100, not whole q4_K blocks of 256"),
        ("<I", 32, (5,), "tensor t has 5 dimensions (at most 4)"),
        ("<I", 32, ((1 << 32) - 1,), "tensor t has 4294967295 dimensions"),
        ("<I", 12, (99,), "tensor t has the unknown type 99"),
        ("<I", 12, (31,), "tensor t has the type q4_0_4_4, which engines no longer read"),
        ("<Q", 8, (32,), "the data of tensor t is at offset 32, not 0"),
        ("<Q", 8, ((1 << 64) - 32,), "the data of tensor t is at offset"),
    ],
)
def test_lies_in_the_tensor_table(
    tmp_path: Path, layout: str, at_end: int, values: tuple[int, ...], cause: str
) -> None:
    corrupt(patched(tmp_path, layout, at_end, *values), cause)


def test_a_tensor_twice_and_a_name_too_long(tmp_path: Path) -> None:
    corrupt(write(tmp_path, tensors=[Tensor("t", (4,)), Tensor("t", (4,))]), "tensor t is there twice")
    assert read_gguf(write(tmp_path, tensors=[Tensor("n" * 63, (4,))])).tensors
    corrupt(write(tmp_path, tensors=[Tensor("n" * 64, (4,))]), "a tensor name has 64 bytes; at most 63 are accepted")


def test_overlapping_tensors(tmp_path: Path) -> None:
    model = Gguf(metadata=ARCH, tensors=[Tensor("a", (8,)), Tensor("b", (8,))])
    header = bytearray(model.header())
    struct.pack_into("<Q", header, len(header) - 8, 0)
    path = raw(tmp_path, bytes(header))
    os.truncate(path, model.size_bytes())
    corrupt(path, "the data of tensor b is at offset 0, not 32")


def test_no_escape_sequence_of_a_file_reaches_a_message(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\u202e\n"
    corrupt(write(tmp_path, tensors=[Tensor(evil, (4,)), Tensor(evil, (4,))]), "is there twice")
    corrupt(write(tmp_path, metadata={**ARCH, evil: value(13, b"")}), "unknown type 13")
    assert "general.type is" in refused(write(tmp_path, metadata={"general.type": evil})).message


def test_absurd_strings_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    """2**23 empty strings in a hole: the longest walk that the limits allow."""
    count = (1 << 23) - 100
    path = write(tmp_path, metadata={**ARCH, "k": array(8, count)})
    os.truncate(path, 1 << 27)
    assert read_gguf(path).metadata["k"] == StringArray(count=count, element_type="str")


def test_a_companion_file_that_is_no_model(tmp_path: Path) -> None:
    error = refused(write(tmp_path, metadata={"general.type": "imatrix", "x": Strings(3)}))
    assert "no general.architecture: this is not a model (general.type is imatrix)" in error.message
