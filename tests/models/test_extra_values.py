"""save_model(extra=): further values in the checkpoint of a model, under names that the model does not use."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import Small, bits
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.saving import save_model

NAMINGS = ["torch", "tf"]


class Tied(nn.Module):
    """Two names of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("naming", NAMINGS)
def test_tensorflow_reads_the_global_step(tmp_path: Path, tensorflow: TensorFlowProcess, naming: str) -> None:
    """As an int64 scalar, for tf.train.Saver and tf.train.global_step; other numbers fit variables of their value.

    TensorFlow checks dtypes when it restores, so a wrong one would be an error.
    """
    extra = {"global_step": 7, "rate": 0.25, "on": True, "phase": 1j, "name": "run 3", "words": ["a", "b"]}
    prefix = save_model(nn.Linear(2, 1), tmp_path / "m", naming=naming, extra=extra)
    initial = {"rate": 0.0, "on": False, "phase": 0j, "name": "", "words": ["", ""]}
    step, values = tensorflow.call("tensorflow_averaging.restore_global_step", prefix, initial)
    assert step == 7
    rate, on, phase, name, words = values
    assert [rate, on, phase] == [RawTensor.of(np.float32(0.25)), RawTensor.of(np.bool_(True)), RawTensor.of(1j)]
    assert name.strings() == [b"run 3"] and words.strings() == [b"a", b"b"]


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_model_is_what_it_is_without(tmp_path: Path, naming: str) -> None:
    """load_model finds the same weights, and the stored model is the same but for the further values."""
    model = Small()
    save_model(model, tmp_path / "without", naming=naming)
    save_model(model, tmp_path / "with", naming=naming, extra={"global_step": 3, "note": "x"})
    report = tfckpt.diff(tmp_path / "without", tmp_path / "with")
    assert report.only_in_b == ["global_step", "note"] and not (report.only_in_a or report.values)
    fresh = Small()
    found = tfckpt.load_model(fresh, tmp_path / "with")
    assert bits(fresh) == bits(model) and set(found.ignored) >= {"global_step", "note"}
    if naming == "torch":
        fresh = Small()
        tfckpt.Saver(fresh).restore(tmp_path / "with")
        assert bits(fresh) == bits(model)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (7, "DT_INT64", 7),
        (-(2**63), "DT_INT64", -(2**63)),
        (0.1, "DT_FLOAT", np.float32(0.1)),
        (float("inf"), "DT_FLOAT", float("inf")),
        (False, "DT_BOOL", False),
        (2 + 1j, "DT_COMPLEX128", 2 + 1j),
        (np.float64(0.1), "DT_DOUBLE", 0.1),
        (np.int32(4), "DT_INT32", 4),
        (np.arange(3, dtype=np.uint8), "DT_UINT8", [0, 1, 2]),
        (torch.ones(2, dtype=torch.bfloat16), "DT_BFLOAT16", [1.0, 1.0]),
        (b"\xff", "DT_STRING", b"\xff"),
        (("a", b"b"), "DT_STRING", [b"a", b"b"]),
    ],
)
def test_types(tmp_path: Path, naming: str, value: Any, dtype: str, expected: object) -> None:
    """The table of the module's docstring."""
    prefix = save_model(nn.Linear(2, 1), tmp_path / "m", naming=naming, extra={"x": value})
    with tfckpt.load_checkpoint(prefix) as reader:
        assert reader.dtype("x").name == dtype and reader["x"].tolist() == expected


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("name", ["a.weight", "a/weight", "a/kernel", "b.weight", "b/kernel", "a.weight:0", ".shared"])
def test_names_of_the_model_are_refused(tmp_path: Path, naming: str, name: str) -> None:
    """Also a name of a shared tensor, and one by which load_model would find a tensor; nothing is written."""
    with pytest.raises(InvalidArgumentError, match="Choose another name"):
        save_model(Tied(), tmp_path / "m", naming=naming, extra={"fine": 1, name: torch.zeros(3, 2)})
    assert list(tmp_path.iterdir()) == []


def test_names_that_a_mapper_gives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match='"own" is the name of a model tensor'):
        save_model(Tied(), tmp_path / "m", mapper={"own": ("a.weight", "same")}, extra={"own": 1})


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"": 1}, "not a non-empty string"),
        ({3: 1}, "the name 3 is not"),
        (["a"], "extra is a list. Pass a dict"),
        ({"x": 2**63}, "does not fit into int64"),
        ({"x": 1e39}, "beyond the range of float32"),
        ({"x": None}, '"x" is a NoneType'),
        ({"x": [1, 2]}, '"x" is a list'),
        ({"x": {}}, '"x" is a dict'),
        ({"x": torch.ones(2).to_sparse()}, "sparse"),
        ({"x": np.array([object()])}, "object"),
        ({"_CHECKPOINTABLE_OBJECT_GRAPH": "x"}, "is TensorFlow's object graph"),
        ({"net/.shared": "{}"}, "lists the names of shared tensors"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, naming: str, extra: Any, message: str) -> None:
    """With the name; nothing is written."""
    with pytest.raises(InvalidArgumentError, match=message):
        save_model(nn.Linear(2, 1), tmp_path / "m", naming=naming, extra=extra)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_dict_changes_nothing(tmp_path: Path) -> None:
    """The bytes are those of save_model without it."""
    model = Small()
    save_model(model, tmp_path / "a")
    save_model(model, tmp_path / "b", extra={})
    for suffix in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
