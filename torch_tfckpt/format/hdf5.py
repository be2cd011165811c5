"""HDF5 files as Keras writes them: groups, datasets and their attributes.

    [superblock] -> root group -> name -> group or dataset, each an object header: a list of messages

    superblock      89 48 44 46 0d 0a 1a 0a | version: u8 | ... | address of the root group
    old group       a B-tree ("TREE") of leaves ("SNOD") of (name, object header); the names are in a heap ("HEAP")
    new group       a message per name

Example: h5py writes one float32 array `x` of shape [2] as 2,056 bytes. The superblock contains the address of the
root group, 96. Message 0x11 of this group contains the addresses of a B-tree, 136, and of a heap, 680; the leaf
contains the name `x` and the address of its object header, 800. Message 8 of this header contains the address of the
values, 2048.

The library libhdf5 is not used: on damaged files it sometimes hangs, and sometimes crashes the process.

Guaranteed for every input: no block of the file belongs to more than one structure, the total number of bytes read is
at most twice the size of the file, no size in the file makes this module allocate more than that, and the total size of
the datasets is at most the size of the file. Links to other files, soft links, and datasets whose bytes are in other
files are errors.

Source: HDF5 File Format Specification, version 3.0.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from torch_tfckpt.errors import DataLossError, UnimplementedError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.hdf5_blocks import Hdf5Blocks, Hdf5Message, Read, pair
from torch_tfckpt.format.hdf5_messages import (
    UNDEFINED,
    Hdf5Attribute,
    Hdf5Layout,
    Hdf5Type,
    decode_attribute,
    decode_dataspace,
    decode_datatype,
    decode_layout,
)
from torch_tfckpt.format.tensor_slice import Shape, element_count, shape_text
from torch_tfckpt.text import quoted

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
REWRITE: Final = "Open it with h5py and write its tensors to a new file"
_STARTS: Final = (0, *(512 << shift for shift in range(12)))  # a file may begin with a block of user data
_MAX_DEPTH: Final = 64  # maximum nesting of groups
_MAX_LINKS: Final = 1_000_000  # maximum number of names in all groups together
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT, _ATTRIBUTE = 1, 2, 3, 6, 7, 8, 12
_SYMBOL_TABLE, _ATTRIBUTE_INFO = 17, 21


class Hdf5Array(NamedTuple):
    """A dataset whose bytes are contiguous in the file."""

    shape: Shape | None  # None: a null dataspace, which has no elements
    type: Hdf5Type
    offset: int  # of its first byte in the file
    nbytes: int
    dtype_name: str  # attribute "dtype", with which Keras names types that HDF5 does not have; "" if absent

    @property
    def dtype(self) -> DataType | None:
        """Element type; None if tensors cannot have it."""
        if self.type.is_opaque and self.dtype_name:
            named = next((each for each in DataType if each.dtype_name == self.dtype_name), None)
            return named if named is not None and named.itemsize == self.type.size else None
        return self.type.dtype


@dataclass(slots=True)
class Hdf5Group:
    """A group: names of groups and datasets, in the order of the file, and attributes."""

    attributes: Mapping[str, Hdf5Attribute] = field(default_factory=dict)
    groups: dict[str, "Hdf5Group"] = field(default_factory=dict)
    arrays: dict[str, Hdf5Array] = field(default_factory=dict)


class Hdf5File:
    """All groups and datasets of an HDF5 file of `size` bytes.

    Attributes:
        root: The root group.

    Raises:
        DataLossError: the file is damaged or incomplete.
        UnimplementedError: it uses a part of HDF5 that Keras does not use.

    Cost: reads all headers of the file, and no values of datasets.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._blocks = Hdf5Blocks(read, size)
        self._links = 0
        self._ranges: list[tuple[int, int, str]] = []  # begin and end of the bytes of each dataset, and its name
        self.root = self._tree(self._superblock())
        self._check_apart()

    def strings(self, attribute: Hdf5Attribute) -> list[str]:
        """Return the strings of an attribute, a scalar as a list of one; raise DataLossError for other values."""
        return self._blocks.strings(attribute)

    def _superblock(self) -> int:
        """Return the address of the root group's object header."""
        for start in _STARTS:
            if start + 48 <= self._blocks.size and self._blocks.take(start, 8) == SIGNATURE:
                break
        else:
            raise DataLossError("not an HDF5 file, or only the beginning of one")
        self._blocks.base = start
        version = self._blocks.take(8, 1)[0]
        if version in (0, 1):
            fixed = self._blocks.take(8, 88)
            widths, at = fixed[5:7], 16 if version == 0 else 20
            base, _, end, _, _, root = struct.unpack_from("<6Q", fixed, at)
        elif version in (2, 3):
            fixed = self._blocks.take(8, 40)
            widths = fixed[1:3]
            base, _, end, root = struct.unpack_from("<4Q", fixed, 4)
        else:
            raise UnimplementedError(f"superblock version {version} is not supported. {REWRITE}")
        if not set(widths) <= {2, 4, 8, 16, 32}:
            raise DataLossError(f"invalid widths: {widths[0]} bytes per address, {widths[1]} per length")
        if widths != b"\x08\x08":
            raise UnimplementedError(
                f"addresses of {widths[0]} bytes, lengths of {widths[1]} bytes; only 8 are supported. {REWRITE}"
            )
        if base != start or end > self._blocks.size:
            raise DataLossError(f"incomplete: the file should have {end} bytes, but has {self._blocks.size}")
        return int(root)

    def _tree(self, root: int) -> Hdf5Group:
        """Return the group at address `root` with all its contents."""
        top, messages = self._object(root, "")
        if not isinstance(top, Hdf5Group):
            raise DataLossError("the root of the file is not a group")
        waiting = [(top, messages, "", 0)]
        while waiting:
            group, messages, path, depth = waiting.pop()
            if depth > _MAX_DEPTH:
                raise DataLossError(f"group {quoted(path)}: groups are nested more than {_MAX_DEPTH} deep")
            with error_context(f"group {quoted(path or '/')}"):
                links = list(self._links_of(messages))
            for name, address in links:
                where = f"{path}/{name}" if path else name
                if name in group.groups or name in group.arrays or not name or "/" in name or name in (".", ".."):
                    raise DataLossError(f"group {quoted(path or '/')}: {quoted(name)} is a duplicate or invalid name")
                inner, messages = self._object(address, where)
                if isinstance(inner, Hdf5Group):
                    group.groups[name] = inner
                    waiting.append((inner, messages, where, depth + 1))
                elif inner is not None:
                    group.arrays[name] = inner
                    self._ranges.append((inner.offset, inner.offset + inner.nbytes, where))
        return top

    def _check_apart(self) -> None:
        """Raise DataLossError if two datasets share bytes: the total size of all could then exceed the file's."""
        ranges = sorted(each for each in self._ranges if each[1] > each[0])
        for (_, end, first), (begin, _, second) in pairwise(ranges):
            if begin < end:
                raise DataLossError(f"datasets {quoted(first)} and {quoted(second)} overlap at byte {begin}")

    def _object(self, address: int, path: str) -> tuple[Hdf5Group | Hdf5Array | None, list[Hdf5Message]]:
        """Return the group or dataset at an address, and its messages. An object may have only one name."""
        with error_context(f"object {quoted(path or '/')}"):
            messages = list(self._blocks.messages(address))
            kinds = {message.kind for message in messages}
            if not kinds.isdisjoint((_SYMBOL_TABLE, _LINK_INFO)):
                return Hdf5Group(_attributes(messages)), messages
            if kinds.isdisjoint((_LAYOUT, _DATASPACE)):
                return None, messages  # a named datatype
            return self._array(messages), messages

    def _array(self, messages: list[Hdf5Message]) -> Hdf5Array:
        of_kind = {message.kind: message for message in messages}
        missing = [name for name, kind in _PARTS.items() if kind not in of_kind]
        if missing:
            raise DataLossError(f"the dataset has no {missing[0]}")
        if _EXTERNAL in of_kind:
            raise UnimplementedError(f"the values of the dataset are in another file, which is not opened. {REWRITE}")
        if any(of_kind[kind].flags & 2 for kind in _PARTS.values()):
            raise UnimplementedError(f"the dataset has a shared datatype. {REWRITE}")
        shape = decode_dataspace(of_kind[_DATASPACE].data)
        element = decode_datatype(of_kind[_DATATYPE].data)
        nbytes = 0 if shape is None else element_count(shape) * element.size
        try:
            layout = decode_layout(of_kind[_LAYOUT].data, of_kind[_LAYOUT].at)
        except UnimplementedError as error:
            raise UnimplementedError(f"the dataset is {error}. {REWRITE}") from None
        if not nbytes:
            layout = Hdf5Layout(0, 0)
        elif layout.address == UNDEFINED or layout.nbytes < nbytes or layout.address + nbytes > self._blocks.end:
            size = 0 if layout.address == UNDEFINED else layout.nbytes
            raise DataLossError(
                f"shape {shape_text(shape or ())} takes {nbytes} bytes, but the dataset has {size}, and the file has "
                f"{self._blocks.size}"
            )
        named = _attributes(messages).get("dtype")
        text = self._blocks.strings(named)[:1] if named is not None and element.is_opaque else []
        return Hdf5Array(shape, element, self._blocks.base + layout.address, nbytes, "".join(text))

    def _links_of(self, messages: list[Hdf5Message]) -> Iterator[tuple[str, int]]:
        """Yield the names in a group, and the addresses of their object headers."""
        for message in messages:
            if message.kind == _SYMBOL_TABLE:
                tree, heap = pair(message.data)
                yield from self._old_group(tree, heap)
            elif message.kind == _LINK:
                self._count_link()
                yield _new_link(message.data)
            elif message.kind == _LINK_INFO and _is_dense(message.data, 8):
                raise UnimplementedError(f"the group is stored in dense form (libver='latest'). {REWRITE}")

    def _old_group(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        header = self._blocks.block(heap, 32)
        if header[:4] != b"HEAP":
            raise DataLossError(f"byte {heap}: not a heap of names")
        size, _, start = struct.unpack_from("<QQQ", header, 8)
        names = self._blocks.block(start, size)
        waiting = [tree]
        while waiting:
            at = waiting.pop()
            node = self._blocks.take(at, 8)
            if node[:4] == b"SNOD":
                (count,) = struct.unpack_from("<H", node, 6)
                entries = self._blocks.block(at, 8 + 40 * count)
                for number in range(count):
                    place, target, cached = struct.unpack_from("<QQI", entries, 8 + 40 * number)
                    name = _name_in(names, place)
                    if cached == 2:
                        raise UnimplementedError(_link_refusal(name, "soft link"))
                    self._count_link()
                    yield name, target
            elif node[:5] == b"TREE\0":
                (count,) = struct.unpack_from("<H", node, 6)
                keys = self._blocks.block(at, 32 + 16 * count)
                waiting += [struct.unpack_from("<Q", keys, 32 + 16 * number)[0] for number in reversed(range(count))]
            else:
                raise DataLossError(f"byte {at}: not a part of a group")

    def _count_link(self) -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise UnimplementedError(f"its groups contain more than {_MAX_LINKS:,} names")


_PARTS: Final = {"shape": _DATASPACE, "element type": _DATATYPE, "layout": _LAYOUT}


def _attributes(messages: list[Hdf5Message]) -> dict[str, Hdf5Attribute]:
    found: dict[str, Hdf5Attribute] = {}
    for message in messages:
        if message.kind == _ATTRIBUTE:
            if message.flags & 2:
                raise UnimplementedError(f"shared attributes are not supported. {REWRITE}")
            attribute = decode_attribute(message.data)
            found[attribute.name] = attribute
        elif message.kind == _ATTRIBUTE_INFO and _is_dense(message.data, 2):
            raise UnimplementedError(f"attributes are stored in dense form (libver='latest'). {REWRITE}")
    return found


def _is_dense(data: bytes, order_size: int) -> bool:
    """Return whether the names of a group, or attributes, are stored in a heap instead of messages.

    Link info and attribute info: 0: u8 | flags: u8 | [largest number: `order_size` bytes] | address of the heap: u64le.
    """
    at = 2 + (order_size if data[1:2] in (b"\1", b"\3") else 0)
    return data[at : at + 8] != UNDEFINED.to_bytes(8, "little")


def _new_link(data: bytes) -> tuple[str, int]:
    """Decode a link message: 1: u8 | flags: u8 | [type: u8] | [order: u64] | [charset: u8] | name | address: u64le."""
    if len(data) < 4 or data[0] != 1:
        raise DataLossError("link: too short or of an unknown version")
    flags = data[1]
    kind = data[2] if flags & 8 else 0
    at = 2 + (1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    size = int.from_bytes(data[at : at + width], "little")
    at += width
    name = data[at : at + size].decode("utf-8", "surrogateescape")
    at += size
    if kind:
        raise UnimplementedError(_link_refusal(name, {1: "soft link", 64: "link to another file"}.get(kind, "link")))
    if at + 8 > len(data):
        raise DataLossError(f"link {quoted(name)}: too short")
    return name, int.from_bytes(data[at : at + 8], "little")


def _link_refusal(name: str, what: str) -> str:
    return f"{quoted(name)} is a {what}, which is not followed: only tensors in the file itself are read. {REWRITE}"


def _name_in(names: bytes, at: int) -> str:
    end = names.find(b"\0", at) if at < len(names) else -1
    if end < 0:
        raise DataLossError(f"no complete name at byte {at} of a heap of {len(names)} bytes")
    return names[at:end].decode("utf-8", "surrogateescape")
