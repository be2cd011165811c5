"""Parse examples: records of named lists, see `format.example`.

    dense      a list of a known length becomes a row; it may have a default value. If the first axis is -1, rows are
               filled with the default value up to the longest one
    sparse     a list becomes elements of a sparse tensor
    ragged     a list becomes a row of a ragged tensor

Source: tensorflow/core/ops/parsing_ops.cc; tensorflow/core/util/example_proto_fast_parsing.cc.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, located
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.example import Feature, FeatureKind, features_of, values_of
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import array_of, as_text, elements, single
from torch_tfckpt.graph_ops.values import AnyTensor, AnyTensors, ElementType, Ints, Strings, StringsList, Tensor
from torch_tfckpt.text import quoted

_KINDS: Final[Mapping[ElementType, FeatureKind]] = {
    DataType.DT_STRING: FeatureKind.BYTES,
    torch.float32: FeatureKind.FLOATS,
    torch.int64: FeatureKind.INTEGERS,
}
Listed = tuple[AnyTensor, ...]


@op("ParseExample", outputs=("sparse_indices", "sparse_values", "sparse_shapes", "dense_values"))
def parse_example(
    serialized: Strings,
    names: Strings,
    sparse_keys: StringsList,
    dense_keys: StringsList,
    dense_defaults: AnyTensors,
    *,
    sparse_types: tuple[ElementType, ...],
    dense_shapes: tuple[Ints, ...],
) -> tuple[Listed, Listed, Listed, Listed]:
    if serialized.ndim != 1:
        raise InvalidArgumentError(f"serialized must be a vector, found the shape {list(serialized.shape)}")
    sparse = [single(each, "a key") for each in sparse_keys]
    dense = [single(each, "a key") for each in dense_keys]
    records = _Examples(elements(serialized), _names(names, serialized))
    return (*records.sparse(sparse, sparse_types), records.dense(dense, dense_defaults, dense_shapes))


@op(
    "ParseExampleV2",
    outputs=("sparse_indices", "sparse_values", "sparse_shapes", "dense_values", "ragged_values", "ragged_row_splits"),
)
def parse_example_v2(
    serialized: Strings,
    names: Strings,
    sparse_keys: Strings,
    dense_keys: Strings,
    ragged_keys: Strings,
    dense_defaults: AnyTensors,
    *,
    num_sparse: int,
    sparse_types: tuple[ElementType, ...],
    ragged_value_types: tuple[ElementType, ...],
    ragged_split_types: tuple[torch.dtype, ...],
    dense_shapes: tuple[Ints, ...],
) -> tuple[Listed, Listed, Listed, Listed, Listed, Listed]:
    if serialized.ndim > 1:
        raise InvalidArgumentError(f"serialized must be a vector, found the shape {list(serialized.shape)}")
    if len(elements(sparse_keys)) != num_sparse:
        raise InvalidArgumentError(f"num_sparse is {num_sparse}, but there are {sparse_keys.size} keys")
    records = _Examples(elements(serialized), _names(names, serialized), is_single=not serialized.ndim)
    return (
        *records.sparse(elements(sparse_keys), sparse_types),
        records.dense(elements(dense_keys), dense_defaults, dense_shapes),
        *records.ragged(elements(ragged_keys), ragged_value_types, ragged_split_types),
    )


@op("ParseSingleExample", outputs=("sparse_indices", "sparse_values", "sparse_shapes", "dense_values"))
def parse_single_example(
    serialized: Strings,
    dense_defaults: AnyTensors,
    *,
    num_sparse: int,
    sparse_keys: tuple[str, ...],
    dense_keys: tuple[str, ...],
    sparse_types: tuple[ElementType, ...],
    dense_shapes: tuple[Ints, ...],
) -> tuple[Listed, Listed, Listed, Listed]:
    if len(sparse_keys) != num_sparse:
        raise InvalidArgumentError(f"num_sparse is {num_sparse}, but there are {len(sparse_keys)} keys")
    records = _Examples([single(serialized, "serialized")], None, is_single=True)
    return (
        *records.sparse(list(map(as_text, sparse_keys)), sparse_types),
        records.dense(list(map(as_text, dense_keys)), dense_defaults, dense_shapes),
    )


def _names(names: Strings, serialized: Strings) -> list[bytes] | None:
    listed = elements(names)
    if listed and len(listed) != max(1, serialized.size):
        raise InvalidArgumentError(f"names has {len(listed)} elements, serialized has {serialized.size}")
    return listed or None


@dataclass(slots=True)
class _FeatureLists:
    """The lists of one key in all records; None where a record has none."""

    key: bytes
    kind: ElementType
    lists: list[Any]

    def sizes(self) -> list[int]:
        return [0 if each is None else len(each) for each in self.lists]

    def joined(self) -> AnyTensor:
        return _joined([each for each in self.lists if each is not None], self.kind)


class _Examples:
    """Decoded records.

    Args:
        is_single: There is one record, and results do not have an axis for records.
    """

    def __init__(self, records: Sequence[bytes], names: Sequence[bytes] | None, *, is_single: bool = False) -> None:
        self._names, self._is_single = names, is_single
        self._features: list[dict[bytes, Feature | None]] = []
        for number, record in enumerate(records):
            try:
                self._features.append(features_of(record))
            except CheckpointError as error:
                raise InvalidArgumentError(f"Could not parse example input, {self._place(number)}: {error}") from error

    def sparse(self, keys: Sequence[bytes], kinds: Sequence[ElementType]) -> tuple[Listed, Listed, Listed]:
        indices, values, shapes = [], [], []
        for key, kind in zip(keys, kinds, strict=True):
            column = self._column(key, kind)
            sizes = column.sizes()
            longest = max(sizes, default=0)
            places = torch.cat([torch.arange(0), *(torch.arange(size) for size in sizes)])
            if self._is_single:
                indices.append(places[:, None])
                shapes.append(torch.tensor([longest]))
            else:
                rows = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
                indices.append(torch.stack([rows, places], 1))
                shapes.append(torch.tensor([len(sizes), longest]))
            values.append(column.joined())
        return tuple(indices), tuple(values), tuple(shapes)

    def ragged(
        self, keys: Sequence[bytes], kinds: Sequence[ElementType], splits: Sequence[torch.dtype]
    ) -> tuple[Listed, Listed]:
        values, rows = [], []
        for key, kind, dtype in zip(keys, kinds, splits, strict=True):
            column = self._column(key, kind)
            values.append(column.joined())
            begins = list(itertools.accumulate(column.sizes(), initial=0))
            rows.append(torch.tensor([] if self._is_single else begins, dtype=dtype))
        return tuple(values), tuple(rows)

    def dense(self, keys: Sequence[bytes], defaults: AnyTensors, shapes: Sequence[Ints]) -> Listed:
        return tuple(
            self._dense(key, default, shape) for key, default, shape in zip(keys, defaults, shapes, strict=True)
        )

    def _dense(self, key: bytes, default: AnyTensor, shape: Ints) -> AnyTensor:
        kind: ElementType = default.dtype if isinstance(default, torch.Tensor) else DataType.DT_STRING
        column = self._column(key, kind)
        rows = [] if self._is_single else [len(column.lists)]
        if shape and shape[0] == -1 and min(shape[1:], default=0) >= 0:
            return self._variable(column, default, shape, rows)
        if min(shape, default=0) < 0:
            raise InvalidArgumentError(f"dense_shapes has {list(shape)}; only the first size may be unknown")
        count = math.prod(shape)
        own = default.reshape(-1)
        if math.prod(default.shape) and tuple(default.shape) != tuple(shape):
            raise InvalidArgumentError(
                f"the default value of {quoted(_text(key))} has the shape {list(default.shape)}, expected {list(shape)}"
            )
        found = []
        for number, listed in enumerate(column.lists):
            if listed is None:
                if math.prod(default.shape) != count:
                    raise InvalidArgumentError(
                        f"{self._place(number)}, feature {quoted(_text(key))} is required but could not be found"
                    )
                found.append(own)
            elif len(listed) != count:
                raise InvalidArgumentError(
                    f"{self._place(number)}, feature {quoted(_text(key))}: it has {len(listed)} values, expected "
                    f"{count} for the shape {list(shape)}"
                )
            else:
                found.append(listed)
        return _joined(found, kind).reshape((*rows, *shape))

    def _variable(self, column: _FeatureLists, default: AnyTensor, shape: Ints, rows: list[int]) -> AnyTensor:
        """Return rows of different lengths, filled with the default value."""
        width = math.prod(shape[1:])
        sizes = column.sizes()
        for number, size in enumerate(sizes):
            if size % width if width else size:
                raise InvalidArgumentError(
                    f"{self._place(number)}, feature {quoted(_text(column.key))}: {size} values are not a number of "
                    f"rows of {width}"
                )
        longest = max(sizes, default=0)
        if math.prod(default.shape) != 1:
            raise InvalidArgumentError(f"the default value of {quoted(_text(column.key))} must be one element")
        if self._is_single:
            return column.joined().reshape((-1 if longest else 0, *shape[1:]))
        check_size((len(sizes), longest))
        filler = default.reshape(-1)
        padded = []
        for listed, size in zip(column.lists, sizes, strict=True):
            padded.append([] if listed is None else listed)
            padded.append(_repeated(filler, longest - size))
        return _joined(padded, column.kind).reshape((*rows, longest // width if width else 0, *shape[1:]))

    def _column(self, key: bytes, kind: ElementType) -> _FeatureLists:
        wanted = _KINDS.get(kind)
        if wanted is None:
            raise InvalidArgumentError(f"examples have no lists of {kind}")
        lists: list[Any] = []
        for number, features in enumerate(self._features):
            feature = features.get(key)
            if feature is None:
                lists.append(None)
                continue
            if feature[0] is not wanted:
                raise InvalidArgumentError(
                    f"{self._place(number)}, feature {quoted(_text(key))}: Data types don't match. It has "
                    f"{feature[0].name.lower()}, expected {wanted.name.lower()}"
                )
            try:
                lists.append(values_of(feature))
            except CheckpointError as error:
                raise located(error, f"{self._place(number)}, feature {quoted(_text(key))}") from error
        return _FeatureLists(key, kind, lists)

    def _place(self, number: int) -> str:
        return f"record {_text(self._names[number]) if self._names else number}"


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")


def _joined(lists: Sequence[Any], kind: ElementType) -> AnyTensor:
    if kind == DataType.DT_STRING:
        return array_of(itertools.chain.from_iterable(lists))
    assert isinstance(kind, torch.dtype)
    parts = [torch.as_tensor(each, dtype=kind) for each in lists]
    found: Tensor = torch.cat([torch.zeros(0, dtype=kind), *parts])
    return found


def _repeated(value: AnyTensor, count: int) -> Any:
    return value.expand(count) if isinstance(value, torch.Tensor) else np.repeat(value, count)
