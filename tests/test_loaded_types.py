"""The types of loaded values: usual programs need no cast. mypy checks this file; here it is also run."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

import torch_tfckpt as tfckpt


@pytest.fixture
def path(tmp_path: Path) -> str:
    words = np.array([b"a"], dtype=object)
    return tfckpt.save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2), "words": words}, tmp_path / "t")


def test_a_dictionary_of_tensors(path: str, tmp_path: Path) -> None:
    """load_file for load_state_dict, for save_file and for safetensors."""
    names = ["weight", "bias"]
    tensors = tfckpt.load_file(path, names=names)
    assert_type(tensors, dict[str, torch.Tensor | Any])
    assert tensors["weight"].shape == (2, 3)
    model = torch.nn.Linear(3, 2)
    model.load_state_dict(tfckpt.load_file(path, names=names))
    assert tfckpt.save_file(tfckpt.load_file(path), tmp_path / "again")
    weight: torch.Tensor = tensors["weight"]
    held: dict[str, torch.Tensor] = tfckpt.load_file(path, names=names)
    assert torch.equal(model.weight, weight) and torch.equal(held["bias"], model.bias)


def test_safetensors(path: str, tmp_path: Path) -> None:
    """Its save_file takes a dict[str, Tensor], which is invariant."""
    save_file(tfckpt.load_file(path, names=["weight"]), tmp_path / "m.safetensors")


def test_tensors_of_a_reader(path: str) -> None:
    """The result of a plain call can be used as a tensor, as can slices, maps and lists; with `out` it is a tensor."""
    with tfckpt.load_checkpoint(path) as reader:
        weight: torch.Tensor = reader.get_tensor("weight")
        assert_type(reader.get_tensor("weight", out=torch.empty(2, 3)), torch.Tensor)
        assert_type(reader["weight"], torch.Tensor | Any)
        assert_type(reader.get_tensors(["bias"]), dict[str, torch.Tensor | Any])
        assert reader["weight"].sum() == weight.sum() == reader.map_tensor("weight").sum() == 6
        row: torch.Tensor = reader.get_slice("weight")[0]
        assert row.tolist() == [1.0, 1.0, 1.0]
    bias: torch.Tensor = tfckpt.load_variable(path, "bias")
    assert bias.shape == (2,)


def test_strings_of_a_reader(path: str) -> None:
    """get_strings has the exact type."""
    with tfckpt.load_checkpoint(path) as reader:
        words = reader.get_strings("words")
        assert_type(words, npt.NDArray[np.object_])
        assert words.tolist() == reader["words"].tolist() == [b"a"]
