"""The fuzz targets: every decoder, as a function of bytes that returns or raises a CheckpointError.

Any other exception is a finding; so is a violated invariant (`assert`): a decoded value must encode to the same bytes,
keys must be sorted, and the number of values must match the shape. Checksums are corrected before the readers see them,
since no fuzzer could guess them.
"""

import contextlib
import itertools
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from foreign_fuzz_targets import FOREIGN_SEEDS, FOREIGN_TARGETS
from golden_files import GOLDEN
from google.protobuf import text_format
from memory_storage import MemoryStorage
from object_graph_files import ObjectMetaGraph, Saved
from other_files import OTHER_FILES
from slice_keys import decode_num, decode_signed, decode_slice_key, decode_string

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.tensor_slice_pb2 import TensorSliceProto
from torch_tfckpt.directory.locate import find_checkpoint
from torch_tfckpt.directory.state_file import read_state
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.block import BlockBuilder, decode_block
from torch_tfckpt.format.coding import decode_varint, encode_varint
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ROOT, ObjectGraph, with_checkpoint_values
from torch_tfckpt.format.ordered_code import encode_num, encode_signed, encode_string
from torch_tfckpt.format.recognise import recognise
from torch_tfckpt.format.saved_tensor_slices import VALUE_FIELDS, decode_meta, decode_slice, encode_slice
from torch_tfckpt.format.string_tensor import decode_strings, encode_strings
from torch_tfckpt.format.table import BLOCK_TRAILER, BlockHandle, Footer, Table, TableBuilder
from torch_tfckpt.format.tensor_bundle import BundleEntry, BundleHeader, parse_data_filename
from torch_tfckpt.format.tensor_slice import (
    TensorSlice,
    element_count,
    encode_slice_key,
    find_overlap,
    parse_shape_and_slice,
)
from torch_tfckpt.format.variant_tensor import decode_variants, encode_variants
from torch_tfckpt.format.varint_arrays import decode_varints, encode_varints
from torch_tfckpt.format.wire import fields, sized_tag
from torch_tfckpt.meta_graph.bound_variables import bound_variables
from torch_tfckpt.meta_graph.files import meta_graph_of, meta_graphs_in
from torch_tfckpt.meta_graph.graph_files import open_graph_def
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.text import META_GRAPH, encode_text, to_text
from torch_tfckpt.values import Value

Target = Callable[[bytes], None]
MAX_SEED_BYTES: Final = 12 * 1024  # larger seeds only slow the fuzzer down
_LENGTH: Final = struct.Struct("<H")  # size of the index, in front of a version 2 checkpoint
_MAGIC: Final = Footer(BlockHandle(0, 0), BlockHandle(0, 0)).encode()[-8:]


# Primitive encodings.


def varints(data: bytes) -> None:
    """One varint, and a list of them; the value encodes to the same bytes, unless they were longer than necessary."""
    count, rest = (data[0], data[1:]) if data else (0, b"")
    with contextlib.suppress(CheckpointError):
        value, end = decode_varint(rest, 0)
        assert len(encode_varint(value)) <= end
    values, end = decode_varints(rest, count)
    assert len(values) == count and end <= len(rest)
    assert len(encode_varints(values)) <= end
    at = 0
    for value in values.tolist():
        with contextlib.suppress(CheckpointError):  # the list drops bits beyond 64, as protobuf does
            one, at = decode_varint(rest, at)
            assert one == value


def ordered_code(data: bytes) -> None:
    """Numbers, strings and signed numbers that sort like their bytes: each has only one encoding."""
    decoders: tuple[tuple[Callable[..., tuple[object, int]], Callable[..., bytes]], ...] = (
        (decode_num, encode_num),
        (decode_string, encode_string),
        (decode_signed, encode_signed),
    )
    for decode, encode in decoders:
        with contextlib.suppress(CheckpointError):
            value, end = decode(data, 0)
            assert encode(value) == data[:end]


def slice_key(data: bytes) -> None:
    name, part = decode_slice_key(data)
    again = decode_slice_key(encode_slice_key(name, part))
    assert again == (name, part)


def slice_text(data: bytes) -> None:
    """Slices as strings, with and without the shape in front."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(CheckpointError):
        part = TensorSlice.parse(text)
        assert TensorSlice.parse(str(part)) == part
    shape, part, piece = parse_shape_and_slice(text)
    assert len(shape) == part.rank == len(piece)
    part.covers(shape)


def slice_proto(data: bytes) -> None:
    """Slices as messages, one slice per field of the input; geometry on the results."""
    parts: list[TensorSlice] = []
    for field in fields(memoryview(data)):
        if field.wire_type == 2 and len(parts) < 64:
            proto = TensorSliceProto()
            try:
                proto.ParseFromString(bytes(field.payload))
            except Exception:  # protobuf's own error: it is protobuf's decoder
                return
            parts.append(TensorSlice.from_proto(proto))
    for part in parts:
        assert TensorSlice.from_proto(part.to_proto()) == part
    shape = (7, 5, 3)[: parts[0].rank] if parts else ()
    overlap = find_overlap(shape, parts)
    resolved = [part.resolve(shape) for part in parts]
    pairs = ((a, b) for at, a in enumerate(resolved) for b in resolved[at + 1 :])
    assert (overlap is not None) == any(
        (common := a.intersect(b)) is not None and element_count(common.shape_of(shape)) for a, b in pairs
    )


def wire(data: bytes) -> None:
    """Messages: no field extends beyond its message."""
    total = 0
    for field in fields(memoryview(data)):
        total += len(field.payload)
    assert total <= len(data)


# Tables.


def block(data: bytes) -> None:
    keys, values = decode_block(data, len(data))
    assert len(keys) == len(values)
    assert all(a < b for a, b in pairwise(keys))
    builder = BlockBuilder(16)
    for key, value in zip(keys, values, strict=True):
        builder.add(key, value)
    assert decode_block(builder.finish(), 64 * len(data)) == (keys, values)


def _opened(data: bytes) -> Table:
    return Table(lambda offset, size: data[offset : offset + size], len(data))


def _use_table(data: bytes) -> None:
    table = _opened(data)
    seen = dict(table.items())
    for key, value in list(seen.items())[:50]:
        assert table.get(key) == value
    assert table.get(b"\xff" * 9) is None or b"\xff" * 9 in seen
    assert list(table.items(start=b"m")) == [(key, value) for key, value in seen.items() if key >= b"m"]
    table.check_structure()


def table(data: bytes) -> None:
    """Unmodified: this tests little more than checksums and footers."""
    _use_table(data)


def sealed_table(data: bytes) -> None:
    """With corrected footer and checksums."""
    _use_table(sealed(data))


def sealed(data: bytes) -> bytes:
    """Return `data` as a table with valid magic and checksums, wherever its handles point."""
    if len(data) < Footer.SIZE:
        return data
    out = bytearray(data)
    out[-len(_MAGIC) :] = _MAGIC
    with contextlib.suppress(CheckpointError):
        footer = Footer.decode(bytes(out[-Footer.SIZE :]))
        _seal(out, footer.metaindex)
        _, handles = decode_block(_seal(out, footer.index), len(out))
        for handle in handles[:1000]:
            _seal(out, BlockHandle.decode(handle, 0)[0])
        _seal(out, footer.index)  # a data block may overlap it
    return bytes(out)


def _seal(out: bytearray, handle: BlockHandle) -> bytes:
    """Correct the checksum of one block; return its contents."""
    end = handle.offset + handle.size
    if end + BLOCK_TRAILER.size > len(out) - Footer.SIZE:
        return b""
    # Only two of the 256 types are defined.
    out[end] &= 1
    checksum = crc32c.mask(crc32c.value(out[handle.offset : end + 1]))
    out[end + 1 : end + BLOCK_TRAILER.size] = checksum.to_bytes(4, "little")
    return bytes(out[handle.offset : end])


# Records.


def bundle_header(data: bytes) -> None:
    header = BundleHeader.decode(data)
    assert BundleHeader.decode(header.encode()) == header


def bundle_entry(data: bytes) -> None:
    entry = BundleEntry.decode(data)
    if -(2**31) <= entry.dtype < 2**31:
        assert BundleEntry.decode(entry.encode()) == entry
    assert element_count(entry.shape) < 2**63


def data_filename(data: bytes) -> None:
    parse_data_filename(data.decode("utf-8", "surrogateescape"))


def string_tensor(data: bytes) -> None:
    """The first byte is the count; with the given checksums, and with verification off."""
    count, stored = (data[0], data[1:]) if data else (0, b"")
    for big_endian in (False, True):
        with contextlib.suppress(CheckpointError):
            decode_strings(stored, count, 0, big_endian=big_endian)
    elements = decode_strings(stored, count, 0, verify=False)
    assert len(elements) == count
    again, checksum = encode_strings(elements)
    assert decode_strings(again, count, checksum) == elements


def variant_tensor(data: bytes) -> None:
    """The first byte is the count. The decoded messages, encoded again, give a tensor with valid checksums."""
    count, stored = (data[0], data[1:]) if data else (0, b"")
    with contextlib.suppress(CheckpointError):
        decode_variants(stored, count, 0)
    messages = [bytes(field.payload) for field in fields(memoryview(stored))][:count]
    again, checksum = encode_variants(messages)
    assert decode_variants(again, len(messages), checksum) == messages


def v1_meta(data: bytes) -> None:
    for name, _, _, slices in decode_meta(data):
        for part in slices:
            encode_slice_key(name.encode(), part)


def v1_record(data: bytes) -> None:
    """The first two bytes choose type and count."""
    if len(data) < 2:
        return
    dtype, count = list(VALUE_FIELDS)[data[0] % len(VALUE_FIELDS)], data[1]
    values = decode_slice(data[2:], dtype, count).values
    assert len(values) == count
    if VALUE_FIELDS[dtype].estimate:
        again = decode_slice(encode_slice("x", TensorSlice.full(1), dtype, values), dtype, count).values
        if isinstance(values, np.ndarray):
            assert isinstance(again, np.ndarray)
            assert again.tobytes() == values.tobytes()
        else:
            assert again == values


def state_file(data: bytes) -> None:
    """A `checkpoint` file next to a checkpoint, and everything it refers to."""
    storage = MemoryStorage({"d/checkpoint": data, "d/m.index": b"", "d/v1": b"", "d/n-00000-of-00001": b""})
    with contextlib.suppress(CheckpointError):
        assert read_state(storage, "d/checkpoint").model_checkpoint_path
    find_checkpoint(storage, "d")


def object_graph(data: bytes) -> None:
    """Decoded graphs encode to the same bytes; paths from the root lead to their nodes; names can be printed."""
    graph = ObjectGraph.decode(data)
    assert ObjectGraph.decode(graph.encode()) == graph
    for node_id in itertools.islice((i for i in range(len(graph.nodes)) if graph.route(i) is not None), 50):
        here: int | None = ROOT
        for local_name in graph.route(node_id) or ():
            here = graph.nodes[here or ROOT].child(local_name)
        # Of two children with one name the first is found; the path may refer to the other.
        assert here == node_id or _has_children_of_one_name(graph)
    for node_id in range(min(50, len(graph.nodes))):
        assert graph.name(node_id)
    assert len(graph.names_to_keys()) <= sum(len(node.attributes) for node in graph.nodes)
    with_values = with_checkpoint_values(graph.nodes)
    assert with_checkpoint_values(with_values) == with_values


def _has_children_of_one_name(graph: ObjectGraph) -> bool:
    return any(len({child.local_name for child in node.children}) < len(node.children) for node in graph.nodes)


# Meta graphs.


def meta_graph(data: bytes) -> None:
    """Every part and node can be decoded; if the bytes are a message, they equal its parts."""
    found = RawMetaGraph(memoryview(data), "m.meta")
    for part in ("info", "saver_def", "collections", "signatures", "assets", "object_graph"):
        with contextlib.suppress(CheckpointError):
            getattr(found, part)
    with contextlib.suppress(CheckpointError):
        _use_graph(found.graph)
    message = found.message()
    assert found.info == message.meta_info_def
    assert [node.name for node in found.graph.iter_nodes()] == [node.name for node in message.graph_def.node]


def _use_graph(graph: Graph) -> None:
    for node in graph.iter_nodes():
        for name in ("dtype", "value", "shape"):
            with contextlib.suppress(CheckpointError):
                node.attr(name)
    assert sum(graph.op_counts().values()) == len(graph.nodes)
    for function in graph.functions.values():
        assert len(function.nodes) <= len(graph.raw)


def meta_graph_text(data: bytes) -> None:
    """The parsed message can be written as text, and parses to the same message again."""
    text = to_text(meta_graph_of(encode_text(data, META_GRAPH)))
    assert to_text(meta_graph_of(encode_text(text.encode(), META_GRAPH))) == text


def meta_graph_file(data: bytes) -> None:
    """A `.meta` file or a SavedModel, binary or text; every error is also an OSError."""
    storage = MemoryStorage({"d/m.meta": data})
    try:
        found = meta_graphs_in("d/m.meta", storage=storage)
    except CheckpointError as error:
        assert isinstance(error, OSError)
        return
    assert found
    for each in found:
        with contextlib.suppress(CheckpointError):
            _use_graph(each.graph)


def graph_def_file(data: bytes) -> None:
    """A GraphDef file, binary or text; every error is also an OSError."""
    storage = MemoryStorage({"d/frozen.pb": data})
    try:
        found = open_graph_def("d/frozen.pb", storage=storage)
    except CheckpointError as error:
        assert isinstance(error, OSError)
        return
    assert found.graph.nodes
    with contextlib.suppress(CheckpointError):
        _use_graph(found.graph)


def object_variables(data: bytes) -> None:
    """Variables have unique names, and nodes and stored values refer to them."""
    found = bound_variables(RawMetaGraph(memoryview(data), "m.meta"))
    names = {variable.name for variable in found.variables}
    assert len(names) == len(found.variables)
    assert names >= set(found.of_nodes.values())


# Files of other kinds.


def file_kind(data: bytes) -> None:
    """An answer for all bytes, without an error; reads inside the file only, and few."""
    reads = 0

    def read(offset: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert 0 <= offset <= offset + size <= len(data)
        return data[offset : offset + size]

    assert recognise(read, len(data)).what
    assert reads <= 60


# Whole checkpoints.


def v2_checkpoint(data: bytes) -> None:
    """Size of the index, the index, the bytes of the only data file.

    The index's checksums are corrected; those of the tensors are not verified the first time.
    """
    if len(data) < _LENGTH.size:
        return
    (size,) = _LENGTH.unpack_from(data)
    index, shard = sealed(data[2 : 2 + size]), data[2 + size :]
    files = {"d/m.index": index, "d/m.data-00000-of-00001": shard}
    for verify in (False, True):
        _use_reader(MemoryStorage(files), "d/m", verify)


def v1_checkpoint(data: bytes) -> None:
    """One version 1 file with corrected checksums."""
    _use_reader(MemoryStorage({"d/m": sealed(data)}), "d/m", True)


def _use_reader(storage: MemoryStorage, path: str, verify: bool) -> None:
    """Call everything on a reader; values match their shapes, and all ways of reading agree."""
    with tfckpt.CheckpointReader(path, verify=verify, storage=storage) as reader:
        names = reader.keys()
        assert len(set(names)) == len(names)
        values: dict[str, Value] = {}
        for name in names[:20]:
            assert name in reader
            with contextlib.suppress(CheckpointError):
                values[name] = reader.get_tensor(name)
                assert tuple(values[name].shape) == reader.shape(name)
                reader.nbytes(name)
            for use in (_slice_of, tfckpt.CheckpointReader.locate, tfckpt.CheckpointReader.get_stored_bytes):
                with contextlib.suppress(CheckpointError):
                    use(reader, name)
        with contextlib.suppress(CheckpointError):
            together = reader.get_tensors(list(values))
            assert all(_same(value, together[name]) for name, value in values.items())
        reader.debug_string()
        reader.get_variable_to_shape_map()
        verification = reader.check()
        if verify:
            for name in verification.good:
                # Reported as good: then it can be read, if it has a dtype that can be.
                if name in names[:20] and name not in values:
                    _assert_refused_for_no_damage(reader, name)


def _slice_of(reader: tfckpt.CheckpointReader, name: str) -> None:
    stored = reader.get_slice(name)
    if stored.shape and stored.shape[0]:
        value = stored[stored.shape[0] // 2]
        assert tuple(value.shape if hasattr(value, "shape") else ()) == stored.shape[1:]


def _assert_refused_for_no_damage(reader: tfckpt.CheckpointReader, name: str) -> None:
    try:
        reader.get_tensor(name)
    except tfckpt.DataLossError as error:
        raise AssertionError(f"check() reports {name!r} as good") from error
    except CheckpointError:
        pass


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        bits = [value.reshape(-1).contiguous().view(torch.uint8) for value in (one, other)]
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*bits)
    return one.shape == other.shape and bool(np.array_equal(one, other))


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        varints, ordered_code, slice_key, slice_text, slice_proto, wire, block, table, sealed_table, bundle_header,
        bundle_entry, data_filename, string_tensor, variant_tensor, v1_meta, v1_record, state_file, object_graph,
        meta_graph, meta_graph_text, meta_graph_file, graph_def_file, object_variables, file_kind, v2_checkpoint,
        v1_checkpoint,
        *FOREIGN_TARGETS,
    )
}  # fmt: skip


def run(target: Target, data: bytes) -> None:
    """Run one input: a CheckpointError is the expected result for bad input, anything else propagates."""
    with contextlib.suppress(CheckpointError):
        target(data)


# Seeds from real files.


def seeds(name: str) -> list[bytes]:
    """Return initial inputs for one target, taken from the checkpoints in tests/golden."""
    found = dict.fromkeys(seed for seed in _SEEDS[name]() if len(seed) <= MAX_SEED_BYTES)
    return list(found)


def _tables(version: int) -> Iterator[tuple[Path, dict[bytes, bytes]]]:
    for path in sorted(GOLDEN.rglob("*")):
        if not path.is_file() or path.stat().st_size > 64 * 1024:
            continue
        content = path.read_bytes()
        if content[-8:] == _MAGIC and (path.suffix == ".index") == (version == 2):
            with contextlib.suppress(CheckpointError):
                yield path, dict(_opened(content).items())


def _small(entries: dict[bytes, bytes], count: int = 12) -> bytes:
    parts: list[bytes] = []
    builder = TableBuilder(parts.append)
    for key in sorted(entries)[:count]:
        builder.add(key, entries[key])
    builder.finish()
    return b"".join(parts)


def _table_seeds() -> Iterator[bytes]:
    for version in (1, 2):
        for path, entries in _tables(version):
            yield path.read_bytes()
            yield _small(entries)


def _block_seeds() -> Iterator[bytes]:
    for seed in _table_seeds():
        with contextlib.suppress(CheckpointError):
            footer = Footer.decode(seed[-Footer.SIZE :])
            yield seed[: footer.metaindex.offset - BLOCK_TRAILER.size]
            yield seed[footer.index.offset : footer.index.offset + footer.index.size]


def _v2_seeds() -> Iterator[bytes]:
    for path, entries in _tables(2):
        for data in path.parent.glob(f"{path.stem}.data-00000-of-*"):
            index = _small(entries)
            if len(index) < 2**16 and data.stat().st_size < MAX_SEED_BYTES:
                yield _LENGTH.pack(len(index)) + index + data.read_bytes()


def _values(version: int, *, header: bool) -> Iterator[bytes]:
    for _, entries in _tables(version):
        yield from (value for key, value in list(entries.items())[:30] if (key == b"") == header)


def _string_seeds() -> Iterator[bytes]:
    for elements in ([], [b""], [b"hello", b"", b"x01"], [b"a" * 300, b"b" * 127, b"c" * 128]):
        yield bytes((len(elements),)) + encode_strings(elements)[0]


def _variant_seeds() -> Iterator[bytes]:
    for messages in ([], [b""], [b"\x0a\x03abc", b"\x12\x00"]):
        yield bytes((len(messages),)) + encode_variants(messages)[0]
    yield b"\x01" + (GOLDEN / "tensorflow" / "variant" / "variant.data-00000-of-00001").read_bytes()


def _keys() -> Iterator[bytes]:
    for version in (1, 2):
        for _, entries in _tables(version):
            yield from [key for key in entries if key.startswith(b"\0")][:20]
    for part in ("-", "0,2:-", "2,2:0,5"):
        yield encode_slice_key(b"t\x00\xff", TensorSlice.parse(part))


def _state_seeds() -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted(GOLDEN.rglob("checkpoint")))
    for stored in ("m", "v1", "n", "checkpoint", "../d/checkpoint", "*", "m*", "/d/m", "n-?????-of-00001", "."):
        yield f"model_checkpoint_path: {json.dumps(stored)}\nall_model_checkpoint_timestamps: 1.5".encode()


def _graph_seeds() -> Iterator[bytes]:
    for path, entries in _tables(2):
        if OBJECT_GRAPH_KEY.encode() in entries:
            with contextlib.suppress(CheckpointError), tfckpt.CheckpointReader(path) as reader:
                yield np.asarray(reader.get_tensor(OBJECT_GRAPH_KEY)).astype(object).item()


def _meta_graph_seeds() -> Iterator[bytes]:
    """A little of each: a few nodes, one function, one operation."""
    for path in sorted(path for name in ("*.meta", "saved_model.pb") for path in GOLDEN.rglob(name)):
        for each in meta_graphs_in(path):
            message = each.message()
            del message.graph_def.node[4:]
            del message.graph_def.library.function[1:]
            del message.meta_info_def.stripped_op_list.op[1:]
            del message.object_graph_def.nodes[2:]
            yield message.SerializeToString(deterministic=True)


def _meta_graph_file_seeds() -> Iterator[bytes]:
    for seed in _meta_graph_seeds():
        yield seed
        yield to_text(meta_graph_of(seed)).encode()
        yield b"\x08\x01" + sized_tag(2, len(seed)) + seed  # a SavedModel


def _graph_def_file_seeds() -> Iterator[bytes]:
    for seed in _meta_graph_seeds():
        graph = meta_graph_of(seed).message().graph_def
        yield graph.SerializeToString(deterministic=True)
        yield text_format.MessageToString(graph).encode()


def _object_variables_seeds() -> Iterator[bytes]:
    first = Saved("a", "kernel", "Variable", "kernel_1", trainable=True)
    others = Saved("b", "kernel", "kernel_1", "unused"), Saved("c", "bias", None, "bias"), Saved("d", "", "bias", "d")
    for functions in ({"f": [0, 2]}, {"f": [1, 3], "g": [0]}, {}):
        message = ObjectMetaGraph([first, *others], functions).message()
        message.object_graph_def.nodes[0].slot_variables.add(original_variable_node_id=1, slot_variable_node_id=2)
        yield message.SerializeToString(deterministic=True)


def _file_kind_seeds() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        for name, (_, write) in OTHER_FILES.items():
            write(Path(directory, name))
            yield Path(directory, name).read_bytes()
    yield from (path.read_bytes() for path in sorted((GOLDEN.parent / "foreign_files" / "golden").iterdir()))
    yield from _table_seeds()
    yield from _meta_graph_file_seeds()


def _slice_protos() -> Iterator[bytes]:
    for texts in (("0,2:-", "2,2:-"), ("0,3", "3,4"), ("0,1:0,2:-", "1,2:0,2:-"), ("-",)):
        encoded = [TensorSlice.parse(text).to_proto().SerializeToString() for text in texts]
        yield b"".join(b"\x0a" + bytes((len(part),)) + part for part in encoded)


def _record_seeds() -> Iterator[bytes]:
    """Real records, with each type and count that they can be read as; and one of each type."""
    for record in _values(1, header=False):
        for number, dtype in enumerate(VALUE_FIELDS):
            for count in range(25):
                with contextlib.suppress(CheckpointError):
                    decode_slice(record, dtype, count)
                    yield bytes((number, count)) + record
    for number, (dtype, field) in enumerate(VALUE_FIELDS.items()):
        if field.estimate:
            values = [b"ab", b""] if field.array.kind == "O" else np.array([0, 1], field.array)
            yield bytes((number, 2)) + encode_slice("x", TensorSlice.full(1), dtype, values)


def _numbers() -> Iterator[bytes]:
    for number in (0, 1, 127, 128, 300, 2**32, 2**63 - 1, 2**64 - 1):
        yield b"\x03" + encode_varint(number) * 3
        yield encode_num(number)
        if number < 2**63:
            yield encode_signed(number)
            yield encode_signed(-number)
    yield encode_string(b"a\x00b\xffc")


_SEEDS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "varints": _numbers,
    "ordered_code": _numbers,
    "slice_key": _keys,
    "slice_text": lambda: iter((b"4 5 0,2:-", b"4 5 -:-", b"10 0,5", b"3 3 3 1,2:0,1:-", b"0 -", b"-:0,10:14,1")),
    "slice_proto": _slice_protos,
    "wire": lambda: _values(1, header=False),
    "block": _block_seeds,
    "table": _table_seeds,
    "sealed_table": _table_seeds,
    "bundle_header": lambda: _values(2, header=True),
    "bundle_entry": lambda: _values(2, header=False),
    "data_filename": lambda: iter((b"a.data-00000-of-00001", b"m.data-123456-of-1234567")),
    "string_tensor": _string_seeds,
    "variant_tensor": _variant_seeds,
    "v1_meta": lambda: _values(1, header=True),
    "v1_record": _record_seeds,
    "state_file": _state_seeds,
    "object_graph": _graph_seeds,
    "meta_graph": _meta_graph_seeds,
    "meta_graph_text": lambda: (to_text(meta_graph_of(seed)).encode() for seed in _meta_graph_seeds()),
    "meta_graph_file": _meta_graph_file_seeds,
    "graph_def_file": _graph_def_file_seeds,
    "object_variables": _object_variables_seeds,
    "file_kind": _file_kind_seeds,
    "v2_checkpoint": _v2_seeds,
    "v1_checkpoint": lambda: (_small(entries) for _, entries in _tables(1)),
    **FOREIGN_SEEDS,
}  # fmt: skip
