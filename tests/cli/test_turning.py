"""tfckpt convert --to-torch and --to-tf: options, messages and exit status."""

import json
from pathlib import Path

import pytest
import torch
from small_modules import python_file

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main

Output = pytest.CaptureFixture[str]

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, size=2):
        super().__init__()
        self.fc = nn.Linear(3, size)

def wide():
    return Net(5)

def failing():
    raise OSError("no configuration")
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint and a Python file in the current directory; returns the name of its module."""
    values = {"fc/kernel": torch.randn(3, 2), "fc/bias": torch.ones(2), "global_step": torch.tensor(3)}
    tfckpt.save_file(values, tmp_path / "net.ckpt")
    return python_file(tmp_path, SOURCE, monkeypatch)


def test_there_and_back(factories: str, capsys: Output) -> None:
    """The usual commands; the report says which module loads the file, and what is left out."""
    check = ["--check", f"{factories}:Net"]
    assert main(["convert", "net.ckpt", "net.safetensors", "--to-torch", *check, "--report", "report.json"]) == 0
    printed = capsys.readouterr().out
    assert f"{factories}:Net loads it strictly" in printed
    assert '1 tensor, "global_step": a counter' in printed
    assert json.loads(Path("report.json").read_text())["checked"] == f"{factories}:Net"
    assert main(["convert", "net.safetensors", "back", "--to-tf", *check, "--json"]) == 0
    assert {row["new_name"] for row in json.loads(capsys.readouterr().out)["outcomes"]} == {"fc/kernel", "fc/bias"}
    assert torch.equal(tfckpt.load_variable("back", "fc/kernel"), tfckpt.load_variable("net.ckpt", "fc/kernel"))


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--to-torch", "--check", "MODULE:wide"], 1, "Nothing was written"),
        (["--to-torch", "--check", "MODULE:failing"], 2, "no configuration"),
        (["--to-torch", "--check", "MODULE:Nett"], 2, 'Closest: "Net"'),
        (["--to-torch", "--check", "no_such_module_anywhere:Net"], 2, "no_such_module_anywhere"),
        (["--to-torch", "--check", "MODULE.Net"], 2, "does not name a module factory"),
        (["--to-torch"], 2, "Pass `--preset`, `--map` or `--infer`"),
        (["--check", "MODULE:Net"], 2, "Pass --to-torch or --to-tf to convert them"),
        (["--to-torch", "--to-tf"], 2, "not allowed with"),
        (["--to-torch", "--preset", "bert", "--map", "x.toml"], 2, "not allowed with"),
        (["--to-torch", "--preset", "brt"], 1, 'Closest: "bert"'),
        (["--to-torch", "--preset", "bert"], 1, "or pass --no-strict, which lists them"),
        (["--to-torch", "--map", "missing.toml"], 1, "missing.toml"),
        (["--to-torch", "--check", "MODULE:Net", "--scope", "net"], 2, "`--scope` is for the rules of a `--preset`"),
    ],
)  # fmt: skip
def test_mistakes(factories: str, capsys: Output, options: list[str], status: int, message: str) -> None:
    """The message names options, and nothing is written."""
    given = [option.replace("MODULE", factories) for option in options]
    assert main(["convert", "net.ckpt", "out.pt", *given]) == status
    assert message in capsys.readouterr().err
    assert not Path("out.pt").exists()


def test_layouts_that_are_missing(factories: str, capsys: Output) -> None:
    """The rules in the message can be written to a file, and work."""
    Path("map.toml").write_text("[[rule]]\nmodule = 'fc'\nto = 'net.fc'\n")
    assert main(["convert", "net.ckpt", "out.pt", "--to-torch", "--map", "map.toml"]) == 2
    message = capsys.readouterr().err
    assert "Pass --check pkg.mod:factory" in message
    Path("map.toml").write_text(message[message.index("\n") :])
    assert main(["convert", "net.ckpt", "out.pt", "--to-torch", "--map", "map.toml"]) == 0
    found = torch.load("out.pt", weights_only=True)
    assert torch.equal(found["net.fc.weight"], tfckpt.load_variable("net.ckpt", "fc/kernel").T)


def test_names_and_weights_only(factories: str, capsys: Output) -> None:
    """Options of a plain conversion, which says that layouts are TensorFlow's."""
    assert main(["convert", "net.ckpt", "net.npz", "--weights-only", "--names", "variables"]) == 0
    printed = capsys.readouterr().out
    assert '1 tensor, "global_step": counters' in printed
    assert "convert the checkpoint with --to-torch and `--preset`, `--map` or `--infer`" in printed
