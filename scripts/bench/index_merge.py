#!/usr/bin/env python3
"""What does it cost to merge the indexes of a checkpoint that many processes wrote, and to open the result?

Setup:    P processes with T tensors each, of two dimensions, and every tensor sliced over all processes: P x T slices.
          The parts' indexes are in memory, as the processes send them. No data.
Floor:    none; the time is spent on keys and entries.
Compare:  for the same items, what the coordinator of torch.distributed.checkpoint does: unpickle the plans of all
          processes, DefaultSavePlanner.create_global_plan, pickle the plans that it sends back. It is measured with
          `--peer` (parts, tensors), because it takes too long for a million items; its cost per item grows with their
          number.
Reports:  for each size, in a new process: CPU seconds and microseconds per slice, peak memory beyond the parts, size of
          the index; then for the result CPU seconds of opening it and of `keys()`, and the number of open files. The
          result must list all slices before its time counts.
"""

import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from timing import Report, WrongResult, parser, scratch

from torch_tfckpt.bundle.index_merge import merge_indexes
from torch_tfckpt.bundle.part_index import PartIndex, shard_field, size_field
from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_bundle import BundleEntry, BundleHeader, data_filename, encode_index, index_filename
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice, slice_key_end, slice_key_start
from torch_tfckpt.storage.local import LOCAL

SIZES = ("50x1000", "200x1000", "1000x1000")
ROWS, COLUMNS = 4, 64  # of each slice
SHAPES = 8  # different shapes of tensors
DESCRIPTORS = 256

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=1)
    options.add_argument("--sizes", nargs="*", default=SIZES, help="PARTSxTENSORS")
    options.add_argument("--peer", nargs="*", default=["100x200", "100x400"], help="PARTSxTENSORS for the peer")
    options.add_argument("--measure", nargs=2, metavar=("KIND", "SIZE"), help="measure one size in this process")
    given = options.parse_args(arguments)
    if given.measure:
        kind, size = given.measure
        parts, tensors = map(int, size.split("x"))
        print(
            json.dumps(_measure_merge(parts, tensors, given.dir) if kind == "merge" else _measure_peer(parts, tensors))
        )
        return 0
    report = Report("index_merge", given)
    for kind, sizes in (("merge", given.sizes), ("peer", given.peer)):
        for size in sizes:
            command = [sys.executable, __file__, "--dir", str(given.dir), "--measure", kind, size]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{kind} {size}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
            report.add({"title": f"{kind} {size}", **found})
    report.write()
    return 0


def _measure_merge(count: int, tensors: int, folder: Path) -> dict[str, float]:
    parts = [_part(rank, count, tensors) for rank in range(count)]
    before = _memory()
    seconds, merged = _cpu(partial(merge_indexes, parts, "benchmark"))
    peak = _peak_memory()
    again, index = _cpu(partial(merged.encode, count + 1))
    parts.clear()
    with scratch(folder) as directory:
        prefix = str(directory / "m")
        Path(index_filename(prefix)).write_bytes(index)
        for shard in range(count):
            Path(data_filename(prefix, shard, count + 1)).touch()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, most))
        files = len(os.listdir("/proc/self/fd"))
        opening, reader = _cpu(partial(BundleReader, LOCAL, prefix))
        files = len(os.listdir("/proc/self/fd")) - files
        listing, names = _cpu(reader.keys)
        if len(names) != tensors or len(reader.slices(names[-1])) != count:
            raise WrongResult("the merged index does not list all slices")
        reader.close()
    slices = count * tensors
    return {
        "slices": slices,
        "seconds": seconds,
        "us_per_slice": seconds / slices * 1e6,
        "memory_mb": (peak - before) / 1e6,
        "index_mb": len(index) / 1e6,
        "other_header_seconds": again,
        "open_seconds": opening,
        "keys_seconds": listing,
        "open_files": files,
    }


def _part(rank: int, count: int, tensors: int) -> PartIndex:
    """Return the index of one process: `tensors` slices, back to back in its data file."""
    rows = TensorSlice((Extent(ROWS * rank, ROWS), Extent(0, -1)))
    end, at = slice_key_end(rows), 0
    dtype = DataType.DT_FLOAT
    entries: dict[bytes, bytes] = {}
    for number in range(tensors):
        name, columns = f"model/layers.{number:05d}.weight".encode(), COLUMNS + number % SHAPES
        size = ROWS * columns * 4
        entries[name] = BundleEntry(dtype, (count * ROWS, columns), rank, slices=(rows,)).encode()
        place = shard_field(rank) + (b"\x20" + encode_varint(at) if at else b"") + size_field(size)
        checksum = b"\x35" + (7919 * rank + number + 1).to_bytes(4, "little")
        entries[slice_key_start(name) + end] = BundleEntry(dtype, (ROWS, columns)).encode() + place + checksum
        at += size
    return PartIndex(f"rank {rank}", encode_index(BundleHeader(rank + 1), entries), {rank: rank})


def _measure_peer(count: int, tensors: int) -> dict[str, float]:
    import torch
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    def item(rank: int, number: int) -> WriteItem:
        columns = COLUMNS + number % SHAPES
        offset = torch.Size((ROWS * rank, 0))
        chunk = ChunkStorageMetadata(offset, torch.Size((ROWS, columns)))
        data = TensorWriteData(chunk, TensorProperties(), torch.Size((ROWS * count, columns)))
        return WriteItem(
            MetadataIndex(f"model.layers.{number:05d}.weight", offset), WriteItemType.SHARD, tensor_data=data
        )

    sent = [pickle.dumps(SavePlan([item(rank, n) for n in range(tensors)], planner_data={})) for rank in range(count)]
    before = _memory()

    def coordinate() -> Any:
        plans, metadata = DefaultSavePlanner().create_global_plan([pickle.loads(plan) for plan in sent])  # noqa: S301 our own
        return [pickle.dumps(plan) for plan in plans], metadata

    seconds, (_, metadata) = _cpu(coordinate)
    if sum(len(each.chunks) for each in metadata.state_dict_metadata.values()) != count * tensors:
        raise WrongResult("the metadata does not list all chunks")
    items = count * tensors
    return {
        "slices": items,
        "seconds": seconds,
        "us_per_slice": seconds / items * 1e6,
        "memory_mb": (_peak_memory() - before) / 1e6,
    }


def _cpu(work: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU time of `work`, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _memory() -> int:
    """Return the bytes of memory in use, and start to record their peak."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
