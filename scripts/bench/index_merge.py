"""How fast are the indexes of the parts that many ranks wrote merged into one?

Setup:    1,000 parts; each has one row of 1,000 matrices: 1,000,000 slices. A merge needs no data files. Each merge
          runs in a new process.
Floor:    none; the time is spent on names, slices and entries.
Compare:  the coordinator of torch.distributed.checkpoint for the same kind of items: unpickle the plans of all ranks,
          plan globally with DefaultSavePlanner, pickle the plans of all ranks.
Reports:  ratio of the speeds per slice; microseconds per slice; memory above the start; the speed per slice against a
          quarter of the parts. The merged index must list every slice.
"""

import pickle
from typing import Final

import fresh
import torch
from peak_memory import peak_above_start
from settings import Bench
from timing import Comparison, WrongResult, timed
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from torch_tfckpt.bundle.index_merge import merge_indexes
from torch_tfckpt.bundle.part_index import PartIndex
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_bundle import BundleEntry, BundleHeader, encode_index
from torch_tfckpt.format.tensor_slice import TensorSlice, encode_slice_key

MERGE, FEW, PLANNER = "merge_indexes", "merge_indexes, a quarter of the parts", "DCP's planner"
COLUMNS: Final = 4
MOST_US: Final = 12
MOST_MIB: Final = 320
LINEAR: Final = 0.8


def run(bench: Bench) -> None:
    """Row "index-merge"."""
    count = max(8, bench.sizes.tiny // 100)
    ways = {
        MERGE: ("index_merge.merged", count, count),
        FEW: ("index_merge.merged", count // 4, count),
        PLANNER: ("index_merge.planned", count, count),
    }
    per_slice: dict[str, list[float]] = {name: [] for name in ways}
    peaks = []
    # One round: to prepare a million slices takes longer than to merge them.
    for name, (function, parts, tensors) in ways.items():
        seconds, peak = fresh.call(function, parts, tensors)
        per_slice[name].append(seconds / (parts * tensors))
        if name == MERGE:
            peaks.append(peak)
    work = f"merge the indexes of {count:,} parts with {count:,} tensors"
    bench.report.keep({"work": work, "seconds per slice": per_slice, "peak_mib": peaks})
    bench.report.compare(work, Comparison(MERGE, PLANNER, at_least=8), per_slice)
    bench.report.compare(work, Comparison(MERGE, FEW, at_least=LINEAR), per_slice)
    microseconds = [1e6 * seconds for seconds in per_slice[MERGE]]
    bench.report.measure(work, f"{MERGE}, a slice", microseconds, "us", at_most=MOST_US, against="its limit")
    bench.report.measure(f"memory to {work}", MERGE, peaks, "MiB", at_most=MOST_MIB, against="its limit")


# In the measured processes.


def merged(parts: int, tensors: int) -> tuple[float, float]:
    """Return the seconds and the MiB above the start of a merge."""
    names = _names(tensors)
    indexes = [_part(number, parts, names) for number in range(parts)]
    merge_indexes(indexes[:1], "warm up")
    (seconds, index), peak = peak_above_start(lambda: timed(lambda: merge_indexes(indexes, "merge").encode(parts)))
    entries = Table.of(index).items()
    listed = [len(BundleEntry.decode(value).slices) for key, value in entries if key.startswith(b"layer")]
    if listed != [parts] * tensors:
        raise WrongResult("the merged index does not list every slice")
    return seconds, peak["peak_mib"]


def _names(count: int) -> list[str]:
    return [f"layer_{number:06d}/kernel" for number in range(count)]


def _part(number: int, parts: int, names: list[str]) -> PartIndex:
    """Return the index of a part with row `number` of every tensor, in data file `number`."""
    row, size = TensorSlice.parse(f"{number},1:-"), 4 * COLUMNS
    listed = BundleEntry(DataType.DT_FLOAT, (parts, COLUMNS), number, slices=(row,)).encode()
    entries = dict.fromkeys((name.encode() for name in names), listed)
    for at, name in enumerate(names):
        entry = BundleEntry(DataType.DT_FLOAT, (1, COLUMNS), number, at * size, size, at)
        entries[encode_slice_key(name.encode(), row)] = entry.encode()
    return PartIndex(f"part {number}", encode_index(BundleHeader(number + 1), entries), {number: number})


def planned(parts: int, tensors: int) -> tuple[float, float]:
    """Return the seconds and the MiB above the start of DCP's coordinator."""
    names, full = _names(tensors), torch.Size([parts, COLUMNS])
    properties = TensorProperties(dtype=torch.float32)

    def plan(number: int) -> SavePlan:
        items = []
        for name in names:
            offsets, sizes = torch.Size([number, 0]), torch.Size([1, COLUMNS])
            data = TensorWriteData(ChunkStorageMetadata(offsets, sizes), properties, full)
            items.append(WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data))
        return SavePlan(items, planner_data={})

    sent = [pickle.dumps(plan(number)) for number in range(parts)]
    planner = DefaultSavePlanner()
    planner.set_up_planner({}, is_coordinator=True)

    def work() -> int:
        plans, metadata = planner.create_global_plan([pickle.loads(each) for each in sent])  # noqa: S301
        for each in plans:
            pickle.dumps(each)
        return sum(len(tensor.chunks) for tensor in metadata.state_dict_metadata.values() if hasattr(tensor, "chunks"))

    (seconds, chunks), peak = peak_above_start(lambda: timed(work))
    if chunks != parts * tensors:
        raise WrongResult("DCP's plan does not have every slice")
    return seconds, peak["peak_mib"]
