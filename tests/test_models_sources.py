"""Which stored tensor each tensor of a module comes from."""

from pathlib import Path

import pytest
from model_files import numbered, save_objects
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.key_mapper import KeyMapper
from torch_tfckpt.layouts import DENSE, SAME
from torch_tfckpt.models.sources import Found, Source, find_sources, possible_names
from torch_tfckpt.models.targets import targets_of


def found(prefix: Path, model: nn.Module, rules: KeyMapper | None = None) -> Found:
    with tfckpt.load_checkpoint(prefix) as reader:
        return find_sources(reader, targets_of(model), mapper=rules, ema="ignore", prefix=None)


def test_possible_names_are_torch_s_and_tensorflow_s() -> None:
    """Torch's own first; of a tied tensor those of all its places."""
    model = nn.ModuleDict({"fc": nn.Linear(2, 2, bias=False), "out": nn.Embedding(2, 2)})
    model["out"].weight = model["fc"].weight
    (target,) = targets_of(model)
    assert list(possible_names(target)) == [
        "fc.weight", "out.weight", "fc.kernel", "fc._kernel", "fc.weights", "out.embeddings", "out._embeddings",
    ]  # fmt: skip


def test_the_mapper_speaks_first(tmp_path: Path) -> None:
    """What it speaks of is not found by name, and what it does not speak of is."""
    tfckpt.save_file({"fc/kernel": numbered(2, 2), "fc/bias": numbered(2), "k": numbered(2, 2)}, tmp_path / "m")
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    result = found(tmp_path / "m", model, KeyMapper({"k": "fc.weight"}))
    assert result.sources == {"fc.weight": Source("k", SAME, "k"), "fc.bias": Source("fc/bias", SAME, "bias")}
    result = found(tmp_path / "m", model, KeyMapper({"fc/kernel": None}))
    assert (set(result.sources), result.left_out) == ({"fc.bias"}, ["fc/kernel"])
    result = found(tmp_path / "m", model)
    assert result.sources["fc.weight"] == Source("fc/kernel", DENSE, "kernel")


def test_one_full_name_of_two_variables_cannot_be_mapped(tmp_path: Path) -> None:
    """Both are named."""
    save_objects(tmp_path / "m", {"a": numbered(2), "b": numbered(2)}, full_names={"a": "k", "b": "k"})
    with pytest.raises(InvalidArgumentError, match=r'"a/\.ATTR.*" and "b/\.ATTR.*" are both mapped to "bias"'):
        found(tmp_path / "m", nn.Linear(2, 2), KeyMapper({"k": "bias"}))


def test_tied_tensors_stored_apart_are_read_once(tmp_path: Path) -> None:
    """The first of the names counts; the others' keys are known to belong to it."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    tfckpt.save_file({"a.weight": numbered(2, 2), "b.weight": numbered(2, 2)}, tmp_path / "m")
    result = found(tmp_path / "m", model)
    assert (result.sources, result.apart) == ({"a.weight": Source("a.weight", SAME, "weight")}, {"b.weight"})
    tfckpt.save_file({"x": numbered(2, 2), "y": numbered(2, 2)}, tmp_path / "n")
    result = found(tmp_path / "n", model, KeyMapper({"y": "b.weight", "x": "a.weight"}))
    assert (result.sources["a.weight"].key, result.apart) == ("x", {"y"})
