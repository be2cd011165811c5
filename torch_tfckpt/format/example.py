"""tf.train.Example: named lists of strings, floats or integers.

    Example    = features: Features = 1
    Features   = feature: map<string, Feature> = 1        an entry: key = 1, value = 2; the last entry of a key counts
    Feature    = BytesList = 1 | FloatList = 2 | Int64List = 3        the last of them counts
    BytesList  = value: bytes = 1, repeated
    FloatList  = value: 4 bytes = 1, repeated, packed or not
    Int64List  = value: varint = 1, repeated, packed or not

Source: tensorflow/core/example/{example,feature}.proto; FastParseExample in
tensorflow/core/util/example_proto_fast_parsing.cc.
"""

import enum
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.varint_arrays import decode_varints
from torch_tfckpt.format.wire import Field, WireType, fields

Numbers = npt.NDArray[np.float32] | npt.NDArray[np.int64]


class FeatureKind(enum.IntEnum):
    """Which list a feature has. The numbers are those of the fields."""

    BYTES = 1
    FLOATS = 2
    INTEGERS = 3


Feature = tuple[FeatureKind, memoryview]


def features_of(example: bytes | memoryview) -> dict[bytes, Feature | None]:
    """Return name -> kind and undecoded list; None for a feature without a list.

    Raises:
        DataLossError: the bytes are not an Example.
    """
    found: dict[bytes, Feature | None] = {}
    for field in fields(memoryview(example)):
        if field.number == 1:
            for entry in fields(_message(field)):
                if entry.number == 1:
                    key, value = _entry(_message(entry))
                    found[key] = value
    return found


def values_of(feature: Feature) -> Sequence[bytes] | Numbers:
    """Return the elements of a feature: a list of strings, or an array.

    Raises:
        DataLossError: it is damaged.
    """
    kind, message = feature
    listed = [field for field in fields(message) if field.number == 1]
    if kind is FeatureKind.BYTES:
        return [bytes(_message(field)) for field in listed]
    own = WireType.FIXED32 if kind is FeatureKind.FLOATS else WireType.VARINT
    if any(field.wire_type not in (own, WireType.BYTES) for field in listed):
        raise DataLossError("a feature has a field of another type than its list")
    packed = b"".join(field.payload for field in listed)
    if kind is FeatureKind.FLOATS:
        if len(packed) % 4:
            raise DataLossError(f"a list of floats has {len(packed)} bytes")
        return np.frombuffer(packed, dtype="<f4").astype(np.float32)
    count = int(np.count_nonzero(np.frombuffer(packed, dtype=np.uint8) < 0x80))
    numbers, stop = decode_varints(packed, count)
    if stop != len(packed):
        raise DataLossError("a list of integers ends within an integer")
    return numbers.view(np.int64)


def _entry(message: memoryview) -> tuple[bytes, Feature | None]:
    key, value = b"", None
    for field in fields(message):
        if field.number == 1:
            key = bytes(_message(field))
        elif field.number == 2:
            value = _feature(_message(field))
    return key, value


def _feature(message: memoryview) -> Feature | None:
    found = None
    for field in fields(message):
        if field.number in (1, 2, 3):
            found = FeatureKind(field.number), _message(field)
    return found


def _message(field: Field) -> memoryview:
    if field.wire_type != WireType.BYTES:
        raise DataLossError(f"field {field.number} is not a message")
    return field.payload
