"""Entries that are decoded in bulk are those that BundleEntry.decode returns."""

from hypothesis import example, given
from hypothesis import strategies as st

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.bulk_decoding import decode_entries
from torch_tfckpt.format.tensor_bundle import BundleEntry
from torch_tfckpt.format.tensor_slice import TensorSlice

_NUMBERS = st.integers(0, 300) | st.integers(0, 2**61)
_ENTRIES = st.builds(
    BundleEntry,
    st.sampled_from([1, 7, 9, 127, 128, 9999]),
    st.lists(st.integers(0, 300), max_size=6).map(tuple),
    st.integers(0, 200) | st.integers(0, 2**31 - 1),
    _NUMBERS,
    _NUMBERS,
    st.integers(0, 2**32 - 1),
    st.sampled_from([(), (), ()]),
)
_SLICED = BundleEntry(1, (4, 2), slices=(TensorSlice.parse("0,2:-"), TensorSlice.parse("2,2:-")))


def _expected(value: bytes) -> BundleEntry | None:
    try:
        return BundleEntry.decode(value)
    except DataLossError:
        return None


@given(entries=st.lists(_ENTRIES | st.just(_SLICED), min_size=1, max_size=20))
def test_encoded_entries(entries: list[BundleEntry]) -> None:
    """All usual entries are decoded; those with slices, or of an unusual form, are left to BundleEntry."""
    for entry, found in zip(entries, decode_entries([entry.encode() for entry in entries]), strict=True):
        assert found in (entry, None)
        if entry.dtype < 128 and not entry.slices and len(entry.encode()) <= 64:
            assert found == entry


@given(
    entries=st.lists(_ENTRIES | st.just(_SLICED), min_size=1, max_size=6),
    changes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 80),
)
@example(entries=[BundleEntry(1, (2,), 0, 5, 8, 7)], changes=[(6, 0x20)], cut=80)
def test_damaged_entries(entries: list[BundleEntry], changes: list[tuple[int, int]], cut: int) -> None:
    """A damaged entry is decoded as BundleEntry.decode decodes it, or not at all."""
    values = []
    for entry in entries:
        value = bytearray(entry.encode())
        for at, byte in changes:
            value[at % len(value)] = byte
        values.append(bytes(value[:cut]))
    for damaged, found in zip(values, decode_entries(values), strict=True):
        assert found is None or found == _expected(damaged)


@given(values=st.lists(st.binary(max_size=70), min_size=1, max_size=8))
def test_any_bytes(values: list[bytes]) -> None:
    """Any bytes are decoded as BundleEntry.decode decodes them, or not at all."""
    for value, found in zip(values, decode_entries([b"\x08\x01\x12\x00" + value for value in values]), strict=True):
        assert found is None or found == _expected(b"\x08\x01\x12\x00" + value)


def test_non_canonical_numbers() -> None:
    """Numbers with more bytes than needed are accepted as before; too long ones are left to BundleEntry."""
    longer = b"\x08\x01\x12\x00\x20\x85\x80\x00\x28\x04"
    endless = b"\x08\x01\x12\x00\x20" + b"\x80" * 20
    assert decode_entries([longer, endless, b""]) == [BundleEntry(1, (), 0, 5, 4), None, None]
