"""Loops and conditions of TensorFlow 1 and 2 give TensorFlow's values."""

import pytest
import torch
from op_rows import torch_of
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef

NAMES = [
    "cond", "cond_of_constants", "cond_passes_on", "cond_in_cond", "same_predicate_twice", "dead_branch_fails",
    "case", "switch_case", "while", "while_of_known_length", "while_in_while", "cond_in_while", "while_in_cond",
    "counter_becomes_tensor", "condition_on_tensor", "shapes_in_loops", "growing_shape", "tensor_array",
    "growing_tensor_array", "unstack_and_gather", "map_scan_fold", "while_with_maximum", "several_results",
    "functions", "assigned_in_branches", "assigned_in_loop", "old_value_is_kept", "sequence",
]  # fmt: skip


@pytest.fixture(scope="module", params=["v1", "v2"])
def zoo(request, tensorflow: TensorFlowProcess):
    return tensorflow.call("tensorflow_runs.zoo", v2=request.param == "v2")


@pytest.mark.parametrize("name", NAMES)
def test_values(name, zoo) -> None:
    """Values, dtypes and shapes equal TensorFlow's, for each set of feeds."""
    data, fetches, results = zoo[name]
    for feeds, expected in results:
        imported = tfckpt.import_meta_graph(MetaGraphDef.FromString(data))
        for variable in imported.variables.values():
            variable.fill_(1)
        found = imported.run(fetches, feeds)
        for fetch, value, theirs in zip(fetches, found, expected, strict=True):
            wanted = torch_of(theirs)
            assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), fetch
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def test_all_are_tested(zoo) -> None:
    """The list of names is complete."""
    assert sorted(NAMES) == sorted(zoo)
