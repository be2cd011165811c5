"""load_model reads files of other formats: names decide the layout there as in a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.models.file_reader import open_reader

FORMATS = ("net.safetensors", "net.pt", "net.npz")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)


build = Net


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write by the library of the format, not by ours."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **{name: value.numpy() for name, value in tensors.items()})
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.bin"])
def test_files_of_torch_load_as_they_are(tmp_path: Path, name: str) -> None:
    """A square weight, too: "weight" in a file of torch is in torch's layout."""
    model, expected = build(), build()
    report = tfckpt.load_model(model, write(tmp_path / name, expected.state_dict()))
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())
    assert report.converted == []


def test_a_training_state_is_read_below_its_key(tmp_path: Path) -> None:
    """The optimizer's state next to the model's is ignored."""
    expected, model = build(), build()
    optimizer = torch.optim.Adam(expected.parameters())
    state = {"model": expected.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(state, tmp_path / "all.pt")
    report = tfckpt.load_model(model, tmp_path / "all.pt")
    assert report.prefix == "model."
    assert torch.equal(model.fc.weight, expected.fc.weight)


def test_a_square_weight_of_an_npz_file_is_asked_for(tmp_path: Path) -> None:
    """numpy's files do not tell who wrote them; a rule settles it."""
    expected, model = build(), build()
    path = write(tmp_path / "net.npz", expected.state_dict())
    with pytest.raises(tfckpt.InvalidArgumentError, match="the file may have been written by either"):
        tfckpt.load_model(model, path)
    tfckpt.load_model(model, path, mapper={"fc.weight": ("fc.weight", "same")})
    assert torch.equal(model.fc.weight, expected.fc.weight)


@pytest.mark.parametrize("name", FORMATS)
def test_tensorflows_names_have_tensorflows_layouts(tmp_path: Path, name: str) -> None:
    """In files that `convert` wrote, and in those that other programs wrote."""
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    values = {"fc/kernel": torch.randn(4, 4), "fc/bias": torch.randn(4)}
    values |= {f"bn/{leaf}": torch.rand(4) for leaf in names}
    prefix = tfckpt.save_file({**values, "global_step": torch.tensor(3)}, tmp_path / "net.ckpt")
    tfckpt.convert(prefix, tmp_path / name)
    for path in (tmp_path / name, write(tmp_path / f"other-{name}", values)):
        model = build()
        tfckpt.load_model(model, path, accept=("batch_norm_epsilon",))
        assert torch.equal(model.fc.weight, values["fc/kernel"].T)
        assert all(torch.equal(model.bn.state_dict()[held], values[f"bn/{leaf}"]) for leaf, held in names.items())


def test_objects_survive_a_conversion(golden: Path, tmp_path: Path) -> None:
    """The sidecar has the object graph: attributes find their variables as in the checkpoint."""

    def model() -> nn.ModuleDict:
        return nn.ModuleDict({"hidden": nn.Linear(64, 32), "output": nn.Linear(32, 10)})

    rules = {"seen": None, "version": None, "authors": None}
    first, second = model(), model()
    tfckpt.load_model(first, golden / "digits-module", mapper=rules)
    tfckpt.convert(golden / "digits-module", tmp_path / "net.safetensors")
    tfckpt.load_model(second, tmp_path / "net.safetensors", mapper=rules)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_averages_and_rules_work_as_in_a_checkpoint(tmp_path: Path) -> None:
    """ema= and mapper= are not tied to checkpoints."""
    average = "a/kernel/ExponentialMovingAverage"
    values = {"a/kernel": torch.randn(4, 4), average: torch.randn(4, 4), "a/b": torch.ones(4)}
    path = write(tmp_path / "net.safetensors", values)
    model = build()
    del model.bn
    rules: Any = {"a/kernel": ("fc.weight", "dense"), "a/b": "fc.bias"}
    report = tfckpt.load_model(model, path, mapper=rules, ema="prefer")
    assert torch.equal(model.fc.weight, values[average].T)
    assert report.averaged == ["fc.weight"]


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("none.safetensors", None, "no such file"),
        ("none.pt", None, "no such file"),
        ("text.safetensors", b"some words, but no tensors", "text file"),
        ("text.npz", b"some words, but no tensors", "text file"),
        ("cut.pt", b"PK\x03\x04" + bytes(60), "cut.pt"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, contents: bytes | None, message: str) -> None:
    """The message names the file and what it is; the model is unchanged."""
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    model = build()
    before = model.fc.weight.clone()
    with pytest.raises(tfckpt.CheckpointError, match=message):
        tfckpt.load_model(model, tmp_path / name)
    assert torch.equal(model.fc.weight, before)


def test_a_dtype_that_tensorflow_lacks(tmp_path: Path) -> None:
    """Such a tensor is reported as one that does not fit, and does not end in another error."""
    path = write(tmp_path / "net.pt", {"weight": torch.ones(2, 2), "bias": torch.ones(2, dtype=torch.uint16)})
    with pytest.raises(tfckpt.InvalidArgumentError, match="dtype mismatch for bias"):
        tfckpt.load_model(nn.Linear(2, 2), path)


@pytest.mark.parametrize("name", FORMATS)
def test_slices_are_read_like_those_of_a_checkpoint(tmp_path: Path, name: str) -> None:
    """A part of a tensor, by the methods that a CheckpointReader has for it."""
    expected = build().state_dict()
    with open_reader(write(tmp_path / name, expected)) as reader:
        assert torch.equal(reader.get_slice("fc.weight")[1:3], expected["fc.weight"][1:3])
        assert reader.files.paths == (str(tmp_path / name),)
        with pytest.raises(tfckpt.NotFoundError, match=r"fc\.wait"):
            reader.get_slice("fc.wait")


@pytest.mark.parametrize("name", FORMATS)
def test_renamed_kernels_are_asked_for(tmp_path: Path, name: str) -> None:
    """The sidecar notes that only names were turned, also after a further conversion; other tools read the file."""
    kernel = torch.randn(4, 4)
    tfckpt.save_file({"fc/kernel": kernel, "fc/bias": torch.zeros(4)}, tmp_path / "net.ckpt")
    rename = [("/kernel", ".weight"), ("/", ".")]
    first = tmp_path / "first.safetensors"
    report = tfckpt.convert(tmp_path / "net.ckpt", first, rename=rename)
    assert [item.new_name for item in report.sidecar] == ["fc.weight"]
    assert torch.equal(safetensors.torch.load_file(first)["fc.weight"], kernel)
    tfckpt.convert(first, tmp_path / name)
    model = nn.ModuleDict({"fc": nn.Linear(4, 4)})
    with pytest.raises(tfckpt.InvalidArgumentError, match="converted from a checkpoint of TensorFlow without to_torch"):
        tfckpt.load_model(model, tmp_path / name)
    rules = {"fc.weight": ("fc.weight", "dense")}
    tfckpt.load_model(model, tmp_path / name, mapper=rules)
    assert torch.equal(model.state_dict()["fc.weight"], kernel.T)
    with pytest.raises(tfckpt.InvalidArgumentError, match="are already in TensorFlow's order"):
        tfckpt.convert(tmp_path / name, tmp_path / "back", to_tf=True, map={"fc/kernel": ("fc.weight", "dense")})


@pytest.mark.parametrize("options", [{"to_torch": True, "check": build}, {}])
def test_turned_kernels_are_not(tmp_path: Path, options: dict[str, Any]) -> None:
    """Neither after to_torch, nor for a state_dict that a checkpoint holds."""
    expected, model = build(), build()
    if options:
        tfckpt.save_model(expected, tmp_path / "net.ckpt", naming="tf")
    else:
        tfckpt.save_file(expected.state_dict(), tmp_path / "net.ckpt")
    report = tfckpt.convert(tmp_path / "net.ckpt", tmp_path / "net.safetensors", **options)
    assert report.sidecar == []
    tfckpt.load_model(model, tmp_path / "net.safetensors")
    assert torch.equal(model.fc.weight, expected.fc.weight)
