"""A state whose every bit follows from one number, saved as if it lay on several devices.

What a checkpoint must hold is known from the number in it, so whoever finds one, in whatever process, can tell whether
it is whole: no two numbers share a value.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from claims import assert_right

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver
from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.directory.state_file import read_state
from torch_tfckpt.format.tensor_bundle import parse_data_filename
from torch_tfckpt.saveables.save_spec import SaveSpec
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.transfer.staging import StagingOptions

# Name -> device it is saved from, and elements. Weights, and what an optimizer keeps of one of them, on two devices.
SMALL: Final = {
    "layer0/kernel": ("cpu:0", 48),
    "layer0/kernel/Momentum": ("cpu:0", 48),
    "layer1/bias": ("cpu:1", 5),
    "layer1/kernel": ("cpu:1", 33),
    "layer2/empty": ("cpu:1", 0),
    "layer2/kernel": ("cpu:1", 64),
}
STEP: Final = "step"
ONE_THREAD: Final = StagingOptions(threads=1)  # operations then come in nearly the same order each time


class Tagged(VariableSaveable):
    """A tensor in host memory, saved as one of `device` would be."""

    def __init__(self, tensor: torch.Tensor, name: str, device: str) -> None:
        super().__init__(tensor, "", name)
        self.specs = [SaveSpec(tensor, "", name, device=device)]


def value(number: int, position: int, elements: int) -> torch.Tensor:
    """What the tensor at `position` holds in checkpoint `number`."""
    # Exact in float32 up to 2**24.
    return (torch.arange(elements) % 1009 + position * 1013 + number * 16 % 15_000_000).to(torch.float32)


class State:
    """The tensors, as number 0 has them until `fill`.

    Args:
        sizes: Name -> device and elements.
    """

    def __init__(self, sizes: Mapping[str, tuple[str, int]] = SMALL) -> None:
        self._sizes = sizes
        self.tensors = {name: torch.zeros(elements) for name, (_, elements) in sizes.items()}
        self.tensors[STEP] = torch.zeros((), dtype=torch.int64)
        self.fill(0)

    def fill(self, number: int) -> None:
        """Changes every tensor, in place."""
        for name, tensor in self.expected(number).items():
            self.tensors[name].copy_(tensor)

    def expected(self, number: int) -> dict[str, torch.Tensor]:
        """What a checkpoint of that number holds."""
        values = {
            name: value(number, position, elements)
            for position, (name, (_, elements)) in enumerate(self._sizes.items())
        }
        return {**values, STEP: torch.tensor(number)}

    def saver(self, **options: Any) -> Saver:
        tagged = {name: Tagged(self.tensors[name], name, device) for name, (device, _) in self._sizes.items()}
        return Saver({**tagged, STEP: self.tensors[STEP]}, **{"staging": ONE_THREAD, **options})


def number_in(path: Path | str, sizes: Mapping[str, tuple[str, int]] = SMALL) -> int:
    """The number of a checkpoint; fails unless every bit of it is that number's."""
    values = tfckpt.load_file(path)
    step = values[STEP]
    assert isinstance(step, torch.Tensor)
    number = int(step)
    expected = State(sizes).expected(number)
    # Values of no elements count by their shape; they may come with strides that cannot be viewed as bytes.
    empty = {name for name, tensor in expected.items() if not tensor.numel()}
    assert all(values[name].shape == expected[name].shape for name in empty)
    assert_right(*({name: v for name, v in named.items() if name not in empty} for named in (values, expected)))
    return number


def latest_number(folder: Path, sizes: Mapping[str, tuple[str, int]] = SMALL) -> int:
    """The number of the checkpoint that the state file names, and of which every bit is right."""
    path = tfckpt.latest_checkpoint(folder)
    assert path is not None, f"no checkpoint in {sorted(file.name for file in folder.iterdir())}"
    return number_in(path, sizes)


def assert_sound(folder: Path, sizes: Mapping[str, tuple[str, int]] = SMALL) -> int:
    """The state file parses; all it names restore bit for bit. Returns the number of the newest."""
    state = read_state(LOCAL, str(folder / "checkpoint"))
    for name in state.all_model_checkpoint_paths:
        number_in(folder / name, sizes)
    return latest_number(folder, sizes)


def assert_nothing_stray(folder: Path, sizes: Mapping[str, tuple[str, int]] = SMALL) -> None:
    """Every file belongs to a checkpoint that restores bit for bit."""
    for path in sorted(folder.iterdir()):
        assert "tempstate" not in path.name, f"{path.name} was left behind"
        assert not path.is_dir(), f"{path.name}: {sorted(path.iterdir())}"
        parsed = parse_data_filename(str(path))
        if path.name.endswith(".index"):
            number_in(str(path).removesuffix(".index"), sizes)
        elif parsed is not None:
            files = BundleFiles(LOCAL, parsed[0])
            assert files.header.num_shards == parsed[2], f"no index names {path.name}"
            files.close()
