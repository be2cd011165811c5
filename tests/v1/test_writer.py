"""Writing version 1 files: TensorFlow's bytes, and atomic publication."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from v1_dictionaries import DICTIONARIES, Entry, assembled, raw_tensor

from torch_tfckpt._proto.saved_tensor_slice_pb2 import SavedTensorSlices
from torch_tfckpt.errors import (
    CheckpointError,
    FailedPreconditionError,
    IncompleteSaveError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from torch_tfckpt.format import saved_tensor_slices
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice, encode_slice_key
from torch_tfckpt.storage.local import LOCAL, LocalOutput, LocalStorage
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.v1.reader import SlicesReader
from torch_tfckpt.v1.writer import SlicesWriter

# Dumped from tf.raw_ops.Save of TensorFlow 2.21.
ONE_SCALAR = bytes.fromhex(
    "00 00 11 0a 0f 0a 09 0a 01 78 12 00 18 01 22 00 12 02 08 01"
    "00 05 0f 00 78 00 01 00 12 0d 0a 01 78 12 00 1a 06 2a 04 00 00 80 3f 00 00 00 00 01 00 00 00 00 a3 07 66 c4"
    "00 00 00 00 01 00 00 00 00 c0 f2 a1 b0"
    "00 01 02 01 00 33 00 00 00 00 01 00 00 00 00 ab 34 1a 1c"
    "38 08 45 0e" + 36 * "00" + "57 fb 80 8b 24 75 47 db"
)


def box(text: str) -> TensorSlice:
    return TensorSlice.parse(text)


def records(path: Path) -> dict[bytes, SavedTensorSlices]:
    """Return all records of a file, parsed by protobuf."""
    data = path.read_bytes()
    table = Table(lambda offset, size: data[offset : offset + size], len(data))
    return {key: SavedTensorSlices.FromString(value) for key, value in table.items()}


def write(path: Path, entries: Sequence[Entry]) -> None:
    with SlicesWriter(LOCAL, str(path)) as writer:
        for entry in entries:
            writer.add(entry.name, entry.value, shape=entry.shape, part=entry.part, dtype=entry.dtype)


def test_a_scalar_is_byte_identical_to_tensorflows_file(tmp_path: Path) -> None:
    with SlicesWriter(LOCAL, str(tmp_path / "one")) as writer:
        writer.add("x", torch.tensor(1.0))
    assert (tmp_path / "one").read_bytes() == ONE_SCALAR
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_metadata_and_records(tmp_path: Path) -> None:
    # CASES 141, from tensor_slice_writer_test.cc SimpleWrite
    path = tmp_path / "checkpoint"
    with SlicesWriter(LOCAL, str(path)) as writer:
        first, second = torch.arange(5, dtype=torch.int32), torch.arange(10, 15, dtype=torch.int32)
        writer.add("test", first.reshape(5, 1), shape=(5, 10), part=box("-:0,1"))
        writer.add("test", second.reshape(5, 1), shape=(5, 10), part=box("-:3,1"))
        writer.add("AA", torch.tensor([[1.25, 2.5], [3, 4], [5, 6]]))
        writer.add("int64", torch.arange(5).reshape(5, 1), shape=(5, 10), part=box("-:3,1"))
        writer.add("int16", torch.arange(-2, 3, dtype=torch.int16).reshape(5, 1), shape=(5, 10), part=box("-:3,1"))
    stored = records(path)
    meta = stored.pop(b"")
    assert not meta.HasField("data")
    assert [(tensor.name, int(tensor.type)) for tensor in meta.meta.tensor] == [
        ("test", DataType.DT_INT32),
        ("AA", DataType.DT_FLOAT),
        ("int64", DataType.DT_INT64),
        ("int16", DataType.DT_INT16),
    ]
    assert [[dim.size for dim in tensor.shape.dim] for tensor in meta.meta.tensor] == [
        [5, 10],
        [3, 2],
        [5, 10],
        [5, 10],
    ]
    slices = [[str(TensorSlice.from_proto(part)) for part in tensor.slice] for tensor in meta.meta.tensor]
    assert slices == [["-:0,1", "-:3,1"], ["-:-"], ["-:3,1"], ["-:3,1"]]
    assert (meta.meta.versions.producer, meta.meta.versions.min_consumer) == (1, 0)

    assert len(stored) == 5
    for name, part, field, expected in [
        ("test", "-:0,1", "int_val", [0, 1, 2, 3, 4]),
        ("test", "-:3,1", "int_val", [10, 11, 12, 13, 14]),
        ("AA", "-:-", "float_val", [1.25, 2.5, 3, 4, 5, 6]),
        ("int64", "-:3,1", "int64_val", [0, 1, 2, 3, 4]),
        ("int16", "-:3,1", "int_val", [-2, -1, 0, 1, 2]),
    ]:
        record = stored[encode_slice_key(name.encode(), box(part))]
        assert not record.HasField("meta")
        assert (record.data.name, TensorSlice.from_proto(record.data.slice)) == (name, box(part))
        assert [descriptor.name for descriptor, _ in record.data.data.ListFields()] == [field]
        assert list(getattr(record.data.data, field)) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(entries=DICTIONARIES)
def test_every_written_value_round_trips(tmp_path: Path, entries: list[Entry]) -> None:
    """Every writable dtype, whole and partitioned: all bits are preserved, in the full shape."""
    write(tmp_path / "v1", entries)
    expected = assembled(entries)
    with SlicesReader(LOCAL, [str(tmp_path / "v1")]) as reader:
        assert set(reader.keys()) == set(expected)
        assert {name: raw_tensor(reader.read(name), reader.dtype(name)) for name in expected} == expected
        assert reader.check().good == reader.keys()
        assert reader.check().damage == []


def test_every_kind_of_tensor_is_accepted(tmp_path: Path) -> None:
    """Strided, conjugated, negated, requiring gradients, numeric arrays, strings: their visible values are stored."""
    base = torch.tensor([[1 + 2j, 3 - 4j], [5j, -6]])
    values: dict[str, Any] = {
        "strided": torch.arange(12.0).reshape(3, 4)[:, ::2].T,
        "conjugated": base.conj(),
        "negated": base.conj().imag,
        "parameter": torch.nn.Parameter(torch.tensor([1.0, 2.0])),
        "array": np.arange(6, dtype=np.int64).reshape(2, 3),
        "text": "naïve",
    }
    with SlicesWriter(LOCAL, str(tmp_path / "v1")) as writer:
        for name, value in values.items():
            writer.add(name, value)
    with SlicesReader(LOCAL, [str(tmp_path / "v1")]) as reader:
        for name in ("strided", "conjugated", "negated", "parameter"):
            assert torch.equal(reader.read(name), values[name])  # type: ignore[arg-type]
        assert torch.equal(reader.read("array"), torch.arange(6).reshape(2, 3))  # type: ignore[arg-type]
        assert reader.read("text").item() == "naïve".encode()


def test_a_tensor_is_copied_when_it_is_added(tmp_path: Path) -> None:
    """Training may change it before the writer is finished."""
    weights = torch.ones(3)
    with SlicesWriter(LOCAL, str(tmp_path / "v1")) as writer:
        writer.add("w", weights)
        weights.zero_()
    with SlicesReader(LOCAL, [str(tmp_path / "v1")]) as reader:
        assert torch.equal(reader.read("w"), torch.ones(3))  # type: ignore[arg-type]


# Refused arguments.


@pytest.mark.parametrize(
    ("value", "dtype", "error", "message"),
    [
        (torch.zeros(1, dtype=torch.bfloat16), None, UnimplementedError, "Saving data type bfloat16 not yet supported"),
        (
            torch.zeros(1, dtype=torch.float8_e4m3fn),
            None,
            UnimplementedError,
            "Saving data type float8_e4m3fn not yet supported",
        ),
        (
            torch.zeros(1, dtype=torch.int16),
            DataType.DT_QINT16,
            UnimplementedError,
            "Saving data type qint16 not yet supported",
        ),
        (
            torch.zeros(1, dtype=torch.uint32),
            None,
            InvalidArgumentError,
            "Tensor slice serialization not implemented for dtype 22",
        ),
        (
            torch.zeros(1, dtype=torch.uint64),
            None,
            InvalidArgumentError,
            "Tensor slice serialization not implemented for dtype 23",
        ),
    ],
    ids=["bfloat16", "float8", "qint16", "uint32", "uint64"],
)
def test_types_that_version_1_lacks_are_refused(
    tmp_path: Path, value: torch.Tensor, dtype: DataType | None, error: type[Exception], message: str
) -> None:
    """TensorFlow's message and error class, with tensor, file and fix."""
    with pytest.raises(error) as raised, SlicesWriter(LOCAL, str(tmp_path / "v1")) as writer:
        writer.add("emb", value, dtype=dtype)
    text = str(raised.value)
    assert message in text
    assert f'{tmp_path}/v1: tensor "emb": ' in text
    assert "version 1 files cannot store" in text
    assert "write version 2" in text
    assert list(tmp_path.iterdir()) == []


def adds(*calls: tuple[Any, ...]) -> Callable[[SlicesWriter], None]:
    """Return a function that calls add("w", value, shape=..., part=...) for each argument."""

    def run(writer: SlicesWriter) -> None:
        for value, *rest in calls:
            shape, part = (*rest, None, None)[:2]
            writer.add("w", value, shape=shape, part=None if part is None else box(part))

    return run


ROWS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        # TensorFlow refuses the first two; for the next two it writes files that it cannot read.
        (
            adds((ROWS, (4, 3), "0,2:-"), (ROWS, (5, 3), "2,2:-")),
            "Mismatching shapes: existing tensor = [4,3], trying to add name w, shape = [5,3]",
        ),
        (
            adds((ROWS, (4, 3), "0,2:-"), (ROWS.int(), (4, 3), "2,2:-")),
            "Mismatching types: existing type = float, trying to add name w, type = int32",
        ),
        (adds((ROWS,), (ROWS,)), "Overlapping slices: existing slice = -:-, new slice = -:-"),
        (
            adds((ROWS, (4, 3), "0,2:-"), (ROWS, (4, 3), "1,2:-")),
            "Overlapping slices: existing slice = 0,2:-, new slice = 1,2:-",
        ),
        (
            adds((ROWS, (4, 3), "0,3:-")),
            "Slice in shape_and_slice specification does not match the shape of the tensor to  save: [4,3] 0,3:-, "
            "tensor: [2,3]",
        ),
        (adds((ROWS, (4, 3))), "does not match the shape of the tensor to  save: [4,3] -:-, tensor: [2,3]"),
        (adds((ROWS, (4, 3), "3,2:-")), "Extent in dimension 0 out of bounds: shape = [4,3], slice = 3,2:-"),
        (adds((ROWS, (4, 3), "0,2")), "Mismatching ranks: shape = [4,3], slice = 0,2"),
        (adds((ROWS, None, "0,2:-")), "slice 0,2:- was given without the shape of the full tensor"),
        (
            lambda writer: writer.add("w", ROWS[:0], shape=(4, 3), part=TensorSlice((Extent(0, 0), Extent(0, -1)))),
            "Expected non-negative start and positive length but got start = 0, length = 0",
        ),
        (lambda writer: writer.add("w\udc80", ROWS), "the name cannot be encoded as UTF-8"),
        (
            lambda writer: writer.add("w", np.array([1, b"x"], dtype=object)),
            "int is neither a tensor nor bytes nor str",
        ),
        (lambda writer: writer.add("w", ROWS, dtype=DataType.DT_INT32), "cannot be stored as DT_INT32"),
        (lambda writer: writer.add("w", ROWS.to("meta")), "is a meta tensor"),
    ],
)
def test_files_that_tensorflow_could_not_read_are_not_written(
    tmp_path: Path, action: Callable[[SlicesWriter], None], message: str
) -> None:
    with pytest.raises(InvalidArgumentError) as raised, SlicesWriter(LOCAL, str(tmp_path / "v1")) as writer:
        action(writer)
    assert message in str(raised.value)
    assert str(tmp_path / "v1") in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_slice_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # CASES 86, from saver_large_variable_test.py; scaled down
    monkeypatch.setattr(saved_tensor_slices, "MAX_MESSAGE_BYTES", 2000)
    with pytest.raises(InvalidArgumentError) as raised, SlicesWriter(LOCAL, str(tmp_path / "v1")) as writer:
        writer.add("fits", torch.zeros(900, dtype=torch.bool))
        writer.add("var", torch.zeros(1000, dtype=torch.bool))
    # 1000 elements, 1 KiB, and 9 bytes of name and slice.
    assert str(raised.value) == (
        f'{tmp_path}/v1: tensor "var": Tensor slice is too large to serialize (conservative estimate: 2033 bytes)'
    )


def test_the_directory_is_not_created(tmp_path: Path) -> None:
    """As in TensorFlow; version 2 creates it."""
    with pytest.raises(NotFoundError) as raised, SlicesWriter(LOCAL, str(tmp_path / "no" / "v1")) as writer:
        writer.add("x", ROWS)
    assert f'the directory "{tmp_path}/no" does not exist' in str(raised.value)


# States and publication.


def test_calls_after_the_end_raise_with_the_state(tmp_path: Path) -> None:
    writer = SlicesWriter(LOCAL, str(tmp_path / "v1"))
    writer.finish()
    with pytest.raises(FailedPreconditionError, match=r"v1: cannot add: SlicesWriter is closed \(finished\)"):
        writer.add("x", ROWS)
    with pytest.raises(FailedPreconditionError, match=r"cannot finish: SlicesWriter is closed \(finished\)"):
        writer.finish()
    writer.abandon()
    assert (tmp_path / "v1").exists()
    abandoned = SlicesWriter(LOCAL, str(tmp_path / "other"))
    abandoned.abandon()
    with pytest.raises(FailedPreconditionError, match=r"cannot finish: SlicesWriter is closed \(abandoned\)"):
        abandoned.finish()


def test_a_file_without_tensors_is_a_checkpoint(tmp_path: Path) -> None:
    with SlicesWriter(LOCAL, str(tmp_path / "v1")):
        pass
    with SlicesReader(LOCAL, [str(tmp_path / "v1")]) as reader:
        assert reader.keys() == []


def test_an_exception_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "v1").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), SlicesWriter(LOCAL, str(tmp_path / "v1")) as writer:
        writer.add("x", ROWS)
        raise KeyboardInterrupt
    assert (tmp_path / "v1").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


class FullDisk(LocalStorage):
    """Fails at the n-th step that changes anything on disk; records the steps."""

    def __init__(self, fail_at: int) -> None:
        self.fail_at, self.steps = fail_at, list[str]()

    def step(self, what: str) -> None:
        self.steps.append(what)
        if len(self.steps) == self.fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path: str) -> LocalOutput:
        self.step("create")
        storage = self

        class Output(LocalOutput):
            def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
                storage.step("write")
                super().write(offset, buffers)

            def sync(self) -> None:
                storage.step("sync")
                super().sync()

        return Output(path)

    def replace(self, source: str, target: str) -> None:
        self.step("replace")
        super().replace(source, target)

    def sync_directory(self, path: str) -> None:
        self.step("sync_directory")
        super().sync_directory(path)


# Data, metaindex, index block and footer.
STEPS = ["create", "write", "write", "write", "write", "sync", "replace", "sync_directory"]


def test_the_file_is_durable_before_it_is_published(tmp_path: Path) -> None:
    storage = FullDisk(fail_at=0)
    with SlicesWriter(storage, str(tmp_path / "v1")) as writer:
        writer.add("x", ROWS)
    assert storage.steps == STEPS


@pytest.mark.parametrize("fail_at", range(1, len(STEPS)))
def test_a_failure_at_any_step_keeps_the_old_file(tmp_path: Path, fail_at: int) -> None:
    (tmp_path / "v1").write_bytes(b"old")
    with (
        pytest.raises(IncompleteSaveError, match="No space left on device") as raised,
        SlicesWriter(FullDisk(fail_at), str(tmp_path / "v1")) as writer,
    ):
        writer.add("x", ROWS)
    assert isinstance(raised.value.failures[0], OSError)
    assert (tmp_path / "v1").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FailedPreconditionError, match="abandoned"):
        writer.finish()


def test_every_error_is_a_checkpoint_error(tmp_path: Path) -> None:
    """Invalid arguments of every kind raise a CheckpointError, not an internal exception."""
    nonsense: list[Any] = [torch.eye(2).to_sparse(), None, {}, 1.5, np.array([None]), np.zeros(1, "M8[s]")]
    for value in nonsense:
        with pytest.raises(CheckpointError), SlicesWriter(LOCAL, str(tmp_path / "v1")) as writer:
            writer.add("x", value)
