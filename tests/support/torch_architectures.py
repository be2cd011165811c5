"""Build the models of `architectures` with torch."""

from typing import Any

import torch
from architectures import Architecture, Node
from torch import nn


class Built(nn.Module):
    """The model of an architecture, with the names and the order of registration that it gives."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        layers = list(architecture.root.layers())
        self._architecture = architecture
        self._layers: dict[int, nn.Module] = {}
        for at in architecture.registered:
            node = layers[at]
            layer = _layer(node)
            object.__getattribute__(self, "_layers")[id(node)] = layer
            where: nn.Module = self
            for part, following in zip(node.module[:-1], node.module[1:], strict=True):
                if part not in where._modules:
                    where.add_module(part, nn.Sequential() if following.isdigit() else nn.Module())
                where = where._modules[part]  # type: ignore[assignment]
            assert node.module[-1] not in where._modules
            where.add_module(node.module[-1], layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *body, head = self._architecture.root.items
        if self._architecture.domain == "image":
            x = x.permute(0, 3, 1, 2)
        for item in body:
            x = self._call(item, x)
        if self._architecture.domain != "vector":
            x = x.mean((2, 3)) if self._architecture.domain == "image" else x.mean(1)
        return self._call(head, x)

    def _call(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        if node.kind == "parallel":
            one, two = (self._call(item, x) for item in node.items)
            return one + 0.5 * two
        if node.kind == "residual":
            rest = node.items[1:] if node.has_shortcut else node.items
            added = self._call(node.items[0], x) if node.has_shortcut else x
            for item in rest:
                x = self._call(item, x)
            return x + added
        if node.items:
            for item in node.items:
                x = self._call(item, x)
            return x
        layer: Any = self._layers[id(node)]
        if node.kind == "attention":
            x, _ = layer(x, x, x)
            return x
        if node.kind in ("lstm", "bilstm", "gru"):
            x, _ = layer(x)
            return x
        x = layer(x)
        return x.tanh() if node.kind in ("dense", "conv", "depthwise") else x


def _layer(node: Node) -> nn.Module:
    sizes = node.sizes
    match node.kind:
        case "dense":
            return nn.Linear(sizes[0], sizes[1])
        case "conv":
            return nn.Conv2d(sizes[0], sizes[1], sizes[2], padding=sizes[2] // 2)
        case "depthwise":
            return nn.Conv2d(sizes[0], sizes[0], 3, padding=1, groups=sizes[0])
        case "batchnorm":
            return nn.BatchNorm2d(sizes[0], eps=1e-3)
        case "layernorm":
            return nn.LayerNorm(sizes[0], eps=1e-3)
        case "embedding":
            return nn.Embedding(sizes[0], sizes[1])
        case "lstm" | "bilstm":
            return nn.LSTM(sizes[0], sizes[1], batch_first=True, bidirectional=node.kind == "bilstm")
        case "gru":
            return nn.GRU(sizes[0], sizes[1], batch_first=True)
    return nn.MultiheadAttention(sizes[0], sizes[1], batch_first=True)
