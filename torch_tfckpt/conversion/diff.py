"""Compare two checkpoints of any of the formats: names, types, shapes, values.

Both are read in parallel, a few tensors at a time, and compared chunk by chunk. Equal means the same bits, so that NaNs
are equal to themselves and 0.0 differs from -0.0. With a tolerance, numbers are equal if they are close, and all NaNs
are equal.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from torch_tfckpt.conversion.graph_editing import object_paths
from torch_tfckpt.conversion.selected_source import SelectedSource, read_graph
from torch_tfckpt.conversion.selection import Selection, nothing_left
from torch_tfckpt.conversion.tensor_statistics import exact_numbers, has_numbers
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.foreign_files.formats import open_source
from torch_tfckpt.foreign_files.protocols import TensorSource, names_of
from torch_tfckpt.foreign_files.values import FileValue, StoredBytes, TensorInfo, batches
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.format.tensor_slice import Shape, element_count, shape_text
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.text import counted, printable, quoted
from torch_tfckpt.values import Strings, outside_modes

_CHUNK_ELEMENTS: Final = 1024 * 1024  # float64 or complex128 copies of so many elements take a few tens of MB


class Difference(NamedTuple):
    """How the values of one tensor differ.

    Attributes:
        differing: Number of elements that differ.
        total: Number of elements.
        first: Index of the first element that differs; () if there are no elements to compare one by one.
        max_abs: Largest absolute difference; inf if a differing element is infinite, or is NaN in only one checkpoint;
            None if the elements are not numbers.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> a = tfckpt.save_file({"w": torch.tensor([1.0, 2.0])}, "a")
        >>> b = tfckpt.save_file({"w": torch.tensor([1.0, 2.5])}, "b")
        >>> tfckpt.diff(a, b).values
        {'w': Difference(differing=1, total=2, first=(1,), max_abs=0.5)}
    """

    differing: int
    total: int
    first: tuple[int, ...]
    max_abs: float | None


@dataclass(slots=True)
class DiffReport:
    """Differences between `a` and `b`. `print(report)` shows it as `tfckpt diff` does.

    Attributes:
        a: The first checkpoint.
        b: The second checkpoint.
        atol: The tolerance.
        only_in_a: Tensors that only `a` has, under their new names.
        only_in_b: Tensors that only `b` has.
        dtypes: Name -> the two element types, if they differ.
        shapes: Name -> the two shapes, if they differ.
        values: Name -> how the values differ.
        equal: Tensors that are equal.
        filtered: Number of tensors that `include` and `exclude` left out.
        unmatched_excludes: Patterns of `exclude` that matched nothing.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> a = tfckpt.save_file({"w": torch.zeros(2)}, "a")
        >>> b = tfckpt.save_file({"w": torch.tensor([0.0, 0.5])}, "b")
        >>> report = tfckpt.diff(a, b)
        >>> report.identical, report.values["w"].max_abs
        (False, 0.5)
    """

    a: str
    b: str
    atol: float
    only_in_a: list[str] = field(default_factory=list)
    only_in_b: list[str] = field(default_factory=list)
    dtypes: dict[str, tuple[str, str]] = field(default_factory=dict)
    shapes: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    values: dict[str, Difference] = field(default_factory=dict)
    equal: list[str] = field(default_factory=list)
    filtered: int = 0
    unmatched_excludes: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether nothing differs, within the tolerance."""
        return not (self.only_in_a or self.only_in_b or self.dtypes or self.shapes or self.values)

    def __str__(self) -> str:
        lines = [f"only in {printable(self.a)}: {quoted(name)}" for name in self.only_in_a]
        lines += [f"only in {printable(self.b)}: {quoted(name)}" for name in self.only_in_b]
        lines += [f"dtype of {quoted(name)}: {a} | {b}" for name, (a, b) in self.dtypes.items()]
        lines += [f"shape of {quoted(name)}: {shape_text(a)} | {shape_text(b)}" for name, (a, b) in self.shapes.items()]
        lines += [f"values of {quoted(name)}: {_described(found)}" for name, found in self.values.items()]
        different = self.dtypes.keys() | self.shapes.keys() | self.values.keys()
        within = f" within {self.atol:g}" if self.atol else ""
        if self.identical:
            lines.append(f"identical{within}: {counted(len(self.equal), 'tensor')}")
        else:
            lines.append(
                f"equal{within}: {counted(len(self.equal), 'tensor')}; different: {len(different)}; only in the first: "
                f"{len(self.only_in_a)}; only in the second: {len(self.only_in_b)}"
            )
        if self.filtered:
            lines.append(f"not compared, because of include and exclude: {counted(self.filtered, 'tensor')}")
        lines += [f"exclude {quoted(pattern)} matched nothing" for pattern in self.unmatched_excludes]
        return "\n".join(lines)


@outside_modes
def diff(
    a: AnyPath,
    b: AnyPath,
    *,
    atol: float = 0.0,
    ignore_dtype: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
    progress: Callable[[int, int], object] | None = None,
) -> DiffReport:
    """Compare two checkpoints or files of tensors.

    Args:
        a: A checkpoint or file, as `src` of `convert`.
        b: The checkpoint or file to compare with `a`.
        atol: Largest absolute difference of two numbers that count as equal; 0: their bits must be equal.
        ignore_dtype: Compare the values of numbers even if their types differ, as after convert(dtype="bf16").
        include: As in `convert`. Tensors of `a` are selected by their names before `rename`; a tensor of `b` is
            selected if the tensor of `a` that it is compared with is selected.
        exclude: As in `convert`; applied like `include`.
        rename: As in `convert`, applied to the names of `a`: after convert(a, b, rename=R), diff(a, b, rename=R) finds
            no difference. An object graph in `a` is edited as `convert` edits it.
        progress: Called with (bytes done, total bytes).

    Raises:
        InvalidArgumentError: `atol` is negative or NaN; a pattern is not a regular expression; a pattern of `include`
            or `rename` matches nothing; no tensor is left to compare; two tensors would get the same name.
        NotFoundError, DataLossError, UnimplementedError: `a` or `b` cannot be read.

    Cost: both are read once. Memory: the largest tensor of `a` and its counterpart in `b`, plus 256 MiB.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> a = tfckpt.save_file({"w": torch.zeros(2)}, "a")
        >>> b = tfckpt.save_file({"kernel": torch.zeros(2)}, "b")
        >>> print(tfckpt.diff(a, b, rename=[("^w$", "kernel")]))
        identical: 1 tensor
    """
    if not atol >= 0:
        raise InvalidArgumentError(f"atol={atol}: the tolerance must be 0 or more")
    selection = Selection(include, exclude, rename)
    with closing(open_source(fspath(a))) as source_a, closing(open_source(fspath(b))) as source_b:
        report = DiffReport(source_a.path, source_b.path, atol)
        one, other = _select(source_a, source_b, selection, report)
        infos = _compare_names(one, other, ignore_dtype, report)
        total, done = sum(info.nbytes for info in infos.values()), 0
        for batch in batches({name: info.nbytes for name, info in infos.items()}):
            values, others = one.read(batch), other.read(batch)
            for name in batch:
                found = _compare(values.pop(name), others.pop(name), atol)
                if found is not None:
                    report.values[name] = found
                else:
                    report.equal.append(name)
                done += infos[name].nbytes
            if progress is not None:
                progress(done, total)
    return report


def _select(
    one: TensorSource, other: TensorSource, selection: Selection, report: DiffReport
) -> tuple[SelectedSource, SelectedSource]:
    """Return the tensors to compare: those of `one` under their new names, and those of `other`."""
    names, other_names = one.names(), other.names()
    in_one, in_other = names_of(one), names_of(other)
    selection.names_of = lambda name: tuple(dict.fromkeys((*in_one(name), *in_other(name))))
    everything = list(dict.fromkeys([*names, *other_names]))
    report.unmatched_excludes = selection.unmatched_excludes(everything)
    taken_here = [name for name in names if selection.takes(name)]
    rename = selection.new_name if selection.renames else None
    graph = read_graph(one) if rename is not None and OBJECT_GRAPH_KEY in taken_here else None
    paths = () if graph is None else object_paths(graph)
    new_names = selection.renamed(taken_here, paths)
    # A tensor of `other` is selected if the tensor that it is compared with is selected.
    goes_with = {selection.new_name(name): False for name in names if name not in new_names}
    goes_with |= dict.fromkeys(new_names.values(), True)
    taken = [name for name in other_names if goes_with.get(name, selection.takes(name))]
    left_out = {selection.new_name(name) for name in names if name not in new_names} | set(other_names) - set(taken)
    report.filtered = len(left_out)
    if everything and not new_names and not taken:
        raise nothing_left(everything)
    same_names = {name: name for name in taken}
    selected = SelectedSource(one, names, new_names, rename, graph)
    return selected, SelectedSource(other, other_names, same_names)


def _compare_names(
    one: SelectedSource, other: SelectedSource, ignore_dtype: bool, report: DiffReport
) -> dict[str, TensorInfo]:
    """Report differences other than values; return the tensors whose values can be compared."""
    in_one, in_other = dict.fromkeys(one.names()), dict.fromkeys(other.names())
    report.only_in_a = [name for name in in_one if name not in in_other]
    report.only_in_b = [name for name in in_other if name not in in_one]
    comparable: dict[str, TensorInfo] = {}
    for name in in_one:
        if name not in in_other:
            continue
        a, b = one.info(name), other.info(name)
        numbers = a.type.dtype is not None and b.type.dtype is not None
        if a.type != b.type and not (ignore_dtype and numbers):
            report.dtypes[name] = (a.type.name, b.type.name)
        if a.shape != b.shape:
            report.shapes[name] = (a.shape, b.shape)
        elif name not in report.dtypes:
            comparable[name] = a
    return comparable


def _compare(a: FileValue, b: FileValue, atol: float) -> Difference | None:
    """Compare two values of the same shape that have the same type or two numeric types."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)):
            return None
        if not (has_numbers(a.dtype) and has_numbers(b.dtype)):
            return Difference(a.numel(), a.numel(), (), None)
        return _compare_numbers(a, b, atol, bitwise=not atol and a.dtype == b.dtype)
    if isinstance(a, StoredBytes) and isinstance(b, StoredBytes):
        count = element_count(a.shape)
        return None if a.data == b.data else Difference(count, count, (), None)
    assert isinstance(a, np.ndarray) and isinstance(b, np.ndarray), "types were compared before"
    return _compare_strings(a, b)


def _compare_strings(a: Strings, b: Strings) -> Difference | None:
    unequal = [n for n, (x, y) in enumerate(zip(a.reshape(-1), b.reshape(-1), strict=True)) if x != y]
    return Difference(len(unequal), a.size, _index(unequal[0], a.shape), None) if unequal else None


def _compare_numbers(a: torch.Tensor, b: torch.Tensor, atol: float, *, bitwise: bool) -> Difference | None:
    count, first, largest = 0, -1, 0.0
    for begin, x, y in _chunks(a, b):
        same = (_bits(x).view(x.numel(), -1) == _bits(y).view(y.numel(), -1)).all(1).numpy() if bitwise else None
        with np.errstate(invalid="ignore", over="ignore"):
            apart = _distances(exact_numbers(x), exact_numbers(y))
        differs = ~same if same is not None else apart > atol
        found = np.flatnonzero(differs)
        if found.size:
            first = begin + int(found[0]) if first < 0 else first
            count += found.size
            largest = max(largest, float(apart[found].max()))
    return Difference(count, a.numel(), _index(first, tuple(a.shape)), largest) if count else None


def _chunks(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    one, other = a.reshape(-1), b.reshape(-1)
    for begin in range(0, one.numel(), _CHUNK_ELEMENTS):
        yield begin, one[begin : begin + _CHUNK_ELEMENTS], other[begin : begin + _CHUNK_ELEMENTS]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _distances(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> npt.NDArray[np.floating]:
    """Return absolute differences: 0 for equal numbers and two NaNs, infinity for a NaN and a number."""
    apart: npt.NDArray[np.floating] = np.abs(a - b)  # type: ignore[operator]
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    apart[np.isnan(apart)] = np.inf
    return apart


def _index(flat: int, shape: Shape) -> tuple[int, ...]:
    return tuple(int(position) for position in np.unravel_index(flat, shape)) if shape else ()


def _described(found: Difference) -> str:
    where = f", first at {list(found.first)}" if found.first else ""
    size = "" if found.max_abs is None else f", largest absolute difference {found.max_abs:.9g}"
    verb = "differs" if found.differing == 1 else "differ"
    return f"{found.differing} of {counted(found.total, 'element')} {verb}{where}{size}"
