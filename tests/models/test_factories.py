"""build_module imports a factory from the current directory and calls it on the meta device; every failure says why."""

import sys
from pathlib import Path

import pytest
from small_modules import python_file
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.models.factories import build_module

SOURCE = """
import torch
from torch import nn

class Net(nn.Linear):
    def __init__(self, size=3):
        super().__init__(size, 2)

class Models:
    small = staticmethod(lambda: Net(1))

ready = Net(5)
number = 3

def failing():
    raise RuntimeError("no config")

def stochastic_depth():
    return nn.Sequential(nn.Linear(2, 3), *(nn.Dropout(rate.item()) for rate in torch.linspace(0, 0.1, 2)))

def counted():
    return nn.Linear(int(torch.arange(3).sum()), 2)

def as_numpy():
    return nn.Dropout(float(torch.ones(1).numpy()[0]))

def failing_on_both():
    torch.ones(1).item()
    raise RuntimeError("no config")

def leaving():
    raise SystemExit(2)

def of_size(size):
    return Net(size)

def nothing():
    return None
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    return python_file(tmp_path, SOURCE, monkeypatch)


@pytest.mark.parametrize(("factory", "inputs"), [("Net", 3), ("Models.small", 1)])
def test_factories_are_called_on_the_meta_device(net: str, factory: str, inputs: int) -> None:
    """The module has its shapes, and no memory; sys.path is as before."""
    before = list(sys.path)
    model = build_module(f"{net}:{factory}")
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.weight.device.type) == (inputs, "meta")
    assert sys.path == before


@pytest.mark.parametrize("factory", ["stochastic_depth", "counted", "as_numpy"])
def test_factories_that_need_values_are_called_on_the_cpu(
    net: str, factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The meta device has no values. A warning says so."""
    model = build_module(f"{net}:{factory}")
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    [record] = caplog.records
    assert "cannot be called on the meta device, so it is called on the CPU" in record.getMessage()


def test_a_factory_that_fails_on_both_devices(net: str) -> None:
    """The error is the second one, which is the factory's own."""
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"no config.*on the CPU, as it failed on the meta device"):
        build_module(f"{net}:failing_on_both")


def test_a_module_may_be_named_directly(net: str) -> None:
    """A module that exists already is returned as it is."""
    model = build_module(f"{net}:ready")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Nett", 'has no "Nett". Closest: "Net"'),
        ("Classifier", 'has no "Classifier". It has "Models", "Net", '),
        ("number", "3 is not a factory"),
        ("failing", "raised RuntimeError: no config at "),
        ("leaving", "raised SystemExit: 2"),
        ("of_size", "TypeError: of_size() missing 1 required positional argument"),
        ("nothing", "returned a NoneType, not a torch.nn.Module"),
    ],
)
def test_wrong_factories(net: str, factory: str, message: str) -> None:
    """The message has the spelling and the reason."""
    with pytest.raises(tfckpt.InvalidArgumentError) as caught:
        build_module(f"{net}:{factory}")
    assert message in str(caught.value)
    assert f"{net}:{factory}" in str(caught.value)


@pytest.mark.parametrize("spec", ["", "net", "net.py:Net", "net:", ":Net", "net:Net()", "a/b:Net", "net:Net:x"])
def test_wrong_spelling(spec: str) -> None:
    """An example shows the form; a file with that name is not needed."""
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"Write \"net:Classifier\" for the class"):
        build_module(spec)


def test_failing_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module is told apart from a module that cannot be imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs_other.py").write_text("import package_that_does_not_exist")
    (tmp_path / "wrong_syntax.py").write_text("def")
    for spec, message in [
        ("no_such_module:Net", 'no module "no_such_module"'),
        ("needs_other:Net", "raised ModuleNotFoundError: No module named 'package_that_does_not_exist'"),
        ("wrong_syntax:Net", "raised SyntaxError"),
    ]:
        with pytest.raises(tfckpt.InvalidArgumentError) as caught:
            build_module(spec)
        assert message in str(caught.value)
