"""Lookup tables find, change and refuse as TensorFlow does; `test_tables.py` of imported graphs compares them."""

from typing import Any

import pytest
import torch
from op_inputs import strings as s

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.lookup import LookupTable, fill_from_text
from torch_tfckpt.graph_ops.registry import OPS

STRING = DataType.DT_STRING
NUMBERS = torch.tensor([1, 2, 3])


def call(name: str, *inputs: Any) -> Any:
    return OPS[name].function(*inputs)


def filled(is_mutable: bool = False) -> LookupTable:
    table = LookupTable("t", STRING, torch.int64, (), is_mutable)
    call("LookupTableImportV2", table, s([b"a", b"b", b"c"]), NUMBERS)
    return table


def test_shapes() -> None:
    """Keys may have any shape; a default may be one value, or one for each key."""
    table = filled()
    keys = s([[b"a", b"x"], [b"c", b"y"]])
    assert call("LookupTableFindV2", table, keys, torch.tensor(-1)).tolist() == [[1, -1], [3, -1]]
    each = torch.tensor([[-1, -2], [-3, -4]])
    assert call("LookupTableFindV2", table, keys, each).tolist() == [[1, -2], [3, -4]]
    assert call("LookupTableFindV2", table, s(b"b"), torch.tensor(0)).tolist() == 2
    assert call("LookupTableFindV2", table, s([]), torch.tensor(0)).shape == (0,)


def test_changes() -> None:
    """Insertions replace values, removals forget keys, an import replaces everything."""
    table = filled(is_mutable=True)
    call("LookupTableInsertV2", table, s([b"b", b"d"]), torch.tensor([20, 40]))
    call("LookupTableRemoveV2", table, s([b"a", b"zz"]))
    assert call("LookupTableSizeV2", table).item() == 3
    keys, values = call("LookupTableExportV2", table)
    assert dict(zip(keys.tolist(), values.tolist(), strict=True)) == {b"b": 20, b"c": 3, b"d": 40}
    call("LookupTableImportV2", table, s([b"z"]), torch.tensor([0]))
    assert call("LookupTableSizeV2", table).item() == 1


def test_inputs_are_copied() -> None:
    """A table does not change with the tensor that it was filled from, or with what it gave."""
    values = torch.tensor([1.0, 2.0])
    table = LookupTable("t", torch.int64, torch.float32)
    table.fill(torch.tensor([5, 6]), values)
    values += 1
    found: Any = table.find(torch.tensor([5]), torch.tensor(0.0))
    found.mul_(9)
    assert table.find(torch.tensor([5, 6]), torch.tensor(0.0)).tolist() == [1.0, 2.0]


def test_refused() -> None:
    """Empty tables, other types and shapes, contradictions, and changes of tables that may not change."""
    with pytest.raises(FailedPreconditionError, match="not initialized"):
        LookupTable("t", STRING, torch.int64).find(s([b"a"]), torch.tensor(0))
    assert LookupTable("t", STRING, torch.int64, (), True).find(s([b"a"]), torch.tensor(7)).tolist() == [7]
    table = filled()
    for inputs in ((NUMBERS, torch.tensor(0)), (s([b"a"]), torch.tensor(0.5)), (s([b"a", b"b"]), NUMBERS)):
        with pytest.raises(InvalidArgumentError):
            call("LookupTableFindV2", table, *inputs)
    with pytest.raises(InvalidArgumentError, match="different values"):
        LookupTable("t", STRING, torch.int64).fill(s([b"a", b"a"]), torch.tensor([1, 2]))
    with pytest.raises(InvalidArgumentError):
        call("LookupTableInsertV2", table, s([b"a"]), torch.tensor([1]))
    with pytest.raises(InvalidArgumentError, match="table"):
        call("LookupTableSizeV2", NUMBERS)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (b"a\n\nb\n", {"key_index": -2, "value_index": -1}, "empty"),
        (b"a\nb\n", {"key_index": -2, "value_index": -1, "vocab_size": 3}, "vocab_size"),
        (b"a\t1\nb\n", {"key_index": 0, "value_index": 1}, "columns"),
        (b"a\t1.5\n", {"key_index": 0, "value_index": 1}, "integer"),
        (b"a\t99999999999999999999\n", {"key_index": 0, "value_index": 1}, "int64"),
        (b"a\n", {"key_index": -1, "value_index": -1}, "line numbers"),
        (b"a\n", {"key_index": -3, "value_index": -1}, "column"),
        (b"a,1\n", {"key_index": 0, "value_index": 1, "delimiter": ",,"}, "delimiter"),
    ],
)
def test_bad_files(text: bytes, options: dict[str, Any], message: str) -> None:
    """The error says what is wrong with the file."""
    with pytest.raises(InvalidArgumentError, match=message):
        fill_from_text(LookupTable("t", STRING, torch.int64), text, **options)


def test_text_options() -> None:
    """Lines are skipped and counted; columns are chosen."""
    table = LookupTable("t", STRING, torch.int64)
    fill_from_text(
        table, b"# head\nx;7;u\ny;8;v\nz;9;w", key_index=2, value_index=1, delimiter=";", offset=1, vocab_size=2
    )
    assert table.find(s([b"u", b"v", b"w"]), torch.tensor(-1)).tolist() == [7, 8, -1]
