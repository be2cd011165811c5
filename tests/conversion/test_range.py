"""convert(dtype=): values that the range of the dtype loses are an error or in the report, never silently changed.

The oracle is ml_dtypes, which TensorFlow and JAX use for these types: it tells what a value becomes.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main
from torch_tfckpt.dtypes import cast_counted
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError

ml_dtypes = pytest.importorskip("ml_dtypes")

FLOATS = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
INTERESTING = [1e6, -1e6, 65504.0, 65519.0, 65520.0, 448.0, 463.0, 240.0, 247.0, 57344.0, 61439.0, 3.4028235e38, 1e-30]


@given(
    st.lists(st.one_of(st.floats(width=32), st.sampled_from(INTERESTING)), max_size=12), st.sampled_from(sorted(FLOATS))
)
def test_values_beyond_the_range_are_those_that_numpy_makes_infinite_or_nan(numbers: list[float], name: str) -> None:
    """Counted: what is not NaN and is kept neither as a number nor as the same infinity; and what becomes zero."""
    given_values = np.array(numbers, dtype=np.float32)
    with np.errstate(all="ignore"):
        kept = given_values.astype(FLOATS[name]).astype(np.float32)
    lost = ~np.isnan(given_values) & ~np.isfinite(kept) & (kept != given_values)
    to_zero = (kept == 0) & (given_values != 0)
    found, loss = cast_counted(torch.from_numpy(given_values), getattr(torch, name))
    assert (loss.beyond, loss.to_zero) == (lost.sum(), to_zero.sum())
    assert loss.largest == np.abs(given_values[lost]).max(initial=0)
    assert np.array_equal(found.float().numpy()[~lost], kept[~lost], equal_nan=True)


@given(
    st.lists(st.one_of(st.floats(width=32), st.sampled_from(INTERESTING)), max_size=12), st.sampled_from(sorted(FLOATS))
)
def test_clamping_changes_only_what_is_beyond_the_range(numbers: list[float], name: str) -> None:
    """To the nearest number; the rest is what it is without."""
    values, dtype = torch.tensor(numbers, dtype=torch.float32), getattr(torch, name)
    clamped, loss = cast_counted(values, dtype, clamp=True)
    assert int((clamped.float().isnan() & ~values.isnan()).sum()) == 0
    largest = float(ml_dtypes.finfo(FLOATS[name]).max)
    nearest = values.clamp(-largest, largest)
    expected, _ = cast_counted(torch.where(values.isinf(), clamped.float(), nearest), dtype)
    assert torch.equal(clamped.view(torch.uint8), expected.view(torch.uint8)) or values.isnan().any()
    assert loss.beyond == 0 or float(clamped.float().nan_to_num().abs().max()) == largest or values.isinf().any()


@pytest.mark.parametrize("target", ["m.safetensors", "m.pt", "m.npz", "m.ckpt"])
@pytest.mark.parametrize("dtype", ["float16", torch.float16, "float8_e4m3fn", "float8_e5m2"])
def test_overflow_is_an_error_that_names_every_tensor(tmp_path: Path, target: str, dtype: str | torch.dtype) -> None:
    """Also of tensors that come later; nothing is written, and an existing target is unchanged."""
    source = tfckpt.save_file(
        {"a": torch.tensor([1.0, -7e4, 8e4]), "fine": torch.ones(3), "z": torch.tensor(1e30, dtype=torch.float64)},
        tmp_path / "source",
    )
    to = "tf" if target == "m.ckpt" else None
    tfckpt.convert(source, tmp_path / target, to=to, exclude=["a", "z"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidArgumentError) as error:
        tfckpt.convert(source, tmp_path / target, to=to, dtype=dtype)
    message = str(error.value)
    assert "2 tensors with values beyond the range of float" in message
    assert '"a" (2 values, largest 80000), "z" (1 value, largest 1e+30)' in message
    assert "bfloat16" in message and "clamp=True" in message and '"fine"' not in message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    report = tfckpt.convert(source, tmp_path / target, to=to, dtype=dtype, clamp=True)
    assert report.clamped == {"a": 2, "z": 1} and "replaced by the nearest number: 3 values in 2 tensors" in str(report)


def test_other_mixes_of_types(tmp_path: Path) -> None:
    """bfloat16 and float8 sources can overflow, too; a mask of the lowest float32 does in bfloat16."""
    for name, value, dtype in [
        ("bf", torch.tensor([1e38], dtype=torch.bfloat16), "float16"),
        ("e5", torch.tensor([57344.0]).to(torch.float8_e5m2), "float8_e4m3fn"),
        ("inf", torch.tensor([float("inf")]).to(torch.float8_e5m2), "float8_e5m2fnuz"),
        ("mask", torch.full((2,), torch.finfo(torch.float32).min), "bf16"),
        ("double", torch.tensor([1e300], dtype=torch.float64), "float32"),
        ("signed", torch.tensor([-1.0]), "float8_e8m0fnu"),
    ]:
        source = tfckpt.save_file({name: value}, tmp_path / name)
        with pytest.raises(InvalidArgumentError, match=rf'"{name}" \('):
            tfckpt.convert(source, tmp_path / f"{name}.safetensors", dtype=dtype)
    with pytest.raises(InvalidArgumentError, match="which has the range of float32"):
        tfckpt.convert(tmp_path / "bf", tmp_path / "x.pt", dtype="float16")


def test_what_is_not_finite_stays(tmp_path: Path) -> None:
    """NaN and infinities of the source are neither an error nor in the report."""
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0])
    source = tfckpt.save_file({"w": values}, tmp_path / "source")
    report = tfckpt.convert(source, tmp_path / "m.ckpt", to="tf", dtype="float16")
    assert report.clamped == {} and report.zeroed == {}
    assert torch.equal(tfckpt.load_file(tmp_path / "m.ckpt")["w"].nan_to_num(5), values.half().nan_to_num(5))
    with pytest.raises(InvalidArgumentError, match="largest inf"):
        tfckpt.convert(source, tmp_path / "n.ckpt", to="tf", dtype="float8_e4m3fn")  # it has no infinity


def test_values_that_become_zero_are_reported(tmp_path: Path) -> None:
    """By tensor, in the report and in its text; zeros that were zeros are not."""
    source = tfckpt.save_file({"v": torch.tensor([1e-9, 0.0, 1.0, -1e-20]), "w": torch.ones(1)}, tmp_path / "source")
    report = tfckpt.convert(source, tmp_path / "m.safetensors", dtype="float16")
    assert report.zeroed == {"v": 2}
    assert 'too small for the dtype, and now zero: 2 values in 1 tensor: "v" (2)' in str(report)
    assert tfckpt.convert(source, tmp_path / "m.safetensors", dtype="bf16").zeroed == {}


def test_what_is_left_out_cannot_overflow(tmp_path: Path) -> None:
    """Excluded tensors are not looked at; integers and complex numbers are not converted."""
    source = tfckpt.save_file(
        {"big": torch.tensor([1e30]), "n": torch.tensor([10**9]), "c": torch.tensor([1e30 + 0j])}, tmp_path / "source"
    )
    assert tfckpt.convert(source, tmp_path / "m.pt", dtype="float16", exclude=["big"]).clamped == {}


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--clamp, and an error that names it."""
    source = tfckpt.save_file({"w": torch.tensor([1e6])}, tmp_path / "source")
    target = str(tmp_path / "m.safetensors")
    assert main(["convert", source, target, "--dtype", "float16"]) == 2
    message = capsys.readouterr().err
    assert "--clamp" in message and "--dtype bfloat16" in message and "clamp=True" not in message
    assert main(["convert", source, target, "--dtype", "float16", "--clamp"]) == 0
    assert "1 value in 1 tensor" in capsys.readouterr().out
    assert main(["convert", source, target, "--clamp"]) == 2


def test_dtypes_that_cannot_be_converted_to(tmp_path: Path) -> None:
    """Two numbers in one element: an error of ours, not of torch."""
    source = tfckpt.save_file({"w": torch.ones(2)}, tmp_path / "source")
    with pytest.raises(InvalidArgumentError, match="torch cannot convert numbers to it"):
        tfckpt.convert(source, tmp_path / "m.pt", dtype=torch.float4_e2m1fn_x2)
    torch.save({"pairs": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, tmp_path / "pairs.pt")
    with pytest.raises(UnimplementedError, match='"pairs": torch cannot convert float4_e2m1fn_x2'):
        tfckpt.convert(tmp_path / "pairs.pt", tmp_path / "m.pt", dtype="float16")
    with pytest.raises(InvalidArgumentError, match="torch cannot convert numbers to it"):
        tfckpt.load_file(source, dtype=torch.float4_e2m1fn_x2)


def test_load_file_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """load_file(dtype=) gives what torch gives, and logs which tensors lost values."""
    source = tfckpt.save_file({"w": torch.tensor([1e6]), "fine": torch.ones(2)}, tmp_path / "source")
    with caplog.at_level(logging.WARNING):
        found = tfckpt.load_file(source, dtype=torch.float16)
    assert found["w"].isinf().all() and found["fine"].dtype == torch.float16
    (record,) = caplog.records
    assert '"w" (1 value, largest 1000000)' in record.getMessage() and "fine" not in record.getMessage()
