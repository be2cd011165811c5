"""TensorFlow's element types by number and name. `dtypes` maps them to torch dtypes.

Source: tensorflow/core/framework/types.proto and types.cc.
"""

import enum
from collections.abc import Mapping
from typing import Final, Self

REFERENCE_OFFSET: Final = 100  # a reference to type n is number n + 100 (types.proto, DT_FLOAT_REF = 101)


class DataType(enum.IntEnum):
    """TensorFlow's element types, with TensorFlow's numbers.

    Any other number found in a file becomes a member too (`DT_77`, or `DT_INT32_REF` for references), so that a tensor
    of an unknown type does not prevent listing the others.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2, dtype=torch.bfloat16)}, "model.ckpt-1")
        >>> tfckpt.load_checkpoint(prefix).get_variable_to_dtype_map()["w"]
        <DataType.DT_BFLOAT16: 14>
        >>> tfckpt.DataType(1).short_name
        'float'
    """

    DT_INVALID = 0
    DT_FLOAT = 1
    DT_DOUBLE = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 5
    DT_INT8 = 6
    DT_STRING = 7
    DT_COMPLEX64 = 8
    DT_INT64 = 9
    DT_BOOL = 10
    DT_QINT8 = 11
    DT_QUINT8 = 12
    DT_QINT32 = 13
    DT_BFLOAT16 = 14
    DT_QINT16 = 15
    DT_QUINT16 = 16
    DT_UINT16 = 17
    DT_COMPLEX128 = 18
    DT_HALF = 19
    DT_RESOURCE = 20
    DT_VARIANT = 21
    DT_UINT32 = 22
    DT_UINT64 = 23
    DT_FLOAT8_E5M2 = 24
    DT_FLOAT8_E4M3FN = 25
    DT_FLOAT8_E4M3FNUZ = 26
    DT_FLOAT8_E4M3B11FNUZ = 27
    DT_FLOAT8_E5M2FNUZ = 28
    DT_INT4 = 29
    DT_UINT4 = 30
    DT_INT2 = 31
    DT_UINT2 = 32
    DT_FLOAT4_E2M1FN = 33

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._value_ = value
        base = cls._value2member_map_.get(value - REFERENCE_OFFSET)
        member._name_ = f"{base.name}_REF" if base is not None else f"DT_{value}"
        return member

    def __reduce_ex__(self, protocol: object) -> tuple[type[Self], tuple[int]]:
        # Pickle by number: Python 3.11.0 to 3.11.3 would look up the name, which only finds the members listed above.
        return type(self), (int(self),)

    @property
    def short_name(self) -> str:
        """The name in TensorFlow's error messages: `float`, `half`, `int64`."""
        return self.name.removeprefix("DT_").lower()

    @property
    def dtype_name(self) -> str:
        """The name of the tf.DType, and of the matching torch dtype: `float32`, `float16`, `int64`."""
        return _DTYPE_NAMES.get(self, self.short_name)

    @property
    def itemsize(self) -> int:
        """Bytes per element in a data file; 0 if the size is not fixed or not known."""
        return _ITEMSIZES.get(self, 0)


_DTYPE_NAMES: Final = {DataType.DT_FLOAT: "float32", DataType.DT_DOUBLE: "float64", DataType.DT_HALF: "float16"}
# Elements of 4-bit and 2-bit types are stored one per byte.
_ITEMSIZES: Final[Mapping[int, int]] = {
    dtype: size
    for size, dtypes in {
        1: "INT8 UINT8 BOOL QINT8 QUINT8 INT4 UINT4 INT2 UINT2 FLOAT4_E2M1FN "
        "FLOAT8_E5M2 FLOAT8_E4M3FN FLOAT8_E4M3FNUZ FLOAT8_E4M3B11FNUZ FLOAT8_E5M2FNUZ",
        2: "INT16 UINT16 QINT16 QUINT16 HALF BFLOAT16",
        4: "INT32 UINT32 QINT32 FLOAT",
        8: "INT64 UINT64 DOUBLE COMPLEX64",
        16: "COMPLEX128",
    }.items()
    for dtype in (DataType[f"DT_{name}"] for name in dtypes.split())
}
