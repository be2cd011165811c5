"""Indexes with valid checksums but absurd contents: a helpful error, soon, in bounded memory, for that tensor only."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cramjam
import pytest
import torch
from claims import ALLOWANCE, BASE, MEBIBYTE, assert_helps, assert_right, check_neighbours, confined, same, within
from hostile import (
    FLOAT,
    GOOD,
    GOOD_BYTES,
    HEADER,
    HUGE,
    STRING,
    block,
    entry,
    floats,
    good_entries,
    key_bomb,
    masked,
    raw_block,
    table_of_blocks,
    write_bundle,
    write_index,
)
from hostile_tables import BAD_TABLES, good_pairs, split
from samples import strings

import torch_tfckpt as tfckpt
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.string_tensor import encode_strings
from torch_tfckpt.format.table import BlockHandle
from torch_tfckpt.format.tensor_bundle import BundleHeader, data_filename
from torch_tfckpt.values import Value

INT64_MAX = 2**63 - 1


class Bad(NamedTuple):
    """One entry stored as "bad"."""

    entry: bytes
    data: bytes = b""
    raises: type[tfckpt.CheckpointError] | None = tfckpt.DataLossError
    value: Value | None = None  # if it is valid after all


def strings_entry(shape: tuple[int, ...], lengths: list[int], payload: bytes = b"") -> Bad:
    """A string tensor of any lengths, with correct checksums."""
    encoded = b"".join(map(encode_varint, lengths))
    running = 0
    for length in lengths:
        running = crc32c.extend(running, length.to_bytes(4 if length < 2**32 else 8, "little"))
    stored_sum = crc32c.mask(running).to_bytes(4, "little")
    data = encoded + stored_sum + payload
    checksum = crc32c.mask(crc32c.extend(crc32c.extend(running, stored_sum), payload))
    return Bad(entry(STRING, shape, data, checksum=checksum), data)


HELLO = encode_strings([b"hello", b"you"])
FOUR = floats(4)
ELEVEN = b"\xff" * 10 + b"\x01" + bytes(8)

BAD: dict[str, Bad] = {
    "an offset beyond everything": Bad(entry(FLOAT, (4,), FOUR, offset=HUGE), FOUR),
    "an offset just after the file": Bad(entry(FLOAT, (4,), FOUR, offset=len(GOOD_BYTES) + 1), FOUR),
    "an end beyond 64 bits": Bad(entry(FLOAT, (4,), FOUR, offset=INT64_MAX), FOUR),
    "a negative offset": Bad(entry(FLOAT, (4,), FOUR, offset=-1), FOUR),
    "a huge size": Bad(entry(FLOAT, (4,), FOUR, size=HUGE), FOUR),
    "a huge size that matches the shape": Bad(entry(FLOAT, (HUGE // 4,), FOUR, size=HUGE), FOUR),
    "a negative size": Bad(entry(FLOAT, (4,), FOUR, size=-16), FOUR),
    "a size of zero": Bad(entry(FLOAT, (4,), FOUR, size=0), FOUR),
    "a size too small by one": Bad(entry(FLOAT, (4,), FOUR, size=15), FOUR),
    "a shape beyond the size": Bad(entry(FLOAT, (HUGE,), FOUR), FOUR),
    "a shape whose bytes overflow": Bad(entry(FLOAT, (2**61,), FOUR), FOUR),
    "a shape whose product overflows to 0": Bad(entry(FLOAT, (2**32, 2**32), FOUR), FOUR),
    "a shape whose product overflows to 4": Bad(entry(FLOAT, (2**62, 4, 4), b""), FOUR),
    "a negative dimension": Bad(entry(FLOAT, (-1,), FOUR), FOUR),
    "two negative dimensions": Bad(entry(FLOAT, (-2, -2), FOUR), FOUR),
    "no elements, but dimensions that overflow": Bad(entry(FLOAT, (0, 2**40, 2**40), b"")),
    "an unknown rank": Bad(entry(FLOAT, (), FOUR[:4], unknown_rank=True), FOUR),
    "rank 255": Bad(entry(FLOAT, (1,) * 255, FOUR[:4]), FOUR),
    "a million dimensions": Bad(entry(FLOAT, (1,) * 1_000_000, FOUR[:4]), FOUR),
    "shard -1": Bad(entry(FLOAT, (4,), FOUR, shard=-1), FOUR),
    "shard 1 of 1": Bad(entry(FLOAT, (4,), FOUR, shard=1), FOUR),
    "shard 2**31-1": Bad(entry(FLOAT, (4,), FOUR, shard=2**31 - 1), FOUR),
    "another checksum": Bad(entry(FLOAT, (4,), FOUR, checksum=masked(FOUR) ^ 1), FOUR),
    "garbage instead of an entry": Bad(b"\xff" * 40),
    "half an entry": Bad(entry(FLOAT, (4,), FOUR)[:-3], FOUR),
    "a group without an end": Bad(b"\x0b"),
    "an empty entry": Bad(b"", raises=tfckpt.CheckpointError),
    "dtype -1": Bad(entry(-1, (4,), FOUR), FOUR, tfckpt.UnimplementedError),
    "dtype 0": Bad(entry(0, (4,), FOUR), FOUR, tfckpt.CheckpointError),
    "dtype 99": Bad(entry(99, (4,), FOUR), FOUR, tfckpt.UnimplementedError),
    "dtype 99 of a huge shape": Bad(entry(99, (HUGE,), FOUR), FOUR, tfckpt.CheckpointError),
    "dtype 2**31-1": Bad(entry(2**31 - 1, (4,), FOUR), FOUR, tfckpt.UnimplementedError),
    "a reference to float": Bad(entry(101, (4,), FOUR), FOUR, tfckpt.UnimplementedError),
    "a reference to string": Bad(entry(107, (2,), HELLO[0]), HELLO[0], tfckpt.UnimplementedError),
    "a resource": Bad(entry(DataType.DT_RESOURCE, (4,), FOUR), FOUR, tfckpt.UnimplementedError),
    "a variant of garbage": Bad(entry(DataType.DT_VARIANT, (4,), FOUR), FOUR, tfckpt.UnimplementedError),
    "a variant of a huge shape": Bad(entry(DataType.DT_VARIANT, (HUGE,), FOUR), FOUR, tfckpt.CheckpointError),
    "float8_e4m3b11fnuz": Bad(
        entry(DataType.DT_FLOAT8_E4M3B11FNUZ, (16,), FOUR), FOUR, tfckpt.UnimplementedError
    ),
    "more strings than bytes": Bad(entry(STRING, (HUGE,), HELLO[0], checksum=HELLO[1]), HELLO[0]),
    "more strings than lengths": Bad(entry(STRING, (3,), HELLO[0], checksum=HELLO[1]), HELLO[0]),
    "fewer strings than lengths": Bad(entry(STRING, (1,), HELLO[0], checksum=HELLO[1]), HELLO[0]),
    "no strings, but bytes": Bad(entry(STRING, (0,), HELLO[0], checksum=HELLO[1]), HELLO[0]),
    "strings with a wrong checksum": Bad(entry(STRING, (2,), HELLO[0], checksum=HELLO[1] ^ 1), HELLO[0]),
    "strings without bytes": Bad(entry(STRING, (2,), b"")),
    "a string of 2**62 bytes": strings_entry((1,), [HUGE]),
    "a string of 2**64-1 bytes": strings_entry((1,), [2**64 - 1]),
    "string lengths whose sum overflows to the right one": strings_entry((3,), [2**63, 2**63, 3], b"abc"),
    "string lengths whose sum is short": strings_entry((2,), [1, 1], b"abc"),
    "a length of 11 bytes": Bad(entry(STRING, (1,), ELEVEN), ELEVEN),
    "lengths that never end": Bad(entry(STRING, (4,), b"\xff" * 64), b"\xff" * 64),
    "an empty slice in a whole tensor": Bad(entry(FLOAT, (4,), FOUR, slices=[]) + b"\x3a\x00", FOUR),
}  # fmt: skip

NO_ELEMENTS = {"no strings, but bytes"}

FINE: dict[str, Bad] = {
    "[0, 2**62]": Bad(entry(FLOAT, (0, HUGE), b""), value=torch.empty(0, HUGE)),
    "[2**62, 0]": Bad(entry(FLOAT, (HUGE, 0), b""), value=torch.empty(HUGE, 0)),
    "[2**31, 0, 2**31]": Bad(entry(FLOAT, (2**31, 0, 2**31), b""), value=torch.empty(2**31, 0, 2**31)),
    "rank 254": Bad(entry(FLOAT, (1,) * 254, FOUR[4:8]), FOUR[4:8], value=torch.ones((1,) * 254)),
    "an offset into nothing": Bad(entry(FLOAT, (0,), b"", offset=0), value=torch.empty(0)),
    "bool 255": Bad(entry(DataType.DT_BOOL, (2,), b"\xff\0"), b"\xff\0", value=torch.tensor([True, False])),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_entry_raises(what: str, tmp_path: Path) -> None:
    """Its tensor is refused, by every way of reading it, within seconds."""
    bad = BAD[what]
    assert bad.raises is not None
    path = write_bundle(tmp_path, {b"bad": bad.entry}, bad.data)
    with within(), tfckpt.load_checkpoint(path) as reader:
        with pytest.raises(bad.raises):
            reader.get_tensor("bad")
        with pytest.raises(bad.raises):
            reader.get_tensors(["aaa/good", "bad"])
        with pytest.raises(bad.raises):
            reader.map_tensor("bad")
        if what not in NO_ELEMENTS:  # a slice of which reads nothing
            with pytest.raises(bad.raises):
                reader.get_slice("bad")[...]
        with pytest.raises(bad.raises):
            tfckpt.load_file(path, names=["bad"])


@pytest.mark.parametrize("what", BAD)
def test_a_bad_entry_is_named_in_the_error(what: str, tmp_path: Path) -> None:
    """The message has place (file and tensor), finding and hint."""
    bad = BAD[what]
    path = write_bundle(tmp_path, {b"bad": bad.entry}, bad.data)
    with tfckpt.load_checkpoint(path) as reader:
        for read in (reader.get_tensor, reader.map_tensor):
            with pytest.raises(tfckpt.CheckpointError) as raised:
                read("bad")
            assert '"bad"' in str(raised.value)
            assert_helps(raised.value, path.name)


@pytest.mark.parametrize("what", BAD | FINE)
def test_a_bad_entry_does_not_hide_the_others(what: str, tmp_path: Path) -> None:
    """Every tensor except the undecodable one is listed and read."""
    bad = (BAD | FINE)[what]
    check_neighbours(write_bundle(tmp_path, {b"bad": bad.entry}, bad.data))


@pytest.mark.parametrize("what", BAD)
def test_check_agrees_with_reading(what: str, tmp_path: Path) -> None:
    """What cannot be read because of damage is reported as damaged, with its name."""
    bad = BAD[what]
    path = write_bundle(tmp_path, {b"bad": bad.entry}, bad.data)
    with within(), tfckpt.load_checkpoint(path) as reader:
        if bad.raises is tfckpt.DataLossError:
            verification = reader.check()
            assert verification.damaged == ["bad"]
            for damage in verification.damage:
                assert "hostile" in str(damage) and '"bad"' in str(damage)


@pytest.mark.parametrize("what", BAD | FINE)
def test_only_checkpoint_errors_are_raised(what: str, tmp_path: Path) -> None:
    """Every method, on every bad entry: a result or a CheckpointError."""
    bad = (BAD | FINE)[what]
    path = write_bundle(tmp_path, {b"bad": bad.entry}, bad.data)
    with within(), tfckpt.load_checkpoint(path) as reader:
        calls: list[Callable[[], object]] = [
            lambda: reader.shape("bad"),
            lambda: reader.dtype("bad"),
            lambda: reader.slices("bad"),
            lambda: reader.nbytes("bad"),
            lambda: reader.locate("bad"),
            lambda: reader.get_stored_bytes("bad"),
            lambda: reader.get_slice("bad")[:1],
            lambda: reader.get_slice("bad")[0],
            lambda: reader.get_slice("bad").get_dtype(),
            lambda: reader.get_tensor("bad", out=torch.empty(4)),
            lambda: tfckpt.load_file(path),
            lambda: tfckpt.load_file(path, mmap=True, verify=False),
            lambda: tfckpt.list_variables(path),
            lambda: tfckpt.load_variable(path, "bad"),
            lambda: reader.has_tensor("bad"),
            lambda: reader.get_variable_to_dtype_map(),
        ]
        for call in calls:
            try:
                call()
            except tfckpt.CheckpointError as error:
                assert len(str(error)) > 30


@pytest.mark.parametrize("what", FINE)
def test_an_odd_but_valid_entry_is_read(what: str, tmp_path: Path) -> None:
    """Absurd shapes without elements, the highest possible rank, bools other than 0 and 1."""
    odd = FINE[what]
    assert isinstance(odd.value, torch.Tensor)
    path = write_bundle(tmp_path, {b"bad": odd.entry}, odd.data)
    with within(), tfckpt.load_checkpoint(path) as reader:
        for value in (reader.get_tensor("bad"), reader.map_tensor("bad"), reader.get_tensors(["bad"])["bad"]):
            assert isinstance(value, torch.Tensor)
            assert value.shape == odd.value.shape and value.dtype == odd.value.dtype
            assert torch.equal(value, odd.value)
        assert reader.check().damage == []


@pytest.mark.parametrize("shape", [(0, HUGE), (1,) * 100, (HUGE, 0), (1,) * 254])
def test_string_arrays_that_numpy_cannot_hold_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    """numpy supports 64 dimensions and 2**63 bytes; values are right or the error explains the limit."""
    stored, checksum = encode_strings([b"x"] if shape[0] == 1 else [])
    path = write_bundle(tmp_path, {b"bad": entry(STRING, shape, stored, checksum=checksum)}, stored)
    check_neighbours(path)
    with within(), tfckpt.load_checkpoint(path) as reader, pytest.raises(tfckpt.UnimplementedError) as raised:
        reader.get_tensor("bad")
    assert_helps(raised.value, path.name, '"bad"')


# The index as a whole.


def header(num_shards: int = 1, *, producer: int = 1, min_consumer: int = 0) -> bytes:
    return BundleHeader(num_shards, producer=producer, min_consumer=min_consumer).encode()


BAD_HEADERS: dict[str, bytes] = {
    "num_shards -1": header(-1),
    "garbage": b"\xff\xff",
    "an unknown endianness": header() + b"\x10\x07",
    "a min consumer from the future": header(min_consumer=2),
    "a producer before the first": header(producer=-1),
    "bad consumers that include this version": BundleHeader(1, bad_consumers=(1,)).encode(),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_a_bad_header_is_refused_at_opening(what: str, tmp_path: Path) -> None:
    """The error names the index, the problem and the fix."""
    path = write_bundle(tmp_path, {}, header=BAD_HEADERS[what])
    with within(), pytest.raises(tfckpt.CheckpointError) as raised:
        tfckpt.load_checkpoint(path)
    assert_helps(raised.value, "hostile.index")


@pytest.mark.parametrize("num_shards", [0, 2, 1000, 2**31 - 1])
def test_an_absurd_number_of_shards_is_harmless(num_shards: int, tmp_path: Path) -> None:
    """Data files are opened when tensors are read, not all two billion at once."""
    path = write_bundle(tmp_path, {}, header=header(num_shards))
    with within(), tfckpt.load_checkpoint(path) as reader:
        assert reader.keys() == list(GOOD)
        for name in GOOD:
            with pytest.raises((tfckpt.NotFoundError, tfckpt.DataLossError)) as raised:
                reader.get_tensor(name)
            assert_helps(raised.value, path.name)
        assert reader.check().damaged == list(GOOD)


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_bad_table_is_refused(what: str, tmp_path: Path) -> None:
    """When opened, or, if opening does not read that far, when listed; by check() in any case."""
    path = write_bundle(tmp_path, {})
    write_index(path, BAD_TABLES[what])
    with within(), pytest.raises(tfckpt.CheckpointError) as raised, tfckpt.load_checkpoint(path) as reader:
        assert reader.check().damage
        reader.keys()
    assert isinstance(raised.value, tfckpt.DataLossError)
    assert_helps(raised.value, "hostile.index")


LATE: dict[str, list[tuple[bytes, bytes]]] = {
    "keys out of order": [*good_pairs()[:2], (b"zzz/good", good_pairs()[2][1]), (b"m", b"")],
    "the same key twice": [*good_pairs()[:2], good_pairs()[1], good_pairs()[2]],
}


@pytest.mark.parametrize("what", LATE)
def test_unsorted_and_duplicate_keys_are_refused(what: str, tmp_path: Path) -> None:
    """It would be ambiguous which entry is meant, so neither is used."""
    path = write_bundle(tmp_path, {})
    contents = raw_block((0, key, value) for key, value in LATE[what])
    write_index(path, table_of_blocks([(b"zzzz", contents)]))
    with within(), pytest.raises(tfckpt.DataLossError) as raised:
        tfckpt.load_checkpoint(path)
    assert_helps(raised.value, "hostile.index")


def test_keys_outside_their_separators_are_refused(tmp_path: Path) -> None:
    """A lookup and a listing would disagree on them."""
    first, second, third = split()
    path = write_bundle(tmp_path, {})
    for blocks in ([first, (b"bbb", third[1]), (b"zzzz", second[1])], [first, (b"aaa", second[1]), third]):
        write_index(path, table_of_blocks(blocks))
        with within(), tfckpt.load_checkpoint(path) as reader:
            with pytest.raises(tfckpt.DataLossError) as raised:
                reader.keys()
            assert_helps(raised.value, "hostile.index")
            assert "" in {damage.name for damage in reader.check().damage}


def test_a_damaged_block_does_not_hide_the_tensors_in_the_others(tmp_path: Path) -> None:
    """Three blocks, the second one damaged: tensors in the first and third can be read by name."""
    blocks = [*split()[:2], (b"bad", block([(b"bad", entry(FLOAT, (1,), b""))])), split()[2]]
    contents = bytearray(table_of_blocks(blocks))
    contents[contents.index(b"bad")] ^= 0xFF
    path = write_bundle(tmp_path, {})
    write_index(path, bytes(contents))
    with within(), tfckpt.load_checkpoint(path) as reader:
        assert_right({name: reader.get_tensor(name) for name in GOOD}, GOOD)
        assert_right(reader.get_tensors(list(GOOD)), GOOD)
        with pytest.raises(tfckpt.DataLossError):
            reader.get_tensor("bad")
        verification = reader.check()
        assert [damage.name for damage in verification.damage] == [""]


def test_an_invalid_metaindex_is_harmless_but_reported(tmp_path: Path) -> None:
    """No reader needs it, not even TensorFlow's; check() reports it."""
    path = write_bundle(tmp_path, {})
    write_index(path, table_of_blocks(split(), metaindex=BlockHandle(HUGE, HUGE)))
    with within(), tfckpt.load_checkpoint(path) as reader:
        assert_right({name: reader.get_tensor(name) for name in GOOD}, GOOD)
        assert "truncated block read" in str(reader.check().damage[0])


# Time and memory.


def load(path: str, mmap: bool, verify: bool) -> int:
    return len(tfckpt.load_file(path, mmap=mmap, verify=verify))


def keys(path: str) -> int:
    with tfckpt.load_checkpoint(path) as reader:
        return len(reader.keys())


def shapes(path: str) -> int:
    with tfckpt.load_checkpoint(path) as reader:
        return len(reader.get_variable_to_shape_map())


def check(path: str) -> list[str]:
    with tfckpt.load_checkpoint(path) as reader:
        return reader.check().damaged


@pytest.mark.thinned(2)
@pytest.mark.parametrize("compression", [0, 1])
def test_keys_do_not_expand_without_bound(compression: int, tmp_path: Path) -> None:
    """Shared prefixes together with snappy: memory stays proportional to the file, at most 128 times its size."""
    path = write_bundle(tmp_path, {})
    contents = key_bomb((16 if compression else 4) * MEBIBYTE)
    pairs = raw_block([(0, b"", HEADER)])
    stored = bytes(cramjam.snappy.compress_raw(contents)) if compression else contents
    first = bytes(cramjam.snappy.compress_raw(pairs)) if compression else pairs
    write_index(path, table_of_blocks([(b"", first), (b"zzz", stored)], compression))
    size = path.with_name("hostile.index").stat().st_size
    outcome = confined(keys, str(path), limit=ALLOWANCE + 128 * size)
    assert outcome.is_checkpoint_error, outcome.error
    assert outcome.grown < BASE + 128 * size, f"{outcome.grown / size:.0f} bytes per byte of the file: {outcome.error}"


@pytest.mark.parametrize("tail", [b"\x3a\x00", b"\x12\x02\x12\x00"], ids=["slices", "dimensions"])
def test_repeated_empty_messages_do_not_expand_without_bound(tail: bytes, tmp_path: Path) -> None:
    """An entry of two bytes per slice, or four per dimension, compressed 20 times."""
    path = write_bundle(tmp_path, {})
    pairs = sorted({**good_entries(), b"bad": entry(FLOAT, (4,), FOUR) + tail * (8 * MEBIBYTE // len(tail))}.items())
    stored = bytes(cramjam.snappy.compress_raw(block(pairs)))
    write_index(path, table_of_blocks([(b"zzzz", stored)], 1))
    size = path.with_name("hostile.index").stat().st_size
    outcome = confined(shapes, str(path), limit=ALLOWANCE + 256 * size, seconds=10)
    assert not outcome.error or outcome.is_checkpoint_error, outcome.error
    assert outcome.grown < BASE + 512 * size, f"{outcome.grown / size:.0f} bytes per byte of the file"


OVERLAPS = 2000
SPAN = MEBIBYTE


@pytest.mark.thinned(5)
@pytest.mark.parametrize("kind", ["float", "string", "bytes"])
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("verify", [True, False])
def test_entries_that_share_bytes_are_refused_before_allocation(
    kind: str, mmap: bool, verify: bool, tmp_path: Path
) -> None:
    """2000 entries for the same MiB: refused before 2 GB are allocated and read."""
    bad: dict[bytes, bytes] = {}
    if kind == "string":
        data, checksum = encode_strings([bytes(SPAN // 1024 - 2)] * 1024)
        value = entry(STRING, (1024,), data, checksum=checksum)
    elif kind == "float":
        data = bytes(SPAN)
        value = entry(FLOAT, (SPAN // 4,), data)
    else:  # pieces too small for an allocation that the system provides only when it is touched
        data = bytes(64 * 1024)
        value = entry(DataType.DT_UINT8, (64 * 1024,), data)
    for number in range(OVERLAPS):
        bad[f"bad/{number:05d}".encode()] = value
    path = write_bundle(tmp_path, bad, data)
    outcome = confined(load, str(path), mmap, verify, limit=ALLOWANCE)
    if not mmap or kind == "string" or outcome.error:  # views of the same bytes take no memory
        assert outcome.is_checkpoint_error and "overlap" in outcome.error, outcome.error
    assert outcome.grown < BASE + 8 * SPAN, f"{outcome.grown >> 20} MiB for a file of {SPAN >> 20}"


def test_entries_that_share_bytes_are_reported_soon(tmp_path: Path) -> None:
    """check() reports that they overlap, and does not read the same MiB 20,000 times."""
    data = bytes(SPAN)
    value = entry(FLOAT, (SPAN // 4,), data)
    bad = {f"bad/{number:05d}".encode(): value for number in range(10 * OVERLAPS)}
    path = write_bundle(tmp_path, bad, data)
    outcome = confined(check, str(path), limit=ALLOWANCE)
    assert not outcome.error, outcome.error
    # The first of them does not overlap an earlier one.
    assert isinstance(outcome.result, list) and len(outcome.result) >= len(bad) - 1


def test_a_tensor_that_shares_bytes_is_read_alone_and_reported(tmp_path: Path) -> None:
    """Two tensors with the same bytes: no writer produces them, so check() reports both."""
    path = write_bundle(tmp_path, {b"bad": entry(FLOAT, (3,), GOOD_BYTES[:12], offset=0)})
    with tfckpt.load_checkpoint(path) as reader:
        verification = reader.check()
        assert verification.damaged and set(verification.damaged) <= {"bad", "aaa/good"}
        with pytest.raises(tfckpt.DataLossError, match="overlap"):
            reader.get_tensors(["aaa/good", "bad"])
        assert same(reader.get_tensor("zzz/good"), GOOD["zzz/good"])


def test_many_entries_of_a_missing_shard_are_reported_soon(tmp_path: Path) -> None:
    """check() does not spend long on looking for the missing file of each tensor."""
    bad = {f"bad/{number:06d}".encode(): entry(FLOAT, (4,), FOUR, shard=1) for number in range(30_000)}
    path = write_bundle(tmp_path, bad, header=header(2), shards=2)
    outcome = confined(check, str(path), limit=ALLOWANCE)
    assert isinstance(outcome.result, list) and len(outcome.result) == len(bad), outcome.error


def test_names_of_any_kind_survive(tmp_path: Path) -> None:
    """NUL, newline, bytes that are not UTF-8, slashes, a megabyte: saved, read back, and shown on one line."""
    names = [
        "a\0b",
        "a\nb",
        "\x00",
        "\x00t\x00\x01\x00",
        "\udcff\udc80",
        "../../x",
        "\x1b[31m",
        "é" * 500_000,
        " ",
        "🙂",
    ]
    values: dict[str, Value] = {name: torch.tensor([number]) for number, name in enumerate(names)}
    values["words"] = strings(b"\xff", b"\n")
    with within():
        path = tfckpt.save_file(values, tmp_path / "names")
        assert_right(tfckpt.load_file(path), values)
        assert {name for name, _ in tfckpt.list_variables(path)} == set(values)


@pytest.mark.parametrize("name", ["a\nb", "x" * MEBIBYTE, "\x1b[31m", "\udcff", "\0", "bad\r\n"])
def test_odd_names_do_not_break_messages(name: str, tmp_path: Path) -> None:
    """Errors about a tensor with such a name are one line of bounded length."""
    key = name.encode("utf-8", "surrogateescape")
    path = write_bundle(tmp_path, {key: entry(FLOAT, (4,), FOUR, size=3)}, FOUR)
    with within(), tfckpt.load_checkpoint(path) as reader:
        for wanted in (name, f"{name}{name}"):
            with pytest.raises(tfckpt.CheckpointError) as raised:
                reader.get_tensor(wanted)
            assert_helps(raised.value, path.name)
        for damage in reader.check().damage:
            assert str(damage).isprintable() and len(str(damage)) < 2000


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"])
def test_a_name_that_cannot_be_encoded_is_refused(name: str, tmp_path: Path) -> None:
    """Surrogates that do not represent bytes: no checkpoint contains such a name, and none can be saved."""
    with tfckpt.load_checkpoint(write_bundle(tmp_path, {})) as reader:
        assert name not in reader
        assert not reader.has_tensor(name)
        with pytest.raises((tfckpt.NotFoundError, tfckpt.InvalidArgumentError)) as raised:
            reader.get_tensor(name)
        assert str(raised.value).isprintable()
    with pytest.raises(tfckpt.InvalidArgumentError):
        tfckpt.save_file({name: torch.ones(1)}, tmp_path / "new")
    assert not list(tmp_path.glob("new*"))


def test_suggestions_among_many_long_names_are_fast(tmp_path: Path) -> None:
    """A typo among 20,000 long names gets its suggestions soon."""
    start = "model/transformer/encoder/layer_00000/attention/self/query/kernel/exponential_average_of_squares"
    bad = {f"{start}/{number:05d}".encode(): entry(FLOAT, (0,)) for number in range(20_000)}
    path = write_bundle(tmp_path, bad)
    with tfckpt.load_checkpoint(path) as reader, within(), pytest.raises(tfckpt.NotFoundError) as raised:
        reader.get_tensor(f"{start[::-1]}/00001")
    assert_helps(raised.value, "hostile")


def test_shards_of_one_checkpoint_do_not_hide_each_other(tmp_path: Path) -> None:
    """A data file that is a directory or a symbolic link loop: only its own tensors cannot be read."""
    path = write_bundle(tmp_path, {b"bad": entry(FLOAT, (4,), FOUR, shard=1)}, header=header(2), shards=2)
    other = Path(data_filename(str(path), 1, 2))
    for is_directory in (True, False):
        other.mkdir() if is_directory else other.symlink_to(other.name)
        check_neighbours(path)
        with within(), tfckpt.load_checkpoint(path) as reader, pytest.raises(tfckpt.CheckpointError) as raised:
            reader.get_tensor("bad")
        assert_helps(raised.value, other.name)
        other.rmdir() if is_directory else other.unlink()
