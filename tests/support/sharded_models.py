"""Functions that ranks run: load TensorFlow's checkpoints into modules that are spread over them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_processes import Rank
from sharded_state import alone, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torch_tfckpt as tfckpt
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.object_graph import ROOT
from torch_tfckpt.objects.restoration import Restoration
from torch_tfckpt.objects.trackables.registry import trackable_of

HEADS, HEAD, HIDDEN, INNER, WORDS = 4, 64, 256, 512, 90


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.num_heads = HEADS


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)


class Bert(nn.Module):
    """An encoder whose attributes are named as TensorFlow's scopes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, HIDDEN)
        self.layer_0, self.layer_1 = Block(), Block()
        self.pooler = nn.Linear(HIDDEN, HIDDEN)


class Cnn(nn.Module):
    """The torch counterpart of tensorflow_models.Twin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, (2, 3))
        self.bn = nn.BatchNorm2d(5, eps=0.001)
        self.emb = nn.Embedding(11, 4)
        self.fc = nn.Linear(9, 7)


class Flattened(nn.Module):
    """A Linear after a flattened map, a depthwise convolution, and an LSTM: layouts that do more than move axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 8, 3, groups=4, padding=1)
        self.fc = nn.Linear(8 * 2 * 3, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.conv(x))))
        out: torch.Tensor = self.lstm(self.fc(x.flatten(1))[:, None])[0]
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {"bert": Bert, "cnn": Cnn, "flattened": Flattened}
FLATTENED_RULES = {"fc/kernel": ("fc.weight", {"kind": "dense_after_flatten", "height": 2, "width": 3})}


def spread_model(name: str, kind: str, world_size: int) -> Any:
    """A model on the ranks: "fsdp", or "tp and fsdp" on a mesh of 2 x world_size / 2."""
    model = MODELS[name]()
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (world_size,))
        for part in (getattr(model, "layer_0", None), getattr(model, "layer_1", None)):
            if part is not None:
                fully_shard(part, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    mesh = init_device_mesh("cpu", (world_size // 2, 2), mesh_dim_names=("outer", "inner"))
    plan: Any = {"fc": ColwiseParallel()}
    if name == "bert":
        plan = {
            "words": RowwiseParallel(),
            **{f"*.attention.{each}": ColwiseParallel() for each in ("query", "key", "value")},
            **{"*.attention.output": RowwiseParallel(), "*.up": ColwiseParallel(), "*.down": RowwiseParallel()},
        }
    parallelize_module(model, mesh["inner"], plan)
    return fully_shard(model, mesh=mesh["outer"])


def load_spread(
    rank: Rank, path: str, name: str, kind: str, *, assign: bool = False, on_meta: bool = False, **options: Any
) -> dict[str, Any]:
    """Load a model alone on each rank; compare with a model that is whole.

    Returns:
        "bytes": what this rank has of the parameters; "read": what it read from files; the report's texts.
    """
    expected = MODELS[name]()
    torch.manual_seed(rank.rank)
    report = tfckpt.load_model(expected, path, **options)
    with torch.device("meta" if on_meta else "cpu"):
        model = spread_model(name, kind, rank.world_size)
    if on_meta and not assign:
        model.to_empty(device="cpu")
    found: dict[str, Any] = {}

    def load() -> None:
        before = _bytes_read()
        found["report"] = str(tfckpt.load_model(model, path, assign=assign, verify=False, **options))
        found["read"] = _bytes_read() - before

    alone(rank, load)
    with torch.no_grad():
        for key, value in expected.state_dict().items():
            if on_meta and not assign and key.endswith("num_batches_tracked"):
                continue  # not loaded, and to_empty gives it any value
            assert torch.equal(whole(model.state_dict()[key]), value), key
    parameters = list(model.parameters())
    assert all(isinstance(each, DTensor) for each in parameters)
    assert found["report"] == str(report)
    found["bytes"] = sum(each.to_local().nbytes for each in parameters if isinstance(each, DTensor))
    if name == "flattened" and kind == "fsdp":
        image = torch.rand(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model(image), expected(image))
    return found


def load_spread_optimizer(rank: Rank, path: str, kind: str) -> list[str]:
    """Keras's Adam into AdamW over spread parameters, as over whole ones."""
    expected = Cnn()
    wanted = torch.optim.Adam(expected.parameters())
    tfckpt.load_model(expected, path, optimizer=wanted)
    model = spread_model("cnn", kind, rank.world_size)
    made = torch.optim.Adam(model.parameters())
    alone(rank, lambda: tfckpt.load_model(model, path, optimizer=made))
    slots = []
    for (name, parameter), own in zip(model.named_parameters(), expected.parameters(), strict=True):
        state = made.state[parameter]
        assert state.keys() == wanted.state[own].keys()
        for slot, value in wanted.state[own].items():
            assert isinstance(state[slot], DTensor) == (value.shape == own.shape)
            assert torch.equal(whole(state[slot]), value), (name, slot)
            slots.append(f"{name} {slot}")
    return slots


def restore_objects(rank: Rank, path: str, kind: str) -> None:
    """An object-based checkpoint of one process, with the slots and the rest of Adam's state."""
    expected: Any = Cnn()
    wanted = torch.optim.Adam(expected.parameters())
    expected.fc(torch.ones(1, 9)).sum().backward()
    wanted.step()
    if not rank.rank:
        tfckpt.Checkpoint(model=expected, optimizer=wanted).write(path)
    for parameter in expected.state_dict().values():
        dist.broadcast(parameter, 0)
    dist.barrier()
    model = spread_model("cnn", kind, rank.world_size)
    made = torch.optim.Adam(model.parameters())

    def restore() -> None:
        with CheckpointReader(path) as reader:
            graph = reader.object_graph
            assert graph is not None
            restoration = Restoration(reader.storage, path, graph, skip_slot_variables=False, sharded=True)
            root = trackable_of(tfckpt.Checkpoint(model=model, optimizer=made), "root")
            restoration.restore(root, ROOT, reader)

    alone(rank, restore)
    for (name, parameter), own in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(whole(parameter), own), name
        state = wanted.state[own]
        assert made.state[parameter].keys() == state.keys()
        for slot, value in state.items():
            assert isinstance(made.state[parameter][slot], DTensor) == (value.shape == own.shape)
            assert torch.equal(whole(made.state[parameter][slot]), value), (name, slot)


def load_with_load_hook(rank: Rank, path: str) -> None:
    """A module with a hook of its own is loaded by load_state_dict."""
    expected = Cnn()
    tfckpt.load_model(expected, path)
    model: Any = Cnn()
    seen: list[str] = []
    model.fc.register_load_state_dict_post_hook(lambda module, keys: seen.append(type(module).__name__))
    fully_shard(model, mesh=init_device_mesh("cpu", (rank.world_size,)))
    alone(rank, lambda: tfckpt.load_model(model, path))
    assert seen == ["Linear"]
    for key, value in expected.state_dict().items():
        assert torch.equal(whole(model.state_dict()[key]), value), key


def _bytes_read() -> int:
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])
