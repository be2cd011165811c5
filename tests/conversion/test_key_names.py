"""convert(names=..., weights_only=...): other names of objects, and only what a model consists of."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

import torch_tfckpt as tfckpt

WEIGHTS = {
    "variables": {"hidden/kernel", "hidden/bias", "output/kernel", "output/bias"},
    "paths": {"hidden.kernel", "hidden.bias", "output.kernel", "output.bias"},
    "keys": {
        f"{layer}/{leaf}/.ATTRIBUTES/VARIABLE_VALUE" for layer in ("hidden", "output") for leaf in ("kernel", "bias")
    },
}


@pytest.mark.parametrize("names", WEIGHTS)
def test_names_of_objects(golden: Path, tmp_path: Path, names: str) -> None:
    """A file for torch has the chosen names, and the values of the keys."""
    report = tfckpt.convert(golden / "digits-module", tmp_path / "net.safetensors", names=names, weights_only=True)
    found = safetensors.torch.load_file(tmp_path / "net.safetensors")
    assert WEIGHTS[names] <= found.keys()
    for item in report.converted:
        assert torch.equal(found[item.new_name], tfckpt.load_variable(golden / "digits-module", item.name))
    assert report.omitted["authors/.ATTRIBUTES/VARIABLE_VALUE"] == "other"


def test_full_names_give_a_checkpoint_for_a_saver(golden: Path, tmp_path: Path) -> None:
    """The object graph refers to keys, so it is left out, and the reason is reported."""
    source = golden / "digits-module"
    report = tfckpt.convert(source, tmp_path / "by-name", to="tf", names="variables", exclude=["authors"])
    assert WEIGHTS["variables"] <= set(dict(tfckpt.list_variables(tmp_path / "by-name")))
    assert report.omitted == {"_CHECKPOINTABLE_OBJECT_GRAPH": "the names are not those of the object graph"}


def test_a_variable_that_is_stored_twice_is_written_once(golden: Path, tmp_path: Path) -> None:
    """A SavedModel of Keras 3 lists each variable twice, with one full name and equal values."""
    report = tfckpt.convert(golden / "digits-keras3-savedmodel", tmp_path / "net.npz", names="variables")
    assert "conv/kernel" in {item.new_name for item in report.converted}
    assert sum("a copy of another tensor" in reason for reason in report.omitted.values()) == 10


def test_objects_of_one_name_need_another_choice(tmp_path: Path) -> None:
    """Different values under one full name are an error that says what to pass."""
    a, b = tfckpt.Variable(torch.ones(2), name="kernel"), tfckpt.Variable(torch.zeros(2), name="kernel")
    path = tfckpt.Checkpoint(a=a, b=b).write(tmp_path / "objects")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'are both called "kernel"\. Pass names="paths"'):
        tfckpt.convert(path, tmp_path / "net.pt", names="variables")


@pytest.mark.parametrize("folder", ["digits-checkpoint", "digits-keras2-weights"])
def test_a_checkpoint_of_weights_keeps_its_objects(golden: Path, tmp_path: Path, folder: str) -> None:
    """The graph is edited to match, so that the layers are still found by their attributes."""
    source = golden / folder
    path = tfckpt.latest_checkpoint(source) or source
    report = tfckpt.convert(path, tmp_path / "weights", to="tf", weights_only=True)
    assert set(report.omitted.values()) == {"optimizer state", "counters"}
    with tfckpt.load_checkpoint(tmp_path / "weights") as reader:
        assert reader.object_graph is not None
        assert len(reader) == 11


def test_what_only_looks_like_a_slot_is_reported(tmp_path: Path) -> None:
    """A name below a variable's, with the same shape, may be a weight."""
    values = {"a/w": torch.ones(3, 2), "a/w/more": torch.ones(3, 2), "b/w": torch.ones(2)}
    prefix = tfckpt.save_file(values, tmp_path / "net")
    report = tfckpt.convert(prefix, tmp_path / "net.npz", weights_only=True)
    left_out = set(report.omitted)
    uncertain = [remark for remark in report.remarks if "left out as optimizer state" in remark]
    assert bool(left_out) == bool(uncertain)


def test_names_without_objects_stay(tmp_path: Path) -> None:
    """A name-based checkpoint has only its keys."""
    prefix = tfckpt.save_file({"a/w": torch.ones(3)}, tmp_path / "net")
    report = tfckpt.convert(prefix, tmp_path / "net.npz", names="paths")
    assert [item.new_name for item in report.converted] == ["a/w"]
