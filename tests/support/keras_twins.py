"""Torch modules that compute what the models of tensorflow_keras_twins.py compute.

Layers have the names that they have in Keras, if one module is one layer. `Renamed` has the same layers under others.
"""

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

Tensor = torch.Tensor


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return result


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding="same")
        self.bn0, self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(4, eps=2e-3) for _ in range(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.movedim(-1, 1))
        for norm in (self.bn0, self.bn1, self.bn2, self.bn3):
            x = norm(x).relu()
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Separable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(2, 4, 3, groups=2)
        self.separable_depth = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.separable = nn.Conv2d(4, 5, 1)
        self.up = nn.ConvTranspose2d(5, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.separable(self.separable_depth(self.depth(x.movedim(-1, 1))))
        result: Tensor = self.up(x).movedim(1, -1)
        return result


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.volume, self.head = nn.Conv1d(2, 3, 3), nn.Conv3d(1, 3, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.line(x.movedim(-1, 1)).mean(2), self.volume(y.movedim(-1, 1)).amax((2, 3, 4))
        result: Tensor = self.head(torch.cat([x, y], 1))
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 4, batch_first=True)
        self.both = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
        self.gates = nn.GRU(6, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.plain = nn.RNN(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.memory, self.both, self.gates, self.gru, self.plain):
            x = layer(x)[0]
        return x[:, -1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.mix = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x.long())
        result: Tensor = self.mix(self.norm(x + self.attend(x, x, x)[0]))
        return result


class _Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(5, 4)


class _Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.again = nn.Linear(4, 3), nn.Linear(3, 3)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.tower = _Body(), _Tower()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.dense(x).tanh()
        result: Tensor = self.tower.again(self.tower.dense(x).relu())
        return result


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.grow, self.norm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(functional.silu(self.grow(x)))
        return result


class Subclassed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, eps=1e-3)
        self.block1, self.block2, self.head = _Block(4, 5), _Block(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x.movedim(-1, 1))).movedim(1, -1)
        result: Tensor = self.head(self.block2(self.block1(x)))
        return result


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(4, 5), _Block(5, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class NamedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(6, 4), nn.BatchNorm1d(4, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn(self.fc(x))
        return result


class Distributed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.times, self.norms = nn.Conv1d(2, 3, 2), nn.LayerNorm(3, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norms(torch.stack([self.times(each.movedim(-1, 1)).movedim(1, -1) for each in x]))
        return result


class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.GroupNorm(3, 6, eps=1e-3), nn.LeakyReLU(0.3)
        self.mix, self.shift = nn.Conv2d(6, 4, 1), nn.GroupNorm(2, 4, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.shift(self.mix(self.act(self.norm(x.movedim(-1, 1))))).movedim(1, -1)
        return result


class Slopes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.slope = nn.Conv2d(3, 4, 2), nn.PReLU(4)
        self.head, self.last = nn.Linear(4, 6), nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.conv(x.movedim(-1, 1))).amax((2, 3))
        result: Tensor = self.last(self.head(x))
        return result


class Flattened(nn.Module):
    """Flattens the map in Keras's order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 4, 2), nn.MaxPool2d(2)
        self.hidden, self.head = nn.Linear(60, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x.movedim(-1, 1)).relu()).permute(0, 2, 3, 1).flatten(1)
        result: Tensor = self.head(functional.elu(self.hidden(x)))
        return result


class FlattenedInTorchsOrder(Flattened):
    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x.movedim(-1, 1)).relu()).flatten(1)
        result: Tensor = self.head(functional.elu(self.hidden(x)))
        return result


class Untraceable(FlattenedInTorchsOrder):
    """Uses a value, so that no symbolic run shows the flattening; the convolution is registered last."""

    def __init__(self) -> None:
        super().__init__()
        self._modules["conv"] = self._modules.pop("conv")

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) == float("inf"):
            raise ValueError(x)
        return super().forward(x)


class Renamed(nn.Module):
    """The layers of a twin under other names."""

    def __init__(self, twin: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        assert dict(twin.named_children()).keys() == names.keys()
        for name, child in twin.named_children():
            self.add_module(names[name], child)
        self._names, self._forward = names, type(twin).forward

    def forward(self, x: Tensor) -> Tensor:
        parts = SimpleNamespace(**{old: getattr(self, new) for old, new in self._names.items()})
        result: Tensor = self._forward(parts, x)
        return result
