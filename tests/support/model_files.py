"""Hand-made checkpoints of models as TensorFlow writes them: by names, and by objects."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.format.object_graph import (
    OBJECT_GRAPH_KEY,
    VARIABLE_VALUE,
    ObjectGraph,
    ObjectReference,
    SerializedTensor,
    SlotVariable,
    TrackableObject,
    checkpoint_key,
    object_path,
    slot_variable_path,
)
from torch_tfckpt.values import WritableValue


def numbered(*shape: int, start: float = 0.0) -> torch.Tensor:
    """A tensor whose elements are all different."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32) + start).reshape(shape)


class Small(nn.Module):
    """A Conv2d, a BatchNorm2d, an Embedding and a Linear, without square kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (5, 7))
        self.bn = nn.BatchNorm2d(3)
        self.emb = nn.Embedding(4, 6)
        self.fc = nn.Linear(3, 8)


def small_in_tensorflow() -> dict[str, torch.Tensor]:
    """The values of `Small` in TensorFlow's layout, by name."""
    return {
        "conv/kernel": numbered(5, 7, 2, 3), "conv/bias": numbered(3, start=1), "bn/gamma": numbered(3, start=2),
        "bn/beta": numbered(3, start=3), "bn/moving_mean": numbered(3, start=4),
        "bn/moving_variance": numbered(3, start=5), "emb/embeddings": numbered(4, 6, start=6),
        "fc/kernel": numbered(3, 8, start=7), "fc/bias": numbered(8, start=8),
    }  # fmt: skip


def assert_is_small(model: Small, stored: Mapping[str, torch.Tensor]) -> None:
    """Assert that the module has the values of `small_in_tensorflow`, transposed to torch's axes."""
    assert torch.equal(model.conv.weight, stored["conv/kernel"].permute(3, 2, 0, 1))
    assert torch.equal(model.fc.weight, stored["fc/kernel"].t())
    same = {
        "conv.bias": "conv/bias", "bn.weight": "bn/gamma", "bn.bias": "bn/beta", "bn.running_mean": "bn/moving_mean",
        "bn.running_var": "bn/moving_variance", "emb.weight": "emb/embeddings", "fc.bias": "fc/bias",
    }  # fmt: skip
    state = model.state_dict()
    for name, key in same.items():
        assert torch.equal(state[name], stored[key]), name


def bits(model: nn.Module) -> dict[str, bytes]:
    """Name -> dtype, shape and bytes of everything in the state_dict."""
    return {
        name: f"{value.dtype} {tuple(value.shape)} ".encode() + value.detach().contiguous().view(-1).numpy().tobytes()
        for name, value in model.state_dict().items()
    }


def save_objects(
    prefix: Path,
    variables: Mapping[str, torch.Tensor],
    *,
    slots: Mapping[tuple[str, str, str], torch.Tensor] | None = None,
    full_names: Mapping[str, str] | None = None,
) -> Path:
    """Write an object-based checkpoint.

    Args:
        variables: Object path, e.g. "model/fc/kernel" -> value.
        slots: (path of the optimizer, path of the variable, slot name) -> value.
        full_names: Path -> full_name; default: the path.
    """
    ids: dict[tuple[str, ...], int] = {(): 0}
    for path in variables:
        route = tuple(path.split("/"))
        for end in range(1, len(route) + 1):
            ids.setdefault(route[:end], len(ids))
    children: dict[int, list[ObjectReference]] = {}
    for route, node_id in ids.items():
        if route:
            children.setdefault(ids[route[:-1]], []).append(ObjectReference(node_id, route[-1]))
    values: dict[str, WritableValue] = {}
    nodes = []
    for route, node_id in ids.items():
        path = "/".join(route)
        attributes: tuple[SerializedTensor, ...] = ()
        if path in variables:
            key = checkpoint_key(object_path(route), VARIABLE_VALUE)
            values[key] = variables[path]
            attributes = (SerializedTensor(VARIABLE_VALUE, (full_names or {}).get(path, path), key),)
        nodes.append(TrackableObject(tuple(children.get(node_id, ())), attributes))
    for (optimizer, variable, name), value in (slots or {}).items():
        key = checkpoint_key(slot_variable_path(variable, optimizer, name), VARIABLE_VALUE)
        values[key] = value
        owner = ids[tuple(optimizer.split("/"))]
        slot = SlotVariable(ids[tuple(variable.split("/"))], name, len(nodes))
        nodes[owner] = TrackableObject(
            nodes[owner].children, nodes[owner].attributes, (*nodes[owner].slot_variables, slot)
        )
        nodes.append(TrackableObject((), (SerializedTensor(VARIABLE_VALUE, f"{variable}/{name}", key),)))
    values[OBJECT_GRAPH_KEY] = ObjectGraph(tuple(nodes)).encode()
    tfckpt.save_file(values, prefix)
    return prefix
