"""Layout of a .safetensors file.

    header size: u64le | header: JSON, padded with spaces to a multiple of 8 | bytes of the tensors, without gaps

    {"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}

Tensors are sorted by dtype, widest first, then by name, as the safetensors library writes them, so the same tensors
give the same bytes. The library itself is not used because it needs all tensors in memory at once.

Source: safetensors/src/tensor.rs (serialize, Metadata::validate); safetensors/torch.py for the types.
"""

import json
import struct
from collections import Counter
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.foreign_files.identity import IDENTITY_KEY
from torch_tfckpt.format.tensor_bundle import MAX_RANK
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape, element_count
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.text import counted, quoted, shortened

_SIZE: Final = struct.Struct("<Q")
MAX_HEADER_BYTES: Final = 100_000_000  # MAX_HEADER_SIZE of the library, which refuses more
METADATA_KEY: Final = "__metadata__"
_METADATA: Final = {"format": "pt"}  # transformers refuses files without this entry

# In the sort order of the library, which is the order of declaration in its Dtype.
DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": getattr(torch, "float8_e8m0fnu", None),  # torch 2.7
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
WORDS: Final = {dtype: word for word, dtype in DTYPES.items() if dtype is not None}
_ORDER: Final = {word: number for number, word in enumerate(DTYPES)}
# Like serde_json: no spaces, and only the necessary characters escaped.
_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class HeaderEntry(NamedTuple):
    """One tensor in the file."""

    word: str  # its dtype as in the header: "F32"
    shape: Shape
    offset: int  # bytes from the start of the file
    nbytes: int


def lay_out(
    tensors: dict[str, tuple[torch.dtype, Shape]], identity: str | None = None
) -> tuple[bytes, dict[str, HeaderEntry]]:
    """Return the start of a file (header size and header), and the place of each tensor, in file order.

    Args:
        identity: Identity to store in the metadata; the same for all files of a conversion.

    Raises:
        InvalidArgumentError: the header would be larger than readers accept.
    """
    ordered = sorted(tensors, key=lambda name: (-_ORDER[WORDS[tensors[name][0]]], name))
    at = 0
    relative: dict[str, HeaderEntry] = {}
    for name in ordered:
        dtype, shape = tensors[name]
        relative[name] = HeaderEntry(WORDS[dtype], shape, at, dtype.itemsize * element_count(shape))
        at += relative[name].nbytes
    metadata = _METADATA if identity is None else {**_METADATA, IDENTITY_KEY: identity}
    items = [f'"{METADATA_KEY}":{_json(metadata)}']
    for name, (word, shape, offset, nbytes) in relative.items():
        entry = {"dtype": word, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        items.append(f"{_json(name)}:{_json(entry)}")
    header = f"{{{','.join(items)}}}".encode()
    header += b" " * (-len(header) % _SIZE.size)
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidArgumentError(
            f"{len(tensors)} names need a header of {len(header)} bytes; safetensors allows {MAX_HEADER_BYTES}. "
            f"Pass max_shard_size to split the file"
        )
    start = _SIZE.size + len(header)
    return _SIZE.pack(len(header)) + header, {
        name: placed._replace(offset=start + placed.offset) for name, placed in relative.items()
    }


def header_size(head: bytes, file_size: int) -> int:
    """Return the size of the header from the first 8 bytes of the file; DataLossError if it is impossible."""
    if len(head) < _SIZE.size:
        raise DataLossError(f"not a safetensors file: it has only {counted(file_size, 'byte')}")
    (size,) = _SIZE.unpack_from(head)
    if size > min(MAX_HEADER_BYTES, file_size - _SIZE.size):
        raise DataLossError(
            f"not a safetensors file, or a truncated one: a header of {size} bytes in a file of {file_size}"
        )
    return int(size)


def parse_header(header: bytes, file_size: int) -> dict[str, HeaderEntry]:
    """Return the tensors in header order; DataLossError unless they fill the rest of the file without a gap."""
    try:
        content = json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"the safetensors header is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataLossError("the safetensors header is not a JSON object")
    content.pop(METADATA_KEY, None)
    start = _SIZE.size + len(header)
    placed = {name: _parse_entry(name, entry, start) for name, entry in content.items()}
    end = start
    for name, entry in sorted(placed.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != end:
            raise DataLossError(
                f"tensor {quoted(name)} begins at byte {entry.offset}, but the previous one ends at {end}"
            )
        end += entry.nbytes
    if end != file_size:
        raise DataLossError(
            f"the tensors end at byte {end}, but the file ends at {file_size}: it was truncated or extended"
        )
    return placed


def read_identity(file: ReadableFile) -> str | None:
    """Return the identity in the metadata of an open file; None if there is none. Raises like `parse_header`."""
    size = header_size(file.read(0, min(_SIZE.size, file.size)), file.size)
    return identity_in(file.read(_SIZE.size, size))


def identity_in(header: bytes) -> str | None:
    """Return the identity in the metadata of a header; None if there is none."""
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"the safetensors header is not JSON: {error}") from error
    metadata = content.get(METADATA_KEY) if isinstance(content, dict) else None
    identity = metadata.get(IDENTITY_KEY) if isinstance(metadata, dict) else None
    return identity if isinstance(identity, str) else None


def _parse_entry(name: str, entry: Any, start: int) -> HeaderEntry:
    if not isinstance(entry, dict):
        raise DataLossError(f"tensor {quoted(name)}: its entry is not a JSON object")
    word, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    sizes, bounds = _sizes(shape), _sizes(offsets)
    if not isinstance(word, str) or sizes is None or bounds is None or len(bounds) != 2:
        raise DataLossError(f"tensor {quoted(name)}: invalid entry {shortened(entry)}")
    begin, end = bounds
    dtype = DTYPES.get(word)
    expected = end - begin if dtype is None else dtype.itemsize * element_count(sizes)
    if begin > end or end - begin != expected:
        raise DataLossError(
            f"tensor {quoted(name)}: bytes {begin}:{end} do not match {word} of shape {list(sizes)[:16]}"
        )
    return HeaderEntry(word, sizes, start + begin, end - begin)


def _sizes(value: Any) -> Shape | None:
    """Return a JSON list of sizes as a tuple; None for other values and for more than MAX_RANK sizes."""
    plain = (
        isinstance(value, list)
        and len(value) <= MAX_RANK
        and all(type(size) is int and 0 <= size <= MAX_INT64 for size in value)
    )
    return tuple(value) if plain else None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the items of a JSON object; raise DataLossError if two have the same key."""
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise DataLossError(f"the JSON contains a tensor twice: {quoted(twice)}")
    return table
