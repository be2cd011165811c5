"""DeferredTensor: operations recorded on shapes alone give what torch gives on values."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.conversion.deferred import DeferredTensor
from torch_tfckpt.models.layers.layouts import LAYOUTS

VALUES = {"a": torch.arange(24.0).reshape(2, 3, 4), "b": torch.arange(12.0).reshape(3, 4)}


def read(names: Sequence[str]) -> dict[str, torch.Tensor]:
    return {name: VALUES[name] for name in names}


def deferred(name: str) -> DeferredTensor:
    return DeferredTensor.stored(name, tuple(VALUES[name].shape), VALUES[name].dtype, read)


OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "permute": lambda a, _: a.permute(2, 0, 1),
    "join": lambda a, b: torch.cat([a[0], b, a[1]], 1),
    "reshape": lambda a, _: a.permute(1, 0, 2).reshape(6, 4),
    "parts": lambda a, _: torch.cat([a.chunk(4, -1)[at] for at in (0, 2, 1, 3)], -1),
    "narrow": lambda a, _: a.narrow(1, 1, 2).contiguous(),
    "numbers": lambda a, b: (a - 1.5) / -2.0 + b,
    "zeros": lambda a, _: torch.zeros_like(a),
    "real": lambda a, _: a + torch.tensor([1.0, 2.0, 3.0, 4.0]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    """Shape, dtype and values."""
    operation = OPERATIONS[name]
    found, expected = operation(deferred("a"), deferred("b")), operation(VALUES["a"], VALUES["b"])
    assert isinstance(found, DeferredTensor)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert torch.equal(found.compute(read(found.names)), expected)


@given(st.sampled_from(sorted(LAYOUTS)), st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_layouts(name: str, shape: list[int]) -> None:
    """Every layout, in both directions, for every shape that it fits."""
    layout, value = LAYOUTS[name], torch.randn(shape)
    if not layout.fits(tuple(shape)):
        return
    stored = DeferredTensor.stored("x", tuple(shape), value.dtype, lambda _: {"x": value})
    turned = layout.to_torch(stored)
    assert isinstance(turned, DeferredTensor)
    assert torch.equal(turned.compute({"x": value}), layout.to_torch(value))


def test_questions_about_values_read_them() -> None:
    """bool() and int() of a result."""
    a = deferred("a")
    assert bool((a != 0).any()) and not bool((a > 99).any())
    assert int(a.count_nonzero()) == 23


def test_names_and_steps() -> None:
    """What is read, and what is done to it, for reports."""
    joined = torch.cat([deferred("b").permute(1, 0), deferred("b").permute(1, 0)])
    assert (joined.names, joined.steps) == (["b"], ["permute", "join"])  # type: ignore[attr-defined]
    same = deferred("b").reshape(3, 4).permute(0, 1)
    assert (same.names, same.steps) == (["b"], [])  # type: ignore[attr-defined]
