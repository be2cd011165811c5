"""LoadReport: what it unpacks as, and what it says."""

from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.load_report import Conversion, LoadReport, Mismatch, size_mismatch


def test_it_unpacks_as_two() -> None:
    """Like the result of load_state_dict."""
    missing, unexpected = LoadReport(missing=["a"], unexpected=["b"], ignored=["c"])
    assert (missing, unexpected) == (["a"], ["b"])


def test_str_has_everything() -> None:
    """It has counts, the prefix, mismatches with hints, and conversions."""
    reason = size_mismatch("d", (2, 3), "dense", (4, 4))
    report = LoadReport(
        missing=["fc.bias"], unexpected=["fc.biass"], ignored=["global_step"], prefix="model/",
        sources={"a": "model/a"}, averaged=["a"], missing_slots=["a"], slots={"b": {}}, hints={"fc.biass": "why not"},
        mismatched=[Mismatch("d", "model/d", (2, 3), DataType.DT_FLOAT, "dense", (4, 4), torch.float32, reason)],
        converted=[Conversion("a", "model/a", "dense", DataType.DT_DOUBLE, torch.float32)],
    )  # fmt: skip
    assert str(report) == (
        'loaded 1 tensor below "model/", 1 of them moving averages; 1 stored tensor ignored\n'
        "optimizer state of 1 parameter\n"
        'Missing key(s): "fc.bias" (Closest: "fc.biass")\n'
        'Unexpected key(s): "fc.biass" (why not)\n'
        'Missing optimizer state of: "a"\n'
        "size mismatch for d: copying a param with shape [2,3] in layout dense from checkpoint, the shape in current "
        'model is [4,4], stored as "model/d"\n'
        'converted: "a" from "model/a", layout dense, DT_DOUBLE to torch.float32'
    )


def test_long_lists_are_cut() -> None:
    """A model of a thousand layers fits a screen."""
    report = LoadReport(missing=[f"layer{n}" for n in range(1000)])
    assert str(report).endswith('"layer19" and 980 more') and len(str(report).splitlines()) == 2


def test_advice_is_in_the_message() -> None:
    """It lists rules that match nothing, and what to pass."""
    report = LoadReport(missing=["a"], unused_rules=["x", "y.*"], remarks=["pass that"])
    assert str(report).splitlines()[2:] == ['Rules that match nothing: "x", "y.*"', "pass that"]


def test_a_second_bias_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Torch has two biases where TensorFlow has one: the report lists it. A norm without gamma is logged."""
    kernels = {"0/kernel": torch.zeros(3, 20), "0/recurrent_kernel": torch.zeros(5, 20), "0/bias": torch.zeros(20)}
    tfckpt.save_file(kernels | {"1/beta": torch.zeros(5)}, tmp_path / "m")
    report = tfckpt.load_model(torch.nn.Sequential(torch.nn.LSTM(3, 5), torch.nn.LayerNorm(5, 1e-3)), tmp_path / "m")
    assert report.filled == {"0.bias_hh_l0": 0.0, "1.weight": 1.0}
    logged = [record.getMessage() for record in caplog.records if "filled" in record.getMessage()]
    assert len(logged) == 1 and "1.weight" in logged[0] and "bias_hh" not in logged[0]
