"""Join the index entries that several ranks have written to the index of one checkpoint."""

from collections.abc import Mapping, Sequence

from torch_tfckpt.bundle.index import name_of
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_bundle import HEADER_KEY, BundleEntry
from torch_tfckpt.text import printable, quoted


def joined_entries(prefix: str, indexes: Sequence[bytes]) -> Mapping[bytes, bytes]:
    """Return the encoded entries of all indexes; those of the first are for shard 0, of the second for shard 1, ...

    Raises:
        InvalidArgumentError: two ranks have written the same tensor.
    """
    found: dict[bytes, BundleEntry] = {}
    for number, index in enumerate(indexes):
        table = Table(lambda offset, size, index=index: index[offset : offset + size], len(index))  # type: ignore[misc]
        for key, value in table.items(start=HEADER_KEY + b"\0"):
            entry = BundleEntry.decode(value)._replace(shard=number)
            before = found.get(key)
            if before is not None:
                if not before.slices or not entry.slices or (before.dtype, before.shape) != (entry.dtype, entry.shape):
                    raise InvalidArgumentError(
                        f"save of {printable(prefix)}: two ranks have written {quoted(name_of(key))}, or parts of it "
                        f"with different dtypes or shapes. Its planner must keep one of them"
                    )
                entry = before._replace(slices=before.slices + entry.slices)
            found[key] = entry
    return {key: entry.encode() for key, entry in found.items()}
