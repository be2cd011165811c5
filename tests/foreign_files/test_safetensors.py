"""Reading and writing .safetensors files: the same bytes as the library's, and damaged files refused."""

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.safetensors_format import WORDS, header_size, lay_out, parse_header
from torch_tfckpt.foreign_files.safetensors_sink import parse_size, split

NAMES = st.text(max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.arange(count, dtype=torch.int64).to(torch.uint8)
    return (raw % 2).view(torch.bool).view(shape) if dtype == torch.bool else raw.view(dtype).view(shape)


def is_known_to_the_library(dtype: torch.dtype) -> bool:
    """False for some dtypes in older versions of safetensors, such as uint16 in 0.4.5."""
    try:
        safetensors.torch.save({"": torch.zeros(0, dtype=dtype)})
    except KeyError:
        return False
    return True


DTYPES = [dtype for dtype in sorted(WORDS, key=str) if is_known_to_the_library(dtype)]


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=12))
def test_bytes_are_those_of_the_library(layout: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """Header and order equal those of safetensors.torch.save for any names, types and shapes."""
    tensors = {name: random_tensor(dtype, shape) for name, (dtype, shape) in layout.items()}
    expected = safetensors.torch.save(tensors, metadata={"format": "pt"})
    head, placed = lay_out(layout)
    assert expected[: len(head)] == head
    for name, (_, _, offset, nbytes) in placed.items():
        raw = tensors[name].reshape(-1).view(torch.uint8)
        assert expected[offset : offset + nbytes] == bytes(raw.tolist())
    assert parse_header(head[8:], len(expected)).items() == placed.items()


def test_converted_file_is_that_of_save_file(golden: Path, tmp_path: Path) -> None:
    """Whole files: 250 tensors of a checkpoint through convert and through the library."""
    source = golden / "digits-transformer"
    convert(source, tmp_path / "ours.safetensors")
    tensors = {name: torch.as_tensor(value) for name, value in tfckpt.load_file(source).items()}
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def file_of(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a safetensors file: it has only 0 bytes"),
        (b"\xff" * 20, "a truncated one: a header of 18446744073709551615 bytes in a file of 20"),
        (file_of(b"{]", b""), "header is not JSON"),
        (file_of(b"[" * 100_000, b""), "header is not JSON"),
        (file_of([], b""), "header is not a JSON object"),
        (file_of({"w": 3}, b""), "its entry is not a JSON object"),
        (file_of({"w": {**ENTRY, "shape": [-2]}}, bytes(8)), "invalid entry"),
        (file_of({"w": {**ENTRY, "shape": [True]}}, bytes(8)), "invalid entry"),
        (file_of({"w": {**ENTRY, "shape": [2**70]}}, bytes(8)), "invalid entry"),
        (file_of({"w": {**ENTRY, "data_offsets": [0, 8, 9]}}, bytes(8)), "invalid entry"),
        (file_of({"w": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)), "bytes 8:0 do not match F32"),
        (file_of({"w": {**ENTRY, "shape": [2**60, 2**60]}}, bytes(8)), "bytes 0:8 do not match F32"),
        (file_of({"w": ENTRY}, bytes(7)), "the tensors end at byte"),
        (file_of({"w": ENTRY}, bytes(9)), "the tensors end at byte"),
        (file_of({"w": ENTRY, "v": ENTRY}, bytes(8)), "the previous one ends at"),
        (file_of({"w": {**ENTRY, "data_offsets": [1, 9]}}, bytes(9)), "the previous one ends at"),
        (file_of(b'{"w":%s,"w":%s}' % ((json.dumps(ENTRY).encode(),) * 2), bytes(8)), "contains a tensor twice"),
    ],
)
def test_files_that_cannot_be_are_refused(tmp_path: Path, content: bytes, text: str) -> None:
    """With the path in the message, and before memory is allocated by a size from the file."""
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(tfckpt.DataLossError, match=text) as refused:
        open_source(str(tmp_path / "m.safetensors"))
    assert "m.safetensors" in str(refused.value)


@given(st.data())
def test_a_damaged_header_is_an_error_or_harmless(data: st.DataObject) -> None:
    """One byte changed, or the rest cut off: DataLossError, or a header that still fits the file."""
    whole = safetensors.torch.save({"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.int8)})
    at = data.draw(st.integers(0, len(whole) - 17))
    damaged = bytearray(whole)
    damaged[at] = data.draw(st.integers(0, 255))
    content = bytes(damaged[: data.draw(st.sampled_from([len(whole), at]))])
    with contextlib.suppress(tfckpt.DataLossError):
        parse_header(content[8 : 8 + header_size(content[:8], len(content))], len(content))


def test_one_unknown_type_does_not_hide_the_others(tmp_path: Path) -> None:
    header = {"w": ENTRY, "odd": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [8, 11]}}
    (tmp_path / "m.safetensors").write_bytes(file_of(header, bytes(11)))
    source = open_source(str(tmp_path / "m.safetensors"))
    assert source.names() == ["w", "odd"] and source.info("odd").type.name == "unknown"
    assert isinstance(source.read(["w"])["w"], torch.Tensor)
    with pytest.raises(tfckpt.UnimplementedError, match='tensor "odd": dtype "F6_E2M3" is not supported'):
        source.read(["odd"])
    source.close()
    with pytest.raises(tfckpt.UnimplementedError, match='tensor "odd"'):
        convert(tmp_path / "m.safetensors", tmp_path / "m.pt")
    assert diff(tmp_path / "m.safetensors", tmp_path / "m.safetensors", exclude=["odd"]).identical


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({}, 'it has no object "weight_map"'),
        ({"weight_map": {"w": "../m.safetensors"}}, "is not a plain file name"),
        ({"weight_map": {"w": ".."}}, "is not a plain file name"),
        ({"weight_map": {"w": 3}}, "is not a plain file name"),
        ({"weight_map": {"w": "absent.safetensors"}}, "no such file"),
        ({"weight_map": {"v": "s.safetensors"}}, 'tensor "v" is not in "s.safetensors"'),
    ],
)
def test_index_that_cannot_be(tmp_path: Path, index: Any, text: str) -> None:
    """An index cannot name files outside of its directory."""
    (tmp_path / "s.safetensors").write_bytes(file_of({"w": ENTRY}, bytes(8)))
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(tfckpt.CheckpointError, match=text):
        open_source(str(tmp_path / "m.safetensors.index.json"))


def test_tensors_that_the_index_does_not_name_are_reported(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_bytes(safetensors.torch.save({"w": torch.zeros(1), "x": torch.zeros(1)}))
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "s.safetensors"}}))
    report = convert(tmp_path, tmp_path / "out.pt")
    assert report.skipped == {"x": "in a shard, but not in the index"} and len(report.converted) == 1


def test_split_is_greedy_in_order() -> None:
    """Like huggingface_hub: a tensor that does not fit begins a new shard, and a larger one gets its own."""
    assert split({"a": 4, "b": 4, "c": 4}, 8) == [["a", "b"], ["c"]]
    assert split({"a": 4, "big": 9, "b": 4, "c": 1}, 8) == [["big"], ["a", "b"], ["c"]]
    assert split({"a": 4, "b": 8}, 8) == [["a"], ["b"]]
    assert split({"a": 4}, None) == [["a"]]
    assert split({}, 8) == [[]]


def test_sizes_are_decimal() -> None:
    assert [parse_size(text) for text in ("5GB", "1.5 kb", "200", "2TB")] == [5 * 10**9, 1500, 200, 2 * 10**12]
    for wrong in ("", "GB", "-1GB", "5GiB", "0", "1e3"):
        with pytest.raises(tfckpt.InvalidArgumentError, match="expected a number of KB, MB, GB or TB"):
            parse_size(wrong)
