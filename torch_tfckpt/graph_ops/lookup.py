"""Lookup tables: keys to values.

    table = LookupTable("words", keys=STRING, values=torch.int64)
    table.insert(keys, values)
    table.find(keys, default)

A table is an object that operations get as an input, like a tensor. Keys are strings, integers, or floats that are
compared by their bits of equality; a value is an element or a small tensor. Keys and values are found in a few steps
for a whole array: the values are rows of one tensor, or of one array of strings, and a dictionary has the row of each
key.

Source: tensorflow/core/ops/lookup_ops.cc, tensorflow/core/kernels/lookup_util.cc.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.numbers_as_text import read_integer
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import array_of
from torch_tfckpt.graph_ops.values import AnyTensor, ElementType, Tensor
from torch_tfckpt.text import quoted, shortened

WHOLE_LINE: Final = -2  # a column of a text file: the whole line
LINE_NUMBER: Final = -1


class LookupTable:
    """A table.

    Args:
        name: For messages.
        keys: Type of the keys.
        values: Type of the values.
        shape: Shape of one value.
        is_mutable: Whether it may be changed after it was filled. Such a table may be used while it is empty.

    Attributes:
        is_filled: Whether the table has its contents.
        version: The number of its changes.
    """

    def __init__(
        self, name: str, keys: ElementType, values: ElementType, shape: tuple[int, ...] = (), is_mutable: bool = False
    ) -> None:
        self.name, self.is_mutable, self.shape = name, is_mutable, shape
        self.key_type, self.value_type = keys, values
        self.is_filled, self.version = False, 0
        self._rows: dict[Any, int] = {}
        self._values: AnyTensor = _empty(values, (0, *shape))

    def __repr__(self) -> str:
        return f"LookupTable({self.name!r}, {self.size} keys)"

    @property
    def size(self) -> int:
        return len(self._rows)

    def fill(self, keys: AnyTensor, values: AnyTensor) -> None:
        """Set the contents.

        Raises:
            InvalidArgumentError: the types or shapes are wrong, or a table that may not change has a key twice, with
                different values.
        """
        rows: dict[Any, int] = {}
        listed = self._checked(keys, values)
        for row, key in enumerate(listed):
            other = rows.setdefault(key, row)
            if other != row:
                if not self.is_mutable and not _equal(values, other, row):
                    raise InvalidArgumentError(f"table {quoted(self.name)} has different values for {shortened(key)}")
                rows[key] = row
        self._rows, self._values, self.is_filled = rows, _flat(values, self.shape), True
        self.version += 1

    def insert(self, keys: AnyTensor, values: AnyTensor) -> None:
        """Add keys, or change their values."""
        first = len(self._values)
        listed = self._checked(keys, values)
        self._values = _joined(self._values, _flat(values, self.shape))
        self._rows.update((key, first + row) for row, key in enumerate(listed))
        self.is_filled = True
        self.version += 1

    def remove(self, keys: AnyTensor) -> None:
        """Remove keys; those that the table does not have are ignored."""
        self._check_keys(keys)
        for key in _list(keys):
            self._rows.pop(key, None)
        self.version += 1

    def find(self, keys: AnyTensor, default: AnyTensor) -> AnyTensor:
        """Return the values for an array of keys, and a default value for those that are missing."""
        self._require()
        self._check_keys(keys)
        self._check_values(default)
        if tuple(default.shape) not in (self.shape, (*keys.shape, *self.shape)):
            raise InvalidArgumentError(
                f"the default value has the shape {list(default.shape)}, the values have {list(self.shape)}"
            )
        # Default values are the rows after all others: one for all keys, or one for each.
        first, step = len(self._values), 0 if tuple(default.shape) == self.shape else 1
        known = _joined(self._values, _flat(default, self.shape))
        get = self._rows.get
        rows = [get(key, first + step * at) for at, key in enumerate(_list(keys))]
        return _taken(known, rows).reshape((*keys.shape, *self.shape))

    def contents(self) -> tuple[AnyTensor, AnyTensor]:
        """Return all keys and their values."""
        self._require()
        keys = list(self._rows)
        values = _taken(self._values, list(self._rows.values()))
        if isinstance(self.key_type, torch.dtype):
            return torch.tensor(keys, dtype=self.key_type), values
        return array_of(keys), values

    def _require(self) -> None:
        if not self.is_filled and not self.is_mutable:
            raise FailedPreconditionError(f"Table not initialized: {quoted(self.name)}")

    def _checked(self, keys: AnyTensor, values: AnyTensor) -> list[Any]:
        """Return the keys; check the types and shapes of keys and values."""
        self._check_keys(keys)
        self._check_values(values)
        if tuple(values.shape) != (*keys.shape, *self.shape):
            raise InvalidArgumentError(
                f"table {quoted(self.name)}: keys of shape {list(keys.shape)} and values of shape {list(values.shape)}"
            )
        return _list(keys)

    def _check_keys(self, keys: AnyTensor) -> None:
        if _type(keys) != self.key_type:
            raise InvalidArgumentError(f"table {quoted(self.name)} has keys of {self.key_type}, not {_type(keys)}")

    def _check_values(self, values: AnyTensor) -> None:
        if _type(values) != self.value_type:
            raise InvalidArgumentError(
                f"table {quoted(self.name)} has values of {self.value_type}, not {_type(values)}"
            )


@op("LookupTableFind", "LookupTableFindV2", pure=False)
def lookup_table_find(table_handle: LookupTable, keys: AnyTensor, default_value: AnyTensor) -> AnyTensor:
    return _table(table_handle).find(keys, default_value)


@op("LookupTableSize", "LookupTableSizeV2", pure=False)
def lookup_table_size(table_handle: LookupTable) -> Tensor:
    table = _table(table_handle)
    table._require()
    return torch.tensor(table.size)


@op("LookupTableExport", "LookupTableExportV2", outputs=("keys", "values"), pure=False)
def lookup_table_export(table_handle: LookupTable) -> tuple[AnyTensor, AnyTensor]:
    return _table(table_handle).contents()


@op("LookupTableImport", "LookupTableImportV2", outputs=(), pure=False)
def lookup_table_import(table_handle: LookupTable, keys: AnyTensor, values: AnyTensor) -> None:
    _table(table_handle).fill(keys, values)


@op("LookupTableInsert", "LookupTableInsertV2", outputs=(), pure=False)
def lookup_table_insert(table_handle: LookupTable, keys: AnyTensor, values: AnyTensor) -> None:
    _changeable(table_handle).insert(keys, values)


@op("LookupTableRemoveV2", outputs=(), pure=False)
def lookup_table_remove(table_handle: LookupTable, keys: AnyTensor) -> None:
    _changeable(table_handle).remove(keys)


@op("InitializeTable", "InitializeTableV2", outputs=(), pure=False)
def initialize_table(table_handle: LookupTable, keys: AnyTensor, values: AnyTensor) -> None:
    table = _table(table_handle)
    if len(keys.shape) != 1:
        raise InvalidArgumentError(f"keys must be a vector, found the shape {list(keys.shape)}")
    if not table.is_filled:
        table.fill(keys, values)


def fill_from_text(
    table: LookupTable,
    text: bytes,
    *,
    key_index: int,
    value_index: int,
    vocab_size: int = -1,
    delimiter: str = "\t",
    offset: int = 0,
) -> None:
    """Fill a table from the lines of a text file.

    Args:
        key_index, value_index: A column, or WHOLE_LINE or LINE_NUMBER.
        vocab_size: Number of lines to read; -1 for all.
        offset: Number of lines to skip.

    Raises:
        InvalidArgumentError: the file has too few lines or columns, or an element has the wrong type.
    """
    for index, kind in ((key_index, table.key_type), (value_index, table.value_type)):
        if index < WHOLE_LINE:
            raise InvalidArgumentError(f"a table cannot be filled from column {index}")
        if index == LINE_NUMBER and kind != torch.int64:
            raise InvalidArgumentError(f"line numbers are torch.int64, but the table has {kind}")
        if index == WHOLE_LINE and isinstance(kind, torch.dtype) and kind.is_floating_point:
            raise InvalidArgumentError(f"whole lines are strings or integers, but the table has {kind}")
    lines = list(_lines(text))[offset:]
    if vocab_size >= 0 and len(lines) < vocab_size:
        raise InvalidArgumentError(f"Invalid vocab_size: the file has {len(lines)} lines, expected {vocab_size}")
    lines = lines[:vocab_size] if vocab_size >= 0 else lines
    if b"" in lines:
        raise InvalidArgumentError(f"line {offset + lines.index(b'')} is empty")
    needed = max(key_index, value_index)
    mark = delimiter.encode("utf-8", "surrogateescape")
    if needed >= 0 and len(mark) != 1:
        raise InvalidArgumentError(f"delimiter is {quoted(delimiter)}, expected one character")
    columns: list[list[bytes]] = [line.split(mark) for line in lines] if needed >= 0 else []
    for number, parts in enumerate(columns):
        if len(parts) <= needed:
            raise InvalidArgumentError(
                f"Invalid number of columns: line {number} has {len(parts)}, expected at least {needed + 1}"
            )

    def column(index: int, kind: ElementType) -> AnyTensor:
        if index == LINE_NUMBER:
            return torch.arange(len(lines))
        return _parsed([parts[index] for parts in columns] if index >= 0 else lines, kind)

    table.fill(column(key_index, table.key_type), column(value_index, table.value_type))


def _lines(text: bytes) -> Iterator[bytes]:
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return (line.replace(b"\r", b"") for line in lines)


def _parsed(texts: Sequence[bytes], kind: ElementType) -> AnyTensor:
    if kind == DataType.DT_STRING:
        return array_of(texts)
    if not isinstance(kind, torch.dtype):
        raise InvalidArgumentError(f"a table of {kind} cannot be filled from a text file")
    try:
        if kind.is_floating_point:
            return torch.tensor([float(text) for text in texts], dtype=torch.float64).to(kind)
        return torch.tensor([read_integer(text) for text in texts], dtype=kind)
    except (ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"an element of the file is not {kind}: {error}") from error


def _table(value: Any) -> LookupTable:
    if not isinstance(value, LookupTable):
        raise InvalidArgumentError(f"expected a table, found {type(value).__name__}")
    return value


def _changeable(value: Any) -> LookupTable:
    table = _table(value)
    if not table.is_mutable:
        raise InvalidArgumentError(f"table {quoted(table.name)} cannot be changed after it was initialised")
    return table


def _type(value: AnyTensor) -> ElementType:
    return value.dtype if isinstance(value, torch.Tensor) else DataType.DT_STRING


def _list(keys: AnyTensor) -> list[Any]:
    found: list[Any] = keys.reshape(-1).tolist()
    return found


def _empty(kind: ElementType, shape: tuple[int, ...]) -> AnyTensor:
    return torch.zeros(shape, dtype=kind) if isinstance(kind, torch.dtype) else np.empty(shape, dtype=object)


def _flat(values: AnyTensor, shape: tuple[int, ...]) -> AnyTensor:
    """Return values as rows, which do not share memory with them."""
    found = values.reshape((-1, *shape))
    return found.detach().clone() if isinstance(found, torch.Tensor) else found.copy()


def _joined(first: AnyTensor, second: AnyTensor) -> AnyTensor:
    if isinstance(first, torch.Tensor):
        assert isinstance(second, torch.Tensor)
        return torch.cat([first.to(second.device), second])
    return np.concatenate([first, np.asarray(second)])


def _taken(values: AnyTensor, rows: Sequence[int]) -> AnyTensor:
    if isinstance(values, torch.Tensor):
        return values.index_select(0, torch.tensor(rows, dtype=torch.int64, device=values.device))
    return values[np.array(rows, dtype=np.int64)]


def _equal(values: AnyTensor, first: int, second: int) -> bool:
    if isinstance(values, torch.Tensor):
        return bool((values[first] == values[second]).all())
    return bool(np.all(values[first] == values[second]))
