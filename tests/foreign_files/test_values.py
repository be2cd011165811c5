"""Casting, batches and descriptions of the values that are copied between formats."""

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt import dtypes
from torch_tfckpt.conversion.tensor_statistics import statistics_of
from torch_tfckpt.foreign_files import values
from torch_tfckpt.foreign_files.values import batches, cast_floating, dtype_named
from torch_tfckpt.text import byte_text, counted


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("target", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_casting_in_place_is_casting(
    source: torch.dtype, target: torch.dtype, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of huge tensors gives what tensor.to gives, over many chunks."""
    if in_place:
        monkeypatch.setattr(values, "_CAST_IN_PLACE_BYTES", 0)
        monkeypatch.setattr(dtypes, "_CAST_ELEMENTS", 7)
    tensor = torch.randn(5, 20, dtype=torch.float64).to(source)
    expected = tensor.to(target)
    found, _ = cast_floating(tensor, target)
    assert found.dtype == target and found.shape == (5, 20)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    assert cast_floating(torch.zeros(0, dtype=source), target)[0].dtype == target


def test_dtype_names() -> None:
    assert [dtype_named(name) for name in ("bf16", "float32", "torch.float16", "HALF", "float8_e5m2")] == [
        torch.bfloat16,
        torch.float32,
        torch.float16,
        torch.float16,
        torch.float8_e5m2,
    ]
    with pytest.raises(tfckpt.InvalidArgumentError, match='dtype "load": not a floating-point type'):
        dtype_named("load")


def test_batches_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "BATCH_BYTES", 10)
    assert list(batches({"a": 4, "b": 6, "c": 1, "huge": 50, "d": 0})) == [["a", "b"], ["c"], ["huge"], ["d"]]
    assert list(batches({})) == []


def test_statistics() -> None:
    """Statistics of a tensor with NaNs and infinities equal those that torch computes of the finite elements."""
    finite = torch.randn(3_000_000, dtype=torch.float64) * 1e-3 + 1e6
    found = statistics_of(torch.cat([finite, torch.tensor([float("nan"), float("inf")], dtype=torch.float64)]))
    assert (found.nans, found.infinities, found.maximum) == (1, 1, float("inf"))
    assert found.minimum == finite.min() and found.mean == pytest.approx(float(finite.mean()))
    assert found.std == pytest.approx(float(finite.std(correction=0)), rel=1e-9)
    assert "1 NaN, 1 infinite" in str(found)


def test_wording() -> None:
    assert [counted(1, "tensor"), counted(1670, "tensor"), counted(2, "entry")] == [
        "1 tensor",
        "1,670 tensors",
        "2 entries",
    ]
    assert [byte_text(n) for n in (0, 999, 1000, 1670432, 999_999, 10**15)] == [
        "0 B", "999 B", "1 kB", "1.67 MB", "1 MB", "1 PB",
    ]  # fmt: skip
