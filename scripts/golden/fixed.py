"""The folders of tests/golden/tensorflow: checkpoints of fixed values, with fixed bytes."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_process import RawTensor, TensorFlowProcess

from golden.recipe import Recipe

# Dtypes that TensorFlow 2.21 can write, with the bytes per element: all but resource and the reference types.
FIXED_WIDTH = {
    "float32": 4, "float64": 8, "int32": 4, "uint8": 1, "int16": 2, "int8": 1, "complex64": 8, "int64": 8, "bool": 1,
    "qint8": 1, "quint8": 1, "qint32": 4, "bfloat16": 2, "qint16": 2, "quint16": 2, "uint16": 2, "complex128": 16,
    "float16": 2, "uint32": 4, "uint64": 8, "float8_e5m2": 1, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1,
    "float8_e4m3b11fnuz": 1, "float8_e5m2fnuz": 1, "int4": 1, "uint4": 1, "int2": 1, "uint2": 1, "float4_e2m1fn": 1,
}  # fmt: skip
# One byte per element, of which only the low bits are used; signed ones are sign-extended.
SUB_BYTE_VALUES = {
    "bool": "000101000100",
    "int4": "f8ff00010207",
    "uint4": "00010207080f",
    "int2": "feff0001feff",
    "uint2": "000102030001",
    "float4_e2m1fn": "00010207080f",
}
VERSION_1_DTYPES = (
    "float32", "float64", "int32", "uint8", "int16", "int8", "complex64", "int64", "bool", "qint8", "quint8", "qint32",
    "uint16", "complex128", "float16",
)  # fmt: skip

STRINGS = np.array([b"hello", b"", b"x01"], dtype=object)


def bytes_of(dtype: str, count: int) -> bytes:
    """Return `count` elements of fixed, varied bytes that are valid for `dtype`."""
    if dtype in SUB_BYTE_VALUES:
        pattern = bytes.fromhex(SUB_BYTE_VALUES[dtype])
        return (pattern * count)[:count]
    return hashlib.shake_128(dtype.encode()).digest(count * FIXED_WIDTH[dtype])


def every_dtype(dtypes: Any) -> dict[str, RawTensor]:
    """Return a [2, 3] tensor of each dtype, and strings."""
    values = {dtype: RawTensor(dtype, (2, 3), bytes_of(dtype, 6)) for dtype in dtypes}
    return values | {"string": RawTensor.of(STRINGS.reshape(3, 1))}


def shapes() -> dict[str, Any]:
    """Return tensors of ranks 0 to 8, of sizes 0 and 1, and strings of lengths around varint limits."""
    lengths = np.array([b"a" * 300, b"b" * 127, b"c" * 128], dtype=object)
    return {
        "empty": np.zeros((0, 3), np.float32),
        "empty_strings": np.zeros((0,), object),
        "lengths": lengths,
        "one": np.ones((1, 1), np.int64),
        "rank8": np.arange(8, dtype=np.float32).reshape(1, 2, 1, 2, 1, 2, 1, 1),
        "scalar_string": np.array(b"\x00\xff", object),
        "\u00fcml\u00e4ut/\u540d": np.float64(0.5),
    }


def long_names() -> dict[str, Any]:
    """Return 1000 scalars whose names fill more than one block of 262144 bytes, with few common prefixes."""
    return {hashlib.sha256(b"%d" % i).hexdigest() * 4 + f"/{i:04d}": np.int32(i) for i in range(1000)}


def rows(count: int, width: int, dtype: str) -> Any:
    return np.arange(count * width).reshape(count, width).astype(dtype)


T = rows(4, 5, "float32")
HALF = rows(2, 4, "float16")
EMBEDDING = rows(6, 4, "float32")


def write_version_1_shards(tensorflow: TensorFlowProcess, path: str) -> None:
    """Write rows 2 and 3 of `t` to shard 1, the others to shard 0; each shard has another tensor too."""
    tensorflow.call("save_v1", f"{path}-00000-of-00002", [("t", T[:2]), ("a", np.int32(1))], ["4 5 0,2:-", ""])
    tensorflow.call("save_v1", f"{path}-00001-of-00002", [("t", T[2:]), ("b", np.int32(2))], ["4 5 2,2:0,5", ""])


def write_variant(tensorflow: TensorFlowProcess, prefix: str) -> None:
    values = {"list": tensorflow.call("tensor_list", [np.float32(1), np.float32(2)]), "plain": np.float32(3)}
    tensorflow.call("save_v2", prefix, values)


def write_sharded(tensorflow: TensorFlowProcess, prefix: str) -> None:
    parts = [("embedding", EMBEDDING[i : i + 2]) for i in (0, 2, 4)]
    tensorflow.call(
        "sharded_save_by_saver",
        prefix,
        [("bias", np.array([1, 2], np.float32)), ("step", np.int64(7)), *parts],
        [0, 1, 0, 1, 2],
        ["", "", "6 4 0,2:0,4", "6 4 2,2:0,4", "6 4 4,2:0,4"],
    )


def saving(function: str, tensors: Any, *more: Any) -> Callable[[TensorFlowProcess, str], object]:
    """Return a writer that makes one call of tests/support/tensorflow_side.py."""
    return lambda tensorflow, prefix: tensorflow.call(function, prefix, tensors, *more)


def fixed(
    name: str,
    kind: str,
    special: str,
    write: Callable[[TensorFlowProcess, str], object],
    pattern: str = "",
    unread: Mapping[str, RawTensor] | None = None,
) -> Recipe:
    """Return the recipe of a folder whose checkpoint has the folder's name.

    Args:
        write: Called with the prefix, or with the path of a version 1 file.
        pattern: Suffix of the pattern that matches shards of version 1.
    """

    def write_into(tensorflow: TensorFlowProcess, folder: Path) -> None:
        write(tensorflow, str(folder / name))

    return Recipe(f"tensorflow/{name}", kind, special, name + pattern, write_into, unread or {})


FIXED = (
    fixed("scalar", "v2", "one float32 scalar, x = 1.0", saving("save_v2", {"x": np.float32(1)})),
    fixed("strings", "v2", "one string tensor of three elements", saving("save_v2", {"s": STRINGS})),
    fixed("shapes", "v2", "empty tensors, ranks 0 to 8, string lengths of 1 and 2 bytes", saving("save_v2", shapes())),
    fixed(
        "partitioned",
        "v2",
        "a [4, 5] float32 tensor in two slices of rows",
        saving("save_v2", [("t", T[:2]), ("t", T[2:])], ["4 5 0,2:-", "4 5 2,2:-"]),
    ),
    fixed(
        "partitioned-half-string",
        "v2",
        "slices of strings and of half, by columns and in reverse order, which TensorFlow writes but cannot join",
        saving(
            "save_v2",
            [("half", HALF[:, 3:]), ("half", HALF[:, :3]), ("string", STRINGS[:1]), ("string", STRINGS[1:])],
            ["2 4 -:3,1", "2 4 -:0,3", "3 0,1", "3 1,2"],
        ),
        unread={"half": RawTensor.of(HALF), "string": RawTensor.of(STRINGS)},
    ),
    fixed("every-dtype", "v2", "each dtype that TensorFlow 2.21 writes", saving("save_v2", every_dtype(FIXED_WIDTH))),
    fixed("many-blocks", "v2", "an index of more than one block", saving("save_v2", long_names())),
    fixed("variant", "v2", "a TensorList and a plain tensor; numpy cannot represent the list", write_variant),
    fixed(
        "sharded",
        "v2",
        "tf.train.Saver(sharded=True) over cpu:0, cpu:1 and cpu:2, one tensor partitioned",
        write_sharded,
    ),
    fixed(
        "object",
        "object",
        "tf.train.Checkpoint.write: slots, escaped names, a shared object, a hash table, Python state",
        lambda tensorflow, prefix: tensorflow.call("object_checkpoint", prefix),
    ),
    fixed("v1-scalar", "v1", "version 1: one float32 scalar, x = 1.0", saving("save_v1", {"x": np.float32(1)})),
    fixed(
        "v1-values",
        "v1",
        "version 1: negative int8, half, strings",
        saving(
            "save_v1",
            {
                "int8": np.array([[-1, 2]], np.int8),
                "half": np.array([-1, 2.5, 3], np.float16),
                "string": np.array([b"hi", b""], object),
            },
        ),
    ),
    fixed(
        "v1-every-dtype",
        "v1",
        "version 1: each dtype that TensorFlow 2.21 writes there",
        saving("save_v1", every_dtype(VERSION_1_DTYPES)),
    ),
    fixed(
        "v1-sharded",
        "v1",
        "version 1: two shards, one tensor partitioned over both",
        write_version_1_shards,
        pattern="-?????-of-00002",
    ),
)
