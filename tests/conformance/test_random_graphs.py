"""Random graphs of common operations: every tensor of each graph equals TensorFlow's."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_rows import torch_of
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef

SHAPES = st.lists(
    st.lists(st.integers(0, 5), max_size=4).filter(lambda shape: 0 not in shape or len(shape) == 2),
    min_size=2,
    max_size=3,
)
# Small numbers of kinds are continuous operations: the only ones for float32, whose rounding another could magnify.
ALL_KINDS, SMOOTH_KINDS = 58, 45


@st.composite
def recipes(draw: st.DrawFn) -> tuple[str, list[list[int]], list[tuple[int, int, int, int]]]:
    dtype = draw(st.sampled_from(["float64", "float32"]))
    kinds = st.integers(0, (ALL_KINDS if dtype == "float64" else SMOOTH_KINDS) - 1)
    operand = st.integers(0, 40)
    steps = st.tuples(kinds, operand, operand, st.integers(0, 60))
    return dtype, draw(SHAPES), draw(st.lists(steps, min_size=5, max_size=25))


def check(tensorflow: TensorFlowProcess, recipe: tuple[str, list[list[int]], list[tuple[int, int, int, int]]]) -> None:
    data, feeds, values = tensorflow.call("tensorflow_random_graphs.random_graph", *recipe)
    imported = tfckpt.import_meta_graph(MetaGraphDef.FromString(data))
    found = imported.run(list(values), {name: torch_of(raw) for name, raw in feeds.items()})
    tolerance = 1e-9 if recipe[0] == "float64" else 1e-4
    largest = 1.0  # a difference of large numbers has their errors
    for (name, raw), value in zip(values.items(), found, strict=True):
        expected = torch_of(raw)
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape), name
        if expected.numel():
            largest = max(largest, expected.abs().max().item())
            assert (value - expected).abs().max().item() <= tolerance * largest, name


def test_kinds(tensorflow: TensorFlowProcess) -> None:
    """The strategies draw all kinds of steps."""
    assert tensorflow.call("tensorflow_random_graphs.count_kinds") == (ALL_KINDS, SMOOTH_KINDS)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes())
def test_random_graphs(
    tensorflow: TensorFlowProcess, recipe: tuple[str, list[list[int]], list[tuple[int, int, int, int]]]
) -> None:
    """A hundred graphs of up to 25 steps."""
    check(tensorflow, recipe)


@pytest.mark.heavy
@settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes())
def test_many_random_graphs(
    tensorflow: TensorFlowProcess, recipe: tuple[str, list[list[int]], list[tuple[int, int, int, int]]]
) -> None:
    """Two thousand."""
    check(tensorflow, recipe)
