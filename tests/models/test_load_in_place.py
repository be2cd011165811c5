"""load_model reads large tensors that are stored as they are straight into the module, after verifying them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from storages import Counting, FailingStorage
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.tensor_bundle import data_filename
from torch_tfckpt.storage.local import LOCAL


class Hooked(nn.Linear):
    """A module that is loaded by its own load_state_dict."""

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        return super().load_state_dict(*arguments, **keywords)


class Net(nn.Module):
    """Large tensors in their stored layout, a transposed one, one of another dtype, small ones, and a hooked module."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(256, 512)
        self.two = nn.Linear(512, 256)
        self.turned = nn.Linear(256, 384)
        self.narrow = nn.Linear(256, 512).half()
        self.hooked = Hooked(3, 2)


@pytest.fixture
def path(tmp_path: Path) -> str:
    torch.manual_seed(1)
    stored = {name: value.float() for name, value in Net().state_dict().items()}
    stored["turned.kernel"] = stored.pop("turned.weight").T.contiguous()
    return str(tfckpt.save_file(stored, tmp_path / "m"))


def values(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_values_are_the_stored_ones(path: str) -> None:
    """Whichever way each tensor is read, its values are those of the file, in the memory of the module."""
    stored = tfckpt.load_file(path)
    stored["turned.weight"] = stored.pop("turned.kernel").T
    net = Net()
    pointers = {name: value.data_ptr() for name, value in net.state_dict().items()}
    tfckpt.load_model(net, path)
    for name, value in net.state_dict().items():
        assert torch.equal(value, stored[name].to(value.dtype)), name
        assert value.data_ptr() == pointers[name]


@pytest.mark.parametrize("place", [0.05, 0.3, 0.5, 0.8, 0.95])
def test_damage_changes_nothing(path: str, place: float) -> None:
    data = Path(data_filename(path, 0, 1))
    stored = bytearray(data.read_bytes())
    stored[int(len(stored) * place)] ^= 1
    data.write_bytes(stored)
    net = Net()
    before = values(net)
    with pytest.raises(DataLossError, match="Checksum does not match"):
        tfckpt.load_model(net, path)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_second_read_fails(path: str) -> None:
    """A note lists the tensors that may have changed; all others, hooked modules among them, are unchanged."""
    counting = Counting(LOCAL)
    tfckpt.load_model(Net(), path, storage=counting)
    last = max(number for number, what in enumerate(counting.log) if what.startswith("read m.data"))
    net = Net()
    before = values(net)
    with pytest.raises(OSError, match="No space") as raised:
        tfckpt.load_model(net, path, storage=FailingStorage(LOCAL, last))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {"one.weight", "two.weight"}
    [note] = [note for note in raised.value.__notes__ if "straight into their tensors" in note]
    assert all(f'"{name}"' in note for name in changed)
