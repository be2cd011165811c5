"""Functions that ranks run (see rank_processes.py) and tensors spread over them, made without communication."""

import os
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from rank_processes import Rank
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from torch_tfckpt.distributed.shards import like_dtensor, local_shard
from torch_tfckpt.errors import InvalidArgumentError

# name, tensor shape, mesh shape, placements: "R", or the dimension of a Shard. For 4 ranks.
LAYOUTS: list[tuple[str, tuple[int, ...], tuple[int, ...], list[Any]]] = [
    ("rows", (8, 3), (4,), [0]),
    ("columns", (3, 8), (4,), [1]),
    ("uneven rows", (7, 3), (4,), [0]),
    ("empty shards", (5, 2), (4,), [0]),
    ("one row", (1, 2), (4,), [0]),
    ("copies", (3, 2), (4,), ["R"]),
    ("scalar", (), (4,), ["R"]),
    ("no elements", (0, 3), (4,), [0]),
    ("no elements, other dimension", (5, 0), (4,), [0]),
    ("both", (6, 5), (2, 2), [0, 1]),
    ("both, turned", (6, 5), (2, 2), [1, 0]),
    ("twice", (5, 4), (2, 2), [0, 0]),
    ("copies of rows", (5, 3), (2, 2), ["R", 0]),
    ("rows, copied", (5, 3), (2, 2), [0, "R"]),
    ("last of three", (2, 3, 7), (2, 2), [2, "R"]),
    ("mesh of one column", (5, 3), (4, 1), [0, 0]),
]


def numbered(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Every element is different."""
    return torch.arange(prod(shape)).reshape(tuple(shape)).to(dtype)


def spread(full: torch.Tensor, mesh_shape: Sequence[int], placements: Sequence[Any]) -> DTensor:
    """A DTensor with the values of `full`, by torch's own code."""
    mesh = init_device_mesh("cpu", tuple(mesh_shape))
    kinds = [Replicate() if each == "R" else Shard(each) for each in placements]
    return distribute_tensor(full, mesh, kinds, src_data_rank=None)


def shards_of_layouts(rank: Rank) -> dict[str, Any]:
    """For each layout: the box of this rank, whether it is the first replica, and whether it has these elements."""
    found: dict[str, Any] = {}
    for name, shape, mesh_shape, placements in LAYOUTS:
        full = numbered(shape)
        tensor = spread(full, mesh_shape, placements)
        shard = local_shard(name, tensor)
        if shard is None:
            assert tensor.to_local().numel() == 0
            found[name] = None
            continue
        assert shard.full_shape == shape
        assert torch.equal(shard.local, full[shard.part.to_index()]), name
        if shard.local.numel():
            assert shard.local.data_ptr() == tensor.to_local().data_ptr()
        again = like_dtensor(tensor, shard.local.clone())
        assert (again.placements, again.shape, again.stride()) == (tensor.placements, tensor.shape, tensor.stride())
        found[name] = (str(shard.part), shard.is_first_replica, shard.local.numel())
    return found


class Blocks(nn.Module):
    """Two linear layers and a vector, of sizes that ranks do not divide evenly."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("steps", torch.tensor(7))
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.copy_(numbered(tensor.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(x + self.down(torch.relu(self.up(x))))
        return out


KINDS = ("fsdp", "hsdp", "tp", "tp and fsdp")


def sharded(kind: str, module: nn.Module, mesh_shape: Sequence[int] = (2, 2)) -> Any:
    """Spread a module over all ranks: over one dimension, or over a mesh of `mesh_shape`. It has `up` and `down`."""
    world_size = dist.get_world_size()
    if kind == "fsdp":
        return fully_shard(module, mesh=init_device_mesh("cpu", (world_size,)))
    plan: Any = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    if kind == "tp":
        return parallelize_module(module, init_device_mesh("cpu", (world_size,)), plan)
    mesh = init_device_mesh("cpu", tuple(mesh_shape), mesh_dim_names=("outer", "inner"))
    if kind == "hsdp":
        return fully_shard(module, mesh=mesh)
    assert kind == "tp and fsdp", kind
    parallelize_module(module, mesh["inner"], plan)
    return fully_shard(module, mesh=mesh["outer"])


def shards_of_modules(rank: Rank, kinds: Sequence[str], sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """As `shards_of_layouts`, for the parameters of `Blocks`, whose values tell which elements a rank really has."""
    found: dict[str, Any] = {}
    for kind in kinds:
        for width, inner in sizes:
            module = sharded(kind, Blocks(width, inner))
            for name, tensor in module.named_parameters():
                key = f"{kind} {width} x {inner}: {name}"
                if not isinstance(tensor, DTensor):
                    continue
                shard = local_shard(name, tensor)
                if shard is None:
                    found[key] = None
                    continue
                assert torch.equal(shard.local, numbered(tensor.shape)[shard.part.to_index()]), key
                found[key] = (str(shard.part), shard.is_first_replica, shard.local.numel())
    return found


def shards_of_a_column(rank: Rank, mesh_shape: Sequence[int], sizes: Sequence[int]) -> dict[str, Any]:
    """Weights with `sizes` rows, split by tensor parallelism and then by FSDP2."""
    found: dict[str, Any] = {}
    mesh = init_device_mesh("cpu", tuple(mesh_shape), mesh_dim_names=("outer", "inner"))
    for size in sizes:
        module: Any = nn.Sequential(nn.Linear(2, size))
        with torch.no_grad():
            module[0].weight.copy_(numbered((size, 2)))
        parallelize_module(module, mesh["inner"], {"0": ColwiseParallel()})
        fully_shard(module, mesh=mesh["outer"])
        tensor = module[0].weight
        assert isinstance(tensor, DTensor)
        shard = local_shard("weight", tensor)
        if shard is not None:
            assert torch.equal(shard.local, numbered((size, 2))[shard.part.to_index()]), size
        found[str(size)] = None if shard is None else (str(shard.part), shard.is_first_replica, shard.local.numel())
    return found


def refusals(rank: Rank) -> dict[str, str]:
    """What is refused, and how."""
    mesh = init_device_mesh("cpu", (2, 2))
    line = init_device_mesh("cpu", (4,))
    cases = {
        "sum": DTensor.from_local(torch.ones(3), line, [Partial()], run_check=False),
        "own sizes": DTensor.from_local(
            torch.ones(rank.rank + 1), line, [Shard(0)], run_check=False, shape=torch.Size([10]), stride=(1,)
        ),
        "interleaved": _interleaved(mesh),
        "of another library": _foreign(line),
    }
    messages = {}
    for name, tensor in cases.items():
        try:
            local_shard(name, tensor)
        except InvalidArgumentError as error:
            messages[name] = str(error)
    return messages


def unfinished(rank: Rank) -> bool:
    """A collective may still write the local tensor: it is waited for."""
    mesh = init_device_mesh("cpu", (rank.world_size,))
    full = numbered((4, 3))
    tensor = distribute_tensor(full, mesh, [Shard(0)], src_data_rank=None)
    shard = local_shard("x", tensor.redistribute(mesh, [Replicate()], async_op=True))
    assert shard is not None
    return type(shard.local) is torch.Tensor and torch.equal(shard.local, full)


class Wrapped(torch.Tensor):
    """A tensor whose values are in another one, as those of quantized tensors."""

    elements: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Wrapped":
        made: Wrapped = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.elements = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        inner = [each.elements if isinstance(each, Wrapped) else each for each in args]
        out = func(*inner, **(kwargs or {}))
        return Wrapped(out) if isinstance(out, torch.Tensor) else out


def wrapped(rank: Rank) -> str:
    """The local tensor is of a class that only its library can read."""
    mesh = init_device_mesh("cpu", (rank.world_size,))
    tensor = DTensor.from_local(Wrapped(torch.ones(2)), mesh, [Shard(0)], run_check=False)
    try:
        local_shard("w", tensor)
    except InvalidArgumentError as error:
        return str(error)
    return "not refused"


def _interleaved(mesh: Any) -> DTensor:
    """Rows 0, 2, 4, 6 and 1, 3, 5, 7, as a view of a split dimension may be."""
    from torch.distributed.tensor.placement_types import _StridedShard

    local = torch.ones(4)
    placements = [_StridedShard(0, split_factor=4), Replicate()]
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=torch.Size([8]), stride=(1,))


class Interleaved(Shard):
    """A placement of another library: a Shard by its class, but not by what the ranks have."""


def _foreign(mesh: Any) -> DTensor:
    local = torch.ones(2)
    return DTensor.from_local(local, mesh, [Interleaved(0)], run_check=False, shape=torch.Size([8]), stride=(1,))


def outside_of_the_mesh(rank: Rank) -> str | None:
    """Ranks 0 and 1 have a tensor, 2 and 3 do not."""
    from torch.distributed.device_mesh import DeviceMesh

    mesh = DeviceMesh("cpu", [0, 1])
    shard = local_shard("x", distribute_tensor(numbered((4, 2)), mesh, [Shard(0)], src_data_rank=None))
    return None if shard is None else str(shard.part)


def ready(rank: Rank) -> tuple[int, int, bool]:
    """Rank, world size, and whether there is a process group."""
    return rank.rank, rank.world_size, dist.is_initialized()


def counted_by_all(rank: Rank) -> int:
    """Add up over the store."""
    return rank.store.add("count", 1) and int(rank.rank)


def raise_on(rank: Rank, failing: int) -> int:
    """One rank raises."""
    if rank.rank == failing:
        raise InvalidArgumentError("this rank")
    return rank.rank


def die_on(rank: Rank, failing: int) -> int:
    """One rank ends without an answer."""
    if rank.rank == failing:
        os._exit(3)
    return rank.rank


def never_answer_on(rank: Rank, failing: int) -> int:
    """One rank waits for a key that nobody sets."""
    if rank.rank == failing:
        rank.store.wait(["never"])
    return rank.rank
