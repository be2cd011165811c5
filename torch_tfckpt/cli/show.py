"""tfckpt ls and show: list the tensors; show a summary, or the values of one tensor."""

import argparse
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.cli.kind import show_kind
from torch_tfckpt.cli.subdirectories import checkpoints_below
from torch_tfckpt.cli.tables import at_terminal, progress_bar, show_table
from torch_tfckpt.cli.tensor_values import (
    check_size,
    full_text,
    statistics_as_json,
    tensor_document,
    value_as_json,
    value_text,
)
from torch_tfckpt.conversion.tensor_statistics import Statistics, has_numbers, statistics_of
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError, error_context
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.tensorflow import CheckpointSource
from torch_tfckpt.foreign_files.values import TensorInfo
from torch_tfckpt.format.object_graph import VARIABLE_VALUE, checkpoint_key
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import element_count, shape_text
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.recognition import variable_kinds
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.text import (
    byte_text,
    counted,
    did_you_mean,
    encodable,
    first_lines,
    listed,
    natural_order,
    printable,
    quoted,
)

_LISTED: Final = 5  # names in a message
_SHORTENED: Final = f"names are shown without {checkpoint_key('', VARIABLE_VALUE)}; all commands accept short names"


class Row(NamedTuple):
    """One tensor in a listing."""

    name: str
    info: TensorInfo | None  # None: its entry in the index cannot be read
    problem: str = ""
    aliases: tuple[str, ...] | None = None  # its other names in an object-based checkpoint
    variable: str | None = None  # full name of the variable
    belongs_to: str = ""  # a note: the variable, or the variable that a slot belongs to
    short_name: str = ""  # the name without /.ATTRIBUTES/VARIABLE_VALUE, if unambiguous

    @property
    def nbytes(self) -> int:
        return self.info.nbytes if self.info else 0

    @property
    def shown_name(self) -> str:
        """The name in a table: the short name at a terminal, if there is one; otherwise the full name."""
        return self.short_name if self.short_name and at_terminal() else self.name

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
    """List the tensors; return 1 if one of them cannot be read, or no name matches."""
    if options.all:
        raise InvalidArgumentError("--all needs --tree: a listing always has all tensors. Add --tree, or omit --all")
    with closing(open_for_listing(options.path)) as source:
        rows = rows_of(source, options.patterns)
        nothing = "" if rows or not options.patterns else unmatched(source, options.patterns)
        path, form, skipped = source.path, source.format, dict(source.skipped)
        kinds = kinds_of(source)
        has_objects = source.object_names is not None
        missing = missing_files_of(source)
    order = options.sort or ("stored" if options.json else "name")
    if order != "stored":
        rows.sort(key=lambda row: (-row.nbytes if order == "size" else 0, natural_order(row.name)))
    if options.json:
        show_json(
            {
                "path": encodable(path),
                "format": form,
                "tensors": [as_json(row) for row in rows],
                "skipped": skipped,
                "missing_files": list(map(encodable, missing)),
                "total": total_of(rows, kinds),
            }
        )
    else:
        show_table(["name", "dtype", "shape", "size", "note"], [cells(row) for row in rows], numeric=["size"])
        show(totals(rows, kinds))
    if skipped and not options.quiet:
        say(f"omitted, because they are not tensors: {', '.join(map(quoted, skipped))}")
    warn_of_missing(missing)
    if has_objects and not options.quiet and not options.json:
        say(f"object-based: `tfckpt ls --tree {printable(fspath(options.path))}` shows the objects")
        if any(row.shown_name != row.name for row in rows):
            say(_SHORTENED)
    if nothing:
        say(nothing)
    return 1 if nothing or any(row.info is None for row in rows) else 0


def open_for_listing(path: str) -> TensorSource:
    """Call `open_source`; if there is no checkpoint, the error lists subdirectories with checkpoints."""
    path = fspath(path)
    try:
        return open_source(path)
    except NotFoundError as error:
        below = checkpoints_below(path).sentence("ls")
        if not below:
            raise
        raise NotFoundError(f"{str(error).rstrip('.')}. {below}") from error.__cause__


def show_path(options: argparse.Namespace) -> int:
    """Show a checkpoint, or one tensor of it; for any other path, its kind."""
    if options.full and options.json:
        raise InvalidArgumentError("--json always prints all values. Omit --full")
    if options.full and options.name is None:
        raise InvalidArgumentError("--full prints the values of one tensor. Add its name: tfckpt show PATH NAME --full")
    path = fspath(options.path)
    try:
        opened = open_source(path) if options.name is None else open_for_listing(path)
    except CheckpointError as error:
        status = show_kind(path, error, as_json=options.json) if options.name is None else None
        if status is None:
            raise
        return status
    with closing(opened) as source:
        if options.name is not None:
            _show_tensor(source, options.name, options)
            return 0
        rows, missing = rows_of(source, []), missing_files_of(source)
        if options.json:
            warn_of_missing(missing)
            content = _summary_as_json(source, rows, missing)
            if options.stats:
                content["statistics"] = {
                    name: statistics_as_json(found) for name, found in _statistics(source, rows, quiet=options.quiet)
                }
            show_json(content)
        else:
            rows.sort(key=lambda row: natural_order(row.name))
            _show_summary(source, rows, missing)
            warn_of_missing(missing)
            if options.stats:
                _show_statistics(source, rows, quiet=options.quiet)
    return 1 if any(row.info is None for row in rows) else 0


def rows_of(source: TensorSource, patterns: Sequence[str]) -> list[Row]:
    """Return the tensors in the order of the file. With patterns, only those with a matching name."""
    rows = []
    known = source.object_names
    globs = [*patterns, *(pattern.removeprefix("(root).") for pattern in patterns)]
    for name in source.names():
        names = (name,) if known is None else known.names_of(name)
        if not patterns or any(fnmatch.fnmatchcase(each, glob) for glob in globs for each in names):
            rows.append(row_of(source, name))
    return rows


def row_of(source: TensorSource, name: str) -> Row:
    """Return one tensor of a listing."""
    known = source.object_names
    try:
        row = Row(name, source.info(name))
    except CheckpointError as error:
        row = Row(name, None, str(error))
    if known is None:
        return row
    short = short_key(name)
    return row._replace(
        aliases=known.names_of(name)[1:],
        variable=known.variable(name),
        belongs_to=known.note(name),
        short_name=short if short != name and known.find(short) == [name] else "",
    )


def unmatched(source: TensorSource, patterns: Sequence[str]) -> str:
    """Return the message for patterns that match no tensor."""
    names = source.names()
    known = _all_names(source)
    closest = " ".join(filter(None, (did_you_mean(pattern.removesuffix(":0"), known) for pattern in patterns)))
    finding = f"none of {counted(len(names), 'tensor')} matches {' or '.join(map(quoted, patterns))}"
    return f"tfckpt: {finding}. {closest or 'A * matches any characters, including /'}"


def cells(row: Row) -> list[str]:
    """Return the cells of a row: name, dtype, shape, size, note."""
    note = "; ".join(filter(None, (row.belongs_to, row.note)))
    if row.info is None:
        return [row.shown_name, "?", "?", "?", note]
    return [row.shown_name, row.info.type.name, shape_text(row.info.shape), byte_text(row.info.nbytes), note]


def as_json(row: Row) -> dict[str, Any]:
    """Return one tensor of a JSON listing."""
    names = {} if row.aliases is None else {"variable": row.variable, "aliases": list(row.aliases)}
    if row.info is None:
        return {"name": row.name, "error": row.problem, **names}
    kind, shape, nbytes, slices = row.info
    return {"name": row.name, "dtype": kind.name, "shape": list(shape), "nbytes": nbytes, "slices": slices, **names}


def kinds_of(source: TensorSource) -> Mapping[str, VariableKind]:
    """Return the kind of each tensor of a TensorFlow checkpoint; empty for other or damaged files."""
    if isinstance(source, CheckpointSource):
        with suppress(CheckpointError):
            return variable_kinds(source.reader)
    return {}


def total_of(rows: Sequence[Row], kinds: Mapping[str, VariableKind]) -> dict[str, Any]:
    """Return the totals of a JSON listing: for all tensors, and for each kind of tensor."""
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
    """Return the totals at the end of a listing: for all tensors, and for each kind if there are several."""
    lines = [f"  {kind.value}: {sums_text(some)}" for kind, some in _by_kind(rows, kinds).items()]
    return "\n".join([sums_text(rows), *lines] if len(lines) > 1 else [sums_text(rows)])


def sums_text(rows: Sequence[Row]) -> str:
    """Return the number of tensors, their number of elements and their size as text."""
    unreadable = sum(row.info is None for row in rows)
    size = byte_text(sum(row.nbytes for row in rows))
    text = f"{counted(len(rows), 'tensor')}, {counted(_elements(rows), 'element')}, {size}"
    return f"{text}; {unreadable} unreadable" if unreadable else text


def missing_files_of(source: TensorSource) -> Mapping[str, int]:
    """Return the missing data files of a TensorFlow checkpoint, with the number of tensors in each."""
    if isinstance(source, CheckpointSource):
        with suppress(CheckpointError):  # the listing itself reports a damaged index
            return source.missing_files()
    return {}


def warn_of_missing(missing: Mapping[str, int]) -> None:
    """Print a warning for each missing data file."""
    warnings = [
        f"tfckpt: warning: {printable(path)}: the data file is missing; it has {counted(tensors, 'tensor')}"
        for path, tensors in missing.items()
    ]
    for line in first_lines(warnings, _LISTED):
        say(line)


def _summary_as_json(source: TensorSource, rows: Sequence[Row], missing: Iterable[str]) -> dict[str, Any]:
    files = [{"path": encodable(path), "nbytes": _size_of(path)} for path in _all_files(source, missing)]
    dtypes = [{"dtype": kind, "tensors": len(sizes), "nbytes": sum(sizes)} for kind, sizes in _by_dtype(rows)]
    return {
        "path": encodable(source.path),
        "format": source.format,
        "object_based": source.object_names is not None,
        "total": total_of(rows, kinds_of(source)),
        "partitioned": _partitioned(rows),
        "skipped": dict(source.skipped),
        "files": files,
        "dtypes": dtypes,
    }


def _all_files(source: TensorSource, missing: Iterable[str]) -> list[str]:
    """Return all files of a source, including missing files."""
    first, *data = source.files()
    return [first, *(sorted({*data, *missing}) if missing else data)]


def _show_summary(source: TensorSource, rows: Sequence[Row], missing: Iterable[str]) -> None:
    show(f"{printable(source.path)}: {source.format}")
    show(totals(rows, kinds_of(source)))
    partitioned = _partitioned(rows)
    if partitioned:
        show(f"partitioned: {partitioned}")
    if source.skipped:
        show(f"omitted, because they are not tensors: {', '.join(map(quoted, source.skipped))}")
    show("")
    sizes = [(path, _size_of(path)) for path in _all_files(source, missing)]
    table = [[printable(path), "missing" if size is None else byte_text(size)] for path, size in sizes]
    show_table(["file", "size"], table, numeric=["size"])
    show("")
    table = [[kind, str(len(sizes)), byte_text(sum(sizes))] for kind, sizes in _by_dtype(rows)]
    show_table(["dtype", "tensors", "size"], table, numeric=["tensors", "size"])


def _partitioned(rows: Sequence[Row]) -> int:
    return sum(row.info is not None and row.info.parts > 0 for row in rows)


def _by_dtype(rows: Sequence[Row]) -> list[tuple[str, list[int]]]:
    """Each type and the sizes of its tensors, sorted by type."""
    kinds: dict[str, list[int]] = {}
    for row in rows:
        kinds.setdefault(row.info.type.name if row.info else "unreadable", []).append(row.nbytes)
    return sorted(kinds.items())


def _size_of(path: str) -> int | None:
    """Size of a file; None if it is missing."""
    try:
        file = LOCAL.open(path)
    except (CheckpointError, OSError):
        return None
    file.close()
    return file.size


def _show_statistics(source: TensorSource, rows: Sequence[Row], *, quiet: bool) -> None:
    table = []
    shown = {row.name: row.shown_name for row in rows}
    for name, found in _statistics(source, rows, quiet=quiet):
        numbers = [f"{number:.6g}" for number in (found.minimum, found.maximum, found.mean, found.std)]
        table.append([shown[name], *numbers, str(found.nans), str(found.infinities)])
    show("")
    numeric = ["min", "max", "mean", "std", "NaN", "infinite"]
    show_table(["name", *numeric], table, numeric=numeric)


def _statistics(source: TensorSource, rows: Sequence[Row], *, quiet: bool) -> Iterator[tuple[str, Statistics]]:
    """Name and statistics of each numeric tensor."""
    total, done = sum(row.nbytes for row in rows), 0
    with progress_bar("read", quiet=quiet) as bar:
        for row in rows:
            done += row.nbytes
            dtype = row.info.type.dtype if row.info else None
            if row.info is None or dtype is None or not has_numbers(dtype) or not element_count(row.info.shape):
                continue
            value = source.read([row.name])[row.name]
            assert isinstance(value, torch.Tensor), "its element type has numbers"
            yield row.name, statistics_of(value)
            if bar:
                bar(done, total)


def _show_tensor(source: TensorSource, given: str, options: argparse.Namespace) -> None:
    name = _tensor_meant(source, given)
    info = source.info(name)
    if options.full or (options.json and not options.stats):
        check_size(source.path, name, info)
    value = source.read([name])[name]
    statistics = None
    if isinstance(value, torch.Tensor) and value.numel() and has_numbers(value.dtype):
        statistics = statistics_of(value)
    if options.json:
        content: dict[str, Any] = {"path": encodable(source.path), **as_json(row_of(source, name))}
        if options.stats:
            content["statistics"] = None if statistics is None else statistics_as_json(statistics)
        else:
            content |= value_as_json(value)
        show(tensor_document(content))
        return
    parts = f", {info.parts} slices" if info.parts else ""
    known = source.object_names
    note = known.note(name) if known is not None else ""
    note = f", {note}" if note else ""
    show(f"{quoted(name)} {info.type.name} {shape_text(info.shape)}, {byte_text(info.nbytes)}{parts}{note}")
    if options.full:
        show(full_text(value))
    elif not options.stats:
        show(value_text(value))
    if statistics is not None and not options.full:
        show(str(statistics))
    elif options.stats:
        show("its elements are not numbers")


def _tensor_meant(source: TensorSource, given: str) -> str:
    """Return the key of the tensor that `given` names: its key or another name, with or without ":0"."""
    names = source.names()
    known = source.object_names
    bare = given.removesuffix(":0")
    if known is not None:
        with error_context(printable(source.path)):
            found = known.resolve(given)
    else:
        found = next((name for name in (given, bare) if name in names), None)
    if found is not None:
        return found
    place = printable(source.path)
    below = [name for name in names if name.startswith((f"{bare}/", f"{bare}-", f"{bare}_"))]
    closest = f"There are {listed(below, _LISTED)}." if below else did_you_mean(bare, _all_names(source))
    hint = f"`tfckpt ls {place}` lists all {counted(len(names), 'tensor')}"
    tree = f", `tfckpt ls --tree {place}` shows the objects" if known is not None else ""
    raise NotFoundError(f"{place}: no tensor {quoted(given)}. {f'{closest} ' if closest else ''}{hint}{tree}")


def _all_names(source: TensorSource) -> list[str]:
    """Every name of every tensor."""
    return source.names() if source.object_names is None else list(source.object_names.known())
