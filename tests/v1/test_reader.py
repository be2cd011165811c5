"""Reading version 1 checkpoints: slices across shards, damage of every kind, and invalid contents."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torch_tfckpt._proto.saved_tensor_slice_pb2 import SavedTensorSlices
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.partition import Partition
from torch_tfckpt.format.table import Table, TableBuilder
from torch_tfckpt.format.tensor_bundle import BundleHeader
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.v1.reader import SlicesReader
from torch_tfckpt.v1.writer import SlicesWriter


def box(text: str) -> TensorSlice:
    return TensorSlice.parse(text)


def write(path: Path, *entries: tuple[Any, ...]) -> str:
    """Write a file of (name, value) or (name, value, shape, part)."""
    with SlicesWriter(LOCAL, str(path)) as writer:
        for name, value, *rest in entries:
            shape, part = (*rest, None, None)[:2]
            writer.add(name, value, shape=shape, part=None if part is None else box(part))
    return str(path)


def opened(*paths: str | Path) -> SlicesReader:
    return SlicesReader(LOCAL, [str(path) for path in paths])


def rewrite(path: str, edit: Callable[[dict[bytes, bytes]], object]) -> str:
    """Rewrite a file with the records that `edit` returns, in valid blocks."""
    data = Path(path).read_bytes()
    records = dict(Table(lambda offset, size: data[offset : offset + size], len(data)).items())
    edit(records)
    with Path(path).open("wb") as file:
        table = TableBuilder(file.write)
        for key, value in sorted(records.items()):
            table.add(key, value)
        table.finish()
    return path


def edit_meta(path: str, edit: Callable[[Any], object]) -> str:
    """Rewrite a file with other metadata; `edit` is passed the SavedTensorSliceMeta."""

    def change(records: dict[bytes, bytes]) -> None:
        message = SavedTensorSlices.FromString(records[b""])
        edit(message.meta)
        records[b""] = message.SerializeToString()

    return rewrite(path, change)


def equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(value, torch.Tensor) and value.dtype == expected.dtype and torch.equal(value, expected)
    return isinstance(value, np.ndarray) and value.shape == expected.shape and bool((value == expected).all())


# Slices across shards.


@pytest.fixture(params=[torch.float32, torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8], ids=str)
def with_hole(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], torch.Tensor]:
    """Two shards that contain all of a [4, 5] tensor except elements 13 and 14; and the tensor."""
    whole = torch.arange(20).reshape(4, 5).to(request.param)
    shards = [
        write(tmp_path / "v1_0", ("test", whole[:2], (4, 5), "0,2:-")),
        write(
            tmp_path / "v1_1",
            ("test", whole[2:, :3], (4, 5), "2,2:0,3"),
            ("test", whole[3:, 3:], (4, 5), "3,1:3,2"),
        ),
    ]
    return shards, whole


def test_shards_are_assembled_into_one_tensor(with_hole: tuple[list[str], torch.Tensor]) -> None:
    # CASES 135 and 137, from tensor_slice_reader_test.cc SimpleFloat, SimpleInt32 ... SimpleUint8
    shards, whole = with_hole
    with opened(*shards) as reader:
        assert reader.keys() == ["test"]
        assert "test" in reader
        assert "don't exist" not in reader
        assert reader.shape("test") == (4, 5)
        assert ELEMENTS[reader.dtype("test")].torch == whole.dtype
        assert [str(part) for part in reader.slices("test")] == ["0,2:-", "2,2:0,3", "3,1:3,2"]
        assert reader.locate("test") == shards
        assert reader.nbytes("test") == 20 * whole.dtype.itemsize


def test_slices_are_read_around_a_hole(with_hole: tuple[list[str], torch.Tensor]) -> None:
    # CASES 136 and 137: an exact slice, a part of one, and one that includes the hole
    shards, whole = with_hole
    with opened(*shards) as reader:
        assert equal(reader.read_slice("test", box("0,2:-")), whole[:2])
        assert equal(reader.read_slice("test", box("1,1:-")), whole[1:2])
        assert equal(reader.read_slice("test", box("0,4:1,2")), whole[:, 1:3])
        assert equal(reader.read_slice("test", box("3,1:-")), whole[3:])
        calls: list[Callable[[], object]] = [
            lambda: reader.read_slice("test", box("1,2:2,3")),
            lambda: reader.read("test"),
        ]
        for call in calls:
            with pytest.raises(
                InvalidArgumentError, match=r"Does not have sufficient slices .* contain .* of .* elements"
            ):
                call()
        with pytest.raises(InvalidArgumentError, match="Extent in dimension 0 out of bounds"):
            reader.read_slice("test", box("3,2:-"))
        assert "Does not have sufficient slices" in str(reader.check().damage[0])


QUERIES = [box("0,2:-"), box("2,2:0,3"), box("3,1:3,2")]


def test_a_slice_is_assembled_from_two_stored_ones(tmp_path: Path) -> None:
    # CASES 184, from tensor_slice_set_test.cc QueryTwoD; slices of CASES 135
    whole = torch.arange(20.0).reshape(4, 5)
    path = write(tmp_path / "v1", *(("t", whole[part.to_index()], (4, 5), str(part)) for part in QUERIES))
    with opened(path) as reader:
        assert equal(reader.read_slice("t", box("1,2:0,3")), torch.tensor([[5.0, 6, 7], [10, 11, 12]]))
        with pytest.raises(InvalidArgumentError, match="slice_spec: 1,2:2,3"):
            reader.read_slice("t", box("1,2:2,3"))


@pytest.mark.parametrize(
    ("want", "numbers"), [("0,2:-", {0}), ("1,1:-", {0}), ("2,1:1,2", {1}), ("1,2:0,3", {0, 1}), ("3,1:-", {1, 2})]
)
def test_parts_of_lists_the_needed_slices(want: str, numbers: set[int]) -> None:
    # CASES 185, from tensor_slice_set_test.cc QueryMetaTwoD
    assert {part.number for part in Partition("t", (4, 5), QUERIES).parts_of(box(want))} == numbers


def test_a_slice_with_a_hole_is_refused() -> None:
    # CASES 185
    with pytest.raises(InvalidArgumentError):
        Partition("t", (4, 5), QUERIES).parts_of(box("1,2:2,3"))


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_any_slice_of_any_partition(tmp_path: Path, data: st.DataObject) -> None:
    """A tensor split along both dimensions and over shards: every slice reads as if it were not split."""
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    whole = torch.arange(shape[0] * shape[1], dtype=torch.int16).reshape(shape)
    cuts = [sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=2))}) for n in shape]
    shards: list[list[tuple[Any, ...]]] = [[], []]
    for top, bottom in zip(cuts[0], cuts[0][1:], strict=False):
        for left, right in zip(cuts[1], cuts[1][1:], strict=False):
            text = f"{top},{bottom - top}:{left},{right - left}"
            shards[data.draw(st.integers(0, 1))].append(("t", whole[top:bottom, left:right], shape, text))
    paths = [write(tmp_path / f"v1-{number}", ("other", whole), *shard) for number, shard in enumerate(shards)]
    rows, columns = (data.draw(st.integers(0, n - 1)) for n in shape)
    height, width = data.draw(st.integers(1, shape[0] - rows)), data.draw(st.integers(1, shape[1] - columns))
    with opened(*paths) as reader:
        assert equal(reader.read("t"), whole)
        wanted = box(f"{rows},{height}:{columns},{width}")
        assert equal(reader.read_slice("t", wanted), whole[wanted.to_index()])
        assert (reader.slices("t") == ()) == (len(shards[0]) + len(shards[1]) == 1)


def test_strings_are_assembled_too(tmp_path: Path) -> None:
    """TensorFlow refuses this; an object array keeps shape and bytes."""
    whole = np.array([[b"a", b""], [b"\xff\x00", b"dd"], [b"e", b"f" * 300]], dtype=object)
    path = write(tmp_path / "v1", ("s", whole[:1], (3, 2), "0,1:-"), ("s", whole[1:], (3, 2), "1,2:-"), ("one", b"x"))
    with opened(path) as reader:
        assert equal(reader.read("s"), whole)
        assert equal(reader.read_slice("s", box("0,2:1,1")), whole[:2, 1:])
        assert reader.read("one").shape == ()
        assert reader.read("one").item() == b"x"
        assert reader.nbytes("s") > 306


# Reading into tensors.


@pytest.fixture
def rows(tmp_path: Path) -> SlicesReader:
    """A tensor [4, 5] of halves in two slices, the same one whole, and strings."""
    whole = torch.arange(20, dtype=torch.float16).reshape(4, 5)
    path = write(
        tmp_path / "v1",
        ("cut", whole[:3], (4, 5), "0,3:-"),
        ("cut", whole[3:], (4, 5), "3,1:-"),
        ("whole", whole),
        ("flags", torch.tensor([True, False, True])),
        ("none", torch.zeros(0, 3)),
        ("text", [b"a", b"b"]),
    )
    return opened(path)


@pytest.mark.parametrize("name", ["cut", "whole"])
def test_out_may_have_any_strides(rows: SlicesReader, name: str) -> None:
    expected = torch.arange(20, dtype=torch.float16).reshape(4, 5)
    targets = [
        torch.zeros(4, 5, dtype=torch.float16),
        torch.zeros(5, 4, dtype=torch.float16).T,
        torch.zeros(8, 10, dtype=torch.float16)[::2, ::2],
        torch.nn.Parameter(torch.zeros(4, 5, dtype=torch.float16)),
    ]
    for out in targets:
        assert rows.read(name, out) is out
        assert torch.equal(out, expected)


def test_bools_and_empty_tensors_are_read_into_out(rows: SlicesReader) -> None:
    flags = torch.zeros(3, dtype=torch.bool)
    assert equal(rows.read("flags", flags), torch.tensor([True, False, True]))
    assert rows.read("none", torch.zeros(0, 3)).shape == rows.read("none").shape == (0, 3)


def test_an_out_that_does_not_fit_is_untouched(rows: SlicesReader) -> None:
    for out in (torch.full((5, 4), 7.0, dtype=torch.float16), torch.full((4, 5), 7.0)):
        with pytest.raises(InvalidArgumentError, match='tensor "cut": `out` is'):
            rows.read("cut", out)
        assert torch.all(out == 7)
    with pytest.raises(InvalidArgumentError, match='tensor "text" contains strings'):
        rows.read("text", torch.zeros(2))


def test_values_share_no_memory(rows: SlicesReader) -> None:
    """Later reads do not change values returned earlier."""
    first = rows.read("whole")
    assert isinstance(first, torch.Tensor)
    first.zero_()
    assert equal(rows.read("whole"), torch.arange(20, dtype=torch.float16).reshape(4, 5))


def test_read_all_keeps_the_given_order(rows: SlicesReader) -> None:
    assert list(rows.read_all(["whole", "flags", "cut", "flags"])) == ["whole", "flags", "cut"]
    with pytest.raises(NotFoundError, match="absent"):
        rows.read_all(["whole", "absent"])


def test_many_threads_can_share_a_reader(tmp_path: Path) -> None:
    values = {f"t{n}": torch.full((5000,), float(n)) for n in range(100)}
    with opened(write(tmp_path / "v1", *values.items())) as reader, ThreadPoolExecutor(8) as pool:
        for name, value in zip(values, pool.map(reader.read, values), strict=True):
            assert equal(value, values[name])


def test_reading_a_closed_reader_raises(rows: SlicesReader) -> None:
    rows.close()
    rows.close()
    calls: list[Callable[[], object]] = [lambda: rows.read("whole"), lambda: rows.nbytes("text"), rows.check]
    for call in calls:
        with pytest.raises(FailedPreconditionError, match="the reader is closed"):
            call()
    assert rows.shape("whole") == (4, 5)


def test_open_files_outlive_their_names(tmp_path: Path) -> None:
    """A writer that replaces or deletes the checkpoint does not disturb an open reader."""
    paths = [tmp_path / "v1-00000-of-00002", tmp_path / "v1-00001-of-00002"]
    for number, path in enumerate(paths):
        write(path, (f"t{number}", torch.full((3,), float(number))))
    with opened(*paths) as reader:
        write(paths[0], ("t0", torch.full((3,), 9.0)))
        paths[1].unlink()
        assert [reader.read(f"t{number}").tolist() for number in range(2)] == [[0, 0, 0], [1, 1, 1]]
        assert reader.check().damage == []


# Names.


def test_an_unknown_name_gets_a_hint(tmp_path: Path) -> None:
    path = write(tmp_path / "v1", ("dense/kernel", torch.zeros(1)), ("dense/bias", torch.zeros(1)))
    with opened(path) as reader:
        for call in (reader.read, reader.shape, reader.dtype, reader.slices, reader.nbytes, reader.locate):
            with pytest.raises(NotFoundError) as raised:
                call("dense/kernle")
            assert str(raised.value) == (
                f'{path}: no tensor "dense/kernle": dense/kernle not found in checkpoint. Closest: "dense/kernel". '
                f"`tfckpt ls {path}` lists all 2."
            )


def test_keys_are_sorted_by_their_bytes(tmp_path: Path) -> None:
    names = ["b", "\U00010000", "", "a\x00b", "\uffff", "a"]
    with opened(write(tmp_path / "v1", *((name, torch.tensor(1)) for name in names))) as reader:
        assert reader.keys() == sorted(names, key=str.encode)
        assert all(equal(reader.read(name), torch.tensor(1)) for name in names)


def test_a_whole_tensor_has_no_slices_in_either_spelling(tmp_path: Path) -> None:
    value = torch.zeros(2, 3)
    with opened(write(tmp_path / "v1", ("a", value), ("b", value, (2, 3), "0,2:0,3"))) as reader:
        assert reader.slices("a") == reader.slices("b") == ()
        assert equal(reader.read("b"), value)
        assert equal(reader.read_slice("b", box("-:1,2")), value[:, 1:])


# Opening.


def test_missing_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="Failed to find any matching files"):
        SlicesReader(LOCAL, [])
    path = write(tmp_path / "v1", ("x", torch.zeros(1)))
    with pytest.raises(NotFoundError, match="absent: no such file"):
        opened(path, tmp_path / "absent")


def test_messages_show_the_pattern_of_shards(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"v1-0000{n}-of-00002", (f"t{n}", torch.zeros(1))) for n in (1, 0)]
    with opened(*paths) as reader:
        assert reader.path == str(tmp_path / "v1-?????-of-00002")
        assert reader.version == 1
    with opened(paths[0]) as reader:
        assert reader.path == paths[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file is too short to be an sstable"),
        (b"garbage" * 100, "not an sstable (bad magic number)"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "v1"
    path.write_bytes(content)
    with pytest.raises(DataLossError) as raised:
        opened(path)
    assert f"{path}: Unable to open table file {path}: {message}" in str(raised.value)
    assert "damaged, partly copied" in str(raised.value)


def test_an_index_of_version_2_is_refused(tmp_path: Path) -> None:
    """TensorFlow opens it as an empty checkpoint."""
    path = str(tmp_path / "model.index")
    write(tmp_path / "model.index", ("x", torch.zeros(1)))
    rewrite(path, lambda records: records.update({b"": BundleHeader(1).encode()}))
    with pytest.raises(DataLossError) as raised:
        opened(path)
    assert f"Failed to find the saved tensor slices at the beginning of the checkpoint file: {path}" in str(
        raised.value
    )
    assert "index of a version 2 checkpoint; open the checkpoint by its prefix" in str(raised.value)


def test_a_table_without_metadata_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "v1", ("x", torch.zeros(1)))
    with pytest.raises(DataLossError, match="Failed to find the saved tensor slices"):
        opened(rewrite(path, lambda records: records.pop(b"")))


def test_files_are_closed_when_one_is_damaged(tmp_path: Path) -> None:
    good = write(tmp_path / "good", ("x", torch.zeros(1)))
    (tmp_path / "bad").write_bytes(b"bad")
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    with pytest.raises(DataLossError):
        opened(good, tmp_path / "bad")
    assert len(os.listdir("/proc/self/fd") if before else []) == len(before)


# Invalid metadata.


def two(tmp_path: Path) -> str:
    """Write a file with tensors "bad" and "good"."""
    return write(tmp_path / "v1", ("bad", torch.arange(6).reshape(2, 3)), ("good", torch.tensor([1.0])))


@pytest.mark.parametrize(
    ("number", "name", "error", "message"),
    [
        (0, "DT_INVALID", DataLossError, "the metadata contains no element type"),
        (103, "DT_INT32_REF", UnimplementedError, "version 1 files cannot store values of type DT_INT32_REF"),
        (77, "DT_77", UnimplementedError, "version 1 files cannot store values of type DT_77"),
        (14, "DT_BFLOAT16", UnimplementedError, "version 1 files cannot store values of type DT_BFLOAT16"),
    ],
)
def test_an_unsupported_type_affects_one_tensor(
    tmp_path: Path, number: int, name: str, error: type[Exception], message: str
) -> None:
    # CASES 138, from tensor_slice_reader_test.cc MissingTensorType, UnsupportedTensorType
    path = edit_meta(two(tmp_path), lambda meta: setattr(meta.tensor[0], "type", number))
    with opened(path) as reader:
        assert "bad" in reader
        assert reader.shape("bad") == (2, 3)
        assert reader.dtype("bad").name == name
        assert reader.nbytes("bad") > 0
        with pytest.raises(error) as raised:
            reader.read("bad")
        assert f'{path}: tensor "bad": ' in str(raised.value)
        assert message in str(raised.value)
        assert equal(reader.read("good"), torch.tensor([1.0]))
        assert ("bad" in reader.check().damaged) == (error is DataLossError)


def test_a_negative_dimension_makes_the_checkpoint_unreadable(tmp_path: Path) -> None:
    # CASES 139, from tensor_slice_reader_test.cc NegativeTensorShapeDimension
    path = edit_meta(two(tmp_path), lambda meta: setattr(meta.tensor[0].shape.dim[0], "size", -1))
    with pytest.raises(DataLossError, match="Invalid tensor shape"):
        opened(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = edit_meta(two(tmp_path), lambda meta: setattr(meta.versions, "min_consumer", 2))
    with pytest.raises(InvalidArgumentError, match=r"v1: .*min consumer version 2 above current version 1"):
        opened(path)


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            ("bad", torch.ones(3, 3), (5, 3), "2,3:-"),
            "Incompatible tensor shapes detected .* existing = .4,3., new = .5,3.",
        ),
        (("bad", ONES.int(), (4, 3), "2,2:-"), "Incompatible tensor types detected .* existing = float, new = int32"),
        (("bad", ONES, (4, 3), "1,2:-"), "Overlapping slices: existing slice = 0,2:-, new slice = 1,2:-"),
        (("bad", ONES, (4, 3), "0,2:-"), "Overlapping slices: existing slice = 0,2:-, new slice = 0,2:-"),
    ],
    ids=["shapes", "types", "overlap", "twice"],
)
def test_contradicting_shards_affect_one_tensor(tmp_path: Path, second: Any, message: str) -> None:
    """TensorFlow refuses the whole checkpoint."""
    first = write(tmp_path / "v1_0", ("bad", ONES, (4, 3), "0,2:-"), ("good", ONES))
    with opened(first, write(tmp_path / "v1_1", second)) as reader:
        for _ in range(2):
            with pytest.raises(DataLossError, match=f'tensor "bad": {message}'):
                reader.read("bad")
        assert equal(reader.read("good"), ONES)
        assert (reader.check().good, reader.check().damaged) == (["good"], ["bad"])


def test_a_slice_outside_its_tensor_affects_one_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "v1", ("bad", ONES, (4, 3), "2,2:-"), ("good", ONES))
    edit_meta(path, lambda meta: setattr(meta.tensor[0].shape.dim[0], "size", 3))
    with opened(path) as reader:
        assert len(reader.slices("bad")) == 1
        with pytest.raises(DataLossError, match="Extent in dimension 0 out of bounds"):
            reader.read("bad")
        assert equal(reader.read("good"), ONES)
        assert reader.check().damaged == ["bad"]


def test_no_memory_is_allocated_for_missing_elements(tmp_path: Path) -> None:
    """Shapes of 2**50 elements, whole and in slices that claim to cover them."""

    def inflate(meta: Any) -> None:
        meta.tensor[0].shape.dim[0].size = 2**50
        meta.tensor[1].shape.dim[0].size = 2**50
        meta.tensor[1].slice[1].extent[0].length = 2**50 - 1

    path = write(
        tmp_path / "v1",
        ("whole", torch.zeros(4, dtype=torch.int8)),
        ("cut", torch.zeros(1), (4,), "0,1"),
        ("cut", torch.zeros(3), (4,), "1,3"),
    )
    with opened(edit_meta(path, inflate)) as reader:
        assert reader.shape("cut") == (2**50,)
        for name in ("whole", "cut"):
            with pytest.raises(
                DataLossError, match=f'tensor "{name}": .* takes at least .* bytes, but the files have only'
            ):
                reader.read(name)
        assert set(reader.check().damaged) == {"whole", "cut"}


@pytest.mark.parametrize("rank", [65, 254])
def test_strings_of_many_dimensions_are_unsupported(tmp_path: Path, rank: int) -> None:
    """torch supports such shapes, numpy does not."""
    path = write(tmp_path / "v1", ("t", torch.ones([1] * rank)), ("s", b"x"))

    def stretch(records: dict[bytes, bytes]) -> None:
        message = SavedTensorSlices.FromString(records[b""])
        message.meta.tensor[1].shape.CopyFrom(message.meta.tensor[0].shape)
        message.meta.tensor[1].slice[0].CopyFrom(message.meta.tensor[0].slice[0])
        records[b""] = message.SerializeToString()
        [record] = [value for key, value in records.items() if key.startswith(b"\x00s")]
        [key] = [key for key in records if key.startswith(b"\x00t")]
        records[key.replace(b"\x00t", b"\x00s", 1)] = record

    with opened(rewrite(path, stretch)) as reader:
        assert equal(reader.read("t"), torch.ones([1] * rank))
        with pytest.raises(UnimplementedError, match='tensor "s": numpy cannot hold shape'):
            reader.read("s")


# Damaged bytes.


def test_a_damaged_block_is_reported_with_place_and_checksums(tmp_path: Path) -> None:
    """Three blocks with the middle one damaged: one tensor is lost, and the error locates the damage."""
    values = {name: torch.arange(200_000, dtype=torch.float32) for name in ("a", "b", "c")}
    path = Path(write(tmp_path / "v1", *values.items()))
    data = bytearray(path.read_bytes())
    data[1_000_000] ^= 1
    path.write_bytes(data)
    seen: list[int] = []
    with opened(path) as reader:
        with pytest.raises(DataLossError) as raised:
            reader.read("b")
        assert str(raised.value).startswith(f'{path}: tensor "b": data block ')
        assert "block checksum mismatch, stored 0x" in str(raised.value)
        assert "Copy it again" in str(raised.value)
        assert equal(reader.read("c"), values["c"])
        found = reader.check(seen.append)
    assert found.good == ["a", "c"]
    [damage] = found.damage
    assert (damage.name, damage.file) == ("b", str(path))
    assert damage.start < 1_000_000 < damage.end
    assert damage.end - damage.start < 801_000
    assert damage.stored is not None
    assert damage.computed is not None
    assert f"stored {damage.stored:#010x}, computed {damage.computed:#010x}" in damage.problem
    assert str(damage).startswith(f'{path}, bytes {damage.start}:{damage.end}: tensor "b": ')
    assert 0.99 * len(data) < sum(seen) <= len(data)


def test_every_tensor_in_a_damaged_block_is_reported(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "v1", ("a", ONES), ("b", torch.zeros(200_000)), ("c", ONES), ("d", ONES)))
    data = bytearray(path.read_bytes())
    with opened(path) as reader:
        data[-150] ^= 1  # in the last data block, which contains "c" and "d"
        path.write_bytes(data)
        found = reader.check()
    assert (found.good, found.damaged) == (["a", "b"], ["c", "d"])
    assert all(damage.stored != damage.computed for damage in found.damage)


def test_missing_or_wrong_records_are_reported(tmp_path: Path) -> None:
    """Valid blocks around a missing record, one with too few values, and one of another tensor."""
    path = write(tmp_path / "v1", *((name, ONES) for name in ("gone", "good", "renamed", "short")))

    def damage(records: dict[bytes, bytes]) -> None:
        key = {key[1:].partition(b"\0")[0]: key for key in records}
        del records[key[b"gone"]]
        records[key[b"renamed"]] = records[key[b"renamed"]].replace(b"renamed", b"RENAMED")
        short = SavedTensorSlices.FromString(records[key[b"short"]])
        del short.data.data.float_val[5:]
        records[key[b"short"]] = short.SerializeToString()

    with opened(rewrite(path, damage)) as reader:
        for name, message in [
            ("gone", "the metadata lists slice -:-, but the file has no record of it"),
            ("short", "number of stored values: expected 6, found 5"),
        ]:
            with pytest.raises(DataLossError) as raised:
                reader.read(name)
            assert f'{path}: tensor "{name}": {message}' in str(raised.value)
        assert equal(reader.read("renamed"), ONES)  # as in TensorFlow
        found = reader.check()
        assert (found.good, found.damaged) == (["good"], ["gone", "renamed", "short"])
        assert all(damage.stored is None for damage in found.damage)


def test_check_finds_damage_in_unused_bytes(tmp_path: Path) -> None:
    """Reading does not use the padding of the footer, but a check verifies it."""
    path = Path(write(tmp_path / "v1", ("x", ONES)))
    data = bytearray(path.read_bytes())
    data[-12] = 1
    path.write_bytes(data)
    with opened(path) as reader:
        assert equal(reader.read("x"), ONES)
        found = reader.check()
    assert found.good == ["x"]
    assert [(damage.name, damage.file) for damage in found.damage] == [("", str(path))]
    assert "padding of the footer" in found.damage[0].problem


def test_a_file_truncated_while_open_is_damage(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "v1", ("x", torch.zeros(300_000)), ("y", ONES)))
    with opened(path) as reader:
        os.truncate(path, 1000)
        assert set(reader.check().damaged) == {"x", "y"}
        with pytest.raises(DataLossError, match="Read less bytes than requested"):
            reader.read("x")


SMALL: dict[str, Any] = {
    "f": torch.tensor([[1.5, -2.0]]),
    "i": torch.tensor([3, -4], dtype=torch.int32),
    "s": np.array([b"hi", b""], dtype=object),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A path to write to, and the bytes of a valid file with `SMALL` and a tensor in two slices."""
    path = tmp_path_factory.mktemp("small") / "v1"
    cut = SMALL["f"]
    write(path, *SMALL.items(), ("cut", cut[:, :1], (1, 2), "-:0,1"), ("cut", cut[:, 1:], (1, 2), "-:1,1"))
    return path, path.read_bytes()


def read_everything(path: Path) -> dict[str, Any]:
    """Read everything possible, ignoring CheckpointErrors; other exceptions are raised."""
    values = {}
    try:
        reader = opened(path)
    except CheckpointError:
        return {}
    with reader:
        reader.check()
        for name in reader.keys():
            for call in (reader.slices, reader.nbytes, reader.locate, reader.dtype):
                try:
                    call(name)
                except CheckpointError as error:
                    assert str(path) in str(error)
            try:
                values[name] = reader.read(name)
            except CheckpointError as error:
                assert str(path) in str(error)
    return values


def test_a_flipped_byte_never_changes_a_value(small: tuple[Path, bytes]) -> None:
    """Every byte in turn: it raises an error, or no value depends on the byte."""
    path, good = small
    expected = {**SMALL, "cut": SMALL["f"]}
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes((good[at] ^ 0x41,)) + good[at + 1 :])
        for name, value in read_everything(path).items():
            assert equal(value, expected[name])


def test_a_truncated_file_is_refused(small: tuple[Path, bytes]) -> None:
    path, good = small
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(DataLossError, match="Unable to open table file"):
            opened(path)


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_mutated_records_raise_only_our_errors(small: tuple[Path, bytes], data: st.DataObject) -> None:
    """Records and metadata mutated in blocks with valid checksums raise nothing but CheckpointErrors."""
    path, good = small
    path.write_bytes(good)

    def mutate(records: dict[bytes, bytes]) -> None:
        keys: Sequence[bytes] = sorted(records)
        for _ in range(data.draw(st.integers(1, 4))):
            key = keys[data.draw(st.integers(0, len(keys) - 1))]
            record = bytearray(records[key])
            record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
            records[key] = bytes(record)

    rewrite(str(path), mutate)
    read_everything(path)


def test_a_data_type_is_reported_with_tensorflows_number(tmp_path: Path) -> None:
    """Quantized integers are plain integers in torch, but keep their type name here."""
    with SlicesWriter(LOCAL, str(tmp_path / "v1")) as writer:
        writer.add("q", torch.tensor([-1, 5], dtype=torch.int8), dtype=DataType.DT_QINT8)
    with opened(tmp_path / "v1") as reader:
        assert reader.dtype("q") is DataType.DT_QINT8
        assert equal(reader.read("q"), torch.tensor([-1, 5], dtype=torch.int8))
