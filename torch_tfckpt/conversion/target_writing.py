"""Plan and write the target of a conversion: its tensors, its sidecar, and their publication."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.conversion.casting import Casting
from torch_tfckpt.conversion.convert_report import ConvertedTensor, ConvertReport, SidecarTensor
from torch_tfckpt.conversion.selected_source import RenamedSource
from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.foreign_files.protocols import TensorSink
from torch_tfckpt.foreign_files.sidecar import SidecarWriter, check_size, sidecar_of
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo, batches
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import printable, quoted

ReportProgress = Callable[[int, int], object]
"""Called with the bytes done and the total bytes."""
Verify = Callable[[Mapping[str, str]], object]
"""Called with final path -> temporary path of the files to be published."""


class TargetPlan(NamedTuple):
    """The tensors to write to the target and the sidecar, under new names."""

    infos: dict[str, TensorInfo]  # in the target
    order: list[str]  # in the target
    kept: list[str]  # in the sidecar
    layouts: list[str]  # in the target; the sidecar notes their layouts
    types: dict[str, ElementType]  # in the target; the sidecar has the type


def plan_target(source: RenamedSource, sink: TensorSink, casting: Casting, report: ConvertReport) -> TargetPlan:
    """Decide, from names and shapes alone, where each tensor goes, and record this in `report`."""
    infos = {name: casting.info(source, name) for name in source.names()}
    refused = {name: reason for name, info in infos.items() if (reason := sink.refusal(name, info)) is not None}
    held = {name: info for name, info in infos.items() if name not in refused}
    types = {name: info.type for name, info in held.items() if sink.noted_type(info)}
    report.sidecar = [item for item in report.sidecar if item.new_name in held]
    layouts = [item.new_name for item in report.sidecar]
    for name, reason in refused.items():
        info = infos[name]
        if info.type.dtype is None and info.type.tensorflow is None:
            raise UnimplementedError(f"{printable(report.source)}: tensor {quoted(name)}: {reason}. Exclude it")
        report.sidecar.append(SidecarTensor(source.old_name(name), name, info.type.name, info.shape, reason, True))
    for name, kind in types.items():
        reason = "only its type; the values are in the target"
        report.sidecar.append(SidecarTensor(source.old_name(name), name, kind.name, infos[name].shape, reason, False))
    check_size(sink.path, sink.format, {name: infos[name] for name in refused})
    order = sink.plan(held, sidecar=bool(report.sidecar))
    for name in order:
        info = infos[name]
        report.converted.append(ConvertedTensor(source.old_name(name), name, info.type.name, info.shape, info.nbytes))
    report.files += files_of(sink, report)
    report.graph_edited = source.graph_edited
    return TargetPlan(infos, order, list(refused), layouts, types)


def files_of(sink: TensorSink, report: ConvertReport) -> list[str]:
    """Return the files of the target, with its sidecar."""
    return sink.files() + ([sidecar_of(sink.path)] if report.sidecar else [])


def write_target(
    sink: TensorSink,
    work: TargetPlan,
    read: Callable[[Sequence[str]], dict[str, FileValue]],
    progress: ReportProgress,
    verify: Verify | None,
) -> None:
    """Write everything, and publish it if nothing fails.

    Args:
        read: Returns values under their new names.
        verify: Called before the files are published; raises an error to prevent that.
    """
    total = sum(info.nbytes for info in work.infos.values())
    done = 0
    remove_leftovers(LOCAL, os.path.dirname(sink.path))
    with closing(sink), Publication() as publication:
        sink.open(publication)
        if verify is not None:
            publication.first(lambda: verify(publication.files))
        for batch in batches({name: work.infos[name].nbytes for name in work.order}):
            sink.write(read(batch))
            done += sum(work.infos[name].nbytes for name in batch)
            progress(done, total)
        beside = sink.finish()
        sidecar_path = sidecar_of(sink.path)
        if not work.kept and not work.types and not work.layouts:
            publication.drop(sidecar_path)
            return
        with closing(SidecarWriter(publication.place(sidecar_path), work.types, work.layouts)) as sidecar:
            for name in work.kept:
                sidecar.add(name, work.infos[name], read([name])[name])
                done += work.infos[name].nbytes
                progress(done, total)
            sidecar.finish(beside, sink.identity())
