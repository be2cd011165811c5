"""Encoding of a variant tensor: opaque objects, each a message with a checksum.

    per element: size: varint64 | VariantTensorDataProto: size bytes | running checksum: u32le

The running checksum covers all elements so far: for each, the size as u64le, the message, then the stored checksum. The
tensor's own checksum is the final running checksum, masked; so it also covers the last element's stored checksum.

Source: WriteVariantTensor, ReadVariantTensor in tensorflow/core/util/tensor_bundle/tensor_bundle.cc. Explained in
docs/formats/bundle.md.
"""

from collections.abc import Sequence
from typing import Final

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.coding import decode_varint, encode_varint

_CHECKSUM_SIZE: Final = 4


def encode_variants(messages: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the stored bytes of serialized VariantTensorDataProtos, and their masked checksum."""
    parts: list[bytes] = []
    running = 0
    for message in messages:
        running = crc32c.extend(crc32c.extend(running, len(message).to_bytes(8, "little")), message)
        stored_sum = crc32c.mask(running).to_bytes(_CHECKSUM_SIZE, "little")
        running = crc32c.extend(running, stored_sum)
        parts += (encode_varint(len(message)), message, stored_sum)
    return b"".join(parts), crc32c.mask(running)


def decode_variants(stored: bytes, count: int, checksum: int) -> list[bytes]:
    """Return the `count` unparsed messages; raise DataLossError if a size or checksum is wrong."""
    if count > len(stored):
        raise DataLossError(f"too few bytes for {count} variants: {len(stored)}")
    messages: list[bytes] = []
    running = at = 0
    for number in range(count):
        size, at = decode_varint(stored, at)
        end = at + size
        if end + _CHECKSUM_SIZE > len(stored):
            raise DataLossError(
                f"variant {number} of {count}: its checksum ends at byte {end + _CHECKSUM_SIZE}, but the stored tensor "
                f"ends at byte {len(stored)}"
            )
        message, stored_sum = stored[at:end], stored[end : end + _CHECKSUM_SIZE]
        running = crc32c.extend(crc32c.extend(running, size.to_bytes(8, "little")), message)
        if crc32c.mask(running).to_bytes(_CHECKSUM_SIZE, "little") != stored_sum:
            raise DataLossError(
                f"variant {number} of {count}: Checksum does not match: stored "
                f"{int.from_bytes(stored_sum, 'little'):#010x}, computed {crc32c.mask(running):#010x}"
            )
        running = crc32c.extend(running, stored_sum)
        messages.append(message)
        at = end + _CHECKSUM_SIZE
    if at != len(stored) or crc32c.mask(running) != checksum:
        raise DataLossError(
            f"Checksum does not match: stored {checksum:#010x}, computed {crc32c.mask(running):#010x}, "
            f"{len(stored) - at} bytes left over"
        )
    return messages
