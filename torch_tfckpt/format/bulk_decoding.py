"""Index entries decoded in bulk: the results of BundleEntry.decode, in a few numpy passes.

The entries, one per row of a matrix, are decoded field by field: each row has its own position, which moves on if the
row has the field. See `tensor_bundle` for the fields. Property tests compare both ways.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.tensor_bundle import BundleEntry, shape_of
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape

_Numbers = npt.NDArray[np.int64]

_LONGEST: Final = 64  # bytes; longer entries have many dimensions, or slices
_CHUNK: Final = 16384  # rows of a matrix: limits memory
_GROUPS: Final = 9  # of 7 bits: 63 bits


def decode_entries(values: Sequence[bytes]) -> list[BundleEntry | None]:
    """Decode entries in the usual form: no slices, fields in order, each at most once. None for the others."""
    shapes: dict[bytes, Shape | None] = {}
    entries: list[BundleEntry | None] = []
    for first in range(0, len(values), _CHUNK):
        rows = [value if 4 <= len(value) <= _LONGEST else b"" for value in values[first : first + _CHUNK]]
        entries += _decoded(rows, shapes)
    return entries


def _decoded(rows: Sequence[bytes], shapes: dict[bytes, Shape | None]) -> list[BundleEntry | None]:
    cells = np.frombuffer(b"".join([row.ljust(_LONGEST + 16, b"\0") for row in rows]), dtype=np.uint8)
    cells = cells.reshape(len(rows), _LONGEST + 16)
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    usual = (
        (cells[:, 0] == 0x08) & (cells[:, 1] < 0x80) & (cells[:, 2] == 0x12) & (4 + cells[:, 3].astype(int) <= sizes)
    )
    messages = [row[4 : 4 + row[3]] if row else row for row in rows]
    for message in set(messages).difference(shapes):
        try:
            shapes[message] = shape_of(message)
        except DataLossError:
            shapes[message] = None
    fields = _Fields(cells, np.where(usual, 4 + cells[:, 3].astype(np.int64), 0), usual)
    shard, offset, size = fields.varint(0x18), fields.varint(0x20), fields.varint(0x28)
    checksum = fields.fixed32(0x35)
    usual = fields.usual & (fields.at == sizes) & (shard < 2**31)
    usual &= offset.view(np.uint64) + size.view(np.uint64) <= np.uint64(MAX_INT64)
    columns = [column.tolist() for column in (cells[:, 1], shard, offset, size, checksum, usual)]
    return [
        BundleEntry(dtype, shape, *place) if ok and shape is not None else None
        for dtype, shape, *place, ok in zip(columns[0], map(shapes.__getitem__, messages), *columns[1:], strict=True)
    ]


class _Fields:
    """The fields of all rows, read in order.

    Attributes:
        at: Position in each row.
        usual: Whether all fields of a row so far had the usual form.
    """

    def __init__(self, cells: npt.NDArray[np.uint8], at: _Numbers, usual: npt.NDArray[np.bool_]) -> None:
        self._cells, self.at, self.usual = cells, at, usual
        self._rows = np.arange(len(cells))

    def varint(self, tag: int) -> _Numbers:
        """Return the number of each row in the field `tag`; 0 without the field."""
        more = self._begin(tag)
        numbers = np.zeros(len(self._rows), dtype=np.int64)
        for group in range(_GROUPS):
            byte = np.where(more, self._next(more), 0)
            numbers |= (byte & 0x7F) << (7 * group)
            more &= byte >= 0x80
            if not more.any():
                break
        self.usual &= ~more
        return numbers

    def fixed32(self, tag: int) -> _Numbers:
        """Return the four-byte number of each row in the field `tag`; 0 without the field."""
        present = self._begin(tag)
        numbers = np.zeros(len(self._rows), dtype=np.int64)
        for group in range(4):
            numbers |= np.where(present, self._next(present), 0) << (8 * group)
        return numbers

    def _begin(self, tag: int) -> npt.NDArray[np.bool_]:
        """Return the rows whose next field is `tag`, and move these past the tag."""
        present: npt.NDArray[np.bool_] = self.usual & (self._cells[self._rows, self.at] == tag)
        self.at = self.at + present
        return present

    def _next(self, moving: npt.NDArray[np.bool_]) -> _Numbers:
        """Return the byte at each position, and move the `moving` rows by one."""
        byte = self._cells[self._rows, self.at].astype(np.int64)
        self.at = np.minimum(self.at + moving, self._cells.shape[1] - 1)
        return byte
