"""A slice: one box inside a tensor, and its three representations.

    string   one item per dimension, joined with ":"; "-" = the whole dimension, or "start,length"     "-:0,10:14,1"
    proto    one extent per dimension; an extent without a length is the whole dimension
    key      num(0) str(name) num(rank) { snum(start) snum(length) }*, whole dimension = 0, -1;
             "t", rows 2 and 3 of a matrix:   00 | 74 00 01 | 01 02 | 82 82 | 80 7f

A slice keeps the notation it was created with: "-" and "0,5" on a dimension of 5 cover the same elements but are
different slices with different keys.

Source: tensorflow/core/framework/tensor_slice.{h,cc}, core/util/saved_tensor_slice_util.cc. Explained in
docs/formats/bundle.md.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import ClassVar, Final, NamedTuple, Self

from google.protobuf.message import DecodeError

from torch_tfckpt._proto.tensor_slice_pb2 import TensorSliceProto
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.coding import decode_varint
from torch_tfckpt.format.ordered_code import encode_num, encode_signed, encode_string

MAX_INT64: Final = (1 << 63) - 1
# The number of extents that can be examined in about two seconds. A partitioner's slices need a few steps each; only
# boxes that straight cuts cannot separate need more, and real checkpoints do not contain thousands of such boxes.
MAX_OVERLAP_STEPS: Final = 1_500_000
_PAIR: Final = re.compile(r"(-?[0-9]+),(-?[0-9]+)")
_NUMBER: Final = re.compile(r"-?[0-9]+")

_EXTENT_TAG, _START_TAG, _LENGTH_TAG = 0x0A, 0x08, 0x10  # field number << 3 | wire type

Shape = tuple[int, ...]


class Extent(NamedTuple):
    """Range of one dimension that a slice covers.

    Attributes:
        start: First element.
        length: Number of elements; -1 for the whole dimension, of any size.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> tfckpt.TensorSlice.parse("2,3:-").extents
        (Extent(start=2, length=3), Extent(start=0, length=-1))
    """

    start: int
    length: int

    @property
    def end(self) -> int:
        """Exclusive end. REQUIRES: not a whole dimension."""
        return self.start + self.length


WHOLE: Final = -1


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A box in a tensor: one extent per dimension.

    Slices are equal only if their extents are: "-" and "0,5" differ even on a dimension of 5.

    Attributes:
        extents: The range in each dimension.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> rows = tfckpt.TensorSlice.parse("2,2:-")
        >>> rows.shape_of((5, 3))
        (2, 3)
    """

    extents: tuple[Extent, ...]

    KEY_MARK: ClassVar[bytes] = encode_num(0)  # first byte of every slice key

    @classmethod
    def full(cls, rank: int) -> Self:
        """Return the slice that covers a whole tensor with `rank` dimensions."""
        return cls((Extent(0, WHOLE),) * rank)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a string like "-:0,10"; raise InvalidArgumentError with TensorFlow's message if malformed."""
        return cls(tuple(_parse_extent(item, text) for item in text.split(":") if item))

    def __str__(self) -> str:
        return ":".join("-" if length == WHOLE else f"{start},{length}" for start, length in self.extents)

    @classmethod
    def from_proto(cls, proto: TensorSliceProto) -> Self:
        """Convert a stored message; raise DataLossError if an extent is invalid."""
        extents = []
        for extent in proto.extent:
            length = extent.length if extent.HasField("length") else WHOLE
            _check_extent(extent.start, length)
            extents.append(Extent(extent.start, length))
        return cls(tuple(extents))

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Decode a serialized message; raise DataLossError if it does not parse or an extent is invalid.

        Four times as fast as a protobuf message in the usual form, which matters for a million slices.
        """
        extents: list[Extent] = []
        at, size = 0, len(message)
        try:
            while at < size:
                if message[at] != _EXTENT_TAG:
                    return cls._decode_any(message)
                end = at + 2 + message[at + 1]  # of a message of fewer than 128 bytes
                at += 2
                start, length = 0, WHOLE
                if at < end and message[at] == _START_TAG:
                    start, at = decode_varint(message, at + 1, bits=63)
                if at < end and message[at] == _LENGTH_TAG:
                    length, at = decode_varint(message, at + 1, bits=63)
                if at != end or end > size:
                    return cls._decode_any(message)
                _check_extent(start, length)
                extents.append(Extent(start, length))
        except (IndexError, DataLossError):
            return cls._decode_any(message)  # raises, or decodes a form that no known writer uses
        return cls(tuple(extents))

    @classmethod
    def _decode_any(cls, message: bytes) -> Self:
        try:
            return cls.from_proto(TensorSliceProto.FromString(message))
        except DecodeError as error:
            raise DataLossError(f"the slice does not parse: {error}") from error

    def to_proto(self) -> TensorSliceProto:
        """Return the message; a whole dimension is an extent without start and length."""
        proto = TensorSliceProto()
        for start, length in self.extents:
            added = proto.extent.add()
            if length != WHOLE:
                added.start, added.length = start, length
        return proto

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.extents)

    def covers(self, shape: Shape) -> bool:
        """Return whether this slice covers every element of a tensor of `shape`, in any notation."""
        return self.resolve(shape) == TensorSlice.full(len(shape)).resolve(shape)

    def resolve(self, shape: Shape) -> "TensorSlice":
        """Return the slice that covers the same elements of a tensor of `shape`, with explicit extents only.

        Raises:
            InvalidArgumentError: the ranks differ, or an extent exceeds its dimension.
        """
        if len(shape) != self.rank:
            raise InvalidArgumentError(f"Mismatching ranks: shape = {shape_text(shape)}, slice = {self}")
        resolved = []
        for axis, ((start, length), size) in enumerate(zip(self.extents, shape, strict=True)):
            if length == WHOLE:
                resolved.append(Extent(0, size))
                continue
            if start + length > size:
                raise InvalidArgumentError(
                    f"Extent in dimension {axis} out of bounds: shape = {shape_text(shape)}, slice = {self}"
                )
            resolved.append(Extent(start, length))
        return TensorSlice(tuple(resolved))

    def shape_of(self, shape: Shape) -> Shape:
        """Return the shape of this slice of a tensor of `shape`; raises like `resolve`."""
        return tuple(length for _, length in self.resolve(shape).extents)

    def intersect(self, other: "TensorSlice") -> "TensorSlice | None":
        """Return the slice common to both, or None if they share no elements or their ranks differ."""
        if self.rank != other.rank:
            return None
        common = []
        for mine, theirs in zip(self.extents, other.extents, strict=True):
            if mine.length == WHOLE or theirs.length == WHOLE:
                common.append(theirs if mine.length == WHOLE else mine)
                continue
            start, end = max(mine.start, theirs.start), min(mine.end, theirs.end)
            if end <= start:
                return None
            common.append(Extent(start, end - start))
        return TensorSlice(tuple(common))

    def relative_to(self, base: "TensorSlice") -> "TensorSlice":
        """Return this slice relative to `base`. REQUIRES: `base` contains it."""
        return TensorSlice(
            tuple(
                mine if outer.length == WHOLE else Extent(mine.start - outer.start, mine.length)
                for mine, outer in zip(self.extents, base.extents, strict=True)
            )
        )

    def to_index(self) -> tuple[slice, ...]:
        """Return the index expression that selects this slice of a tensor or array."""
        return tuple(slice(None) if length == WHOLE else slice(start, start + length) for start, length in self.extents)


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as TensorFlow prints it: [2,3]."""
    return "[" + ",".join(map(str, shape)) + "]"


def encode_slice_key(name: bytes, part: TensorSlice) -> bytes:
    """Return the key of one stored slice of tensor `name`."""
    return slice_key_start(name) + slice_key_end(part)


def slice_key_start(name: bytes) -> bytes:
    """Return how the keys of all slices of tensor `name`, and no other keys, start."""
    return TensorSlice.KEY_MARK + encode_string(name)


def slice_key_end(part: TensorSlice) -> bytes:
    """Return how the key of the slice `part` continues, for a tensor of any name."""
    return encode_num(part.rank) + b"".join(
        [encode_signed(start) + encode_signed(length) for start, length in part.extents]
    )


def parse_shape_and_slice(spec: str) -> tuple[Shape, TensorSlice, Shape]:
    """Parse "4 5 0,2:-" into the full shape, the slice and the slice's shape.

    Raises:
        InvalidArgumentError: malformed; the message is the same as in TensorFlow's checkpoint::ParseShapeAndSlice.
    """
    items = spec.split(" ")
    if len(items) < 2:
        raise InvalidArgumentError(f"Need least two elements in shape_and_slice specification: {spec}")
    for item in items[:-1]:
        if not _NUMBER.fullmatch(item):
            raise InvalidArgumentError(f"Non numerical dimension in shape_and_slice: {spec}")
    shape = tuple(map(int, items[:-1]))
    if any(not 0 <= size <= MAX_INT64 for size in shape):
        raise InvalidArgumentError(f"Impossible dimension in shape_and_slice: {spec}")
    part = TensorSlice.parse(items[-1])
    return shape, part, part.shape_of(shape)


def find_overlap(shape: Shape, parts: Sequence[TensorSlice]) -> tuple[TensorSlice, TensorSlice] | None:
    """Return two of `parts` that share an element of a tensor of `shape`, or None.

    Parts are separated along straight cuts, dimension by dimension; only parts that no cut separates are compared
    pairwise. All known partitioners use straight cuts, so n parts cost about n log n.

    Raises:
        InvalidArgumentError: a part exceeds `shape`.
        UnimplementedError: the slices are so finely interleaved that the check would exceed MAX_OVERLAP_STEPS.
    """
    resolved = [part.resolve(shape) for part in parts]
    groups = [list(range(len(parts)))]
    steps = 0
    while groups:
        group = groups.pop()
        if len(group) < 2:
            continue
        for axis in range(len(shape)):
            steps += len(group)
            pieces = _cut(group, [resolved[number].extents[axis] for number in group])
            if len(pieces) > 1:
                groups += pieces
                break
        else:
            steps += len(shape) * len(group) * (len(group) - 1) // 2
            if steps <= MAX_OVERLAP_STEPS:
                for one, other in combinations(group, 2):
                    if resolved[one].intersect(resolved[other]) is not None:
                        return parts[one], parts[other]
        if steps > MAX_OVERLAP_STEPS:
            raise UnimplementedError(f"{len(parts)} slices are interleaved too finely to check for overlaps")
    return None


def _cut(numbers: list[int], extents: list[Extent]) -> list[list[int]]:
    """Sort `numbers` by extent, and split them wherever no extent crosses the boundary."""
    pieces: list[list[int]] = []
    reached = -1
    for extent, number in sorted(zip(extents, numbers, strict=True)):
        if extent.start >= reached:
            pieces.append([])
        pieces[-1].append(number)
        reached = max(reached, extent.end)
    return pieces


def element_count(shape: Shape) -> int:
    """Return the number of elements of a tensor of `shape`."""
    return prod(shape)


def _parse_extent(item: str, text: str) -> Extent:
    if item == "-":
        return Extent(0, WHOLE)
    pair = _PAIR.fullmatch(item)
    if pair is None or any(not -MAX_INT64 <= int(number) <= MAX_INT64 for number in pair.groups()):
        raise InvalidArgumentError(f"Expected a pair of numbers or '-' but got '{item}': string = {text}")
    start, length = int(pair[1]), int(pair[2])
    if start < 0 or length <= 0:
        raise InvalidArgumentError(
            f"Expected non-negative start and positive length but got start = {start}, length = {length}: "
            f"string = {text}"
        )
    return Extent(start, length)


def _check_extent(start: int, length: int) -> None:
    """Raise DataLossError if an extent is invalid."""
    if length == WHOLE:
        if start != 0:
            raise DataLossError(f"slice extent starts at {start} but has no length")
    elif start < 0 or length < 0 or start + length > MAX_INT64:
        raise DataLossError(f"invalid slice extent: {length} elements from {start}")
