"""A state whose every bit is determined by one number, saved as if it were on several devices.

The contents of a checkpoint are known from the number in it, so any process that finds one can check whether it is
complete: no two numbers share a value.
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

# Name -> device it is saved from, and number of elements. Weights, and the optimizer state of one, on two devices.
SMALL: Final = {
    "layer0/kernel": ("cpu:0", 48),
    "layer0/kernel/Momentum": ("cpu:0", 48),
    "layer1/bias": ("cpu:1", 5),
    "layer1/kernel": ("cpu:1", 33),
    "layer2/empty": ("cpu:1", 0),
    "layer2/kernel": ("cpu:1", 64),
}
STEP: Final = "step"
ONE_THREAD: Final = StagingOptions(threads=1)  # so that the order of operations is nearly deterministic


class Tagged(VariableSaveable):
    """A tensor in host memory that is saved as if it were on `device`."""

    def __init__(self, tensor: torch.Tensor, name: str, device: str) -> None:
        super().__init__(tensor, "", name)
        self.specs = [SaveSpec(tensor, "", name, device=device)]


def value(number: int, position: int, elements: int) -> torch.Tensor:
    """The tensor at `position` in checkpoint `number`."""
    # Exact in float32 up to 2**24.
    return (torch.arange(elements) % 1009 + position * 1013 + number * 16 % 15_000_000).to(torch.float32)


class State:
    """The tensors; those of number 0 until `fill` is called.

    Args:
        sizes: Name -> device and number of elements.
    """

    def __init__(self, sizes: Mapping[str, tuple[str, int]] = SMALL) -> None:
        self._sizes = sizes
        self.tensors = {name: torch.zeros(elements) for name, (_, elements) in sizes.items()}
        self.tensors[STEP] = torch.zeros((), dtype=torch.int64)
        self.fill(0)

    def fill(self, number: int) -> None:
        """Change every tensor in place."""
        for name, tensor in self.expected(number).items():
            self.tensors[name].copy_(tensor)

    def expected(self, number: int) -> dict[str, torch.Tensor]:
        """The contents of the checkpoint with that number."""
        values = {
            name: value(number, position, elements)
            for position, (name, (_, elements)) in enumerate(self._sizes.items())
        }
        return {**values, STEP: torch.tensor(number)}

    def saver(self, **options: Any) -> Saver:
        tagged = {name: Tagged(self.tensors[name], name, device) for name, (device, _) in self._sizes.items()}
        return Saver({**tagged, STEP: self.tensors[STEP]}, **{"staging": ONE_THREAD, **options})


def number_in(path: Path | str, sizes: Mapping[str, tuple[str, int]] = SMALL) -> int:
    """Return the number of a checkpoint; fail unless every bit of it matches the number."""
    values = tfckpt.load_file(path)
    step = values[STEP]
    assert isinstance(step, torch.Tensor)
    number = int(step)
    expected = State(sizes).expected(number)
    # Empty values are compared by shape; their strides may prevent a view as bytes.
    empty = {name for name, tensor in expected.items() if not tensor.numel()}
    assert all(values[name].shape == expected[name].shape for name in empty)
    assert_right(*({name: v for name, v in named.items() if name not in empty} for named in (values, expected)))
    return number


def latest_number(folder: Path, sizes: Mapping[str, tuple[str, int]] = SMALL) -> int:
    """Return the number of the checkpoint that the state file names, after checking every bit of it."""
    path = tfckpt.latest_checkpoint(folder)
    assert path is not None, f"no checkpoint in {sorted(file.name for file in folder.iterdir())}"
    return number_in(path, sizes)


def assert_sound(folder: Path, sizes: Mapping[str, tuple[str, int]] = SMALL) -> int:
    """Assert that the state file parses and all its checkpoints restore bit for bit. Return the newest number."""
    state = read_state(LOCAL, str(folder / "checkpoint"))
    for name in state.all_model_checkpoint_paths:
        number_in(folder / name, sizes)
    return latest_number(folder, sizes)


def assert_nothing_stray(folder: Path, sizes: Mapping[str, tuple[str, int]] = SMALL) -> None:
    """Assert that every file belongs to a checkpoint that restores bit for bit."""
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
