#!/usr/bin/env python3
"""Writes tests/golden/tensorflow/ with TensorFlow: checkpoints whose every byte is known, and what they hold.

    python scripts/make_golden.py            write the folders
    python scripts/make_golden.py --check    exit 1 where the tree differs from what would be written

Needs the `interop` extra. All values are fixed, so a second run, also on another machine, gives the same bytes. Each
folder has one checkpoint and an expected.json: name -> dtype, shape and the sha256 of the value's C-contiguous
little-endian bytes (strings: per element an 8-byte little-endian length and the bytes). The hashes are of what
TensorFlow read back; where it cannot read what it wrote, of what was handed to it, and `special` says so.
"""

import argparse
import filecmp
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "tensorflow"
sys.path.insert(0, str(ROOT / "tests" / "support"))

from tensorflow_process import RawTensor, TensorFlowProcess  # noqa: E402  (found through the line above)

# What TensorFlow 2.21 can write, with the bytes per element: all but resource and the reference types.
FIXED_WIDTH = {
    "float32": 4, "float64": 8, "int32": 4, "uint8": 1, "int16": 2, "int8": 1, "complex64": 8, "int64": 8, "bool": 1,
    "qint8": 1, "quint8": 1, "qint32": 4, "bfloat16": 2, "qint16": 2, "quint16": 2, "uint16": 2, "complex128": 16,
    "float16": 2, "uint32": 4, "uint64": 8, "float8_e5m2": 1, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1,
    "float8_e4m3b11fnuz": 1, "float8_e5m2fnuz": 1, "int4": 1, "uint4": 1, "int2": 1, "uint2": 1, "float4_e2m1fn": 1,
}  # fmt: skip
# One byte per element, of which only the low bits are used: sign-extended for the signed ones.
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


@dataclass(frozen=True)
class Case:
    """One folder of tests/golden/tensorflow."""

    name: str  # of the folder
    kind: str  # "v1", "v2" or "object"
    special: str  # what it is there for
    write: Callable[[TensorFlowProcess, str], object]  # gets the prefix, or the path of a V1 file
    pattern: str = ""  # what comes after the folder's name where shards of V1 are meant
    # Values that TensorFlow writes but does not read back.
    unread: dict[str, RawTensor] = field(default_factory=dict)


def bytes_of(dtype: str, count: int) -> bytes:
    """`count` elements of fixed, varied bytes that are valid for `dtype`."""
    if dtype in SUB_BYTE_VALUES:
        pattern = bytes.fromhex(SUB_BYTE_VALUES[dtype])
        return (pattern * count)[:count]
    return hashlib.shake_128(dtype.encode()).digest(count * FIXED_WIDTH[dtype])


def every_dtype(dtypes: Any) -> dict[str, RawTensor]:
    """A [2, 3] tensor of each dtype, and strings."""
    values = {dtype: RawTensor(dtype, (2, 3), bytes_of(dtype, 6)) for dtype in dtypes}
    return values | {"string": RawTensor.of(STRINGS.reshape(3, 1))}


def shapes() -> dict[str, Any]:
    """Ranks 0 to 8, sizes 0 and 1, and string lengths around the limits of their varints."""
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
    """1000 scalars whose names fill more than one block of 262144 bytes; neighbours hardly share a first letter."""
    return {hashlib.sha256(b"%d" % i).hexdigest() * 4 + f"/{i:04d}": np.int32(i) for i in range(1000)}


def rows(count: int, width: int, dtype: str) -> Any:
    return np.arange(count * width).reshape(count, width).astype(dtype)


T = rows(4, 5, "float32")
HALF = rows(2, 4, "float16")
EMBEDDING = rows(6, 4, "float32")


def write_version_1_shards(tensorflow: TensorFlowProcess, path: str) -> None:
    """Shard 1 holds rows 2 and 3 of `t`, shard 0 the others; each has a tensor of its own."""
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
    """A writer that is one call of tests/support/tensorflow_side.py."""
    return lambda tensorflow, prefix: tensorflow.call(function, prefix, tensors, *more)


CASES = (
    Case("scalar", "v2", "one float32 scalar, x = 1.0", saving("save_v2", {"x": np.float32(1)})),
    Case("strings", "v2", "one string tensor of three elements", saving("save_v2", {"s": STRINGS})),
    Case("shapes", "v2", "empty tensors, ranks 0 to 8, string lengths of 1 and 2 bytes", saving("save_v2", shapes())),
    Case(
        "partitioned",
        "v2",
        "a [4, 5] float32 tensor in two slices of rows",
        saving("save_v2", [("t", T[:2]), ("t", T[2:])], ["4 5 0,2:-", "4 5 2,2:-"]),
    ),
    Case(
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
    Case("every-dtype", "v2", "each dtype that TensorFlow 2.21 writes", saving("save_v2", every_dtype(FIXED_WIDTH))),
    Case("many-blocks", "v2", "an index of more than one block", saving("save_v2", long_names())),
    Case("variant", "v2", "a TensorList beside a plain tensor; numpy cannot hold the list", write_variant),
    Case(
        "sharded",
        "v2",
        "tf.train.Saver(sharded=True) over cpu:0, cpu:1 and cpu:2, one tensor partitioned",
        write_sharded,
    ),
    Case(
        "object",
        "object",
        "tf.train.Checkpoint.write: slots, escaped names, a shared object, a hash table, Python state",
        lambda tensorflow, prefix: tensorflow.call("object_checkpoint", prefix),
    ),
    Case("v1-scalar", "v1", "version 1: one float32 scalar, x = 1.0", saving("save_v1", {"x": np.float32(1)})),
    Case(
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
    Case(
        "v1-every-dtype",
        "v1",
        "version 1: each dtype that TensorFlow 2.21 writes there",
        saving("save_v1", every_dtype(VERSION_1_DTYPES)),
    ),
    Case(
        "v1-sharded",
        "v1",
        "version 1: two shards, one tensor partitioned over both",
        write_version_1_shards,
        pattern="-?????-of-00002",
    ),
)


def describe(tensorflow: TensorFlowProcess, case: Case, folder: Path) -> dict[str, Any]:
    """What expected.json says of a checkpoint that was just written."""
    prefix = case.name + case.pattern
    path = str(folder / prefix)
    maps = tensorflow.call("reader_maps", path)
    readable = [name for name in sorted(maps) if name not in case.unread]
    read: list[RawTensor] = tensorflow.call("restore", path, readable)
    values = dict(zip(readable, read, strict=True)) | case.unread
    tensors: dict[str, Any] = {}
    for name in sorted(maps):
        dtype, shape = maps[name]
        assert (values[name].dtype, values[name].shape) == (dtype, shape), f"{case.name}: {name}"
        # A variant has no value that numpy or torch could hold.
        sha256 = None if dtype == "variant" else values[name].sha256
        tensors[name] = {"dtype": dtype, "shape": list(shape), "sha256": sha256}
    description: dict[str, Any] = {
        "source": f"TensorFlow {tensorflow.call('version')}, scripts/make_golden.py",
        "path": case.name,
        "license": "Apache-2.0",
        "kind": case.kind,
        "prefix": prefix,
        "special": case.special,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    if case.kind == "object":
        description["object_graph"] = tensorflow.call("object_graph_mapping", path)
    return description | {"tensors": tensors}


def write_all(destination: Path) -> None:
    """Writes every case below `destination`, which is emptied first."""
    shutil.rmtree(destination, ignore_errors=True)
    with TensorFlowProcess() as tensorflow:
        for case in CASES:
            folder = destination / case.name
            folder.mkdir(parents=True)
            case.write(tensorflow, str(folder / case.name))
            text = json.dumps(describe(tensorflow, case, folder), indent=1, ensure_ascii=False)
            (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 on a difference")
    if not parser.parse_args().check:
        write_all(GOLDEN)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary) / "tensorflow"
        write_all(fresh)
        names = sorted(files_below(fresh) | files_below(GOLDEN))
        _, changed, missing = filecmp.cmpfiles(fresh, GOLDEN, names, shallow=False)
    for name in (*changed, *missing):
        print(f"tests/golden/tensorflow/{name} differs from what TensorFlow writes; run scripts/make_golden.py")
    return 1 if changed or missing else 0


# The child process imports this module again to unpickle from it.
if __name__ == "__main__":
    sys.exit(main())
