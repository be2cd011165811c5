"""Parameters of the functions are the inputs and attributes that TensorFlow declares for the operations."""

import inspect
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tensorflow_process import TensorFlowProcess

from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.integers import INTEGER_OPS
from torch_tfckpt.graph_ops.registry import OPS, Op

# Attributes that change neither values nor dtypes nor shapes.
HARMLESS = {
    "use_cudnn_on_gpu", "grad_x", "grad_y", "message", "validate_indices", "validate_shape", "use_locking", "container",
    "shared_name", "_cloned", "half_to_float", "swap_memory", "parallel_iterations", "name", "debug_name",
    "allowed_devices", "seed", "seed2", "config_proto", "executor_type", "config", "data", "summarize",
    "grad_a", "grad_b", "sparse_gradient", "Tkeys", "Tvalues",
}  # fmt: skip


# Attributes of versions for Python integers, which are always small and whose dtypes the caller knows.
OF_INTEGERS = {"out_type", "out_idx", "SrcT", "Truncate"}


@pytest.mark.parametrize("table", [OPS, INTEGER_OPS], ids=["tensors", "integers"])
def test_parameters(table: Mapping[str, Op], tensorflow: TensorFlowProcess) -> None:
    """Names, order and defaults; an attribute that is not a parameter is harmless, or follows from the inputs."""
    declared = tensorflow.call("tensorflow_ops.declarations", sorted(table))
    harmless = HARMLESS | (OF_INTEGERS if table is INTEGER_OPS else set())
    faults = []
    for name, (inputs, outputs, attributes, known) in declared.items():
        operation = table[name]
        if list(operation.inputs) != inputs:
            faults.append(f"{name}: inputs {list(operation.inputs)}, TensorFlow has {inputs}")
        if len(outputs) > 1 and list(operation.outputs) != outputs:
            faults.append(f"{name}: outputs {list(operation.outputs)}, TensorFlow has {outputs}")
        for attribute, default in operation.attributes.items():
            if attribute not in attributes:
                faults.append(f"{name}: TensorFlow has no attribute {attribute}")
            elif _plain(default) != attributes[attribute]:
                faults.append(f"{name}: {attribute} is {_plain(default)!r}, TensorFlow has {attributes[attribute]!r}")
        left = set(attributes) - set(operation.attributes) - set(known) - harmless
        if left:
            faults.append(f"{name}: attributes {sorted(left)} are ignored")
    assert not faults, "\n".join(faults)


def _plain(default: object) -> object:
    if default is inspect.Parameter.empty:
        return ""
    if isinstance(default, torch.dtype):
        return str(default).removeprefix("torch.")
    if isinstance(default, float):
        return float(np.float32(default))
    if isinstance(default, DataType):
        return default.name.removeprefix("DT_").lower()
    return list(default) if isinstance(default, tuple) else default
