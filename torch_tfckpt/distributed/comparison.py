"""Whether all ranks save the same: what each rank reports of its values, and how rank 0 compares the reports.

The size of a report does not depend on the number of values. It contains two tables of sums: each value that is not a
DTensor has a checksum of its name, dtype and shape, which is added to one place of either table, chosen by the name.
If few values differ between two ranks, these are the values whose places differ in both tables.
"""

import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

import torch

from torch_tfckpt.distributed.calls import RankCalls
from torch_tfckpt.distributed.commit import Commit, Json, ranks_text
from torch_tfckpt.distributed.shards import is_dtensor, local_shard
from torch_tfckpt.errors import IncompleteSaveError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.string_tensor import encode_strings
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, shape_text
from torch_tfckpt.text import and_more, listed, quoted
from torch_tfckpt.transfer.host_bytes import host_copy, row_major_pieces
from torch_tfckpt.values import WritableValue, writable

_LISTED: Final = 4  # values that a message names
_PLACES: Final = 128  # of one table of sums
_SUM_BYTES: Final = 4


class Entry(NamedTuple):
    """One value of a checkpoint, on one rank."""

    name: str
    value: WritableValue
    part: tuple[Shape, TensorSlice] | None = None  # the full shape, and the slice; not for DTensors
    dtype: DataType | None = None
    device: str = ""  # values on different devices are in different data files of the part


def report_of(ranks: RankCalls, commit: Commit, entries: Sequence[Entry]) -> dict[str, object]:
    """Return this rank's report: sums over all values, and with `check_replicas` a checksum of every value."""
    count = 0
    tables = [[0] * _PLACES, [0] * _PLACES]
    checksums: dict[str, int] = {}
    for entry in entries:
        key, held = entry.name, entry.value
        if is_dtensor(held):
            shard = local_shard(entry.name, held)
            if shard is None:
                continue
            key, held = f"{entry.name} {shard.part}", shard.local
        else:
            key = _key(entry)
            count += 1
            value = _described(entry, key)
            for table, place in zip(tables, _places(key), strict=True):
                table[place] = (table[place] + value) % (1 << 8 * _SUM_BYTES)
        if ranks.check_replicas:
            checksums[key] = _checksum(entry.name, held, entry.dtype)
            commit.progress += 1
    values = b"".join(value.to_bytes(_SUM_BYTES) for table in tables for value in table).hex()
    report: dict[str, object] = {"count": count, "values": values}
    return {**report, "sums": checksums} if ranks.check_replicas else report


def check_same(commit: Commit, reports: Sequence[Json], plain: Sequence[str], *, replicas: bool) -> None:
    """On rank 0, fail if the ranks save different values.

    Args:
        plain: The `plain_keys` of rank 0.
        replicas: Whether to compare the elements, too.
    """
    groups = _groups([(report.get("count"), report.get("values")) for report in reports])
    if len(groups) > 1:
        counts = [f"{ranks_text(ranks)}: {reports[ranks[0]].get('count')} values" for ranks in groups]
        differing = _differing([reports[ranks[0]].get("values") for ranks in groups], plain)
        such = f", such as {listed(differing, _LISTED)}" if differing else ""
        what = "names" if len({report.get("count") for report in reports}) > 1 else "names, shapes or dtypes"
        _fail_others(
            commit,
            groups,
            f"the ranks save values with different {what}, apart from DTensors ({'; '.join(counts)}){such}. All "
            f"ranks must save the same; gather what only one rank has, such as the position in its data, into a list "
            f"that all ranks save",
        )
    if replicas:
        _check_replicas(commit, reports)


def plain_keys(entries: Sequence[Entry]) -> list[str]:
    """Return a key for each value that is not a DTensor: its name, and the slice if it is one."""
    return [_key(entry) for entry in entries if not is_dtensor(entry.value)]


def _key(entry: Entry) -> str:
    return entry.name if entry.part is None else f"{entry.name} {entry.part[1]}"


def _described(entry: Entry, key: str) -> int:
    """Return a checksum of the name, dtype and shape of a value; strings may have any length."""
    _, dtype, shape = writable(entry.name, entry.value, entry.dtype)
    return zlib.crc32(f"{key}\0{dtype.name}\0{shape_text(shape)}".encode(errors="surrogateescape"))


def _places(key: str) -> tuple[int, int]:
    """Return the place of a value in either table."""
    crc = zlib.crc32(key.encode(errors="surrogateescape"))
    return crc % _PLACES, crc // _PLACES % _PLACES


def _differing(values: Sequence[object], keys: Sequence[str]) -> list[str]:
    """Return the keys of values of rank 0 that differ in the reports. If many differ, some keys may be wrong."""
    tables = [str(each) for each in values]
    digits = 2 * _SUM_BYTES

    def differs(place: int) -> bool:
        return len({table[place * digits : (place + 1) * digits] for table in tables}) > 1

    changed = [differs(place) for place in range(2 * _PLACES)]
    return [
        key
        for key, (one, other) in zip(keys, map(_places, keys), strict=True)
        if changed[one] and changed[_PLACES + other]
    ]


def _checksum(name: str, value: WritableValue, dtype: DataType | None) -> int:
    content, stored_as, shape = writable(name, value, dtype)
    crc = crc32c.extend(0, f"{stored_as} {shape}".encode())
    if isinstance(content, list):
        return crc32c.extend(crc, encode_strings(content)[0])
    with torch.no_grad():
        for piece in row_major_pieces(host_copy(content)):
            crc = crc32c.extend(crc, piece)
    return crc


def _check_replicas(commit: Commit, reports: Sequence[Json]) -> None:
    """Fail if the replicas of a value differ."""
    sums: dict[str, dict[int, object]] = {}
    for rank, report in enumerate(reports):
        found = report.get("sums")
        for key, crc in found.items() if isinstance(found, dict) else ():
            sums.setdefault(key, {})[rank] = crc
    differing = [(key, by_rank) for key, by_rank in sums.items() if len(set(map(str, by_rank.values()))) > 1]
    if not differing:
        return
    shown, wrong = [], list[list[int]]()
    for key, by_rank in differing[:_LISTED]:
        groups = _groups([str(by_rank[rank]) for rank in by_rank])
        named = [[list(by_rank)[index] for index in group] for group in groups]
        shown.append(f"{quoted(key)} differs: {' / '.join(ranks_text(group) for group in named)}")
        wrong = wrong or named
    text = f"the replicas of values differ: {'; '.join(shown)}{and_more(len(differing), _LISTED)}"
    _fail_others(commit, wrong, text)


def _groups(values: Sequence[object]) -> list[list[int]]:
    """Return the positions of equal values, in the order of their first positions."""
    groups: dict[object, list[int]] = {}
    for position, value in enumerate(values):
        groups.setdefault(str(value), []).append(position)
    return list(groups.values())


def _fail_others(commit: Commit, groups: Sequence[Sequence[int]], text: str) -> NoReturn:
    """Fail with an error of the ranks in all groups but the largest."""
    largest = max(groups, key=len)
    error = IncompleteSaveError(text)
    commit.fail({rank: error for group in groups if group is not largest for rank in group}, common=text)
