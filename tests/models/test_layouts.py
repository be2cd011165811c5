"""Layouts: which axis goes where, in both directions, and that nothing is reshaped otherwise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.layers.axis_patterns import AxisPattern
from torch_tfckpt.models.layers.layouts import (
    CONV2D,
    DENSE,
    LAYOUTS,
    LSTM_TF1,
    SAME,
    Layout,
    layout_named,
    layout_of_rule,
)


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@st.composite
def stored(draw: st.DrawFn, layout: Layout) -> tuple[Layout, torch.Tensor]:
    """A tensor with a shape that fits, of different lengths, and the layout that turns exactly this shape."""
    if not layout.patterns:
        return layout, numbers(*draw(st.lists(st.integers(0, 4), max_size=4)))
    pattern = draw(st.sampled_from(layout.patterns))
    lengths = {name: draw(st.integers(1, 5)) for name in pattern.names}
    lengths |= dict(layout.known)
    if layout.gates:
        last = pattern.stored[-1][-1]
        lengths[last] *= len(layout.gates)
    shape = tuple(math.prod(lengths[part] for part in axis) for axis in pattern.stored)
    joined = [part for axis in pattern.stored if len(axis) > 1 for part in axis]
    known = layout.with_lengths(**{part: lengths[part] for part in joined})
    return known.resolved(shape, pattern.shape(lengths)), numbers(*shape)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
@given(data=st.data())
def test_both_directions_are_inverse(layout: Layout, data: st.DataObject) -> None:
    """For tensors and for shapes; the shape that is predicted is that of the tensor."""
    exact, tensor = data.draw(stored(layout))
    turned = exact.to_torch(tensor)
    assert turned.numel() == tensor.numel()
    assert torch.equal(exact.to_stored(turned), tensor)
    assert tuple(turned.shape) == exact.torch_shape(tuple(tensor.shape))
    assert exact.stored_shape(exact.torch_shape(tuple(tensor.shape))) == tuple(tensor.shape)


def test_dense_is_the_transpose() -> None:
    """Linear.weight is kernel.T."""
    kernel = numbers(2, 3)
    assert torch.equal(DENSE.to_torch(kernel), kernel.T)


def test_conv2d_takes_hwio_to_oihw() -> None:
    """Conv2d.weight[o, i, h, w] is kernel[h, w, i, o]; height and width are not swapped."""
    kernel = numbers(2, 3, 4, 5)
    weight = CONV2D.to_torch(kernel)
    assert weight.shape == (5, 4, 2, 3)
    assert weight[4, 1, 0, 2] == kernel[0, 2, 1, 4]


def test_the_gates_of_an_lstm_cell() -> None:
    """i, j, f, o become i, f, g, o; the forget bias is added to f, and only in the bias."""
    kernel = numbers(3, 8)
    i, j, f, o = kernel.chunk(4, 1)
    assert torch.equal(LSTM_TF1.to_torch(kernel), torch.cat([i, f, j, o], 1).T)
    bias = torch.zeros(8, dtype=torch.float64)
    assert LSTM_TF1.to_torch(bias).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    without = layout_of_rule({"kind": "lstm_tf1", "forget_bias": 0.0})
    assert not without.to_torch(bias).any()


@pytest.mark.parametrize(
    ("layout", "shape", "text"),
    [
        (DENSE, (2,), r'layout "dense" is for tensors with 2 or 3 or 4 dimensions; \[2\] has 1'),
        (CONV2D, (2, 3, 4), r'layout "conv2d" is for tensors with 4 dimensions; \[2,3,4\] has 3'),
        (LAYOUTS["vector"], (2, 3), r'"vector" is for tensors with the axes "1 channels"; \[2,3\] does not fit'),
        (
            LAYOUTS["dense_after_flatten"],
            (12, 5),
            r'"\(height width channels\) out"; \[12,5\] does not fit. Give the len',
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(layout: Layout, shape: tuple[int, ...], text: str) -> None:
    """Never reshaped: the error has the layout and the shape."""
    assert not layout.fits(shape)
    for call in (lambda: layout.to_torch(numbers(*shape)), lambda: layout.torch_shape(shape)):
        with pytest.raises(InvalidArgumentError, match=text):
            call()


def test_the_wanted_shape_chooses_among_patterns_of_one_rank() -> None:
    """[in, heads, size] and [heads, size, out] are both dense."""
    kernel = numbers(6, 2, 5)
    assert DENSE.resolved((6, 2, 5), (10, 6)).to_torch(kernel).shape == (10, 6)
    assert DENSE.resolved((6, 2, 5), (5, 12)).to_torch(kernel).shape == (5, 12)
    assert DENSE.resolved((6, 2, 5), (7, 7)) == DENSE


@pytest.mark.parametrize(
    ("given_layout", "shape", "expected"),
    [
        ((1, 2, 0), (2, 3, 4), (3, 4, 2)),
        ("a b c -> (c a) b", (2, 3, 4), (8, 3)),
        ({"kind": "dense_after_flatten", "height": 2, "width": 3}, (24, 5), (5, 24)),
        ((lambda x: x[0], lambda x: x[None]), (1, 3, 4), (3, 4)),
    ],
    ids=["permutation", "pattern", "parameters", "functions"],
)
def test_what_a_rule_may_give(given_layout: object, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Each is invertible, and predicts the shape."""
    layout = layout_of_rule(given_layout).resolved(shape, expected)  # type: ignore[arg-type]
    tensor = numbers(*shape)
    assert layout.torch_shape(shape) == tuple(layout.to_torch(tensor).shape) == expected
    assert torch.equal(layout.to_stored(layout.to_torch(tensor)), tensor)


@pytest.mark.parametrize(
    ("given_layout", "text"),
    [
        ("conv2", r'unknown layout "conv2"\. Closest: "conv2d"\. Layouts: same'),
        (3, r"3 is not a layout\. Give a name"), ((0, 0), r"\(0, 0\) is not a permutation"), ([], "is not a layout"),
        ("a b -> a", "both sides of the pattern must have the same names"), ("a ( -> a", "not a pattern of axes"),
        ("a a -> a a", "each once"), ({"kind": "dense", "depth": 3}, "invalid parameter 'depth'=3"),
        ({"kind": "dense_after_flatten", "height": 0}, "invalid parameter 'height'=0"),
        ({"height": 3}, 'unknown layout ""'), ({"kind": "same", "x": 1}, "Parameters, all numbers: none"),
    ],
)  # fmt: skip
def test_what_a_rule_may_not_give(given_layout: object, text: str) -> None:
    """The error says what is possible."""
    with pytest.raises(InvalidArgumentError, match=text):
        layout_of_rule(given_layout)  # type: ignore[arg-type]


def test_layouts_have_names() -> None:
    """Rules and reports use them."""
    assert layout_named("same") is SAME
    with pytest.raises(InvalidArgumentError, match="unknown layout 3"):
        layout_named(3)  # type: ignore[arg-type]


@given(st.text(alphabet="ab1() ->", max_size=20))
def test_any_text_is_a_pattern_or_an_error(text: str) -> None:
    """Never another exception; a pattern prints as one that is equal to it."""
    try:
        pattern = AxisPattern.parse(text)
    except InvalidArgumentError:
        return
    assert AxisPattern.parse(str(pattern)) == pattern
