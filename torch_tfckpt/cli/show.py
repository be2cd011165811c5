"""tfckpt ls and show: what is in there."""

import argparse
import fnmatch
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.cli.tables import progress_bar, show_table
from torch_tfckpt.conversion.tensor_statistics import exact_numbers, has_numbers, statistics_of
from torch_tfckpt.errors import CheckpointError, NotFoundError
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.tensorflow import CheckpointSource
from torch_tfckpt.foreign_files.values import FileValue, StoredBytes, TensorInfo
from torch_tfckpt.format.tensor_slice import element_count, shape_text
from torch_tfckpt.models.auxiliary import VariableKind, variable_kinds
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.text import byte_text, counted, did_you_mean, natural_order, printable, quoted


class Row(NamedTuple):
    """One tensor in a listing."""

    name: str
    info: TensorInfo | None  # None: what the index says of it cannot be read
    problem: str = ""

    @property
    def nbytes(self) -> int:
        return self.info.nbytes if self.info else 0

    @property
    def note(self) -> str:
        if self.info is None:
            return f"unreadable: {self.problem}"
        if self.info.parts:
            return f"partitioned: {self.info.parts} slices"
        if self.info.type.dtype is None and not self.info.type.is_string:
            return "torch has no such type"
        return ""


def ls(options: argparse.Namespace) -> int:
    """Lists the tensors; 1 where one of them cannot be read, or none has such a name."""
    with closing(open_source(fspath(options.path))) as source:
        rows = rows_of(source, options.patterns)
        nothing = "" if rows or not options.patterns else unmatched(source, options.patterns)
        path, form, skipped = source.path, source.format, dict(source.skipped)
        kinds = kinds_of(source)
    order = options.sort or ("stored" if options.json else "name")
    if order != "stored":
        rows.sort(key=lambda row: (-row.nbytes if order == "size" else 0, natural_order(row.name)))
    if options.json:
        show_json(
            {
                "path": printable(path),
                "format": form,
                "tensors": [as_json(row) for row in rows],
                "skipped": skipped,
                "total": total_of(rows, kinds),
            }
        )
    else:
        show_table(["name", "dtype", "shape", "size", "note"], [cells(row) for row in rows], numeric=["size"])
        show(totals(rows, kinds))
    if skipped and not options.quiet:
        say(f"left out, since they are no tensors: {', '.join(map(quoted, skipped))}")
    if nothing:
        say(nothing)
    return 1 if nothing or any(row.info is None for row in rows) else 0


def show_path(options: argparse.Namespace) -> int:
    """Shows the checkpoint, or one tensor of it."""
    with closing(open_source(fspath(options.path))) as source:
        if options.name is not None:
            _show_tensor(source, options.name, stats_only=options.stats)
            return 0
        rows = sorted(rows_of(source, []), key=lambda row: natural_order(row.name))
        _show_summary(source, rows)
        if options.stats:
            _show_statistics(source, rows, quiet=options.quiet)
    return 1 if any(row.info is None for row in rows) else 0


def rows_of(source: TensorSource, patterns: Sequence[str]) -> list[Row]:
    """The tensors in the order of the file; those that match a pattern where there are any."""
    rows = []
    for name in source.names():
        if patterns and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            continue
        try:
            rows.append(Row(name, source.info(name)))
        except CheckpointError as error:
            rows.append(Row(name, None, str(error)))
    return rows


def unmatched(source: TensorSource, patterns: Sequence[str]) -> str:
    """A message: no tensor matches."""
    names = source.names()
    closest = " ".join(filter(None, (did_you_mean(pattern.removesuffix(":0"), names) for pattern in patterns)))
    finding = f"none of {counted(len(names), 'tensor')} matches {' or '.join(map(quoted, patterns))}"
    return f"tfckpt: {finding}. {closest or 'A * stands for any characters, / included'}"


def cells(row: Row) -> list[str]:
    """Name, dtype, shape, size, note."""
    if row.info is None:
        return [row.name, "?", "?", "?", row.note]
    return [row.name, row.info.type.name, shape_text(row.info.shape), byte_text(row.info.nbytes), row.note]


def as_json(row: Row) -> dict[str, Any]:
    """One tensor of a JSON listing."""
    if row.info is None:
        return {"name": row.name, "error": row.problem}
    kind, shape, nbytes, slices = row.info
    return {"name": row.name, "dtype": kind.name, "shape": list(shape), "nbytes": nbytes, "slices": slices}


def kinds_of(source: TensorSource) -> Mapping[str, VariableKind]:
    """Return what the tensors of a TensorFlow checkpoint are for; nothing for other formats and damaged checkpoints."""
    if isinstance(source, CheckpointSource):
        with suppress(CheckpointError):
            return variable_kinds(source.reader)
    return {}


def total_of(rows: Sequence[Row], kinds: Mapping[str, VariableKind]) -> dict[str, Any]:
    """Return the totals of a JSON listing: of all tensors, and of each kind of them."""
    by_kind = _by_kind(rows, kinds)
    return {**_sums(rows), "kinds": {kind.value: _sums(some) for kind, some in by_kind.items()}}


def _sums(rows: Sequence[Row]) -> dict[str, int]:
    return {"tensors": len(rows), "elements": _elements(rows), "nbytes": sum(row.nbytes for row in rows)}


def _by_kind(rows: Sequence[Row], kinds: Mapping[str, VariableKind]) -> dict[VariableKind, list[Row]]:
    found: dict[VariableKind, list[Row]] = {kind: [] for kind in VariableKind}
    for row in rows:
        if row.name in kinds:
            found[kinds[row.name]].append(row)
    return {kind: some for kind, some in found.items() if some}


def _elements(rows: Sequence[Row]) -> int:
    return sum(element_count(row.info.shape) for row in rows if row.info)


def totals(rows: Sequence[Row], kinds: Mapping[str, VariableKind]) -> str:
    """Return the last lines of a listing: all tensors, and if they are of several kinds, each kind."""
    lines = [f"  {kind.value}: {sums_text(some)}" for kind, some in _by_kind(rows, kinds).items()]
    return "\n".join([sums_text(rows), *lines] if len(lines) > 1 else [sums_text(rows)])


def sums_text(rows: Sequence[Row]) -> str:
    """Return number, elements and size of the tensors in words."""
    unreadable = sum(row.info is None for row in rows)
    size = byte_text(sum(row.nbytes for row in rows))
    text = f"{counted(len(rows), 'tensor')}, {counted(_elements(rows), 'element')}, {size}"
    return f"{text}; {unreadable} unreadable" if unreadable else text


def _show_summary(source: TensorSource, rows: Sequence[Row]) -> None:
    show(f"{printable(source.path)}: {source.format}")
    show(totals(rows, kinds_of(source)))
    partitioned = sum(row.info is not None and row.info.parts > 0 for row in rows)
    if partitioned:
        show(f"partitioned: {partitioned}")
    if source.skipped:
        show(f"left out, since they are no tensors: {', '.join(map(quoted, source.skipped))}")
    show("")
    show_table(["file", "size"], [[printable(path), _size_text(path)] for path in source.files()], numeric=["size"])
    show("")
    kinds: dict[str, list[int]] = {}
    for row in rows:
        kinds.setdefault(row.info.type.name if row.info else "unreadable", []).append(row.nbytes)
    table = [[kind, str(len(sizes)), byte_text(sum(sizes))] for kind, sizes in sorted(kinds.items())]
    show_table(["dtype", "tensors", "size"], table, numeric=["tensors", "size"])


def _size_text(path: str) -> str:
    try:
        file = LOCAL.open(path)
    except (CheckpointError, OSError):
        return "missing"
    file.close()
    return byte_text(file.size)


def _show_statistics(source: TensorSource, rows: Sequence[Row], *, quiet: bool) -> None:
    table = []
    total, done = sum(row.nbytes for row in rows), 0
    with progress_bar("read", quiet=quiet) as bar:
        for row in rows:
            done += row.nbytes
            dtype = row.info.type.dtype if row.info else None
            if row.info is None or dtype is None or not has_numbers(dtype) or not element_count(row.info.shape):
                continue
            value = source.read([row.name])[row.name]
            assert isinstance(value, torch.Tensor), "its type says so"
            found = statistics_of(value)
            numbers = [f"{number:.6g}" for number in (found.minimum, found.maximum, found.mean, found.std)]
            table.append([row.name, *numbers, str(found.nans), str(found.infinities)])
            if bar:
                bar(done, total)
    show("")
    numeric = ["min", "max", "mean", "std", "NaN", "infinite"]
    show_table(["name", *numeric], table, numeric=numeric)


def _show_tensor(source: TensorSource, name: str, *, stats_only: bool) -> None:
    names = source.names()
    found = name if name in names else name.removesuffix(":0")
    if found not in names:
        place = printable(source.path)
        hint = f"`tfckpt ls {place}` lists all {counted(len(names), 'tensor')}"
        closest = did_you_mean(name, names)
        raise NotFoundError(f"{place}: no tensor {quoted(name)}. {f'{closest} ' if closest else ''}{hint}")
    info = source.info(found)
    value = source.read([found])[found]
    parts = f", {info.parts} slices" if info.parts else ""
    show(f"{quoted(found)} {info.type.name} {shape_text(info.shape)}, {byte_text(info.nbytes)}{parts}")
    if not stats_only:
        show(_value_text(value))
    if isinstance(value, torch.Tensor) and value.numel() and has_numbers(value.dtype):
        show(str(statistics_of(value)))
    elif stats_only:
        show("no numbers in it")


def _value_text(value: FileValue) -> str:
    if isinstance(value, StoredBytes):
        return f"{len(value.data)} bytes that torch has no type for: {value.data[:64]!r}"
    if isinstance(value, np.ndarray):
        return np.array2string(value, formatter={"object": _string_text})  # type: ignore[arg-type]
    if not has_numbers(value.dtype):
        return f"{value.numel()} elements of {value.dtype}"
    numbers = value.numpy() if value.dtype in _SHOWN_AS_THEY_ARE else exact_numbers(value)
    return np.array2string(numbers)


def _string_text(element: bytes) -> str:
    # An object graph has megabytes; whoever wants all of it asks the library.
    return repr(element) if len(element) <= 200 else f"{element[:160]!r}... ({len(element)} bytes)"


_SHOWN_AS_THEY_ARE = frozenset(
    {torch.bool, torch.float16, torch.float32, torch.complex64, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)
