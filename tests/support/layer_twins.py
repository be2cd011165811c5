"""Torch modules with one layer "x" that compute the same as a layer of TensorFlow, and comparisons of the two."""

from pathlib import Path

import numpy as np
import torch
from tensorflow_process import RawTensor
from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader

Answer = dict[str, RawTensor]


def tensor(raw: RawTensor) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(raw.data, raw.dtype).reshape(raw.shape).copy())


class Mapped(nn.Module):
    """A layer "x" of feature maps, with channels last outside."""

    def __init__(self, x: nn.Module) -> None:
        super().__init__()
        self.x = x

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.x(input.movedim(-1, 1))
        return output.movedim(1, -1)


class Plain(nn.Module):
    """A layer "x" of vectors, or of sequences."""

    def __init__(self, x: nn.Module) -> None:
        super().__init__()
        self.x = x

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = self.x(input)
        first: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return first


class Flat(Plain):
    """A Linear "x" of a whole feature map in torch's order."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.movedim(-1, 1).flatten(1))[:, None, None]


class Unrolled(Plain):
    """A cell "x" that is run for each step."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        outputs, state = [], None
        for step in range(input.shape[1]):
            state = self.x(input[:, step], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


def assert_same_output(model: nn.Module, answer: Answer) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tensor(answer["in"])), tensor(answer["out"]), rtol=1e-5, atol=1e-5)


def randomized(model: nn.Module) -> nn.Module:
    """Fill all tensors with random values, so that one that is not loaded is noticed."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(2, 3)
    return model


def stored_bytes(path: Path) -> list[bytes]:
    """The bytes of all tensors of a checkpoint, sorted."""
    with CheckpointReader(path) as reader:
        keys = [key for key in reader.keys() if reader.dtype(key).short_name != "string"]
        return sorted(RawTensor.of(reader.get_tensor(key)).data for key in keys)


def variables(answer: Answer) -> list[bytes]:
    return sorted(raw.data for name, raw in answer.items() if name.startswith("x/"))
