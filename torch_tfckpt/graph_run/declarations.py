"""What operations declare: how many outputs an output argument has, and their types.

Inside a function an input is "node:output_arg:index"; everything else counts outputs from 0. A file contains the
declarations of its operations (`stripped_op_list`); frozen graphs do not, and then the registered operations know the
names of their outputs.

Source: NameRangesForNode in tensorflow/core/framework/node_def_util.cc.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt._proto.op_def_pb2 import OpDef
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.registry import find
from torch_tfckpt.graph_run.attributes import dtype_of
from torch_tfckpt.text import quoted

Attributes = Mapping[str, AttrValue]

# Attributes that give the type of the only output, or the types of all outputs, of an operation without a declaration.
_TYPES: Final = ("dtype", "DstT", "out_type", "output_type", "T", "Tparams", "Tidx")
_TYPE_LISTS: Final = ("output_types", "component_types", "Tout", "dtypes", "T")
# Operations without outputs, for graphs without declarations.
_WITHOUT_OUTPUTS: Final = frozenset({
    "NoOp", "Assert", "Print2", "PrintV2", "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "SaveV2",
    "Save", "SaveSlices", "ShardedFilename", "DestroyResourceOp", "ResourceScatterAdd", "ResourceScatterSub",
    "ResourceScatterUpdate", "WriteSummary", "InitializeTableV2", "InitializeTable", "InitializeTableFromTextFileV2",
    "InitializeTableFromTextFile", "LookupTableImportV2", "LookupTableInsertV2",
})  # fmt: skip


class Declarations:
    """The declarations of a file's operations.

    Args:
        ops: From the file; may be empty.
    """

    def __init__(self, ops: Iterable[OpDef]) -> None:
        self._ops = {op.name: op for op in ops}

    def output_index(self, op: str, argument: str, index: int, attributes: Attributes) -> int:
        """Return the number of an output that a function calls "node:argument:index".

        Raises:
            DataLossError: the operation has no such output, or its declaration is not known.
        """
        declared = self._ops.get(op)
        if declared is not None:
            start = 0
            for output in declared.output_arg:
                if output.name == argument:
                    return start + index
                start += _count(output, attributes)
            raise DataLossError(f"operation {op} has no output {quoted(argument)}")
        known = find(op)
        if known is not None and argument in known.outputs and len(known.outputs) > 1:
            return known.outputs.index(argument) + index
        # The only output, whatever its name is.
        return index

    def output_types(self, op: str, attributes: Attributes) -> list[torch.dtype | DataType | None]:
        """Return the types of all outputs; None for those that are not known."""
        declared = self._ops.get(op)
        if declared is not None:
            return [each for output in declared.output_arg for each in _types(output, attributes)]
        if op in _WITHOUT_OUTPUTS:
            return []
        for name in _TYPE_LISTS:
            if name in attributes and attributes[name].HasField("list"):
                return [dtype_of(each) for each in attributes[name].list.type]
        for name in _TYPES:
            if name in attributes and attributes[name].type:
                return [dtype_of(attributes[name].type)]
        return [None]

    def input_sizes(self, op: str, attributes: Attributes) -> Sequence[int] | None:
        """Return the number of tensors of each input argument; None without a declaration."""
        declared = self._ops.get(op)
        return None if declared is None else [_count(each, attributes) for each in declared.input_arg]

    def output_sizes(self, op: str, attributes: Attributes) -> Sequence[int] | None:
        """Return the number of tensors of each output argument; None without a declaration."""
        declared = self._ops.get(op)
        return None if declared is None else [_count(each, attributes) for each in declared.output_arg]

    def output_lists(self, op: str) -> Sequence[bool] | None:
        """Return which output arguments are lists; None without a declaration."""
        declared = self._ops.get(op)
        return (
            None
            if declared is None
            else [bool(each.number_attr or each.type_list_attr) for each in declared.output_arg]
        )


def _count(argument: OpDef.ArgDef, attributes: Attributes) -> int:
    if argument.number_attr:
        return attributes[argument.number_attr].i if argument.number_attr in attributes else 1
    if argument.type_list_attr:
        found = attributes.get(argument.type_list_attr)
        return len(found.list.type) if found is not None else 0
    return 1


def _types(argument: OpDef.ArgDef, attributes: Attributes) -> list[torch.dtype | DataType | None]:
    if argument.type_list_attr:
        found = attributes.get(argument.type_list_attr)
        return [dtype_of(each) for each in found.list.type] if found is not None else []
    number = argument.type
    if argument.type_attr:
        value = attributes.get(argument.type_attr)
        number = value.type if value is not None else 0  # type: ignore[assignment]  # the stub's own enum
    count = _count(argument, attributes)
    if not 0 <= count <= 1 << 20:
        raise DataLossError(f"an output argument {quoted(argument.name)} of {count} tensors")
    return [dtype_of(number) if number else None] * count
