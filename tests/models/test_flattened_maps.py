"""flattened_inputs: what it says of the order of a Linear's inputs is measured by changing one channel at a time."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from torch_tfckpt.models.findings.flattened_maps import FlattenedInput, flattened_inputs

Forward = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A convolution with three channels, and a Linear; between them whatever a test needs."""

    def __init__(self, between: Forward, width: int = 3 * 2 * 4, **parts: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.parts = nn.ModuleDict(parts)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.fc = nn.Linear(width, 5)
        self.head = nn.Linear(5, 9)  # 9 inputs would be 3 for each channel
        self.between = between
        self.calls = 0

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, *, pooled: bool = False) -> torch.Tensor:
        self.calls += 1
        x = self.conv(x)
        if mask is not None:
            x = x * mask
        if pooled:
            x = x.mean()
        output: torch.Tensor = self.head(functional.relu(self.fc(self.between(self, x))))
        return output


def is_channels_first(net: Net) -> bool:
    """Whether the inputs of `fc` are blocks of several, one block for each channel: measured."""
    seen: list[torch.Tensor] = []
    hook = net.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    image = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    bias = net.conv.bias
    assert bias is not None
    with torch.no_grad():
        net(image)
        for channel in range(3):
            before = bias[channel].clone()
            bias[channel] += 10
            net(image)
            bias[channel] = before
    hook.remove()
    width = net.fc.in_features
    blocks = [(each != seen[0])[0].nonzero().flatten().tolist() for each in seen[1:]]
    return width > 3 and blocks == [list(range(width * n // 3, width * (n + 1) // 3)) for n in range(3)]


def with_loop(_: Net, x: torch.Tensor) -> torch.Tensor:
    count = 1
    for size in x.size()[1:]:
        count *= size
    return x.view(-1, count)


def with_condition(_: Net, x: torch.Tensor) -> torch.Tensor:
    return (x + 1 if x.sum() > 1e9 else x).flatten(1)


class Opaque(nn.Module):
    """A part that depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 1e9 else x


CERTAIN: dict[str, Callable[[], Net]] = {
    "torch.flatten": lambda: Net(lambda _, x: torch.flatten(x, 1)),
    "flatten": lambda: Net(lambda _, x: x.flatten(start_dim=1)),
    "view": lambda: Net(lambda _, x: x.view(x.size(0), -1)),
    "view, sizes": lambda: Net(lambda _, x: x.view(-1, 24)),
    "reshape": lambda: Net(lambda _, x: x.reshape((x.shape[0], -1))),
    "nn.Flatten": lambda: Net(lambda n, x: n.parts["f"](x), f=nn.Flatten()),
    "Sequential": lambda: Net(
        lambda n, x: n.parts["f"](x),
        f=nn.Sequential(nn.BatchNorm2d(3), nn.PReLU(3), nn.Dropout(), nn.MaxPool2d(1), nn.Identity(), nn.Flatten()),
    ),
    "functions": lambda: Net(
        lambda n, x: functional.dropout(functional.max_pool2d(functional.leaky_relu(x * n.scale), 1), 0.0).flatten(1)
    ),
    "residual": lambda: Net(lambda n, x: (x + n.parts["c"](x)).flatten(1), c=nn.Conv2d(3, 3, 1, groups=3)),
    "partly pooled": lambda: Net(lambda _, x: x.mean(3).flatten(1), 6),
    "pooled to 2 x 2": lambda: Net(lambda _, x: functional.adaptive_avg_pool2d(x, 2).flatten(1), 12),
    "positions joined first": lambda: Net(lambda _, x: x.flatten(2).flatten(1)),
}
POSSIBLE: dict[str, Callable[[], Net]] = {
    "loop over sizes": lambda: Net(with_loop),
    "condition": lambda: Net(with_condition),
    "part with a condition": lambda: Net(lambda n, x: n.parts["o"](x).flatten(1), o=Opaque()),
    "unknown function": lambda: Net(lambda _, x: torch.cumsum(x, 3).flatten(1)),
}
NONE: dict[str, Callable[[], Net]] = {
    "channels last": lambda: Net(lambda _, x: x.permute(0, 2, 3, 1).flatten(1)),
    "channels last, twice": lambda: Net(lambda _, x: x.transpose(1, 2).transpose(2, 3).reshape(1, -1)),
    "global pool": lambda: Net(lambda _, x: functional.adaptive_avg_pool2d(x, (1, 1)).flatten(1), 3),
    "global pool module": lambda: Net(lambda n, x: n.parts["p"](x).flatten(1), 3, p=nn.AdaptiveMaxPool2d(1)),
    "mean": lambda: Net(lambda _, x: x.mean((2, 3)), 3),
    "pool of the whole map": lambda: Net(lambda _, x: functional.avg_pool2d(x, (2, 4)).flatten(1), 3),
    "sum over channels": lambda: Net(lambda _, x: x.sum(1).flatten(1), 8),
}  # fmt: skip


@pytest.mark.parametrize("name", CERTAIN)
def test_certain(name: str) -> None:
    """The order is that of channels, and the finding names the layer and their number."""
    net = CERTAIN[name]().eval()
    assert is_channels_first(net)
    net.calls = 0
    assert flattened_inputs(net) == [FlattenedInput(net.fc, 3, is_certain=True)] and net.calls == 0


@pytest.mark.parametrize("name", POSSIBLE)
def test_possible(name: str) -> None:
    """The order is that of channels, and that is not claimed to be certain."""
    net = POSSIBLE[name]().eval()
    if name != "unknown function":
        assert is_channels_first(net)
    (finding,) = flattened_inputs(net)
    assert finding.linear is net.fc and not finding.is_certain


@pytest.mark.parametrize("name", NONE)
def test_none(name: str) -> None:
    """The order is another one, or there is one value for each channel."""
    net = NONE[name]().eval()
    assert not is_channels_first(net) and flattened_inputs(net) == []


def test_branches_are_added_up() -> None:
    """Maps joined by their channels are one map with all channels."""
    conv = nn.Conv2d(3, 5, 1)
    net = Net(lambda n, x: torch.cat([x, n.parts["c"](x)], 1).flatten(1), 8 * 8, c=conv)
    assert flattened_inputs(net) == [FlattenedInput(net.fc, 8, is_certain=True)]
    pooled = Net(
        lambda n, x: functional.adaptive_avg_pool2d(torch.cat([x, n.parts["c"](x)], 1), 1).flatten(1), 8, c=conv
    )
    assert flattened_inputs(pooled) == []
    flat = Net(lambda n, x: torch.cat([x.flatten(1), n.parts["c"](x).mean((2, 3))], 1), 24 + 5, c=conv)
    assert flattened_inputs(flat) == [FlattenedInput(flat.fc, None, is_certain=False)]


class Unrunnable(nn.Module):
    """A model whose own forward method cannot be run, but whose parts can."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) if x.sum() > 0 else x


def test_parts_of_a_model_that_cannot_be_run() -> None:
    """What one part shows is certain; across parts the order of registration counts, until a pool of the whole map."""
    conv, fc, last = nn.Conv2d(2, 3, 3), nn.Linear(24, 6), nn.Linear(6, 2)
    whole = nn.Sequential(conv, nn.Flatten(), fc, last)
    assert flattened_inputs(Unrunnable(whole, nn.Identity())) == [FlattenedInput(fc, 3, is_certain=True)]
    split = Unrunnable(nn.Sequential(conv, nn.ReLU()), nn.Sequential(nn.Flatten(), fc, last))
    assert flattened_inputs(split) == [FlattenedInput(fc, 3, is_certain=False)]
    pooled = Unrunnable(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1)), nn.Sequential(nn.Flatten(), fc, last))
    assert flattened_inputs(pooled) == []
    assert flattened_inputs(Unrunnable(nn.Sequential(conv), nn.Linear(3, 2))) == []


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions(dimensions: int) -> None:
    """Sequences and volumes."""
    conv: Any = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions](2, 3, 1)
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(3 * 2**dimensions, 2))
    assert flattened_inputs(net) == [FlattenedInput(net[2], 3, is_certain=True)]  # type: ignore[arg-type]


def test_lazy_layers() -> None:
    """A lazy Linear may have several inputs for each channel."""
    net = nn.Sequential(nn.LazyConv2d(3, 3), nn.Flatten(), nn.LazyLinear(2))
    (finding,) = flattened_inputs(net)
    assert finding.linear is net[2] and not finding.is_certain


class Uncopyable(nn.Module):
    """A layer with a lock, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_module_that_cannot_be_copied() -> None:
    """The order of registration is what is left."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), Uncopyable(), nn.Flatten(), nn.Linear(24, 2))
    assert flattened_inputs(net) == [FlattenedInput(net[3], 3, is_certain=False)]  # type: ignore[arg-type]


def test_tied_layers_are_found_once() -> None:
    """A Linear that is used for a map and for something else is found."""
    fc = nn.Linear(24, 24)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), fc, nn.ReLU(), fc)
    assert flattened_inputs(net) == [FlattenedInput(fc, 3, is_certain=True)]


def test_no_class_is_patched() -> None:
    """While the forward method is run, modules of other threads can be called."""
    seen: list[object] = []

    def between(_: Net, x: torch.Tensor) -> torch.Tensor:
        seen.append((nn.Module.__call__, nn.Module.__getattr__, nn.Conv2d.forward))
        return x.flatten(1)

    before = (nn.Module.__call__, nn.Module.__getattr__, nn.Conv2d.forward)
    flattened_inputs(Net(between))
    assert seen == [before]


def test_memory_is_not_taken() -> None:
    """A layer of 4 TiB on the meta device is looked at like any other."""
    net = nn.Sequential(nn.Conv2d(2, 2**10, 3), nn.Flatten(), nn.Linear(2**20, 2**20, device="meta"))
    assert [finding.is_certain for finding in flattened_inputs(net)] == [True]
