"""The oracle itself: values are returned unchanged, and errors are reported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorflow_process import Call, RawTensor, TensorFlowError, TensorFlowProcess, TensorFlowProcessDied

STRINGS = np.array([[b"hello", b""], [b"\x00\xff", b"x" * 300]], dtype=object)

VALUES = {
    "scalar": RawTensor.of(np.float32(1)),
    "complex": RawTensor.of(np.array([1 + 2j, -3j], np.complex64)),
    "flags": RawTensor.of(np.array([True, False, True])),
    "empty": RawTensor.of(np.zeros((0, 3), np.float64)),
    "strings": RawTensor.of(STRINGS),
    "no_strings": RawTensor.of(np.zeros((0,), object)),
    "one_string": RawTensor.of(np.array(b"alone", object)),
    "bfloat16": RawTensor("bfloat16", (2, 1), bytes.fromhex("803f20c0")),
    "float8_e4m3fn": RawTensor("float8_e4m3fn", (3,), bytes.fromhex("38c07e")),
    "float8_e4m3b11fnuz": RawTensor("float8_e4m3b11fnuz", (2,), bytes.fromhex("5880")),
    "int4": RawTensor("int4", (3,), bytes.fromhex("07f800")),
    "qint32": RawTensor("qint32", (1,), bytes.fromhex("ffffff7f")),
    "quint16": RawTensor("quint16", (1,), bytes.fromhex("feff")),
}


def test_every_kind_of_value_is_returned_unchanged(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Save and restore each kind, including strings and dtypes unknown to numpy: same dtype, shape and bytes."""
    prefix = str(tmp_path / "all")
    tensorflow.call("save_v2", prefix, VALUES)
    assert tensorflow.call("restore_all", prefix) == VALUES


def test_torch_tensors_are_sent_as_bytes(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A torch tensor, strided or zero-dimensional, has the same values in TensorFlow."""
    prefix = str(tmp_path / "torch")
    matrix = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    tensorflow.call("save_v2", prefix, {"t": RawTensor.of(matrix.T), "s": RawTensor.of(torch.tensor(7))})
    scalar, transposed = tensorflow.call("restore", prefix, ["s", "t"])
    assert (scalar.dtype, scalar.shape, int.from_bytes(scalar.data, "little")) == ("int64", (), 7)
    assert transposed == RawTensor.of(matrix.T.contiguous())


def test_big_endian_arrays_are_converted() -> None:
    """The bytes do not depend on the byte order of a numpy array."""
    assert RawTensor.of(np.array([1], ">u2")) == RawTensor("uint16", (1,), b"\x01\x00")


def test_slices_form_one_tensor(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """Two row slices are listed as one tensor; the whole, and a slice across both, can be restored."""
    prefix, whole = str(tmp_path / "sliced"), np.arange(20, dtype=np.float32).reshape(4, 5)
    specs = ["4 5 0,2:-", "4 5 2,2:-"]
    tensorflow.call("save_v2", prefix, [("t", whole[:2]), ("t", whole[2:])], shape_and_slices=specs)
    assert tensorflow.call("reader_maps", prefix) == {"t": ("float32", (4, 5))}
    assert b"\x00t\x00\x01" in tensorflow.call("debug_string", prefix)
    assert tensorflow.call("restore", prefix, ["t"]) == [RawTensor.of(whole)]
    piece = tensorflow.call("restore", prefix, ["t"], shape_and_slices=["4 5 1,2:3,2"])
    assert piece == [RawTensor.of(whole[1:3, 3:])]


def test_version_1_whole_and_sliced(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A V1 checkpoint is one file, read by its path; several shards are read by a pattern."""
    whole = np.arange(6, dtype=np.float32).reshape(3, 2)
    single, first, second = (tmp_path / name for name in ("single", "sharded-00000-of-00002", "sharded-00001-of-00002"))
    tensorflow.batch(
        [
            Call("save_v1", (str(single), {"x": whole, "s": STRINGS})),
            Call("save_v1", (str(first), {"x": whole[:1]}, ["3 2 0,1:-"])),
            Call("save_v1", (str(second), {"x": whole[1:]}, ["3 2 1,2:-"])),
        ]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name, single.name]
    assert tensorflow.call("restore", str(single), ["x", "s"]) == [RawTensor.of(whole), RawTensor.of(STRINGS)]
    assert tensorflow.call("restore", str(tmp_path / "sharded-?????-of-00002"), ["x"]) == [RawTensor.of(whole)]
    assert tensorflow.call("list_variables", str(single)) == [("s", [2, 2]), ("x", [3, 2])]


def test_merge_and_sharded_saver(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """MergeV2 joins two bundles; a sharded Saver writes one data file per device and joins the parts."""
    part_0, part_1, merged = (str(tmp_path / name) for name in ("part-0", "part-1", "merged"))
    tensorflow.call("save_v2", part_0, {"a": np.int32(1)})
    tensorflow.call("save_v2", part_1, {"b": np.int32(2)})
    tensorflow.call("merge_v2", [part_0, part_1], merged)
    assert sorted(tensorflow.call("restore_all", merged)) == ["a", "b"]

    whole = np.arange(8, dtype=np.float32).reshape(4, 2)
    path = tensorflow.call(
        "sharded_save_by_saver",
        str(tmp_path / "saver"),
        [("bias", np.float32(3)), ("w", whole[:2]), ("w", whole[2:])],
        [0, 1, 2],
        shape_and_slices=["", "4 2 0,2:0,2", "4 2 2,2:0,2"],
    )
    assert len(list(tmp_path.glob("saver.data-*-of-00003"))) == 3
    assert tensorflow.call("restore_all", path) == {"bias": RawTensor.of(np.float32(3)), "w": RawTensor.of(whole)}


def test_variants_are_sent_as_protos(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A TensorList can be created, saved and restored, although numpy has no such array."""
    prefix, value = str(tmp_path / "list"), tensorflow.call("tensor_list", [np.float32(1), np.float32(2)])
    tensorflow.call("save_v2", prefix, {"list": value})
    assert value.dtype == "variant"
    assert tensorflow.call("restore_all", prefix) == {"list": value}


def test_object_graph_and_saved_model(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The object-based writers work, and the object graph names what they wrote."""
    tensorflow.call("object_checkpoint", str(tmp_path / "object"))
    mapping = tensorflow.call("object_graph_mapping", str(tmp_path / "object"))
    assert mapping["kernel"] == "model/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert "model/kernel/.OPTIMIZER_SLOT/optimizer/momentum/.ATTRIBUTES/VARIABLE_VALUE" in mapping.values()
    tensorflow.call("write_saved_model", str(tmp_path / "saved_model"))
    assert (tmp_path / "saved_model" / "saved_model.pb").is_file()
    names = tensorflow.call("reader_maps", str(tmp_path / "saved_model" / "variables" / "variables"))
    assert names["slope/.ATTRIBUTES/VARIABLE_VALUE"] == ("float32", ())


def test_an_error_is_returned_with_its_class_and_message(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """TensorFlow's own class name and message; in a batch, only the failing call is an error."""
    prefix = str(tmp_path / "x")
    saved, missing, restored = tensorflow.batch(
        [
            Call("save_v2", (prefix, {"x": np.float32(1)})),
            Call("restore", (prefix, ["y"], ["float32"])),
            Call("restore", (prefix, ["x"])),
        ]
    )
    assert saved is None
    assert restored == [RawTensor.of(np.float32(1))]
    assert (missing.kind, "Key y not found in checkpoint" in missing.message) == ("NotFoundError", True)
    with pytest.raises(TensorFlowError, match=r"InvalidArgumentError: .*expected dtype int32"):
        tensorflow.call("restore", prefix, ["x"], dtypes=["int32"])


def test_many_dictionaries_in_one_round_trip(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """200 saves and 200 restores take two messages."""
    prefixes = [str(tmp_path / f"{i:03d}") for i in range(200)]
    saves = [Call("save_v2", (prefix, {"i": np.int64(i)})) for i, prefix in enumerate(prefixes)]
    assert tensorflow.batch(saves) == [None] * 200
    restored = tensorflow.batch([Call("restore_all", (prefix,)) for prefix in prefixes])
    assert restored == [{"i": RawTensor.of(np.int64(i))} for i in range(200)]


def test_the_oracle_does_not_import_this_package(tensorflow: TensorFlowProcess) -> None:
    """The TensorFlow process imports neither torch nor this package."""
    loaded = set(tensorflow.call("loaded_packages"))
    assert "tensorflow" in loaded
    assert not loaded & {"torch", "torch_tfckpt"}


def test_an_abort_is_reported_and_survived(tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A failed CHECK inside TensorFlow ends its process: the call reports it, and the next one gets a new process."""
    with TensorFlowProcess() as other:
        with pytest.raises(TensorFlowProcessDied, match="ended before it answered"):
            other.call("abort", str(tmp_path / "never_written"))
        assert other.call("version") == tensorflow.call("version")


def test_a_timeout_ends_the_process(tensorflow: TensorFlowProcess) -> None:
    """A process that does not answer in time is killed; nothing hangs. (Starting TensorFlow takes seconds.)"""
    with TensorFlowProcess(timeout=0.001) as slow, pytest.raises(TensorFlowProcessDied, match=r"within 0\.001 s"):
        slow.call("version")
