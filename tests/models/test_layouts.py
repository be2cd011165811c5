"""Layouts: which axis goes where, and that nothing is reshaped."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.layouts import CONV2D, DENSE, LAYOUTS, SAME, Layout, layout_named


def shapes_of(layout: Layout) -> st.SearchStrategy[list[int]]:
    rank = None if layout.axes is None else len(layout.axes)
    return st.lists(st.integers(0, 4), min_size=rank or 0, max_size=4 if rank is None else rank)


def test_dense_is_the_transpose() -> None:
    """Linear.weight is kernel.T."""
    kernel = torch.arange(6).reshape(2, 3)
    assert torch.equal(DENSE.to_torch(kernel), kernel.T)


def test_conv2d_takes_hwio_to_oihw() -> None:
    """Conv2d.weight[o, i, h, w] is kernel[h, w, i, o]; height and width are not swapped."""
    kernel = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    weight = CONV2D.to_torch(kernel)
    assert weight.shape == (5, 4, 2, 3)
    assert weight[4, 1, 0, 2] == kernel[0, 2, 1, 4]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
@given(data=st.data())
def test_both_directions_are_inverse(layout: Layout, data: st.DataObject) -> None:
    """On tensors and on shapes, and the shape that is told is that of the tensor."""
    shape = data.draw(shapes_of(layout))
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    turned = layout.to_torch(tensor)
    assert torch.equal(layout.to_stored(turned), tensor)
    assert tuple(turned.shape) == layout.torch_shape(tuple(shape))
    assert layout.stored_shape(layout.torch_shape(tuple(shape))) == tuple(shape)


def test_a_rank_that_does_not_fit_is_refused() -> None:
    """Never reshaped: the error has the layout and the shape."""
    for wrong in (torch.zeros(2), torch.zeros(2, 3, 4)):
        assert not DENSE.fits(wrong.ndim)
        with pytest.raises(InvalidArgumentError, match=r'layout "dense" is for tensors with 2 dimensions; \[2'):
            DENSE.to_torch(wrong)
        with pytest.raises(InvalidArgumentError, match=r'layout "conv2d" is for tensors with 4 dimensions'):
            CONV2D.stored_shape(tuple(wrong.shape))


def test_layouts_have_names() -> None:
    """A misspelt one is told what there is."""
    assert layout_named("same") is SAME
    with pytest.raises(InvalidArgumentError, match=r'unknown layout "conv2"\. Closest: "conv2d"\. Layouts: same'):
        layout_named("conv2")
    with pytest.raises(InvalidArgumentError, match="unknown layout 3"):
        layout_named(3)  # type: ignore[arg-type]
