"""tfckpt map: prints rules as TOML; a choice that is left is status 1, a wrong argument status 2."""

from pathlib import Path

import pytest
import torch
from small_modules import python_file

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main

Output = pytest.CaptureFixture[str]
MODULE = """
from torch import nn

class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

def towers():
    return nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    return python_file(tmp_path, MODULE, monkeypatch)


def stored(*layers: tuple[str, int, int]) -> dict[str, torch.Tensor]:
    kernels = {f"{name}/kernel": torch.randn(inputs, outputs) for name, inputs, outputs in layers}
    return kernels | {f"{name}/bias": torch.randn(outputs) for name, _, outputs in layers}


def test_a_map_file(net: str, capsys: Output) -> None:
    """The output is a map file, with comments, that loads the checkpoint strictly."""
    tfckpt.save_file(stored(("dense", 3, 5), ("dense_1", 5, 2)), "model")
    assert main(["map", "model", "--module", f"{net}:Classifier"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# the only layer of this kind and shape\n[[rule]]\n")
    Path("map.toml").write_text(text)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    report = tfckpt.load_model(model, "model", mapper=tfckpt.KeyMapper.from_file("map.toml"))
    assert report.sources["2.weight"] == "dense_1/kernel"


def test_a_choice_is_settled_by_a_file(net: str, capsys: Output) -> None:
    """The proposal on stderr, pasted into a file, makes the next call succeed."""
    tfckpt.save_file(stored(("left", 3, 3), ("right", 3, 3)), "model")
    assert main(["map", "model", "--module", f"{net}:towers"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert 'stored "left", "right" may be "a", "b"' in err
    Path("rules.toml").write_text("\n".join(line.strip() for line in err.splitlines() if line.startswith("  ")))
    assert main(["map", "model", "--module", f"{net}:towers", "--rules", "rules.toml"]) == 0
    assert 'name = "right/bias"\nto = "b.bias"' in capsys.readouterr().out


def test_a_skeleton(tmp_path: Path, capsys: Output) -> None:
    """Without a module: every weight with its shape and what its name shows; slots are left out."""
    tensors = stored(("dense_10", 3, 5), ("dense_2", 5, 2)) | {"dense_2/kernel/Adam": torch.zeros(5, 2)}
    path = tfckpt.save_file(tensors, tmp_path / "model")
    assert main(["map", path]) == 0
    text = capsys.readouterr().out
    assert '# [5,2]: Dense, layout "dense", or a part of a recurrent layer\n[[rule]]\nname = "dense_2/kernel"' in text
    assert text.index("dense_2/bias") < text.index("dense_10/bias")
    assert "Adam" not in text
    (tmp_path / "map.toml").write_text(text)
    assert len(tfckpt.KeyMapper.from_file(tmp_path / "map.toml").names) == 4


@pytest.mark.parametrize("factory", ["no_such_module_here:Net", "net.py"])
def test_wrong_arguments(net: str, factory: str, capsys: Output) -> None:
    """A usage error, with an example."""
    tfckpt.save_file(stored(("dense", 3, 5)), "model")
    assert main(["map", "model", "--module", factory]) == 2
    assert "net:Classifier" in capsys.readouterr().err
