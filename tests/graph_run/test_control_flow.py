"""Loops and conditions of TensorFlow 1 and 2 give TensorFlow's values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from op_rows import torch_of
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef

NAMES = [
    "cond", "cond_of_constants", "cond_passes_on", "cond_in_cond", "same_predicate_twice", "dead_branch_fails",
    "case", "switch_case", "while", "while_of_known_length", "while_in_while", "cond_in_while", "while_in_cond",
    "counter_becomes_tensor", "condition_on_tensor", "shapes_in_loops", "growing_shape", "tensor_array",
    "growing_tensor_array", "unstack_and_gather", "map_scan_fold", "while_with_maximum", "several_results",
    "functions", "assigned_in_branches", "assigned_in_loop", "old_value_is_kept", "sequence",
]  # fmt: skip


# Name -> the meta graph, the fetches, and for each set of feeds the values.
Zoo = Mapping[str, tuple[bytes, list[str], list[tuple[dict[str, Any], list[RawTensor]]]]]


@pytest.fixture(scope="module", params=["v1", "v2"])
def zoo(request: pytest.FixtureRequest, tensorflow: TensorFlowProcess) -> Zoo:
    found: Zoo = tensorflow.call("tensorflow_runs.zoo", v2=request.param == "v2")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_values(name: str, zoo: Zoo) -> None:
    """Values, dtypes and shapes equal TensorFlow's, for each set of feeds."""
    data, fetches, results = zoo[name]
    for feeds, expected in results:
        imported = tfckpt.import_meta_graph(MetaGraphDef.FromString(data))
        for name, variable in imported.variables.items():
            imported.variables[name] = torch.ones_like(variable)  # type: ignore[arg-type]  # numbers
        found = imported.run(fetches, feeds)
        for fetch, value, theirs in zip(fetches, found, expected, strict=True):
            wanted = torch_of(theirs)
            assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), fetch
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def test_all_are_tested(zoo: Zoo) -> None:
    """The list of names is complete."""
    assert sorted(NAMES) == sorted(zoo)


DIFFERENTIABLE = [
    "cond", "cond_in_cond", "while", "while_of_known_length", "while_in_while", "cond_in_while", "while_in_cond",
    "condition_on_tensor", "growing_shape", "growing_tensor_array", "map_scan_fold", "functions", "sequence",
]  # fmt: skip


@pytest.mark.parametrize("v2", [False, True])
def test_gradients(v2: bool, tensorflow: TensorFlowProcess) -> None:
    """Autograd through loops and conditions gives TensorFlow's gradients."""
    for name, (data, fetches, results) in tensorflow.call("tensorflow_runs.slopes", DIFFERENTIABLE, v2=v2).items():
        for feeds, (expected,) in results:
            names = list(feeds)
            module = tfckpt.import_meta_graph(MetaGraphDef.FromString(data)).module(names, fetches)
            inputs = [torch.from_numpy(np.array(feeds[each])) for each in names]
            x = inputs[names.index("x:0")].requires_grad_()
            numbers = [value for value in module(*inputs) if value.is_floating_point()]
            total = torch.stack([value.sum() for value in numbers]).sum()
            (slope,) = torch.autograd.grad(total, x) if total.requires_grad else [torch.zeros_like(x)]
            torch.testing.assert_close(slope, torch_of(expected), rtol=1e-4, atol=1e-5, msg=name)
