"""Parsed examples equal TensorFlow's, for records that TensorFlow's message class encodes, and for other encodings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from op_inputs import Results
from op_inputs import float32 as f32
from op_inputs import int64 as i64
from op_inputs import strings as s
from op_rows import Row, check, operations, row

from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.wire import WireType, sized_tag, tag


def field(number: int, payload: bytes) -> bytes:
    return sized_tag(number, len(payload)) + payload


def feature(values: Sequence[Any], packed: bool = True) -> bytes:
    if not values:
        return b""
    if isinstance(values[0], bytes):
        return field(1, b"".join(field(1, each) for each in values))
    if isinstance(values[0], float):
        encoded, number, kind = [np.float32(each).tobytes() for each in values], 2, WireType.FIXED32
    else:
        encoded, number, kind = [encode_varint(each % (1 << 64)) for each in values], 3, WireType.VARINT
    joined = b"".join(encoded)
    return field(number, field(1, joined) if packed else b"".join(tag(1, kind) + each for each in encoded))


def example(packed: bool = True, **features: Any) -> bytes:
    entries = [
        field(1, field(1, name.encode()) + field(2, feature(values, packed))) for name, values in features.items()
    ]
    return field(1, b"".join(entries))


FULL = example(x=[1.5, -2.0], n=[1, -1, 2**63 - 1], t=[b"a", b"", b"\xff"])
UNPACKED = example(packed=False, x=[0.5, 8.0], n=[-(2**63), 7], t=[b"bc"])
SHORT = example(x=[3.0, 4.0])
EMPTY = example()
NO_LIST = example(x=[], n=[], t=[])
TWICE = field(1, field(1, field(1, b"x") + field(2, feature([1.0, 2.0])))) + SHORT
OTHER_TYPE = example(x=[1, 2], n=[1.0], t=[1])
DAMAGED = FULL[:-1]
RECORDS = s([FULL, UNPACKED, SHORT, EMPTY, NO_LIST])
NONE = np.zeros((0,), dtype=object)
NAMES = s([b"first", b"second", b"third", b"fourth", b"fifth"])
TYPES = {"x": "float32", "n": "int64", "t": "string", "z": "int64"}
DEFAULTS = {"x": f32([9.0, 8.0]), "n": i64([5]), "t": s([b"none"])}


def version_1(records: Any, sparse: str, dense: Mapping[str, tuple[Any, Any]], names: Any = NONE) -> Row:
    keys, given = list(dense), list(dense.values())
    return row(
        "ParseExample", records, names, [s(each.encode()) for each in sparse], [s(each.encode()) for each in keys],
        [default for default, _ in given], gradients=False, sparse_types=[TYPES[each] for each in sparse],
        dense_shapes=[shape for _, shape in given],
    )  # fmt: skip


def version_2(
    records: Any, sparse: str, dense: Mapping[str, tuple[Any, Any]], ragged: str = "", names: Any = NONE
) -> Row:
    keys, given = list(dense), list(dense.values())
    return row(
        "ParseExampleV2", records, names, s([each.encode() for each in sparse]), s([each.encode() for each in keys]),
        s([each.encode() for each in ragged]), [default for default, _ in given], gradients=False,
        num_sparse=len(sparse), sparse_types=[TYPES[each] for each in sparse],
        ragged_value_types=[TYPES[each] for each in ragged],
        ragged_split_types=["int32" if each == "n" else "int64" for each in ragged],
        dense_shapes=[shape for _, shape in given],
    )  # fmt: skip


def single(record: bytes, sparse: str, dense: Mapping[str, tuple[Any, Any]]) -> Row:
    given = list(dense.values())
    return row(
        "ParseSingleExample", s(record), [default for default, _ in given], gradients=False, num_sparse=len(sparse),
        sparse_keys=list(sparse), dense_keys=list(dense), sparse_types=[TYPES[each] for each in sparse],
        dense_shapes=[shape for _, shape in given],
    )  # fmt: skip


NO_DEFAULT: Mapping[str, Any] = {"x": f32([]), "n": i64([]), "t": s([])}
DENSE: list[Mapping[str, tuple[Any, Any]]] = [
    {},
    {"x": (DEFAULTS["x"], [2])},
    {"x": (DEFAULTS["x"], [2]), "y": (DEFAULTS["x"], [2, 1])},
    {"x": (NO_DEFAULT["x"], [2])},
    {"x": (f32([1.0, 2.0, 3.0]), [3])},
    {"n": (i64([0]), [None]), "t": (s([b"-"]), [None])},
    {"x": (f32([7.0]), [None, 2])},
    {"x": (f32([7.0]), [None, 4])},
    {"n": (NO_DEFAULT["n"], [3])},
    {"missing": (NO_DEFAULT["t"], [1])},
    {"missing": (s([b"d"]), [1])},
    {"missing": (s(b"d"), [])},
    {"n": (i64([0, 1]), [None])},
]
SOME = [
    RECORDS,
    RECORDS[:1],
    RECORDS[:0],
    s([SHORT, FULL]),
    s([TWICE]),
    s([OTHER_TYPE]),
    s([DAMAGED]),
    s([b""]),
    s([b"text"]),
]

ROWS = [
    *(build(records, sparse, {}) for build in (version_1, version_2) for records in SOME for sparse in ("xnt", "t")),
    *(build(records, "", dense) for build in (version_1, version_2) for records in SOME[:5] for dense in DENSE),
    *(build(RECORDS, "n", DENSE[1], names=NAMES) for build in (version_1, version_2)),
    *(build(RECORDS, "n", DENSE[1], names=NAMES[:2]) for build in (version_1, version_2)),
    *(version_2(records, "", {}, "xnt") for records in SOME),
    version_2(RECORDS, "t", DENSE[1], "n"),
    *(version_2(s(record), "", dense, "z") for record in (FULL, UNPACKED, EMPTY) for dense in DENSE),
    *(single(record, "z", dense) for record in (FULL, UNPACKED, EMPTY, TWICE, DAMAGED) for dense in DENSE),
    *(single(record, "xnt", {}) for record in (FULL, UNPACKED, EMPTY, TWICE, OTHER_TYPE, DAMAGED)),
    version_1(s(FULL), "x", {}),
    version_2(RECORDS.reshape(5, 1), "x", {}),
]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Equal to TensorFlow; what it refuses is refused."""
    check(name, results)
