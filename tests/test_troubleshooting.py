"""docs/conversion/troubleshooting.md: each heading is a part of a message that the package prints."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torch_tfckpt import (
    CheckpointError,
    KeyMapper,
    init_from_checkpoint,
    load_model,
    save_file,
    save_model,
)
from torch_tfckpt.cli.main import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conversion" / "troubleshooting.md"
HEADINGS = re.findall(r"^### `(.*)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
MODULES = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
"""


def kernel(scope: str, rows: int = 3, columns: int = 2) -> dict[str, Tensor]:
    """The variables of a Dense layer."""
    return {f"{scope}/kernel": torch.ones(rows, columns), f"{scope}/bias": torch.zeros(columns)}


def named(**layers: nn.Module) -> nn.Sequential:
    """A model with these layers."""
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def net(rows: int = 3, columns: int = 2) -> nn.Sequential:
    """The module of most examples."""
    return named(fc=nn.Linear(rows, columns))


def load_other(stored: dict[str, Tensor], model: nn.Module, **options: object) -> object:
    """Load a checkpoint that has other variables."""
    save_file(stored, "other")
    return load_model(model, "other", **options)  # type: ignore[arg-type]


def load_slots(name: str, model: nn.Module) -> object:
    """Load slots of this name into an Adam."""
    slots = {f"{key}/{name}": value for key, value in kernel("fc").items()}
    return load_other(kernel("fc") | slots, model, optimizer=torch.optim.Adam(model.parameters()))


def assign_with_optimizer(model: nn.Module) -> object:
    """Replace the parameters that an optimizer has."""
    return load_model(model, "net", assign=True, optimizer=torch.optim.Adam(model.parameters()))


def infer_other(stored: dict[str, Tensor], model: nn.Module) -> object:
    """Find the rules for a checkpoint that has other variables."""
    save_file(stored, "other")
    return KeyMapper.infer("other", model)


def read_map(rule: str) -> object:
    """Read a map file with this rule."""
    Path("map.toml").write_text(f"[[rule]]\n{rule}\n")
    return KeyMapper.from_file("map.toml")


def command(line: str) -> object:
    """Run `tfckpt`."""
    return main(line.split())


def convert_with_rules(*lines: str) -> object:
    """Convert with a map file that has this rule."""
    Path("map.toml").write_text("\n".join(["[[rule]]", *lines]))
    return command("convert net out.safetensors --to-torch --map map.toml")


def on_meta() -> nn.Module:
    """A module without storage."""
    with torch.device("meta"):
        return net()


AVERAGES = {f"{key}/ExponentialMovingAverage": value for key, value in kernel("fc").items()}
NORM = {f"bn/{name}": torch.ones(3) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
GRU = {"gru/kernel": torch.ones(3, 15), "gru/recurrent_kernel": torch.ones(5, 15), "gru/bias": torch.ones(15)}
CALLS: dict[str, Callable[[], object]] = {
    "Missing key(s):": lambda: load_model(named(out=nn.Linear(2, 2)), "net"),
    "Unexpected key(s):": lambda: load_model(named(fc=nn.Linear(3, 2, bias=False)), "net"),
    "size mismatch for": lambda: load_model(net(4), "net"),
    "dtype mismatch for": lambda: load_other(kernel("fc") | {"fc/kernel": torch.ones(3, 2, dtype=torch.int32)}, net()),
    "the prefix of the module is ambiguous": lambda: load_other(kernel("a/fc") | kernel("b/fc"), net()),
    "it is unknown whether the axes of": lambda: load_other(
        {"fc/weight": torch.ones(3, 3), "fc/bias": torch.ones(3)} | kernel("out", 3, 5),
        named(fc=nn.Linear(3, 3), out=nn.Linear(3, 5)),
    ),
    "which nn.GRU cannot compute": lambda: load_other(GRU, named(gru=nn.GRU(3, 5))),
    "values beyond the range of the module's dtype": lambda: load_other(
        kernel("fc") | {"fc/kernel": torch.full((3, 2), 70_000.0)}, net().half()
    ),
    "is on the meta device and has no memory to load into": lambda: load_model(on_meta(), "net"),
    "the weights alone do not show whether": lambda: load_other(NORM, named(bn=nn.BatchNorm1d(3)), strict="semantics"),
    "accept: there is no finding": lambda: load_model(net(), "net", accept=("epsilon",)),
    'the layout of "weight" of a Linear is unknown': lambda: load_other(
        {"fc/w": torch.ones(3, 2)}, named(fc=nn.Linear(3, 2, bias=False)), mapper={"fc/w": "fc.weight"}
    ),
    "are both mapped to": lambda: load_model(net(), "net", mapper=[("fc/.*", "fc.weight", "same")]),
    "Rules that match nothing:": lambda: print(load_model(net(), "net", mapper=[("head/.*", None)])),
    "no rule of the mapper matches a stored name": lambda: load_model(net(), "net", mapper=KeyMapper.preset("bert")),
    "there is no preset": lambda: KeyMapper.preset("bret"),
    "unknown key": lambda: read_map('patern = "a"\nto = "b"'),
    "is not a map file in TOML": lambda: read_map('pattern = "(\\d)"\nto = "b"'),
    "cannot be inverted": lambda: save_model(net(), "saved", mapper=[(r"\d+/(.*)", r"fc.\1", "same")]),
    "does not determine the scope below which the model is stored": lambda: save_model(
        named(conv1=nn.Conv2d(3, 4, 3)), "saved", mapper=KeyMapper.preset("resnet")
    ),
    "some layers have the same kind and shapes": lambda: infer_other(
        kernel("left", 5, 5) | kernel("right", 5, 5), nn.ModuleDict({name: nn.Linear(5, 5) for name in "ab"})
    ),
    "the module has tensors that no stored layer fits": lambda: KeyMapper.infer("net", net(4)),
    "stored weights have no place in the module": lambda: infer_other(
        kernel("net/encoder/first") | kernel("net/encoder/second", 2, 4) | kernel("net/out", 2, 5),
        nn.ModuleDict({"encoder": nn.ModuleDict({"first": nn.Linear(3, 2)}), "out": nn.Linear(2, 5)}),
    ),
    "stored weights that the module does not have": lambda: infer_other(kernel("fc") | kernel("head", 2, 5), net()),
    "--to-torch needs rules for names and layouts": lambda: command("convert net out.safetensors --to-torch"),
    "would be lost": lambda: command("convert net out.safetensors --to-torch --preset bert"),
    "neither the names nor the shapes determine the order of the axes": lambda: convert_with_rules(
        'name = "fc/kernel"', 'to = "fc.weight"'
    ),
    "the tensors do not fit": lambda: command("convert larger out.safetensors --to-torch --check net:Net"),
    "names and layouts are still TensorFlow's": lambda: command("convert net out.safetensors"),
    "renamed to torch's names, but the layouts are still TensorFlow's": lambda: command(
        "convert net out.safetensors --rename kernel weight"
    ),
    "does not name a module factory": lambda: command("map net --module Net"),
    "moving averages of": lambda: load_other(kernel("fc") | AVERAGES, net()),
    "but no moving average is stored for": lambda: load_model(net(), "net", ema="only"),
    "Missing optimizer state of:": lambda: load_slots("Momentum", net()),
    "ignored as optimizer state:": lambda: print(load_other(kernel("fc") | {"fc/kernel/x": torch.ones(3, 2)}, net())),
    "none of the parameters of optimizer": lambda: load_model(
        net(), "net", optimizer=torch.optim.Adam(net().parameters())
    ),
    "replaces the parameters, but the optimizer keeps the old ones": lambda: assign_with_optimizer(net()),
    "doesn't match with shape of tensor": lambda: init_from_checkpoint(net(4), "net", {"fc/kernel": "fc.weight"}),
    "is not found in": lambda: init_from_checkpoint(net(), "net", {"fx/kernel": "fc.weight"}),
    "no variable is in scope": lambda: init_from_checkpoint(net(), "net", {"fc/": "fx/"}),
}


def test_every_heading_is_provoked() -> None:
    """CALLS has exactly the headings of the page."""
    assert list(CALLS) == HEADINGS


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_the_message_is_printed(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error, a warning, a report or the output of a command contains the words of the heading."""
    heading, call = list(CALLS.items())[number]
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODULES)
    save_file(kernel("fc"), "net")
    save_file(kernel("fc", 4, 2), "larger")
    raised = ""
    with caplog.at_level(logging.WARNING, "torch_tfckpt"):
        try:
            call()
        except CheckpointError as error:
            raised = str(error)
    printed = capsys.readouterr()
    assert heading in "\n".join([raised, caplog.text, printed.out, printed.err])
