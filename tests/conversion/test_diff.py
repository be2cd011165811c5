"""diff(): every difference between two checkpoints of any formats is reported, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import DiffReport, diff
from torch_tfckpt.values import WritableValue

TENSORS: dict[str, WritableValue] = {
    "counts": torch.tensor([2**60, 7]),
    "kernel": torch.arange(12.0).view(3, 4),
    "flags": torch.tensor([True, False]),
    "nans": torch.tensor([float("nan"), float("inf"), -float("inf")]),
    "waves": torch.tensor([1 + 1j, 2j]),
    "words": np.array([b"one", b"two"], dtype=object),
}


def compare(tmp_path: Path, changed: dict[str, WritableValue], form: str = "b", atol: float = 0.0) -> DiffReport:
    """TENSORS against TENSORS with some of them replaced."""
    tfckpt.save_file(TENSORS, tmp_path / "a")
    tfckpt.save_file({**TENSORS, **changed}, tmp_path / "b")
    if form != "b":
        convert(tmp_path / "b", tmp_path / form)
    return diff(tmp_path / "a", tmp_path / form, atol=atol)


@pytest.mark.parametrize("form", ["b", "b.safetensors", "b.pt", "b.npz"])
def test_equal_tensors_are_identical(tmp_path: Path, form: str) -> None:
    """NaNs of the same bits are equal."""
    found = compare(tmp_path, {}, form)
    assert found.identical and sorted(found.equal) == sorted(TENSORS)
    assert str(found) == "identical: 6 tensors"


@pytest.mark.parametrize("form", ["b", "b.safetensors", "b.pt", "b.npz"])
def test_one_changed_element_is_found(tmp_path: Path, form: str) -> None:
    kernel = torch.arange(12.0).view(3, 4)
    kernel[2, 1] += 0.25
    found = compare(tmp_path, {"kernel": kernel}, form)
    assert found.values["kernel"] == (1, 12, (2, 1), 0.25)
    assert 'values of "kernel": 1 of 12 elements differs, first at [2, 1]' in str(found)
    assert "largest absolute difference 0.25" in str(found)
    assert not found.identical and len(found.equal) == 5


def test_difference_in_the_second_chunk(tmp_path: Path) -> None:
    """Comparison goes chunk by chunk; positions are counted from the start of the tensor."""
    one = torch.zeros(3, 1_000_000)
    other = one.clone()
    other[1, 500_000] = 2
    other[2, 999_999] = -3
    tfckpt.save_file({"t": one}, tmp_path / "a")
    tfckpt.save_file({"t": other}, tmp_path / "b")
    assert diff(tmp_path / "a", tmp_path / "b").values["t"] == (2, 3_000_000, (1, 500_000), 3.0)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("counts", torch.tensor([2**60 + 1, 7]), (1, 2, (0,), 1.0)),
        ("flags", torch.tensor([True, True]), (1, 2, (1,), 1.0)),
        ("waves", torch.tensor([1 + 1j, 5j]), (1, 2, (1,), 3.0)),
        ("nans", torch.tensor([0.0, float("inf"), -float("inf")]), (1, 3, (0,), float("inf"))),
        ("words", np.array([b"one", b"two\0"], dtype=object), (1, 2, (1,), None)),
    ],
)
def test_every_kind_of_value(
    tmp_path: Path, name: str, value: WritableValue, expected: tuple[int, int, tuple[int, ...], float | None]
) -> None:
    """Integers beyond 2**53 are compared exactly; NaN against a number counts as infinitely apart."""
    assert compare(tmp_path, {name: value}).values == {name: expected}


def test_zero_and_negative_zero_differ_only_in_their_bits(tmp_path: Path) -> None:
    tfckpt.save_file({"z": torch.tensor([0.0])}, tmp_path / "a")
    tfckpt.save_file({"z": torch.tensor([-0.0])}, tmp_path / "b")
    assert diff(tmp_path / "a", tmp_path / "b").values["z"].max_abs == 0.0
    assert diff(tmp_path / "a", tmp_path / "b", atol=1e-9).identical


def test_tolerance(tmp_path: Path) -> None:
    """Numbers within it are equal, NaNs too; larger differences are found. Strings have no tolerance."""
    kernel = torch.arange(12.0).view(3, 4) + 0.25
    assert compare(tmp_path, {"kernel": kernel}, atol=0.25).identical
    assert compare(tmp_path, {"kernel": kernel}, atol=0.24).values["kernel"].differing == 12
    assert "identical within 0.25: 6 tensors" in str(compare(tmp_path, {"kernel": kernel}, atol=0.25))
    with pytest.raises(tfckpt.InvalidArgumentError, match="the tolerance must be 0 or more"):
        diff(tmp_path / "a", tmp_path / "b", atol=float("nan"))


def test_names_dtypes_and_shapes(tmp_path: Path) -> None:
    tfckpt.save_file({"both": torch.zeros(2), "flat": torch.zeros(6), "left": torch.zeros(1)}, tmp_path / "a")
    tfckpt.save_file(
        {"both": torch.zeros(2, dtype=torch.int32), "flat": torch.zeros(2, 3), "right": torch.zeros(1)}, tmp_path / "b"
    )
    found = diff(tmp_path / "a", tmp_path / "b")
    assert (found.only_in_a, found.only_in_b) == (["left"], ["right"])
    assert found.dtypes == {"both": ("float32", "int32")} and found.shapes == {"flat": ((6,), (2, 3))}
    assert str(found).splitlines() == [
        f'only in {tmp_path}/a: "left"',
        f'only in {tmp_path}/b: "right"',
        'dtype of "both": float32 | int32',
        'shape of "flat": [6] | [2,3]',
        "equal: 0 tensors; different: 2; only in the first: 1; only in the second: 1",
    ]
    assert diff(tmp_path / "a", tmp_path / "b", ignore_dtype=True).dtypes == {}
    assert diff(tmp_path / "a", tmp_path / "b", include=["^both$"], ignore_dtype=True).identical


def test_a_quantized_type_is_not_a_plain_integer(tmp_path: Path, golden: Path) -> None:
    """The same int8 values as DT_QINT8 and as DT_INT8 differ; a sidecar keeps the type, so that they do not."""
    source = golden / "tensorflow" / "every-dtype" / "every-dtype"
    convert(source, tmp_path / "m.safetensors", include=["^qint8$"])
    assert diff(source, tmp_path / "m.safetensors", include=["^qint8$"]).identical
    (tmp_path / "m.safetensors.tfckpt.json").unlink()
    assert diff(source, tmp_path / "m.safetensors", include=["^qint8$"]).dtypes == {"qint8": ("qint8", "int8")}


def test_what_was_left_out_is_reported(tmp_path: Path) -> None:
    """A comparison of some tensors must not look like one of all."""
    tfckpt.save_file(TENSORS, tmp_path / "a")
    found = diff(tmp_path / "a", tmp_path / "a", include=["^w"])
    assert str(found) == "identical: 2 tensors\nnot compared, because of include and exclude: 4 tensors"
    with pytest.raises(
        tfckpt.InvalidArgumentError, match=r'include "W" matches none of 6 tensors\. The first is "counts"'
    ):
        diff(tmp_path / "a", tmp_path / "a", include=["W"])
    with pytest.raises(tfckpt.InvalidArgumentError, match='select none of 6 tensors; the first is "counts"'):
        diff(tmp_path / "a", tmp_path / "a", include=["^w"], exclude=["s$"])


def test_diff_follows_a_rename(tmp_path: Path) -> None:
    """The names of A are renamed; what is only in one of them has its new name."""
    a = tfckpt.save_file({"net/w": torch.ones(2), "net/b": torch.ones(1), "step": torch.tensor(1)}, tmp_path / "a")
    rename = [("^net/", "model/"), ("w$", "kernel")]
    convert(a, tmp_path / "b.npz", rename=rename)
    assert diff(a, tmp_path / "b.npz", rename=rename).identical
    assert diff(a, tmp_path / "b.npz").only_in_b == ["model/b", "model/kernel"]
    b = tfckpt.save_file({"model/kernel": torch.zeros(2), "step": torch.tensor(1), "x": torch.ones(1)}, tmp_path / "b")
    found = diff(a, b, rename=rename)
    assert (found.only_in_a, found.only_in_b, list(found.values)) == (["model/b"], ["x"], ["model/kernel"])
    with pytest.raises(
        tfckpt.InvalidArgumentError, match='rename "^nte/" matches none of 3 tensors'.replace("^", r"\^")
    ):
        diff(a, b, rename=[("^nte/", "model/")])
    with pytest.raises(tfckpt.InvalidArgumentError, match='"net/b" and "net/w" would both be called "x"'):
        diff(a, b, rename=[("^net/.*", "x")])


@pytest.mark.parametrize(
    "selection", [{"include": ["^net/"]}, {"exclude": ["^step"]}, {"include": ["^net/"], "exclude": ["b$"]}]
)
def test_diff_follows_a_selection(tmp_path: Path, selection: dict[str, list[str]]) -> None:
    """Tensors are selected by their names in A; their counterparts in B come along."""
    a = tfckpt.save_file({"net/w": torch.ones(2), "net/b": torch.ones(1), "step": torch.tensor(1)}, tmp_path / "a")
    rename = [("^net/", "model/")]
    convert(a, tmp_path / "b.npz", rename=rename, **selection)  # type: ignore[arg-type]
    assert diff(a, tmp_path / "b.npz", rename=rename, **selection).identical  # type: ignore[arg-type]
    convert(a, tmp_path / "c.npz", rename=rename)
    found = diff(a, tmp_path / "c.npz", rename=rename, **selection)  # type: ignore[arg-type]
    assert found.identical and found.filtered == 3 - len(found.equal)


def test_an_exclude_that_matches_nothing_is_reported(tmp_path: Path) -> None:
    tfckpt.save_file(TENSORS, tmp_path / "a")
    found = diff(tmp_path / "a", tmp_path / "a", exclude=["/Adam", "^w"])
    assert found.identical and found.unmatched_excludes == ["/Adam"]
    assert str(found).endswith('\nexclude "/Adam" matched nothing')


def test_one_side_may_have_all_that_is_included(tmp_path: Path) -> None:
    """A pattern has to match a name on either side."""
    tfckpt.save_file({"a": torch.ones(1)}, tmp_path / "a")
    tfckpt.save_file({"b": torch.ones(1)}, tmp_path / "b")
    assert diff(tmp_path / "a", tmp_path / "b", include=["^b$"]).only_in_b == ["b"]
